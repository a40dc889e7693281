"""Rerankers in this process: the scores of a query's candidates, and the answers that are ordered by them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from cirrus_client import open_async_retriever, open_retriever
from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder, Scores
from cirrus_client.encoders.remembering import RememberingEncoder
from cirrus_client.errors import (
    InvalidImage,
    InvalidInput,
    InvalidText,
    SearchIndexError,
    UnreadableImage,
    UnsupportedQuery,
)
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.image.preprocess import preprocess
from cirrus_client.index import build_index
from cirrus_client.tokenizer import Tokenizer
from tests.conftest import BAD_IMAGES
from tests.tiny import write_tiny_reranking_bundle

pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny_reranking_bundle(tmp_path_factory.mktemp("bundles") / "reranking")


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="module")
def photos(pictures: Path) -> list[Path]:
    return sorted(pictures.iterdir())


@pytest.fixture(scope="module")
def index(encoder: LocalEncoder, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reranking")
    embed_gallery(pictures, root / "gallery", encoder)
    build_index(read_gallery(root / "gallery"), root / "index")
    return root / "index"


def expected_score(bundle: Bundle, image: Path, text: str, candidate: Path) -> float:
    """The score of one candidate, each graph run by ONNX's reference evaluator."""

    def run(graph: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        evaluator = ReferenceEvaluator(str(bundle.graph_file(graph)))
        return dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))

    def embedded(path: Path) -> np.ndarray:
        pixels = preprocess(path.read_bytes(), bundle.spec.preprocess)[None]
        return run("vision_encoder", pixels=pixels)["image_embedding"]

    token_ids = Tokenizer(bundle.spec.tokenizer, bundle.root)([text])
    text_embedding = run("text_encoder", token_ids=token_ids)["text_embedding"]
    query = run("query_head", image_embedding=embedded(image), text_embedding=text_embedding)
    matched = run(
        "matching_head", image_embedding=embedded(candidate), condition=query["condition"], token_ids=token_ids
    )
    return float(matched["score"][0, 0])


def test_a_score_is_that_of_the_graphs_run_one_by_one(bundle, encoder, photos) -> None:
    found = encoder.scores(photos[3], "in blue", photos[:4])
    assert (found.dtype, found.shape) == (np.float32, (4,))
    np.testing.assert_allclose(
        found, [expected_score(bundle, photos[3], "in blue", photo) for photo in photos[:4]], rtol=1e-4
    )


def test_candidates_are_scored_alike_alone_and_beside_more_than_a_batch_of_others(encoder, photos) -> None:
    candidates = [*photos, *photos[:20]]
    assert len(candidates) > encoder.bundle.spec.max_batch
    together = encoder.scores(photos[3], "in blue", candidates)
    alone = [encoder.scores(photos[3], "in blue", [photo])[0] for photo in candidates]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(together[60:], together[:20], rtol=1e-4)


def test_a_score_depends_on_image_and_text_of_the_query_and_an_absent_text_is_the_empty_one(encoder, photos) -> None:
    asked = [(photos[3], "in blue"), (photos[4], "in blue"), (photos[3], "in red"), (photos[3], None)]
    scores = [encoder.scores(image, text, photos[:5]) for image, text in asked]
    for place, one in enumerate(scores):
        assert not any(np.allclose(one, other, rtol=1e-3) for other in scores[:place])
    np.testing.assert_array_equal(scores[3], encoder.scores(photos[3], "", photos[:5]))
    assert encoder.scores(photos[3], "in blue", []).shape == (0,)


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_candidate_and_a_bad_query_are_named(encoder, photos, kind) -> None:
    content, reason = BAD_IMAGES[kind]
    with pytest.raises(InvalidImage, match=f"candidate 2: .*{reason}") as refused:
        encoder.scores(photos[0], "in blue", [photos[1], photos[2], content])
    assert (refused.value.item, refused.value.position) == ("candidate", 2)
    with pytest.raises(InvalidImage, match=f"query 0: .*{reason}"):
        encoder.scores(content, "in blue", photos[:2])


def test_what_a_reranker_does_not_take_is_refused(encoder, tiny_bundle, photos) -> None:
    with pytest.raises(UnreadableImage, match="candidate 1: ") as refused:
        encoder.scores(photos[0], "in blue", [photos[1], "nowhere.jpg"])
    assert refused.value.path == "nowhere.jpg"
    with pytest.raises(InvalidText, match="query 0"):
        encoder.scores(photos[0], 7, photos[:2])
    with pytest.raises(UnsupportedQuery, match="query 0: it is to be re-ranked and has no image"):
        encoder.scores(None, "in blue", photos[:2])
    with pytest.raises(UnsupportedQuery, match=r"this bundle has no reranker: .*--option reranker=true"):
        LocalEncoder(tiny_bundle).scores(photos[0], "in blue", photos[:2])


