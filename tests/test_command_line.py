"""What every command has in common: how it prints, how it fails, how it is interrupted."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from cirrus_client.cli.app import app
from cirrus_client.triton.server import free_ports
from tests.test_optional_packages import run_without

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CIRRUS = [sys.executable, "-c", "from cirrus_client.cli import main; main()"]


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner(env={"COLUMNS": "250"}).invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["embed", "index", "search", "serve", "verify"])
def test_an_options_environment_variable_has_its_name(name: str) -> None:
    command = get_command(app).get_command(None, name)
    odd = {
        parameter.name
        for parameter in command.params
        if (longs := [option[2:].replace("-", "_") for option in parameter.opts if option.startswith("--")])
        and parameter.name not in longs
    }
    assert odd <= {"as_json"}, "CIRRUS_SEARCH_AS_JSON is for --json"


def run_alone(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [*CIRRUS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def run_lacking(packages: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process in which these packages are not installed."""
    script = f"import sys; sys.argv[1:] = {list(arguments)!r}; from cirrus_client.cli import main; main()"
    return run_without(packages, script)


def message_of(result: Result) -> str:
    """The message of a command that failed as it should: without a traceback, and with exit code 1."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def message_alone(done: subprocess.CompletedProcess[str]) -> str:
    """The same of a command that ran in a process of its own."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def images(pictures, tmp_path_factory) -> Path:
    """Two pictures, one of them under a name that reads like markup."""
    folder = tmp_path_factory.mktemp("images") / ("long-" * 30)
    folder.mkdir()
    first, second = sorted(pictures.iterdir())[:2]
    (folder / "shirt[blue].jpg").write_bytes(first.read_bytes())
    (folder / "plain.jpg").write_bytes(second.read_bytes())
    return folder


