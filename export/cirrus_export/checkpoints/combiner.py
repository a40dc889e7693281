"""Combiner files of CLIP4Cir: `{"epoch": ..., "Combiner": state_dict}`; a fine-tuned CLIP is a file of its own."""

from __future__ import annotations

from cirrus_export.checkpoints import widths
from cirrus_export.checkpoints.state import StateDict, load_strictly
from cirrus_export.checkpoints.widths import Width
from cirrus_export.heads.combiner import Combiner

_PROJECTION, _HIDDEN = "text_projection_layer.weight", "combiner_layer.weight"


def load_combiner(head: StateDict | None, dim: int) -> Combiner:
    """Return a Combiner with a file's weights and sizes, or random ones in the released sizes.

    Raises CheckpointError for a missing, surplus or wrongly shaped key.
    """
    combiner = Combiner(dim, _rows(head, _PROJECTION, 4 * dim), _rows(head, _HIDDEN, 8 * dim))
    if head is not None:
        load_strictly(combiner, head)
    return combiner


def check_width(head: StateDict, dim: int | None) -> None:
    """Raise CheckpointError if the head is for embeddings of another width."""
    widths.check_width(head, _PROJECTION, 1, dim, Width.EMBEDDINGS)


def _rows(head: StateDict | None, key: str, default: int) -> int:
    return int(head[key].shape[0]) if head is not None and key in head else default
