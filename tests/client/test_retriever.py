"""From a query to ranked images; and spaces that must not be mixed."""

from __future__ import annotations

import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import OutputError, SpaceMismatch, UnsupportedQuery
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.retriever import open_retriever
from cirrus_client.sheet import contact_sheet


@pytest.fixture(scope="module")
def index_root(photos, encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    embed_gallery(photos, root / "gallery", encoder)
    build_index(read_gallery(root / "gallery"), root / "index")
    return root / "index"


def test_an_image_alone_finds_itself_and_a_sheet_can_be_drawn(index_root, encoder, photos) -> None:
    retriever = open_retriever(encoder, index_root)
    image = sorted(photos.iterdir())[7]
    matches = retriever.search(image=image, text="", k=5)
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5]
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    sheet = contact_sheet(image, "in blue", matches)
    assert sheet.width > sheet.height > 200


def test_a_text_moves_the_ranking(index_root, encoder, photos) -> None:
    retriever = open_retriever(encoder, index_root)
    image = sorted(photos.iterdir())[7]
    alone, edited = retriever.search_many([image, image], [None, "is black and has long sleeves"], k=10)
    assert [match.image for match in alone] != [match.image for match in edited]


def test_a_query_from_another_space_is_refused_with_both_fingerprints(index_root, encoder, clip_bundle) -> None:
    with pytest.raises(SpaceMismatch, match="target_head") as refused:
        open_retriever(LocalEncoder(clip_bundle), index_root)
    assert encoder.space.fingerprint in str(refused.value)
    assert clip_bundle.spec.space.fingerprint in str(refused.value)


def test_a_recipe_that_composes_refuses_text_alone_and_nothing(index_root, encoder) -> None:
    retriever = open_retriever(encoder, index_root)
    with pytest.raises(UnsupportedQuery, match="has no image"):
        retriever.search(text="a red dress")
    with pytest.raises(UnsupportedQuery, match="neither"):
        retriever.search()


def test_an_index_never_replaces_something_else(index_root, tmp_path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="was not written by `cirrus index`"):
        build_index(read_gallery(index_root.parent / "gallery"), tmp_path)
    assert (tmp_path / "precious.txt").exists()