@pytest.fixture(scope="module")
def index(tiny_bundle, images, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("index")
    embedded = run("--quiet", "embed", images, "--bundle", tiny_bundle.root, "--out", root / "gallery")
    assert embedded.exit_code == 0, embedded.stderr
    assert run("index", root / "gallery", "--out", root / "index").exit_code == 0
    return root / "index"


def test_metadata_of_some_images_is_told_with_their_number(index, tmp_path) -> None:
    pq.write_table(pa.table({"file": ["plain.jpg", "gone.jpg"], "price": [1, 2]}), tmp_path / "products.parquet")
    build = ("index", index.parent / "gallery", "--out", tmp_path / "index", "--key", "file")
    said = run(*build, "--metadata", tmp_path / "products.parquet")
    assert said.exit_code == 0
    assert "metadata: 1 of 2 images have a row" in said.output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--memory", "8GiB"], "--plan"),
        (["--key", "file"], "--metadata"),
        (["--bundle", "union"], "--bundle: it is for what encodes --queries"),
        (["--server", "here:8001", "--name", "union"], "--server: it is for what encodes --queries"),
        (["--trust-plans"], "--trust-plans: it is for what encodes --queries"),
        (["--update", "--backend", "milvus"], "was built by faiss and not by milvus: leave out --backend"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(index, given: list[str], message: str, tmp_path) -> None:
    shutil.copytree(index, tmp_path / "index")
    refused = run("index", index.parent / "gallery", "--out", tmp_path / "index", *given)
    assert refused.exit_code in (1, 2)
    assert message in refused.stderr


def test_an_index_in_milvus_is_built_searched_and_replaced(tiny_bundle, index, search, tmp_path) -> None:
    pytest.importorskip("milvus_lite", reason="Milvus is not installed (pip install 'cirrus-cir[milvus-lite]')")
    place = ("--backend", "milvus", "--uri", tmp_path / "milvus.db", "--collection", "pictures")
    build = ("index", index.parent / "gallery", "--out", tmp_path / "index", *place)
    for _ in range(2):
        done = run_alone(*build)
        assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout
    expected = json.loads(run(*search, "--json").stdout)  # the first search says which engine it chose
    found = run_alone(*search[:-1], tmp_path / "index", "--json")
    assert [one["image"] for one in json.loads(found.stdout)] == [one["image"] for one in expected]
    assert found.stderr == ""
    refused = message_of(run("index", index.parent / "gallery", "--out", tmp_path / "other", *place[:2]))
    assert "--uri" in refused


@pytest.fixture(scope="module")
def search(tiny_bundle, images, index) -> list[object]:
    return ["search", images / "shirt[blue].jpg", "in red", "--bundle", tiny_bundle.root, "--index", index]


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("cirrus 0.")


def test_a_mistyped_verb_is_corrected() -> None:
    assert "Did you mean 'verify'?" in run("verfy").stderr


def test_a_path_in_a_table_is_whole_on_one_line(search, images) -> None:
    lines = run(*search).stdout.splitlines()
    assert lines[0].split() == ["rank", "score", "image"]
    assert lines[1].endswith(str(images / "shirt[blue].jpg"))
    assert len(lines) == 3


def test_names_and_errors_are_shown_and_not_obeyed(tiny_bundle, pictures, tmp_path) -> None:
    """Markup of rich, terminal escapes and line breaks in names, in every place where a command prints."""
    names = ["x[/b].jpg", "[red]y[blink].jpg", "clear\x1b[2J.jpg", "title\x1b]0;evil\x07.jpg", "two\nlines.jpg"]
    folder = tmp_path / "gal\x1b[31mlery[/]"
    folder.mkdir(parents=True)
    for name, picture in zip(names, sorted(pictures.iterdir()), strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "broken\x1b[5m.jpg").write_bytes(b"no image")
    out, index = tmp_path / "out\x1b[7m", tmp_path / "index\x9b[/]"
    search = ["search", folder / names[2], "in red", "--bundle", tiny_bundle.root, "--index", index]
    embedded = run_alone("-v", "embed", folder, "--bundle", tiny_bundle.root, "--out", out)
    assert embedded.returncode == 0, embedded.stderr
    printed = embedded.stdout + embedded.stderr.replace("\x1b[A", "")  # a progress bar goes up a line
    for command in (["index", out, "--out", index], search, [*search, "--json"]):
        done = run(*command)
        assert done.exit_code == 0, done.output
        printed += done.output
    assert not {"\x1b", "\x07", "\x9b"} & set(printed)
    for name in ("x[/b].jpg", "[red]y[blink].jpg", r"clear\x1b[2J.jpg", r"two\nlines", r"broken\x1b[5m.jpg"):
        assert name in printed
    wrong = message_alone(run_alone("verify", tmp_path / "no\x1b[31m[/]"))
    assert r"no\x1b[31m[/]" in wrong


def test_quiet_prints_results_alone_and_verbose_prints_more(tiny_bundle, images, tmp_path) -> None:
    embed = ("embed", images, "--bundle", tiny_bundle.root, "--engine", "onnxruntime", "--out")
    quiet = run_alone("--quiet", *embed, tmp_path / "quiet")
    assert quiet.stderr == ""
    assert "2 images embedded" in quiet.stdout
    assert "embedding: 100%" in run_alone(*embed, tmp_path / "loud").stderr
    assert "Traceback" in run_alone("--verbose", "verify", tmp_path).stderr
    assert run("-v", "-q", "verify", tmp_path).exit_code == 2


def test_no_command_draws_bars_unasked() -> None:
    """Those that --quiet is tried with above take long; a bar that nobody can turn off is found in the source."""
    sources = [path for part in ("client", "export", "bench") for path in (ROOT / part).rglob("*.py")]
    assert sources
    assert [str(path) for path in sources if "show_progress=True" in path.read_text()] == []


def test_a_sheet_of_an_unknown_format_is_refused_before_the_search(search, tmp_path) -> None:
    message = message_of(run(*search, "--sheet", tmp_path / "out.xyz"))
    assert "UnsupportedFormat" in message
    assert "'.xyz' names no image format that is supported; use one of .png, .jpg" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".pdf"])
def test_a_sheet_is_written_in_the_format_of_its_suffix(search, tmp_path, suffix) -> None:
    assert run(*search, "--sheet", tmp_path / f"sheet{suffix}").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"sheet{suffix}"]
    if suffix != ".pdf":
        assert Image.open(tmp_path / f"sheet{suffix}").width > 500


def verbs(tiny_bundle, images, index, search, out: Path) -> dict[str, list[object]]:
    """Commands that write to a path."""
    return {
        "embed": ["embed", images, "--bundle", tiny_bundle.root, "--out", out],
        "index": ["index", index.parent / "gallery", "--out", out],
        "search": [*search, "--sheet", out / "sheet.png"],
    }