def test_threads_share_a_reranker(encoder, photos) -> None:
    texts = ["in blue", "in red", "longer", "with stripes"] * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encoder.scores(photos[3], text, photos[:9]), texts))
    for text, scores in zip(texts, found, strict=True):
        np.testing.assert_allclose(scores, encoder.scores(photos[3], text, photos[:9]), rtol=1e-4)


def test_what_is_remembered_is_scored_alike_and_not_encoded_again(bundle, photos) -> None:
    ran: list[str] = []
    encoder = LocalEncoder(bundle, observe=lambda graph, seconds: ran.append(graph))
    remembering = RememberingEncoder(encoder, max_bytes=2**20)

    candidates = [*photos, *photos[:20]]
    expected = encoder.scores(photos[3], "in blue", candidates)
    first = remembering.scores(photos[3], "in blue", candidates)
    ran.clear()
    second = remembering.scores(photos[3], "in blue", candidates)
    assert "vision_encoder" not in ran
    assert "matching_head" in ran
    for found in (first, second):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert remembering.scores(photos[3], "in blue", []).shape == (0,)
    with pytest.raises(InvalidImage, match="candidate 1: "):
        remembering.scores(photos[3], "in blue", [photos[0], b""])
    with pytest.raises(InvalidImage, match="query 0: "):
        remembering.scores(b"", "in blue", photos[:2])


def test_the_best_are_ordered_by_the_reranker_and_the_others_stand_behind_them(encoder, index, photos) -> None:
    retriever = open_retriever(encoder, index, reranker=encoder)
    plain = retriever.search(image=photos[7], text="in blue", k=12)
    found = retriever.search(image=photos[7], text="in blue", k=12, rerank=8)
    scores = encoder.scores(photos[7], "in blue", [match.image for match in plain[:8]])
    order = np.argsort(-scores, kind="stable")
    assert list(order) != list(range(8)), "the reranker of this test has an order of its own"
    assert [match.id for match in found] == [plain[place].id for place in order] + [match.id for match in plain[8:]]
    assert [match.rank for match in found] == list(range(1, 13))
    np.testing.assert_allclose([match.rerank_score for match in found[:8]], scores[order], rtol=1e-4)
    assert [match.rerank_score for match in (*found[8:], *plain)] == [None] * 16
    few = retriever.search(image=photos[7], text="in blue", k=3, rerank=8)
    assert [match.id for match in few] == [match.id for match in found[:3]]
    every = retriever.search(image=photos[7], text="in blue", k=3, rerank=1_000)
    assert every[0].rerank_score >= found[0].rerank_score


def test_the_asyncio_twin_and_several_queries_answer_alike(encoder, index, photos) -> None:
    class Awaited:
        """An asyncio reranker, like `AsyncTritonEncoder`."""

        async def scores(self, image, text, candidates) -> Scores:
            return encoder.scores(image, text, candidates)

    images, texts = photos[:3], ["in blue", None, "longer"]
    expected = open_retriever(encoder, index, reranker=encoder).search_many(images, texts, k=5, rerank=9)

    async def run(reranker) -> list:
        async with open_async_retriever(encoder, index, reranker=reranker) as retriever:
            alone = await retriever.search(image=images[0], text=texts[0], k=5, rerank=9)
            assert [match.id for match in alone] == [match.id for match in expected[0]]
            with pytest.raises(UnsupportedQuery, match="query 1: it has no image"):
                await retriever.search_many([images[0], None], ["in blue", "in red"], rerank=9)
            return await retriever.search_many(images, texts, k=5, rerank=9)

    for reranker in (encoder, Awaited()):
        assert asyncio.run(run(reranker)) == expected


def test_a_retriever_takes_a_reranker_of_another_bundle_and_refuses_to_do_without(
    encoder, tiny_zero_shot_bundle, pictures, photos, tmp_path
) -> None:
    other = LocalEncoder(tiny_zero_shot_bundle)
    embed_gallery(pictures, tmp_path / "gallery", other)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    retriever = open_retriever(other, tmp_path / "index", reranker=encoder)
    found = retriever.search(image=photos[7], text="in blue", k=5, rerank=5)
    scores = encoder.scores(photos[7], "in blue", [match.image for match in found])
    assert sorted(scores, reverse=True) == list(scores)
    with pytest.raises(UnsupportedQuery, match="this retriever has no reranker: open it with one, like reranker=enc"):
        open_retriever(other, tmp_path / "index").search(image=photos[7], rerank=5)
    with pytest.raises(InvalidInput, match="rerank is 0"):
        retriever.search(image=photos[7], rerank=0)
    with pytest.raises(SearchIndexError, match="k must be an integer of at least 1"):
        retriever.search(image=photos[7], k=0, rerank=5)
