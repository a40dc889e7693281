"""SPRC's two passes and HINT's one, written down from their facts in plain torch; nothing of the module is called.

In the second pass there is no image, and SPRC's edited layer branches on that: every token, the 32 prompts too, goes
through the *text* feed-forward, and no layer has cross-attention.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints import sprc
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.heads.qformer import QFormer, QFormerSize
from cirrus_export.recipes.recognition import read_head_of
from cirrus_export.recipes.sprc import Sprc

SIZE = QFormerSize(
    image_width=48,
    num_queries=32,
    width=64,
    layers=4,
    inner=96,
    vocabulary=200,
    positions=40,
    cross_attention_every=2,
    dim=24,
)


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)


def linear(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def attention(x: Tensor, memory: Tensor, state, name: str, bias: Tensor | float) -> Tensor:
    query = linear(x, state, f"{name}.attention.query")
    key, value = (linear(memory, state, f"{name}.attention.{part}") for part in ("key", "value"))
    weights = (query @ key.transpose(1, 2) / math.sqrt(SIZE.width) + bias).softmax(-1)  # one head: width 64
    return norm(linear(weights @ value, state, f"{name}.output.dense") + x, state, f"{name}.output.LayerNorm")


def feed_forward(x: Tensor, state, layer: str, kind: str) -> Tensor:
    inner = F.gelu(linear(x, state, f"{layer}.intermediate{kind}.dense"))
    return norm(linear(inner, state, f"{layer}.output{kind}.dense") + x, state, f"{layer}.output{kind}.LayerNorm")


def released(queries: Tensor, token_ids: Tensor | None, image: Tensor | None, state: dict[str, Tensor]) -> Tensor:
    x, bias = queries, 0.0
    if token_ids is not None:
        words = state["embeddings.word_embeddings.weight"][token_ids]
        words = words + state["embeddings.position_embeddings.weight"][: token_ids.shape[1]]
        x = torch.cat([queries, words], dim=1)
        mask = torch.cat([torch.ones(len(x), queries.shape[1]), (token_ids != 0).float()], dim=1)
        bias = (1 - mask)[:, None] * -10000.0
    x = norm(x, state, "bert.layernorm")
    for number in range(SIZE.layers):
        layer = f"bert.encoder.layer.{number}"
        x = attention(x, x, state, f"{layer}.attention", bias)
        if image is None:
            x = feed_forward(x, state, layer, "")
            continue
        prompts, text = x[:, :32], x[:, 32:]
        if number % SIZE.cross_attention_every == 0:
            prompts = attention(prompts, image, state, f"{layer}.crossattention", 0.0)
        prompts = feed_forward(prompts, state, layer, "_query")
        x = torch.cat([prompts, feed_forward(text, state, layer, "")], dim=1) if token_ids is not None else prompts
    return x


def setup():
    torch.manual_seed(4)
    qformer = QFormer(SIZE).eval().requires_grad_(False)
    for parameter in qformer.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    token_ids = torch.zeros(3, 12, dtype=torch.int64)
    for row, length in enumerate((2, 7, 12)):
        token_ids[row, :length] = torch.randint(1, 200, (length,))
    return qformer, dict(qformer.state_dict()), torch.randn(3, 17, 48), token_ids


def two_passes(qformer: QFormer, image: Tensor, token_ids: Tensor) -> Tensor:
    return qformer.sentence(qformer.prompt(image, token_ids), token_ids)


def test_a_query_is_the_released_two_passes() -> None:
    qformer, state, image, token_ids = setup()
    queries = state["query_tokens"].expand(3, -1, -1)
    prompt = released(queries, token_ids, image, state)[:, :32]
    sentence = released(prompt, token_ids, None, state)[:, 32]
    expected = F.normalize(linear(sentence, state, "text_proj"), dim=-1)
    torch.testing.assert_close(two_passes(qformer, image, token_ids), expected, atol=2e-6, rtol=0)


def test_a_query_of_one_pass_is_the_texts_first_token_beside_the_image() -> None:
    qformer, state, image, token_ids = setup()
    read = released(state["query_tokens"].expand(3, -1, -1), token_ids, image, state)[:, 32]
    expected = F.normalize(linear(read, state, "text_proj"), dim=-1)
    torch.testing.assert_close(qformer.fused(image, token_ids), expected, atol=2e-6, rtol=0)
    assert F.cosine_similarity(two_passes(qformer, image, token_ids), expected).max() < 0.99


def test_the_second_pass_through_the_prompts_own_feed_forward_would_be_another_query() -> None:
    qformer, state, image, token_ids = setup()
    swapped = {
        key.replace("intermediate_query", "intermediate").replace("output_query", "output"): value
        for key, value in state.items()
        if "_query" in key
    }
    queries = state["query_tokens"].expand(3, -1, -1)
    prompt = released(queries, token_ids, image, state)[:, :32]
    wrong = F.normalize(linear(released(prompt, token_ids, None, state | swapped)[:, 32], state, "text_proj"), dim=-1)
    assert F.cosine_similarity(two_passes(qformer, image, token_ids), wrong).min() < 0.99


def test_a_target_is_the_released_vectors() -> None:
    qformer, state, image, _ = setup()
    read = released(state["query_tokens"].expand(3, -1, -1), None, image, state)
    expected = F.normalize(linear(read, state, "vision_proj"), dim=-1)
    torch.testing.assert_close(qformer.target(image), expected, atol=2e-6, rtol=0)


def test_a_text_alone_is_read_without_prompts_through_its_first_token() -> None:
    qformer, state, _, token_ids = setup()
    read = released(torch.zeros(3, 0, SIZE.width), token_ids, None, state)[:, 0]
    expected = F.normalize(linear(read, state, "text_proj"), dim=-1)
    torch.testing.assert_close(qformer.text(token_ids), expected, atol=2e-6, rtol=0)


def test_spn4cirs_second_pass_has_its_own_weights(tmp_path) -> None:
    qformer, state, image, token_ids = setup()
    torch.manual_seed(9)
    second = {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}
    first_names = sprc.authors_names(qformer)
    second_former = QFormer(SIZE)
    second_former.load_state_dict(second)
    copied = {
        key.replace("Qformer.", "Qformer_query.").replace("text_proj.", "text_proj_q."): value
        for key, value in sprc.authors_names(second_former).items()
        if key.startswith(("Qformer.", "text_proj."))
    }
    whole = {f"blip_model.{key}": value for key, value in (first_names | copied | {"temp": torch.ones([])}).items()}
    torch.save({"epoch": 4, "state_dict": whole}, tmp_path / "spn4cir.pt")
    head = read_head_of(Sprc, tmp_path / "spn4cir.pt")
    first = QFormer(SIZE).eval().requires_grad_(False)
    sprc.load(head, first)
    found = sprc.load_second_pass(head, first).eval().requires_grad_(False)
    queries = state["query_tokens"].expand(3, -1, -1)
    prompt = released(queries, token_ids, image, state)[:, :32]
    sentence = released(prompt, token_ids, None, second)[:, 32]
    expected = F.normalize(linear(sentence, second, "text_proj"), dim=-1)
    torch.testing.assert_close(found.sentence(first.prompt(image, token_ids), token_ids), expected, atol=2e-6, rtol=0)

    del whole["blip_model.Qformer_query.bert.encoder.layer.1.attention.self.key.bias"]
    torch.save({"epoch": 4, "state_dict": whole}, tmp_path / "cut.pt")
    name = r"'blip_model\.Qformer_query\.bert\.encoder\.layer\.1\.attention\.self\.key\.bias' is missing"
    with pytest.raises(CheckpointError, match=name):
        sprc.load_second_pass(read_head_of(Sprc, tmp_path / "cut.pt"), first)


def test_sprcs_second_pass_is_that_of_the_first() -> None:
    qformer, *_ = setup()
    assert sprc.load_second_pass(StateDict(sprc.authors_names(qformer), "sprc.pt"), qformer) is qformer
