"""Compare a head with the width of its backbone, before either is built."""

from __future__ import annotations

from enum import StrEnum

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.state import StateDict


class Width(StrEnum):
    """Widths of a backbone that a head is made for."""

    EMBEDDINGS = "embeddings"
    WORDS = "words"
    IMAGE_TOKENS = "image tokens"


_BACKBONES = {
    Width.EMBEDDINGS: {
        256: "a BLIP backbone",
        512: "ViT-B-32 or ViT-B-16",
        640: "RN50x4",
        768: "ViT-L-14",
        1024: "ViT-H-14 or RN50",
        1280: "ViT-bigG-14",
    },
    Width.WORDS: {512: "ViT-B-32 or ViT-B-16", 768: "ViT-L-14", 1024: "ViT-H-14", 1280: "ViT-bigG-14"},
    Width.IMAGE_TOKENS: {1024: "blip2-vit-l", 1408: "blip2-vit-g"},
}


def check_width(head: StateDict, key: str, axis: int, of_backbone: int | None, what: Width) -> None:
    """Raise CheckpointError if one axis of a head's tensor is not as wide as the backbone.

    A key that the head lacks, and a width that is not known yet (None), are not compared.
    """
    tensor = head.get(key)
    if tensor is None or of_backbone is None or axis >= tensor.ndim or tensor.shape[axis] == of_backbone:
        return
    found = int(tensor.shape[axis])
    named = _BACKBONES[what].get(found)
    hint = f"; it looks like a head for {named}" if named else ""
    raise CheckpointError(
        f"checkpoint {head.source}: the head is for {what} of width {found}, "
        f"the backbone's width is {of_backbone}{hint}"
    )
