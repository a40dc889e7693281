"""BLIP-2's matching over SPRC's sentence: written down in plain operations, exported, held to its gate and compiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cirrus_client.bundle import Bundle
from cirrus_client.canary import read_canary
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import CheckpointError, UnsupportedQuery
from cirrus_client.names import EnsembleName
from cirrus_client.replay import LocalRunner, replay
from cirrus_export.gate.rerank_fidelity import RerankFidelity, rerank_failures
from cirrus_export.gate.thresholds import THRESHOLDS
from cirrus_export.heads.matching import Matching
from cirrus_export.pipeline import build_recipe
from tests.export.author_files import authors_file, request
from tests.export.test_qformer_semantics import attention, feed_forward, linear, norm, setup

RERANKER = {"reranker": "true"}


def released_matching(image: Tensor, prompt: Tensor, token_ids: Tensor, state: dict[str, Tensor]) -> Tensor:
    """`compute_itm` of LAVIS, with the prompt before the words: learned queries alone see the image."""
    queries = state["query_tokens"].expand(len(image), -1, -1)
    count = queries.shape[1]
    words = state["embeddings.word_embeddings.weight"][token_ids]
    words = words + state["embeddings.position_embeddings.weight"][: token_ids.shape[1]]
    x = norm(torch.cat([queries, prompt, words], dim=1), state, "bert.layernorm")
    mask = torch.cat([torch.ones(len(x), count + prompt.shape[1]), (token_ids != 0).float()], dim=1)
    bias = (1 - mask)[:, None] * -10000.0
    for number in range(4):
        layer = f"bert.encoder.layer.{number}"
        x = attention(x, x, state, f"{layer}.attention", bias)
        seeing, text = x[:, :count], x[:, count:]
        if number % 2 == 0:
            seeing = attention(seeing, image, state, f"{layer}.crossattention", 0.0)
        seeing, text = feed_forward(seeing, state, layer, "_query"), feed_forward(text, state, layer, "")
        x = torch.cat([seeing, text], dim=1)
    return linear(x[:, :count], state, "itm_head").mean(dim=1)


def test_a_score_is_the_difference_of_the_released_logits() -> None:
    qformer, state, image, token_ids = setup()
    matching = Matching(qformer, nn.Linear(qformer.size.width, 2)).eval().requires_grad_(False)
    state |= {f"itm_head.{key}": value for key, value in matching.itm_head.state_dict().items()}
    prompt = torch.randn(3, 32, qformer.size.width)
    logits = released_matching(image, prompt, token_ids, state)
    score = matching(image, prompt, token_ids)
    torch.testing.assert_close(score, logits[:, 1:] - logits[:, :1], atol=2e-5, rtol=0)
    torch.testing.assert_close(score.sigmoid(), logits.softmax(dim=1)[:, 1:], atol=2e-5, rtol=0)


def test_padding_changes_no_score() -> None:
    qformer, _, image, token_ids = setup()
    matching = Matching(qformer, nn.Linear(qformer.size.width, 2)).eval().requires_grad_(False)
    prompt = torch.randn(1, 32, qformer.size.width)
    short, padded = token_ids[:1, :2], token_ids[:1]
    torch.testing.assert_close(
        matching(image[:1], prompt, short), matching(image[:1], prompt, padded), atol=1e-5, rtol=0
    )


def test_a_bundle_with_a_reranker_passed_its_gate_and_is_in_the_space_of_one_without(
    reranking_bundle: Bundle, author_bundle, probe
) -> None:
    plain = author_bundle("sprc")
    assert reranking_bundle.spec.space == plain.spec.space
    assert set(reranking_bundle.spec.ensembles) - set(plain.spec.ensembles) == {
        EnsembleName.ENCODE_CONDITION,
        EnsembleName.SCORE_CANDIDATE,
    }
    assert set(reranking_bundle.spec.graphs) - set(plain.spec.graphs) == {"matching_head"}
    report = json.loads((reranking_bundle.root / "report.json").read_text())
    assert report["reranker"]["cosine_min"] > 0.99999
    assert report["reranker"]["top10_agreement"] == 1.0
    assert "The reranker against the torch original" in (reranking_bundle.root / "report.md").read_text()
    encoder = LocalEncoder(reranking_bundle)
    replay(read_canary(reranking_bundle), reranking_bundle.spec, LocalRunner(encoder)).check("here")
    images = list(probe.gallery[:3])
    np.testing.assert_allclose(
        encoder.encode_queries(images, ["in blue"] * 3),
        LocalEncoder(plain).encode_queries(images, ["in blue"] * 3),
        atol=1e-5,
    )


def test_the_export_scores_as_the_original_does(reranking_bundle, small_clip, probe, tmp_path) -> None:
    recipe = build_recipe(request(tmp_path, "sprc", small_clip, options=RERANKER))
    encoder = LocalEncoder(reranking_bundle)
    image, *candidates = probe.gallery[:6]
    query = encoder.prepare_query(image, "is red with long sleeves")
    pixels = torch.from_numpy(np.stack([encoder.prepare(candidate) for candidate in candidates]))
    with torch.no_grad():
        token_ids = torch.from_numpy(query.token_ids)[None]
        condition = recipe.condition(torch.from_numpy(query.pixels)[None], token_ids)
        expected = recipe.score(pixels, condition.expand(5, -1, -1), token_ids.expand(5, -1))[:, 0]
    assert len({round(float(score), 4) for score in expected}) == 5
    np.testing.assert_allclose(
        encoder.scores(image, "is red with long sleeves", candidates), expected, rtol=1e-4, atol=1e-4
    )


def test_a_file_without_the_head_is_refused_before_its_backbone_is_read(small_clip, tmp_path) -> None:
    def without_head(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith("itm_head.")]:
            del state[key]

    head = authors_file(tmp_path, "sprc", edit=without_head)
    build_recipe(request(tmp_path, "sprc", small_clip, head=str(head)))
    with pytest.raises(CheckpointError, match=r"has no 'itm_head\.weight'.*which option reranker needs"):
        build_recipe(request(tmp_path, "sprc", small_clip, head=str(head), options=RERANKER))


@pytest.mark.parametrize("key", ["itm_head.weight", "itm_head.bias"])
def test_a_head_of_another_shape_is_refused_by_its_name(key: str, small_clip, tmp_path: Path) -> None:
    head = authors_file(tmp_path, "sprc", edit=lambda state: state.update({key: torch.zeros(3, 5)}))
    with pytest.raises(CheckpointError, match=rf"key '{key}' has shape \(3, 5\)"):
        build_recipe(request(tmp_path, "sprc", small_clip, head=str(head), options=RERANKER))


def test_a_recipe_without_the_option_defines_no_reranker(small_clip, tmp_path) -> None:
    recipe = build_recipe(request(tmp_path, "sprc", small_clip))
    assert EnsembleName.SCORE_CANDIDATE not in recipe.ensembles()
    with pytest.raises(UnsupportedQuery, match="recipe sprc does not define a reranker"):
        recipe.score(torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_scores_that_moved_fail_the_gate() -> None:
    moved = RerankFidelity(queries=8, candidates=20, cosine_min=float("nan"), max_abs=1.0, top10_agreement=0.5)
    limits = next(iter(THRESHOLDS.values()))
    assert len(rerank_failures(moved, limits)) == 2
    assert rerank_failures(None, limits) == []