@pytest.mark.parametrize("verb", ["embed", "index", "search"])
def test_a_path_that_cannot_be_written_is_a_message_with_the_path(
    tiny_bundle, images, index, search, tmp_path, verb
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", Path("/proc/out")):
        message = message_of(run(*verbs(tiny_bundle, images, index, search, out)[verb]))
        assert str(out.parent) in message


@pytest.mark.parametrize("verb", ["embed", "index", "search"])
def test_a_full_disk_is_a_message_with_the_path(tiny_bundle, images, index, search, tmp_path, verb) -> None:
    """A limit on the size of files stands for the full disk: the write fails in the kernel in the same way."""
    command = verbs(tiny_bundle, images, index, search, tmp_path / "out")[verb]
    limited = run_alone(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256)))
    message = message_alone(limited)
    assert str(tmp_path / "out") in message
    assert "File too large" in message


@pytest.mark.parametrize("address", ["http://127.0.0.1:8000", "https://here:8001", "127.0.0.1"])
def test_an_address_that_is_not_host_and_port_names_the_cure(index, images, address) -> None:
    for command in (["search", "-", "red", "--index", index], ["suggest", images / "plain.jpg", images / "plain.jpg"]):
        message = message_of(run(*command, "--server", address))
        assert address in message
        assert "host:port" in message
        assert "8001" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bundle", "B", "--server", "h:1"], "--bundle, --server: give exactly one of them"),
        (["--server", "h:1", "--cache", "c"], "--cache: it needs --bundle"),
        (["--server", "h:1", "--engine", "openvino"], "--engine: it needs --bundle"),
        (["--cache", "c"], "--cache: it needs --bundle as well"),
        (["--head", "h.pt"], "--head: it needs --bundle as well"),
        (["--bundle", "B", "--name", "n"], "--name: it chooses among the bundles of a --server"),
        (["--bundle", "B", "--transport", "http"], "--transport: it is how a --server is asked"),
        (["--server", "h:1", "--trust-plans"], "--trust-plans: it needs --bundle"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message) -> None:
    done = run("embed", tmp_path, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert f"Invalid value for {message}" in done.stderr


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("verify", ["--name", "union"], "--name: it chooses among the bundles of a --server"),
        ("verify", ["--transport", "http"], "--transport: it is how a --server is asked"),
        ("index", ["--queries", "q.npy", "--name", "union"], "--name: it chooses among the bundles of a --server"),
        ("index", ["--queries", "q.npy", "--transport", "http"], "--transport: it is how a --server is asked"),
        ("search", ["--index", "i", "--bundle", "b", "--root", "gone"], "--root: gone is no folder"),
    ],
)
def test_an_option_that_nothing_would_use_or_find_is_refused(verb, options, message, tiny_bundle) -> None:
    done = run(verb, tiny_bundle.root, *options)
    assert done.exit_code == 2
    assert f"Invalid value for {message}" in done.stderr


def test_a_search_prints_values_of_columns_as_the_service_answers_them(tiny_bundle, index, images, tmp_path) -> None:
    values = {
        "price": float("nan"),
        "thumb": b"\xff\xfe\xff",
        "since": datetime(2026, 5, 31, 12),
        "sizes": [1.5, math.inf],
    }
    columns = {name: [value] * 2 for name, value in values.items()}
    pq.write_table(pa.table({"image_path": sorted(os.listdir(images)), **columns}), tmp_path / "products.parquet")
    built = (
        "index",
        index.parent / "gallery",
        "--out",
        tmp_path / "index",
        "--metadata",
        tmp_path / "products.parquet",
    )
    assert run(*built).exit_code == 0
    asked = ("search", images / "plain.jpg", "--bundle", tiny_bundle.root, "--index", tmp_path / "index", "--json")
    (first, _) = json.loads(run(*asked).stdout, parse_constant=pytest.fail)
    assert first["metadata"] == {"price": None, "thumb": "//7/", "since": "2026-05-31T12:00:00", "sizes": [1.5, None]}


