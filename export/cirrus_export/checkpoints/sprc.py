"""SPRC files: `{"epoch": ..., "<class name>": state_dict}` of the whole BLIP-2, and the wrappers of its descendants.

`visual_encoder.` and `ln_vision.` are the backbone; `query_tokens`, `Qformer.bert.`, `vision_proj.` and `text_proj.`
the head. Everything else that LAVIS's class holds has no part in retrieval: `_UNUSED`.
"""

from __future__ import annotations

import re

from torch import Tensor

from cirrus_export.checkpoints import widths
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import StateDict, Unused, count_layers, load_strictly, pass_over
from cirrus_export.checkpoints.widths import Width
from cirrus_export.heads.qformer import QFormer, QFormerSize

_BACKBONE_PREFIXES = ("visual_encoder.", "ln_vision.")
_UNUSED = (
    Unused(r"temp$", "the temperature of the training loss"),
    Unused(r"prompt_tokens$", "prompts of a training loss, which `inference` does not read"),
    Unused(r"itm_head\.", "BLIP-2's head for matching, which reranks and does not retrieve"),
    Unused(r"Qformer\.cls\.", "BLIP-2's head for captions"),
    Unused(r"Qformer\.bert\.embeddings\.position_ids$", "a constant: 0, 1, 2, ..."),
)
_KEYS = KeyMap(
    ("Qformer.bert.embeddings.LayerNorm.", "bert.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.encoder.layer.{n}.attention.self.", "bert.encoder.layer.{n}.attention.attention."),
    ("Qformer.bert.encoder.layer.{n}.crossattention.self.", "bert.encoder.layer.{n}.crossattention.attention."),
    ("Qformer.bert.", "bert."),
)


def backbone(head: StateDict) -> StateDict | None:
    """Return the image encoder that the file carries, in LAVIS's key names, or None."""
    part = {key: value for key, value in head.items() if key.startswith(_BACKBONE_PREFIXES)}
    return head.derived(part) if part else None


def size(head: StateDict, image_width: int) -> QFormerSize:
    """Return the sizes of the Q-Former in a file; those whose key is missing are BLIP-2's."""
    standard = QFormerSize(image_width)
    crossed = sorted(
        {int(found[1]) for key in head if (found := re.match(r"^Qformer\.bert\.encoder\.layer\.(\d+)\.cross", key))}
    )

    def shape(key: str, axis: int, default: int) -> int:
        return head[key].shape[axis] if key in head else default

    return QFormerSize(
        image_width,
        num_queries=shape("query_tokens", 1, standard.num_queries),
        width=shape("query_tokens", 2, standard.width),
        layers=count_layers(head, r"^Qformer\.bert\.encoder\.layer\.(\d+)\.", default=standard.layers),
        inner=shape("Qformer.bert.encoder.layer.0.intermediate.dense.weight", 0, standard.inner),
        vocabulary=shape("Qformer.bert.embeddings.word_embeddings.weight", 0, standard.vocabulary),
        positions=shape("Qformer.bert.embeddings.position_embeddings.weight", 0, standard.positions),
        cross_attention_every=crossed[1] - crossed[0] if len(crossed) > 1 else standard.cross_attention_every,
        dim=shape("text_proj.weight", 0, standard.dim),
    )


def check_width(head: StateDict, image_width: int | None) -> None:
    """Raise CheckpointError if the Q-Former reads image tokens of another width."""
    widths.check_width(
        head, "Qformer.bert.encoder.layer.0.crossattention.self.key.weight", 1, image_width, Width.IMAGE_TOKENS
    )


def authors_names(qformer: QFormer) -> dict[str, Tensor]:
    """Return a Q-Former's weights under SPRC's key names."""
    return {_KEYS.theirs(key): value for key, value in qformer.state_dict().items()}


def load(head: StateDict, qformer: QFormer) -> None:
    """Load the Q-Former. Raises CheckpointError for a missing, surplus or wrongly shaped key, by the file's name."""
    used = {
        _KEYS.ours(key): value
        for key, value in pass_over(head, _UNUSED).items()
        if not key.startswith(_BACKBONE_PREFIXES)
    }
    load_strictly(qformer, head.derived(used), theirs=_KEYS.theirs)
