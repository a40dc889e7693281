"""A bundle is whole and passed, or it is refused with the file and the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import PROBE_QUERIES, Bundle, Similarity, SpaceSpec
from cirrus_client.errors import BundleError
from cirrus_client.files import sha256_of_file
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory
from tests.tiny import write_tiny_bundle, write_tiny_zero_shot_bundle


@pytest.fixture
def copied(bundle, tmp_path):
    shutil.copytree(bundle.root, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_flipped_bit_names_the_file(copied) -> None:
    path = copied / "graphs" / "query_head.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"graphs/query_head\.onnx is corrupted"):
        Bundle.open(copied)


def test_a_missing_file_names_it(copied) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Bundle.open(copied)


def test_a_broken_contract_names_the_field(copied) -> None:
    contract = json.loads((copied / "bundle.json").read_text())
    contract["max_batch"] = "many"
    (copied / "bundle.json").write_text(json.dumps(contract))
    with pytest.raises(BundleError, match="max_batch"):
        Bundle.open(copied)


def test_a_folder_that_is_no_bundle_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(BundleError, match="cirrus export"):
        Bundle.open(tmp_path)


def test_graphs_of_two_exports_do_not_mix(tmp_path: Path) -> None:
    with replaced_directory(tmp_path / "bundle", Writer.EXPORT) as root:
        shutil.copytree(write_tiny_bundle(tmp_path / "first" / "bundle").root, root, dirs_exist_ok=True)
    opened = Bundle.open(tmp_path / "bundle")
    assert opened.graph_file("gallery").is_file()
    with replaced_directory(tmp_path / "bundle", Writer.EXPORT) as root:
        shutil.copytree(write_tiny_zero_shot_bundle(tmp_path / "second" / "bundle").root, root, dirs_exist_ok=True)
    with pytest.raises(BundleError, match="was replaced since it was opened"):
        opened.graph_file("gallery")


def test_a_space_is_another_one_where_anything_of_it_differs() -> None:
    def fingerprint(*, dim: int = 8, vectors: int = 1, similarity=Similarity.COSINE, **components: str) -> str:
        named = {"backbone": "a"} | components
        return SpaceSpec.of(named, dim=dim, vectors=vectors, similarity=similarity).fingerprint

    changes = (
        {},
        {"backbone": "b"},
        {"pooling": "a"},
        {"dim": 9},
        {"vectors": 2},
        {"similarity": Similarity.MAX_COSINE},
    )
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize(
    ("queries", "reason"),
    [
        (np.array([{}], dtype=object), "can't be read"),
        (np.zeros((3, 7), dtype=np.float32), r"expected float32 \[Q, 64\]"),
        (np.zeros((3, 64)), "has float64"),
    ],
)
def test_queries_of_a_bundle_that_are_no_embeddings_are_refused(tmp_path: Path, queries, reason: str) -> None:
    root = write_tiny_bundle(tmp_path / "bundle").root
    np.save(root / PROBE_QUERIES, queries, allow_pickle=True)
    contract = json.loads((root / "bundle.json").read_text())
    contract["files"][PROBE_QUERIES] = sha256_of_file(root / PROBE_QUERIES)
    (root / "bundle.json").write_text(json.dumps(contract))
    with pytest.raises(BundleError, match=reason):
        Bundle.open(root).probe_queries()
