"""From a query to ranked images; and spaces that must not be mixed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import (
    InvalidImage,
    InvalidInput,
    InvalidText,
    OutputError,
    SearchIndexError,
    SpaceMismatch,
    UnsupportedQuery,
)
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.retriever import Term, open_async_retriever, open_retriever
from cirrus_client.sheet import contact_sheet


@pytest.fixture(scope="module")
def index_root(photos, encoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("index")
    embed_gallery(photos, root / "gallery", encoder)
    build_index(read_gallery(root / "gallery"), root / "index")
    return root / "index"


@pytest.fixture(scope="module")
def retriever(index_root, encoder):
    return open_retriever(encoder, index_root)


def test_an_image_alone_finds_itself_and_a_sheet_can_be_drawn(retriever, photos, caplog) -> None:
    image = sorted(photos.iterdir())[7]
    matches = retriever.search(image=image, text="", k=5)
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5]
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    sheet = contact_sheet(image, "in blue", matches)
    assert sheet.width > sheet.height > 200
    assert not caplog.messages
    contact_sheet(image, None, [*matches[:2], replace(matches[2], image="gone/3.jpg")])
    assert caplog.messages == ["1 of 3 images can't be shown, like gone/3.jpg: --root says where they are"]


def test_a_text_moves_the_ranking(retriever, photos) -> None:
    image = sorted(photos.iterdir())[7]
    alone, edited = retriever.search_many([image, image], [None, "is black and has long sleeves"], k=10)
    assert [match.image for match in alone] != [match.image for match in edited]


def test_a_query_from_another_space_is_refused_with_both_fingerprints(index_root, encoder, clip_bundle) -> None:
    with pytest.raises(SpaceMismatch, match="target_head") as refused:
        open_retriever(LocalEncoder(clip_bundle), index_root)
    assert encoder.space.fingerprint in str(refused.value)
    assert clip_bundle.spec.space.fingerprint in str(refused.value)


def test_a_recipe_that_composes_refuses_text_alone_and_nothing(retriever) -> None:
    with pytest.raises(UnsupportedQuery, match="has no image"):
        retriever.search(text="a red dress")
    for blank in (None, "", " ", "\t\n\u3000"):
        with pytest.raises(UnsupportedQuery, match="query 0: it has neither an image nor a text"):
            retriever.search_many([None], [blank])
    with pytest.raises(UnsupportedQuery, match="neither"):
        retriever.search()


def test_several_references_are_searched_for_as_their_weighted_sum(retriever, index_root, encoder, photos) -> None:
    first, second = sorted(photos.iterdir())[3:5]
    terms = [Term(image=first, text="in blue"), Term(image=second, weight=-0.5)]
    embeddings = encoder.encode_queries([first, second], ["in blue", None])
    query = embeddings[0] - 0.5 * embeddings[1]
    gallery = read_gallery(index_root.parent / "gallery")
    scores = gallery.embeddings @ (query / np.linalg.norm(query))
    matches = retriever.search_terms(terms, k=5)
    assert [match.id for match in matches] == [gallery.paths[row] for row in np.argsort(-scores, kind="stable")[:5]]
    np.testing.assert_allclose([match.score for match in matches], np.sort(scores)[::-1][:5], atol=1e-5)
    assert asyncio.run(open_async_retriever(encoder, index_root).search_terms(terms, k=5)) == matches
    alone = retriever.search_terms([Term(image=first, text="in blue", weight=3)], k=5)
    assert alone == retriever.search(image=first, text="in blue", k=5)


def test_terms_that_cancel_out_and_no_terms_are_refused(retriever, photos) -> None:
    image = sorted(photos.iterdir())[3]
    with pytest.raises(UnsupportedQuery, match="cancel each other out"):
        retriever.search_terms([Term(image=image), Term(image=image, weight=-1)])
    with pytest.raises(UnsupportedQuery, match="cancel each other out"):
        retriever.search_terms([Term(image=image, weight=0)])
    with pytest.raises(UnsupportedQuery, match="not all finite"):
        retriever.search_terms([Term(image=image), Term(image=image, weight=float("nan"))])
    with pytest.raises(UnsupportedQuery, match="it has no terms"):
        retriever.search_terms([])
    with pytest.raises(InvalidImage, match="query 1"):
        retriever.search_terms([Term(image=image), Term(image=b"no image")])


def test_an_index_never_replaces_something_else(index_root, tmp_path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="was not written by `cirrus index`"):
        build_index(read_gallery(index_root.parent / "gallery"), tmp_path)
    assert (tmp_path / "precious.txt").exists()


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3)])
def test_integers_of_numpy_are_integers(retriever, photos, k) -> None:
    assert len(retriever.search(image=sorted(photos.iterdir())[0], text="in blue", k=k)) == 3


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3", None, np.float32(3)])
def test_a_k_that_is_no_positive_integer_is_refused(retriever, photos, k) -> None:
    with pytest.raises(SearchIndexError, match="k must be an integer of at least 1"):
        retriever.search(image=sorted(photos.iterdir())[0], text="in blue", k=k)


def test_no_queries_have_no_answers(retriever) -> None:
    assert retriever.search_many([], []) == []


@pytest.mark.parametrize(
    ("images", "texts", "error"),
    [
        ([None], ["a", "b"], InvalidInput),
        (["a.jpg", "b.jpg"], ["a"], InvalidInput),
        ("photo.jpg", "in blue", InvalidInput),
        ([b"x"], [7], InvalidText),
        ([b"x"], [b"in blue"], InvalidText),
        ([7], ["in blue"], InvalidImage),
    ],
)
def test_queries_of_other_shapes_and_types_are_typed_errors(retriever, images, texts, error) -> None:
    with pytest.raises(error):
        retriever.search_many(images, texts)