def test_what_a_search_service_has_itself_is_refused_by_its_name() -> None:
    done = run("search", "a.jpg", "--url", "http://127.0.0.1:1", "--root", "photos", "--transport", "http")
    assert done.exit_code == 2
    assert "Invalid value for --transport, --root: it is not for a search service" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--index", "i", "--warm"], "--warm: it needs --in-process"),
        (["--api-keys-file", "k", "--rate", "1"], "--api-keys-file, --rate: it is about searches: give --index"),
        (["--index", "i", "--trust-network"], "--trust-network: it is about Triton alone"),
        (["--index", "i", "--in-process", "--grpc-port", "9"], "--grpc-port: it is about the Triton server that is"),
        (["--grpc-port", "9", "--metrics-port", "9"], "--grpc-port, --metrics-port: 9 is given to each of them"),
        (["--index", "i", "--port", "8000"], "--port, --http-port: 8000 is given to each of them"),
        (["--index", "i", "--in-process", "--root", "gone"], "--root: gone is no folder, and no prefix of URLs"),
    ],
)
def test_an_option_of_serve_that_would_do_nothing_is_refused(options: list[str], message: str) -> None:
    done = run("serve", "bundle", *options)
    assert done.exit_code == 2
    assert f"Invalid value for {message}" in done.stderr


