"""The command line as a person uses it, in processes of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import read_gallery
from cirrus_client.triton.server import free_ports
from tests.test_command_line import run

CIRRUS = [sys.executable, "-c", "from cirrus_client.cli import main; main()"]


def cirrus(*arguments: object, fails: bool = False) -> str:
    done = subprocess.run([*CIRRUS, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def index_root(bundle, photos, tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    assert "60 images embedded" in cirrus("embed", photos, "--bundle", bundle.root, "--out", root / "gallery")
    assert "60 images" in cirrus("index", root / "gallery", "--out", root / "index")
    return root / "index"


def test_search_prints_a_ranking_and_draws_a_sheet(bundle, photos, index_root, tmp_path) -> None:
    photo = sorted(photos.iterdir())[3]
    search = ("search", photo, "make it blue", "--bundle", bundle.root, "--index", index_root, "-k", 5)
    rows = json.loads(cirrus(*search, "--json", "--sheet", tmp_path / "sheet.png"))
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert Image.open(tmp_path / "sheet.png").size[0] > 1000
    assert "score" in cirrus(*search)


def test_an_error_is_one_line_that_names_the_input(bundle, index_root, tmp_path) -> None:
    (tmp_path / "note.jpg").write_text("not a picture at all")
    message = cirrus(
        "search", tmp_path / "note.jpg", "in red", "--bundle", bundle.root, "--index", index_root, fails=True
    )
    assert "InvalidImage: query 0: the bytes are not an image" in message
    assert "Traceback" not in message


@pytest.fixture(scope="module")
def new_head(weights, tmp_path_factory):
    """The demo's head with another balance of image and text in its UNION."""
    state = load_file(weights.head)
    changed = {key: -tensor if key.startswith("union_weighted_layer") else tensor for key, tensor in state.items()}
    path = tmp_path_factory.mktemp("heads") / "new.safetensors"
    save_file(changed, path)
    return path


@pytest.fixture(scope="module")
def swapped(bundle, photos, new_head, tmp_path_factory):
    """A folder with a gallery of the demo's head, `old`, and one of the new head from its cached features, `new`."""
    root = tmp_path_factory.mktemp("swap")
    embed = ("embed", photos, "--bundle", bundle.root, "--cache", root / "features", "--out")
    cirrus(*embed, root / "old")
    # In this process, where conversions of the same graphs are shared.
    done = run(*embed, root / "new", "--head", new_head)
    assert done.exit_code == 0, done.output
    assert "search it with --bundle" in done.output
    return root


def test_a_new_head_over_cached_features_in_one_command(bundle, photos, swapped, tmp_path) -> None:
    made = Bundle.open(swapped / "new" / "bundle")
    old, new = (read_gallery(swapped / name) for name in ("old", "new"))
    assert new.space == made.spec.space != old.space
    direct = LocalEncoder(made).encode_targets([photos / path for path in new.paths])
    assert (new.embeddings * direct).sum(axis=1).min() > 0.99999
    assert (new.embeddings * old.embeddings).sum(axis=1).max() < 0.9999
    cirrus("index", swapped / "new", "--out", tmp_path / "index")
    search = ("search", photos / new.paths[0], "in blue", "--index", tmp_path / "index")
    cirrus(*search, "--bundle", made.root)
    assert "SpaceMismatch" in cirrus(*search, "--bundle", bundle.root, fails=True)


def test_a_job_with_a_new_head_resumes_and_takes_no_other_head(bundle, photos, swapped, new_head, weights) -> None:
    embed = ("embed", photos, "--bundle", bundle.root, "--out", swapped / "new", "--head")
    contract = swapped / "new" / "bundle" / "bundle.json"
    exported = contract.stat()
    assert "0 files dealt with" in cirrus(*embed, new_head)
    assert contract.stat() == exported
    assert "is not of" in cirrus(*embed, weights.head, fails=True)
    assert "there is no such file" in cirrus(*embed, "gone.pt", fails=True)


def test_a_new_head_spares_a_gallery_that_has_none(bundle, photos, new_head, index_root) -> None:
    gallery = index_root.parent / "gallery"
    embed = ("embed", photos, "--bundle", bundle.root, "--out", gallery, "--head", new_head)
    assert "was embedded without --head" in cirrus(*embed, fails=True)
    assert not (gallery / "bundle").exists()


def test_verify_and_doctor(bundle) -> None:
    assert "fidelity gate passed" in cirrus("verify", bundle.root)
    assert "ONNX Runtime" in cirrus("doctor")


@pytest.mark.triton
def test_serve_answers_searches_and_stops_on_sigterm(bundle, photos, index_root) -> None:
    http, grpc, metrics = free_ports(3)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics)
    command = [*CIRRUS, "serve", str(bundle.root), *map(str, ports)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert "is served" in server.stdout.readline()
    photo = sorted(photos.iterdir())[3]
    search = ("search", photo, "in blue", "--index", index_root, "--json")
    through_grpc = json.loads(cirrus(*search, "--server", f"127.0.0.1:{grpc}"))
    through_http = json.loads(cirrus(*search, "--server", f"127.0.0.1:{http}", "--protocol", "http"))
    local = json.loads(cirrus(*search, "--bundle", bundle.root))
    names = [[row["image"] for row in rows] for rows in (local, through_grpc, through_http)]
    assert names[0] == names[1] == names[2]
    server.send_signal(signal.SIGTERM)
    assert server.wait(timeout=300) == 0
    deadline = time.monotonic() + 300
    while _listening(grpc):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
