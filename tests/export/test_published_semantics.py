"""The torch original is the released evaluation code's arithmetic; nothing here uses the export path.

The released forward passes, written down from Code-kunkun/ZS-CIR `model/model.py` and baohl00/UNION_for_IGROT
`model.py` in plain torch: eager, `eval()`, `no_grad()`, with their float padding mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cirrus_export.heads.transagg import PadMask, TransAgg
from cirrus_export.heads.union import QueryWithUnion, Union

from transformers import T5Config, T5Model  # isort: skip  (behind cirrus_export, which lets torchvision be imported)

DIM, TEXT, IMAGE, BATCH = 64, 77, 50, 5


def inputs(seed: int = 0):
    torch.manual_seed(seed)
    token_ids = torch.zeros(BATCH, TEXT, dtype=torch.int64)
    for row, length in enumerate((0, 3, 12, 40, 75)):
        token_ids[row, 0] = 49406
        token_ids[row, 1 : 1 + length] = torch.randint(1, 40000, (length,))
        token_ids[row, 1 + length] = 49407
    image_tokens, text_tokens = torch.randn(BATCH, IMAGE, DIM), torch.randn(BATCH, TEXT, DIM)
    text = text_tokens[torch.arange(BATCH), token_ids.argmax(dim=-1)]
    return image_tokens[:, 0], image_tokens, text, text_tokens, token_ids


def released_fusion(head: TransAgg) -> nn.TransformerEncoder:
    """`nn.TransformerEncoder` with the arguments of the released constructor, its fast path left as torch sets it."""
    layer = nn.TransformerEncoderLayer(
        d_model=DIM, nhead=8, dropout=0.1, batch_first=True, norm_first=True, activation="gelu"
    )
    fusion = nn.TransformerEncoder(layer, num_layers=2)
    fusion.load_state_dict(head.fusion.state_dict())
    return fusion.eval()


def released_combine(head: TransAgg, fusion: nn.Module, image, image_tokens, text, text_tokens, token_ids):
    mask = token_ids == 0
    sequence = torch.cat((text_tokens, head.sep_token.repeat(BATCH, 1, 1), image_tokens), dim=1)
    mask = torch.cat((mask, torch.zeros(BATCH, IMAGE + 1)), dim=1)
    assert mask.dtype == torch.float32
    fused = fusion(sequence, src_key_padding_mask=mask)
    pair = torch.cat((fused[:, 78, :], fused[torch.arange(BATCH), token_ids.argmax(dim=-1), :]), dim=-1)
    mixed = head.output_layer(F.relu(head.combiner_layer(pair)))
    weights = head.weighted_layer(mixed)
    return F.normalize(weights[:, 0:1] * text + weights[:, 1:2] * mixed + weights[:, 2:3] * image, dim=-1)


def test_transagg_is_the_released_evaluation_with_its_float_mask() -> None:
    head = TransAgg(DIM).eval()
    with torch.no_grad():
        released = released_combine(head, released_fusion(head), *inputs())
        torch.testing.assert_close(head(*inputs()), released, atol=2e-6, rtol=0)


def test_the_additive_mask_is_what_training_sees_and_is_another_function() -> None:
    additive = TransAgg(DIM, pad_mask=PadMask.ADDITIVE).eval()
    boolean = TransAgg(DIM).eval()
    boolean.load_state_dict(additive.state_dict())
    fusion = released_fusion(additive)
    in_training = released_combine(additive, fusion, *inputs())  # with gradients: torch's slow path
    torch.testing.assert_close(additive(*inputs()), in_training, atol=2e-6, rtol=0)
    with torch.no_grad():  # as the gate computes the original
        torch.testing.assert_close(additive(*inputs()), in_training, atol=2e-6, rtol=0)
    assert (boolean(*inputs()) - in_training).abs().max() > 1e-3


def test_padding_ids_do_not_reach_the_query() -> None:
    head = TransAgg(DIM).eval()
    image, image_tokens, text, text_tokens, token_ids = inputs()
    noisy = torch.where((token_ids == 0)[..., None], torch.randn_like(text_tokens), text_tokens)
    with torch.no_grad():
        torch.testing.assert_close(
            head(image, image_tokens, text, text_tokens, token_ids),
            head(image, image_tokens, text, noisy, token_ids),
            atol=2e-6,
            rtol=0,
        )


def test_union_is_the_released_gate_over_a_t5_encoder() -> None:
    torch.manual_seed(1)
    union = Union(DIM, num_heads=8).eval()
    config = T5Config(
        vocab_size=2, d_model=DIM, d_kv=64, num_layers=4, num_decoder_layers=4, num_heads=8, feed_forward_proj="relu"
    )
    encoder = T5Model(config).encoder.eval()
    encoder.load_state_dict(union.t5_layers.state_dict(), strict=False)
    image, text = torch.randn(BATCH, DIM), torch.randn(BATCH, DIM)
    with torch.no_grad():
        tokens = encoder(inputs_embeds=torch.stack((image, text), dim=1)).last_hidden_state
        first, last = tokens[:, 0], tokens[:, 1]
        weight = union.union_weighted_layer(torch.cat((first, last), dim=-1))[:, 0:1]
        released = F.normalize(weight * image + (1 - weight) * text, dim=-1)
        torch.testing.assert_close(union(image, text), released, atol=1e-6, rtol=0)
        assert (union(image, text) - union(text, image)).abs().max() > 1e-3


def test_a_query_with_a_share_of_union_is_the_released_fashioniq_evaluation() -> None:
    torch.manual_seed(2)
    head, union = TransAgg(DIM).eval(), Union(DIM, num_heads=8).eval()
    image, image_tokens, text, text_tokens, token_ids = inputs()
    with torch.no_grad():
        released = released_combine(head, released_fusion(head), *inputs()) + union(image, text) * 0.1
        released = released / released.norm(dim=-1, keepdim=True)
        ours = QueryWithUnion(head, union, 0.1)(image, image_tokens, text, text_tokens, token_ids)
        torch.testing.assert_close(ours, released, atol=2e-6, rtol=0)
