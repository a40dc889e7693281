"""A repository is served as it was written, by the code that is installed, or it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.cli.served import find_repository
from cirrus_client.errors import BundleError
from cirrus_client.files import sha256_of_file
from cirrus_client.names import Flavour, ModelCode
from cirrus_client.triton.repository import RECORD, assemble, read_repository
from cirrus_export.repository import write_repository
from tests.test_command_line import message_of, run

PYTHON = Path("triton") / "python"
Change = Callable[[Path], object]


@pytest.fixture
def copied(tiny_served, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_served.root, tmp_path / "bundle"))


def append(name: str) -> Change:
    def change(repository: Path) -> None:
        path = repository / name
        content = path.read_bytes()
        path.unlink()  # it may be a hard link
        path.write_bytes(content + b"\n# changed")

    return change


def link_out(repository: Path) -> None:
    path = repository / "tokenize" / "1" / "tokenizer.json"
    outside = repository.parents[2] / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize("flavour", [Flavour.PYTHON, Flavour.ONNXRUNTIME])
def test_no_folder_is_empty_since_object_stores_have_none(flavour, tiny_bundle, tmp_path) -> None:
    """Triton refuses an ensemble without its version's folder."""
    write_repository(tiny_bundle.root, tiny_bundle.spec, flavour, tmp_path / "repository")
    folders = [path for path in (tmp_path / "repository").rglob("*") if path.is_dir()]
    assert tmp_path / "repository" / "encode_query" / "1" in folders
    assert [folder for folder in folders if not any(folder.iterdir())] == []


CHANGES: dict[str, tuple[Change, str]] = {
    "code": (append("image_preprocess/1/model.py"), "image_preprocess/1/model.py is corrupted"),
    "configuration": (append("encode_query/config.pbtxt"), "encode_query/config.pbtxt is corrupted"),
    "warm-up": (append("image_preprocess/warmup/image"), "image_preprocess/warmup/image is corrupted"),
    "graph": (append("gallery/1/gallery.onnx"), "gallery/1/gallery.onnx is corrupted"),
    "link out": (link_out, "does not lie below it"),
    "new library": (
        lambda root: (root / "gallery" / "libtriton_evil.so").write_bytes(b"\x7fELF"),
        "gallery/libtriton_evil.so is not listed",
    ),
    "new model": (
        lambda root: shutil.copytree(root / "gallery", root / "more"),
        "more/.* is not listed",
    ),
    "no record": (lambda root: (root / RECORD).unlink(), f"it has no {RECORD}"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_repository_is_neither_verified_nor_served(copied, tmp_path, name: str) -> None:
    change, reason = CHANGES[name]
    change(copied / PYTHON)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BundleError, match=reason):
        assemble(find_repository(copied), tmp_path / "scratch")
    assert "BundleError" in message_of(run("verify", copied))


def test_verify_counts_the_files_of_the_repositories(copied) -> None:
    listed = len(read_repository(copied / PYTHON).files) + len(Bundle.open(copied).spec.files)
    assert f"whole ({listed} files" in run("verify", copied).stdout
    assert "whole" in run("verify", copied / PYTHON).stdout


def forge(repository: Path, name: str, content: bytes) -> None:
    """Change a file and its sha256 in the record, as somebody does who wants it to run."""
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    record = json.loads((repository / RECORD).read_text())
    record["files"][name] = sha256_of_file(path)
    (repository / RECORD).write_text(json.dumps(record))


def test_the_installed_code_is_served_and_not_the_copy(copied, tmp_path) -> None:
    forge(copied / PYTHON, "gallery/1/model.py", b"raise SystemExit('evil')")
    (tmp_path / "scratch").mkdir()
    assemble(copied / PYTHON, tmp_path / "scratch")
    for model, code in (("gallery", ModelCode.GRAPH_RUNNER), ("tokenize", ModelCode.TOKENIZE)):
        installed = files("cirrus_client.triton") / "models" / code / "model.py"
        assert (tmp_path / "scratch" / model / "1" / "model.py").read_text() == installed.read_text()


@pytest.mark.parametrize(
    "addition",
    [
        b'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/tmp/evil.tar.gz" } }',
        b'runtime: "evil.py"',
        b'default_model_filename: "evil.py"',
        b'model_repository_agents { agents { name: "evil" } }',
        b'model_operations { op_library_filename: "evil.so" }',
        b'platform: "tensorrt_plan"  backend: "evil"',
        b"no protobuf {",
    ],
)
def test_a_configuration_that_loads_more_than_data_is_refused(copied, tmp_path, addition: bytes) -> None:
    config = (copied / PYTHON / "gallery" / "config.pbtxt").read_bytes()
    forge(copied / PYTHON, "gallery/config.pbtxt", config + addition)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BundleError, match=r"gallery/config\.pbtxt: "):
        assemble(copied / PYTHON, tmp_path / "scratch")


def test_a_model_without_installed_code_is_refused(copied, tmp_path) -> None:
    forge(copied / PYTHON, "evil/1/model.py", b"raise SystemExit('evil')")
    forge(copied / PYTHON, "evil/config.pbtxt", b'name: "evil" backend: "python"')
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BundleError, match="more than Cirrus's own models"):
        assemble(copied / PYTHON, tmp_path / "scratch")


@pytest.mark.parametrize(
    "name",
    [
        "tokenize/2/model.py",
        "tokenize/2/tokenizer.json",
        "tokenize/1.py",
        "tokenize/1/__init__.py",
        "tokenize/1/__pycache__/model.cpython-311.pyc",
        "tokenize/1/openvino.abi3.so",
        "tokenize/warmup/__init__.py",
        "tokenize/triton_python_backend_stub",
        "tokenize/configs/other.pbtxt",
        "encode_query/1/model.py",
        "loose.json",
    ],
)
def test_a_file_that_triton_or_python_would_run_is_refused(copied, tmp_path, name: str) -> None:
    forge(copied / PYTHON, name, b"evil")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BundleError, match=f"{name} is not data of Cirrus's own models"):
        assemble(copied / PYTHON, tmp_path / "scratch")


def test_a_bundle_that_failed_its_gate_is_refused_though_it_holds_a_repository(copied) -> None:
    contract = json.loads((copied / "bundle.json").read_text())
    contract["fidelity"] = {"passed": False, "failures": ["too far off"]}
    (copied / "bundle.json").write_text(json.dumps(contract))
    (copied / "anything").mkdir()
    (copied / "anything" / "config.pbtxt").write_text('name: "anything"')
    assert "failed its fidelity gate" in message_of(run("serve", copied))


def test_a_folder_with_a_configuration_alone_is_refused(tmp_path) -> None:
    (tmp_path / "anything").mkdir()
    (tmp_path / "anything" / "config.pbtxt").write_text('name: "anything"')
    assert f"has no {RECORD}" in message_of(run("serve", tmp_path))


def test_a_repository_for_the_container_is_not_served_here(tiny_served, tmp_path) -> None:
    write_repository(tiny_served.root, tiny_served.spec, Flavour.ONNXRUNTIME, tmp_path / "models")
    assert "onnxruntime flavour, which NVIDIA's container serves" in message_of(run("serve", tmp_path / "models"))
