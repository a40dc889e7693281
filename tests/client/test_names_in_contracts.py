"""Whatever a contract names lies below it, is listed with its sha256, and is a plain file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.errors import BundleError
from cirrus_client.external_data import external_files
from cirrus_client.files import check_files, sha256_of_file
from cirrus_client.plans import plan_file, read_plans

GRAPH = "graphs/gallery.onnx"


@pytest.fixture
def copied(tiny_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "bundle"))


def change(root: Path, place: tuple[str, ...], value: Any) -> None:
    """Set one value of a contract. place: the keys that lead to it."""
    contract = json.loads((root / "bundle.json").read_text())
    inner = contract
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (root / "bundle.json").write_text(json.dumps(contract))


PATHS_OUT = ["../gallery.onnx", "/etc/hostname", "graphs/../../x", "graphs//gallery.onnx", "", "a\0b"]
PATHS = {"graph": ("graphs", "gallery", "file"), "tokenizer": ("tokenizer", "file"), "files": ("files", None)}


@pytest.mark.parametrize("name", PATHS_OUT)
@pytest.mark.parametrize("place", PATHS.values(), ids=PATHS)
def test_a_path_that_leaves_the_bundle_is_refused_unread(copied, place, name) -> None:
    if place[-1] is None:
        change(copied, ("files", name), "0" * 64)
    else:
        change(copied, place, name)
    with pytest.raises(BundleError, match="relative path without"):
        Bundle.open(copied)


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "..", ".", "", "a\0b"])
def test_a_bundle_is_named_like_one_folder(copied, name) -> None:
    change(copied, ("name",), name)
    with pytest.raises(BundleError, match=r"field 'name': .*one file or folder"):
        Bundle.open(copied)


@pytest.mark.parametrize("place", [("graphs", "gallery", "file"), ("tokenizer", "file")], ids=["graph", "tokenizer"])
def test_a_file_that_is_used_and_not_listed_is_refused(copied, place) -> None:
    shutil.copyfile(copied / GRAPH, copied / "other")
    change(copied, place, "other")
    with pytest.raises(BundleError, match="other is used and not listed in 'files'"):
        Bundle.open(copied)


def test_an_ensemble_runs_only_graphs_of_its_bundle(copied) -> None:
    ensembles = json.loads((copied / "bundle.json").read_text())["ensembles"]
    ensembles["encode_target"]["steps"][-1]["model"] = "elsewhere"
    change(copied, ("ensembles",), ensembles)
    with pytest.raises(BundleError, match="elsewhere, which is no graph of this bundle"):
        Bundle.open(copied)


def make_link_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def make_link_to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (make_link_out, "does not lie below it"),
        (make_link_to_device, "does not lie below it"),
        (make_pipe, "is not a plain file"),
        (make_folder, "is not a plain file"),
    ],
)
def test_a_file_is_a_plain_file_of_the_bundle(copied, replace, reason) -> None:
    replace(copied / GRAPH)
    with pytest.raises(BundleError, match=f"{GRAPH} {reason}"):
        Bundle.open(copied)


def test_a_name_that_leaves_its_folder_is_refused_without_a_digest_of_it(tmp_path) -> None:
    digest = sha256_of_file(Path("/etc/passwd"))
    with pytest.raises(BundleError, match="does not lie below it") as refused:
        check_files(tmp_path, {"/etc/passwd": "0" * 64}, what="bundle", raises=BundleError, way_out="-")
    assert digest[:16] not in str(refused.value)


def with_external_weights(path: Path, location: str) -> None:
    """Move a graph's weights to a file beside it, and give that file another name in the graph."""
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["weights.bin", "../../weights.bin", "/etc/hostname"])
def test_weights_outside_the_graphs_file_are_listed_or_refused(copied, location) -> None:
    with_external_weights(copied / GRAPH, location)
    change(copied, ("files", GRAPH), sha256_of_file(copied / GRAPH))
    with pytest.raises(BundleError, match=f"{GRAPH} loads its weights from {location}, which is not listed"):
        Bundle.open(copied)
    if location == "weights.bin":
        change(copied, ("files", "graphs/weights.bin"), sha256_of_file(copied / "graphs" / "weights.bin"))
        Bundle.open(copied)


def test_external_files_are_found_wherever_onnx_allows_a_tensor(tmp_path) -> None:
    def tensor(location: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=location, data_type=onnx.TensorProto.FLOAT, dims=[1])
        made.data_location = onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value=location)
        made.external_data.add(key="offset", value="0")
        return made

    inner = onnx.GraphProto(name="inner", initializer=[tensor("inner")])
    node = onnx.NodeProto(
        op_type="If",
        attribute=[
            onnx.AttributeProto(name="g", g=inner),
            onnx.AttributeProto(name="t", t=tensor("attribute")),
            onnx.AttributeProto(name="ts", tensors=[tensor("attributes")]),
        ],
    )
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"))
    graph = onnx.GraphProto(node=[node], initializer=[tensor("initializer")], sparse_initializer=[sparse])
    model = onnx.ModelProto(ir_version=10, graph=graph, functions=[onnx.FunctionProto(name="f", node=[node])])
    model.training_info.add(initialization=onnx.GraphProto(initializer=[tensor("training")]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert external_files(tmp_path / "model.onnx") == {
        "inner", "attribute", "attributes", "values", "indices", "initializer", "training",
    }  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 40, b"\x3a\xff\x01"])
def test_a_graph_that_is_no_onnx_file_is_refused_by_name(copied, content) -> None:
    (copied / GRAPH).write_bytes(content)
    change(copied, ("files", GRAPH), sha256_of_file(copied / GRAPH))
    with pytest.raises(BundleError, match=f"{GRAPH}: it is"):
        Bundle.open(copied)


@pytest.mark.parametrize("name", ["../x.plan", "/etc/hostname"])
def test_a_plan_lies_in_its_bundle(copied, name) -> None:
    plan = {
        "file": name,
        "sha256": "0" * 64,
        "graph_sha256": "0" * 64,
        "batch": {"smallest": 1, "tuned": 1, "largest": 1},
        "attention": {"fusion": "none", "attentions": 0, "fused_layers": 0, "evidence": []},
        "cosine_min": 1.0,
    }
    record = {"tensorrt": "11", "gpu": "", "compute_capabilities": ["9.0"], "version_compatible": False}
    (copied / "engines").mkdir()
    (copied / "engines" / "plans.json").write_text(
        json.dumps(record | {"hardware_compatible": False, "plans": {"gallery": plan}})
    )
    bundle = Bundle.open(copied)
    with pytest.raises(BundleError, match="relative path without"):
        plan_file(bundle, read_plans(bundle.root), "gallery")
