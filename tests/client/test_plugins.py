"""Index backends and engines from outside the tree are found by name, as `module:Class` or `FILE.py:Class`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import MissingPackage, PluginError
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index, open_index
from cirrus_client.plugins import find_plugin
from cirrus_client.retriever import open_retriever

PACKAGE = '''
"""An index backend in plain numpy, and an engine that is ONNX Runtime under another name."""

import numpy as np

from cirrus_client.engines.onnx_runtime import OnnxRuntimeKind
from cirrus_client.gallery import FolderSource
from cirrus_client.index import Hits, IndexBackend


class Numpy:
    def __init__(self, space, vectors):
        self.space, self.vectors = space, vectors

    def __len__(self):
        return len(self.vectors)

    def search(self, queries, k):
        scores = queries @ self.vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Hits(rows, np.take_along_axis(scores, rows, axis=1))


class NumpyBackend(IndexBackend):
    def build(self, gallery, root, options):
        np.save(root / "vectors.npy", gallery.embeddings)
        return None

    def open(self, root, space, kind, storage):
        return Numpy(space, np.load(root / "vectors.npy"))


class OtherName(OnnxRuntimeKind):
    def runs(self, precision):
        return False


def open_mine(location, columns):
    return FolderSource(location.removeprefix("mine://").removesuffix(".mine"))
'''
ENTRY_POINTS = """
[cirrus.indexes]
plain = plain_numpy:NumpyBackend
{more}
[cirrus.engines]
other = plain_numpy:OtherName
[cirrus.sources]
mine = plain_numpy:open_mine
.mine = plain_numpy:open_mine
"""


def install(folder: Path, more: str = "") -> Path:
    """Lay an installed package into a folder: its module, and the metadata that pip would write."""
    folder.mkdir()
    (folder / "plain_numpy.py").write_text(PACKAGE)
    metadata = folder / "plain_numpy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-numpy\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS.format(more=more))
    return folder


@pytest.fixture
def gallery_root(bundle: Bundle, photos: Path, tmp_path: Path) -> Path:
    embed_gallery(photos, tmp_path / "gallery", LocalEncoder(bundle))
    return tmp_path / "gallery"


@pytest.mark.parametrize("backend", ["plain", "plain_numpy:NumpyBackend", "site/plain_numpy.py:NumpyBackend"])
def test_an_outside_index_backend_answers_as_faiss_does(
    bundle: Bundle, photos: Path, gallery_root: Path, tmp_path: Path, monkeypatch, backend: str
) -> None:
    folder = install(tmp_path / "site")
    if ".py" in backend:
        monkeypatch.chdir(tmp_path)
    else:
        monkeypatch.syspath_prepend(folder)
    gallery = read_gallery(gallery_root)
    build_index(gallery, tmp_path / "plain", backend=backend)
    build_index(gallery, tmp_path / "faiss")
    assert json.loads((tmp_path / "plain" / "index.json").read_text())["backend"] == backend
    image = sorted(photos.iterdir())[3]
    answers = [
        open_retriever(LocalEncoder(bundle), tmp_path / name, backend=its).search(image=image, text="in blue", k=7)
        for name, its in (("plain", backend), ("faiss", None))
    ]
    assert [match.id for match in answers[0]] == [match.id for match in answers[1]]


@pytest.mark.slow
def test_the_command_line_uses_an_outside_backend_and_engine(
    bundle: Bundle, photos: Path, gallery_root: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(install(tmp_path / "site")), *sys.path])}

    def cirrus(*arguments: object) -> str:
        command = [sys.executable, "-m", "cirrus_client.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    cirrus("embed", photos, "--bundle", bundle.root, "--out", tmp_path / "other", "--engine", "other")
    np.testing.assert_allclose(
        read_gallery(tmp_path / "other").embeddings, read_gallery(gallery_root).embeddings, atol=1e-5
    )
    cirrus("index", gallery_root, "--out", tmp_path / "index", "--backend", "plain")
    image = sorted(photos.iterdir())[3]
    rows = json.loads(cirrus("search", image, "--bundle", bundle.root, "--index", tmp_path / "index", "--json"))
    assert len(rows) == 10


@pytest.mark.parametrize("location", ["mine://{photos}", "{photos}.mine"])
def test_an_outside_source_is_found_by_its_scheme_or_suffix(location, photos, encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    assert embed_gallery(location.format(photos=photos), tmp_path / "out", encoder).embedded == 60


def test_a_name_that_is_taken_twice_is_refused(tmp_path: Path, gallery_root: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site", more="faiss = plain_numpy:NumpyBackend"))
    with pytest.raises(PluginError, match=r"'faiss' is defined twice: .*plain_numpy:NumpyBackend") as refused:
        build_index(read_gallery(gallery_root), tmp_path / "index")
    assert refused.value.name == "faiss"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "there is no index backend 'nothing'; there are: faiss"),
        ("no_such_module:Backend", "no_such_module:Backend can't be imported"),
        ("json:Backend", "json:Backend can't be imported: module 'json' has no attribute 'Backend'"),
        ("json:JSONDecoder", "not a subclass of cirrus_client.index.IndexBackend"),
    ],
)
def test_what_is_no_backend_is_refused_before_work_begins(
    tmp_path: Path, gallery_root: Path, name: str, reason: str
) -> None:
    with pytest.raises(PluginError, match=reason):
        build_index(read_gallery(gallery_root), tmp_path / "index", backend=name)
    assert not (tmp_path / "index").exists()


def test_an_index_of_a_backend_that_is_gone_names_it(tmp_path: Path, gallery_root: Path, monkeypatch) -> None:
    with monkeypatch.context() as installed:
        installed.syspath_prepend(install(tmp_path / "site"))
        build_index(read_gallery(gallery_root), tmp_path / "index", backend="plain")
    with pytest.raises(PluginError, match="no index backend 'plain'"):
        open_index(tmp_path / "index")


def test_a_plugin_that_lacks_a_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "plain_missing", raising=False)
    with pytest.raises(MissingPackage, match=r"cirrus-cir\[search\]"):
        find_plugin("tests.client.needs_faiss:Backend", what="index backend", table={}, group="cirrus.indexes")