def test_a_reader_that_ends_early_ends_a_command_in_silence(search) -> None:
    with subprocess.Popen([*CIRRUS, *map(str, search)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert "rror" not in process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGPIPE


def test_letters_that_stdout_cannot_say_are_escapes(tiny_bundle, images, tmp_path) -> None:
    embed = ("--quiet", "embed", images, "--bundle", tiny_bundle.root, "--out", tmp_path / "日")
    done = run_alone(*embed, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert r"\u65e5: 2 images embedded" in done.stdout


def test_results_are_never_lost_in_a_closed_stdout(search) -> None:
    shell = ["sh", "-c", '"$@" >&-', "sh", *CIRRUS]
    for arguments in (search, ["--version"]):
        done = subprocess.run([*shell, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert "stdout is closed" in message_alone(done)


def test_what_a_library_prints_gets_into_no_file_where_streams_are_closed(tmp_path) -> None:
    """The first files that are opened get the numbers of closed streams, and what C code prints to those."""
    script = f"""
import os
from cirrus_client.cli.streams import check_streams
check_streams()
with open({str(tmp_path / "first")!r}, "w"), open({str(tmp_path / "second")!r}, "w"):
    os.write(2, b"noise")
"""
    subprocess.run(["sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-c", script], check=True)
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() == ""


def test_output_that_does_not_fit_is_a_message() -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["--help"], ["--version"], ["search", "--help"]):
            done = subprocess.run([*CIRRUS, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert message_alone(done) == "cirrus: No space left on device"


def test_ctrl_c_says_that_the_same_command_resumes(tiny_bundle, pictures, tmp_path) -> None:
    out, many = tmp_path / "out", tmp_path / "many"
    many.mkdir()
    for copy in range(10):  # enough that the job is still running when the signal arrives, also on a loaded machine
        for picture in pictures.iterdir():
            (many / f"{copy}-{picture.name}").symlink_to(picture)
    embed = ["embed", many, "--bundle", tiny_bundle.root, "--shard-size", 1, "--out", out]
    job = subprocess.Popen([*CIRRUS, *map(str, embed)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("metadata/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, messages = job.communicate(timeout=60)
    assert job.returncode == 130, messages
    assert messages.splitlines()[-1] == "cirrus: interrupted; the same command resumes where this one stopped"
    assert "600 images embedded" in run(*embed).stdout


def test_a_signal_does_not_wait_for_a_server_that_is_silent(tiny_bundle, tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "urls.txt").write_text(f"http://127.0.0.1:{silent.getsockname()[1]}/a.jpg")
        embed = ["embed", tmp_path / "urls.txt", "--bundle", tiny_bundle.root, "--out", tmp_path / "out"]
        job = subprocess.Popen([*CIRRUS, *map(str, embed)], stderr=subprocess.PIPE, text=True)
        connection, _ = silent.accept()
        with connection:
            job.send_signal(signal.SIGTERM)
            _, messages = job.communicate(timeout=60)
    assert job.returncode == 128 + signal.SIGTERM
    assert messages.splitlines()[-1].startswith("cirrus: ended by SIGTERM")


@pytest.mark.parametrize("verb", [["export", "--recipe", "clip", "--backbone", "ViT-B-32", "--out", "o"], ["recipes"]])
def test_a_verb_whose_package_is_missing_names_the_extra(verb) -> None:
    done = run_lacking({"torch"}, *verb)
    assert message_alone(done) == f"cirrus {verb[0]} needs torch: pip install 'cirrus-cir[export]'"


def test_a_server_without_an_engine_for_its_graphs_is_not_started(tiny_bundle) -> None:
    pytest.importorskip("pytriton")
    done = run_lacking({"onnxruntime"}, "serve", str(tiny_bundle.root))
    assert "cirrus serve needs onnxruntime: pip install 'cirrus-cir[cpu]'" in message_alone(done)


def test_help_lists_every_verb_though_some_cannot_start() -> None:
    done = run_lacking({"torch", "onnxruntime", "faiss", "pyarrow", "matplotlib"}, "--help")
    assert done.returncode == 0, done.stderr
    for verb in ("embed", "search", "doctor", "export", "bench"):
        assert verb in done.stdout


def test_a_verb_that_is_defined_twice_is_refused_and_the_others_are_not(monkeypatch) -> None:
    from importlib.metadata import EntryPoint

    from cirrus_client.cli.verbs import Verbs
    from cirrus_client.errors import PluginError

    verbs = Verbs(
        [
            EntryPoint("verify", "cirrus_client.cli.verify:verify", "cirrus.commands"),
            EntryPoint("doctor", "cirrus_client.cli.doctor:doctor", "cirrus.commands"),
            EntryPoint("verify", "elsewhere:verify", "cirrus.commands"),
        ]
    )
    assert list(verbs) == ["verify", "doctor"]
    assert verbs["doctor"].help.startswith("Print what is installed")
    with pytest.raises(PluginError, match=r"'verify' is defined more than once: .*elsewhere:verify"):
        verbs["verify"].callback()


def test_nobody_at_the_address_is_an_error_with_the_ports(tiny_bundle, index, images) -> None:
    (port,) = free_ports(1)
    done = run("search", images / "plain.jpg", "in red", "--index", index, "--server", f"127.0.0.1:{port}")
    held = run("verify", tiny_bundle.root, "--server", f"127.0.0.1:{port}")
    for message in (message_of(done), message_of(held)):
        assert f"ServerUnavailable: the server at 127.0.0.1:{port} is not available" in message
        assert "8001" in message
    assert held.stdout == ""


def test_a_web_server_that_is_no_triton_is_an_error_with_the_ports(index, images, tmp_path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{web.server_port}"
        search = ("search", images / "plain.jpg", "in red", "--index", index, "--transport", "http")
        (tmp_path / "v2" / "models" / "encode_target").mkdir(parents=True)
        (tmp_path / "v2" / "models" / "encode_target" / "config").write_text("<html>")
        message = message_of(run(*search, "--server", address))
        web.shutdown()
    assert f"the server at {address} does not answer as Triton does; check host and port" in message
    assert "8000" in message


def test_a_batch_that_no_memory_holds_is_refused(images, tiny_bundle, tmp_path) -> None:
    done = run("embed", images, "--bundle", tiny_bundle.root, "--out", tmp_path / "out", "--batch-size", "100000")
    assert done.exit_code == 2
    assert "--batch-size" in done.stderr
    assert "1024" in done.stderr


def test_what_is_no_bundle_is_told_before_what_this_machine_lacks(tmp_path) -> None:
    (tmp_path / "gallery.json").touch()
    assert "nothere: there is no such folder; `cirrus export` makes a bundle" in message_of(
        run("compile", tmp_path / "nothere")
    )
    assert "is not a bundle but a gallery: it has no bundle.json" in message_of(run("compile", tmp_path))
    assert "is not a model repository but a gallery" in message_of(run("serve", tmp_path))


def test_embed_takes_tars_and_says_what_it_found(images, tiny_bundle, tmp_path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(images.iterdir()):
            tar.add(path, path.name)
            tar.add(path, f"again-{path.name}")
        tar.add(__file__, "code.py")
        tar.add(__file__, "code.jpg")
    done = run("embed", tmp_path / "{0..0}.tar", "--bundle", tiny_bundle.root, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "4 images embedded" in done.stdout
    assert "2 of them have the bytes of another image, and its embedding" in done.stdout
    assert "1 file was rejected as no usable image:\n  0.tar/code.jpg: " in done.stdout
    assert "0.tar/code.py: it does not begin as an image does" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bundle", "b", "--ray-cores", "2"], "it needs --ray"),
        (["--server", "localhost:1", "--ray", "auto"], "it needs --bundle"),
        (["--bundle", "b", "--id-column", "id"], "has no columns"),
    ],
)
def test_embed_refuses_options_that_do_not_go_together(options, message, images, tiny_bundle, tmp_path) -> None:
    given = [tiny_bundle.root if option == "b" else option for option in options]
    done = run("embed", images, "--out", tmp_path / "out", *given)
    assert done.exit_code != 0
    assert message in done.output
