"""Texts are cut to the length that a batch needs, only where that changes nothing; the gate proves it per recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cirrus_client.bundle import DYNAMIC, Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.remembering import RememberingEncoder
from cirrus_client.errors import FidelityError
from cirrus_client.names import TensorName
from cirrus_client.tokenizer import Tokenizer, TokenizerSpec
from cirrus_export.gate.text_cuts import texts_at
from cirrus_export.graph import Graph
from cirrus_export.heads.transagg import PadMask
from cirrus_export.pipeline import ExportRequest, build_recipe, export
from cirrus_export.recipes.transagg_union import TransAggUnion
from tests.export.author_files import EXPORTED

WORDS = ["in", "blue", "with", "longer", "sleeves", "and", "stripes"]


class MeanOfTokens(nn.Module):
    """A query head that takes the mean over all tokens of a text, its padding among them."""

    def __init__(self, query_head: nn.Module) -> None:
        super().__init__()
        self.query_head = query_head

    def forward(
        self, image_embedding: Tensor, image_tokens: Tensor, text_embedding: Tensor, text_tokens: Tensor, ids: Tensor
    ) -> Tensor:
        query = self.query_head(image_embedding, image_tokens, text_embedding, text_tokens, ids)
        return F.normalize(query + F.normalize(text_tokens.mean(dim=1), dim=-1), dim=-1)


class ReadsPadding(TransAggUnion):
    """Says that texts may be cut, and reads their padding."""

    name = "reads-padding"

    def query_graph(self) -> Graph:
        graph = super().query_graph()
        return dataclasses.replace(graph, module=MeanOfTokens(graph.module))


def request(weights, out: Path, recipe: str = "transagg-union", **options: str) -> ExportRequest:
    return ExportRequest(recipe, "cirrus-demo", str(weights.clip), str(weights.head), out, options=options)


@pytest.mark.parametrize("recipe", EXPORTED)
def test_the_gate_proves_the_cuts_of_every_recipe(recipe: str, author_bundle) -> None:
    bundle: Bundle = author_bundle(recipe)
    tokenizer = bundle.spec.tokenizer
    cuts = json.loads((bundle.root / "report.json").read_text())["cuts"]
    assert tokenizer.cut_lengths == tuple(length for length in (16, 32) if length < tokenizer.context_length)
    assert {cut["length"] for cut in cuts} == set(tokenizer.cut_lengths)
    assert all(min(cut["cosine_min"], cut["cut_cosine_min"]) > 0.99999 for cut in cuts)
    dynamic = [graph for graph in bundle.spec.graphs.values() if any(DYNAMIC in one.shape for one in graph.inputs)]
    assert dynamic
    assert all(graph.text_lengths == (*tokenizer.cut_lengths, tokenizer.context_length) for graph in dynamic)
    assert any(TensorName.TOKEN_IDS in [one.name for one in graph.inputs] for graph in dynamic)


def test_a_text_has_one_embedding_whatever_its_batch_is_cut_to(bundle: Bundle, probe) -> None:
    cutting, uncut = LocalEncoder(bundle), LocalEncoder(bundle, cut_texts=False)
    texts = [" ".join(np.resize(WORDS, count)) for count in (0, 1, 13, 14, 15, 29, 30, 31, 74, 75, 76, 90)]
    images = [probe.gallery[0]] * len(texts)
    expected = uncut.encode_queries(images, texts)
    together = cutting.encode_queries(images, texts)
    singly = np.concatenate([cutting.encode_queries([images[0]], [text]) for text in texts])
    np.testing.assert_allclose(together, expected, atol=2e-5)
    np.testing.assert_allclose(singly, expected, atol=2e-5)


def test_known_texts_of_other_lengths_share_a_batch(bundle: Bundle, probe) -> None:
    texts = ["in blue", " ".join(np.resize(WORDS, 40)), " ".join(np.resize(WORDS, 20))]
    remembering = RememberingEncoder(LocalEncoder(bundle), max_bytes=2**24)
    images = [*probe.gallery[:2], probe.gallery[0]]
    for text in texts:
        remembering.encode_prepared_queries([remembering.prepare_query(probe.gallery[3], text)])
    found = remembering.encode_prepared_queries(
        [remembering.prepare_query(*pair) for pair in zip(images, texts, strict=True)]
    )
    np.testing.assert_allclose(found, LocalEncoder(bundle).encode_queries(images, texts), atol=2e-5)


@pytest.mark.parametrize("pad_mask", PadMask)
def test_where_padding_is_read_nothing_is_cut(weights, tmp_path, pad_mask: PadMask) -> None:
    recipe = build_recipe(request(weights, tmp_path, pad_mask=pad_mask))
    lengths = (16, 32, 77) if pad_mask is PadMask.BOOL else (77,)
    assert recipe.text_lengths == lengths
    for graph in recipe.graphs():
        assert graph.text_lengths in ((), lengths)
        assert any(DYNAMIC in one.shape for one in graph.inputs) == (len(graph.text_lengths) > 1)


def test_a_recipe_that_reads_padding_and_cuts_fails_its_gate(weights, probe, tmp_path) -> None:
    where = f"{__name__}:{ReadsPadding.__name__}"
    with pytest.raises(FidelityError, match="texts cut to 16 tokens, encode_query: cosine to the original"):
        export(request(weights, tmp_path / "bundle", where), probe)


def test_texts_at_a_boundary_end_there(bundle: Bundle) -> None:
    spec = bundle.spec.tokenizer
    token_ids = Tokenizer(spec, bundle.root)(["in blue", " ".join(WORDS * 6), "a"])
    for length in (16, 32):
        texts = texts_at(length, token_ids, spec)
        ends = (texts == spec.end_id).argmax(axis=1)
        assert {length - 1, length - 2} <= set(ends.tolist())
        assert ((texts != spec.pad_id).sum(axis=1) <= length).all()
        assert spec.cut(texts).shape == (len(texts), length)
        assert torch.from_numpy(texts).argmax(dim=1).tolist() == ends.tolist()


def test_lengths_must_ascend() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        TokenizerSpec(start_id=1, end_id=2, cut_lengths=(32, 16))
    with pytest.raises(ValueError, match="must ascend"):
        TokenizerSpec(start_id=1, end_id=2, cut_lengths=(16, 77))
