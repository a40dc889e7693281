"""SPRC files: `{"epoch": ..., "<class name>": state_dict}` of the whole BLIP-2, and the wrappers of its descendants.

`visual_encoder.` and `ln_vision.` are the backbone; `query_tokens`, `Qformer.bert.`, `vision_proj.` and `text_proj.`
the head. Everything else that LAVIS's class holds has no part in retrieval: `_UNUSED`. LAVIS's own runner saves what it
trains alone: all of these but `visual_encoder.`, which is frozen.

SPN4CIR (BUAADreamer/SPN4CIR `blip24cir`, arXiv 2404.11317) saves `{"epoch": ..., "state_dict": ...}` with `blip_model.`
before these names. Its second stage trains a copy of the Q-Former for the query's second pass, under
`Qformer_query.bert.` and `text_proj_q.`.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints import widths
from cirrus_export.checkpoints.key_map import KeyMap
from cirrus_export.checkpoints.state import (
    StateDict,
    Unused,
    count_layers,
    load_strictly,
    pass_over,
)
from cirrus_export.checkpoints.widths import Width
from cirrus_export.heads.qformer import QFormer, QFormerSize

_ENCODER, _LAST_NORM = _BACKBONE_PREFIXES = ("visual_encoder.", "ln_vision.")
_UNUSED = (
    Unused(r"temp$", "the temperature of the training loss"),
    Unused(r"prompt_tokens$", "prompts of a training loss, which `inference` does not read"),
    Unused(r"sim_enc\.", "HINT's contexts, which its training loss compares"),
    Unused(r"(text_proj_cau\.|loss_T$)", "INTENT's projection and temperature of its training losses"),
    Unused(r"negative_tokens$", "ConeSep's queries of negated texts, which its training losses read"),
    Unused(r"itm_head\.", "BLIP-2's head for matching, which recipe sprc exports with --option reranker=true"),
    Unused(r"Qformer(_query)?\.cls\.", "BLIP-2's head for captions"),
    Unused(r"Qformer(_query)?\.bert\.embeddings\.position_ids$", "a constant: 0, 1, 2, ..."),
)
_KEYS = KeyMap(
    ("Qformer.bert.embeddings.LayerNorm.", "bert.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.encoder.layer.{n}.attention.self.", "bert.encoder.layer.{n}.attention.attention."),
    ("Qformer.bert.encoder.layer.{n}.crossattention.self.", "bert.encoder.layer.{n}.crossattention.attention."),
    ("Qformer.bert.", "bert."),
)


_MATCHING = "itm_head."
_SECOND_PASS = {"Qformer_query.": "Qformer.", "text_proj_q.": "text_proj."}


def backbone(head: StateDict) -> StateDict | None:
    """Return the image encoder that the file carries, in LAVIS's key names, or None."""
    if not head.under(_ENCODER):
        return None
    return head.derived({key: value for key, value in head.items() if key.startswith(_BACKBONE_PREFIXES)})


def load_last_norm(head: StateDict, norm: nn.Module) -> None:
    """Load `ln_vision` of a file that lacks the image encoder before it; it was trained with the head.

    Raises CheckpointError for a missing or wrongly shaped key.
    """
    own = head.under(_LAST_NORM)
    if own and backbone(head) is None:
        load_strictly(norm, own)


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


def check_matching(head: StateDict) -> None:
    """Raise CheckpointError if the file has no head for matching."""
    if not head.under(_MATCHING):
        raise CheckpointError(
            f"checkpoint {head.source}: has no '{head.prefix}{_MATCHING}weight', BLIP-2's head for image-text "
            "matching, which option reranker needs: leave the option out, or take a file that was saved with it"
        )


def authors_names(qformer: QFormer, itm_head: nn.Linear | None = None) -> dict[str, Tensor]:
    """Return the weights of a Q-Former, and of its head for matching if it has one, under SPRC's key names."""
    matching = {} if itm_head is None else {f"{_MATCHING}{key}": value for key, value in itm_head.state_dict().items()}
    return {_KEYS.theirs(key): value for key, value in qformer.state_dict().items()} | matching


def load(head: StateDict, qformer: QFormer) -> None:
    """Load the Q-Former. Raises CheckpointError for a missing, surplus or wrongly shaped key, by the file's name."""
    used = {
        _KEYS.ours(key): value
        for key, value in pass_over(head, _UNUSED).items()
        if not key.startswith((*_BACKBONE_PREFIXES, *_SECOND_PASS))
    }
    load_strictly(qformer, head.derived(used), theirs=_KEYS.theirs)


def without_matching(head: StateDict) -> StateDict:
    """Return a file without the head for matching, so that it is not said to be left out."""
    return head.derived({key: value for key, value in head.items() if not key.startswith(_MATCHING)})


def load_matching(head: StateDict, itm_head: nn.Linear) -> None:
    """Load the head for matching. Raises CheckpointError as `load` does."""
    check_matching(head)
    load_strictly(itm_head, head.under(_MATCHING))


def load_second_pass(head: StateDict, qformer: QFormer) -> QFormer:
    """Return the Q-Former of a query's second pass: SPN4CIR's own if the file has one, else that of the first.

    Raises CheckpointError for a missing, surplus or wrongly shaped key, by the file's name.
    """
    own = {key: value for key, value in pass_over(head, _UNUSED).items() if key.startswith(tuple(_SECOND_PASS))}
    if not own:
        return qformer
    second = QFormer(qformer.size)
    shared = {key: value for key, value in qformer.state_dict().items() if key.startswith(("query_tokens", "vision_"))}
    renamed = {_KEYS.ours(_first_pass_name(key)): value for key, value in own.items()}
    load_strictly(second, head.derived(renamed | shared), theirs=lambda key: _second_pass_name(_KEYS.theirs(key)))
    return second


def _first_pass_name(key: str) -> str:
    second, first = next(pair for pair in _SECOND_PASS.items() if key.startswith(pair[0]))
    return first + key.removeprefix(second)


def _second_pass_name(key: str) -> str:
    for second, first in _SECOND_PASS.items():
        if key.startswith(first):
            return second + key.removeprefix(first)
    return key
