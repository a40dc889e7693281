"""The values of a checkpoint's tensors: plain, finite, and in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cirrus_client.errors import CheckpointError

_MOST_NAMED = 8
_LARGEST_REPEATED_BYTES = 2**20


def in_float32(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return tensors with floating-point values in float32; other types stay as they are.

    source: where they are from, for the message. Raises CheckpointError for values that are sparse, quantised, complex
    or absent, and for NaN and infinity, by the tensors' names.
    """
    full = {}
    for name, tensor in tensors.items():
        odd = _oddity(tensor)
        if odd is not None:
            raise CheckpointError(f"checkpoint {source}: '{name}' {odd}; save it as an ordinary tensor")
        try:
            full[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
        except RuntimeError as error:
            raise CheckpointError(f"checkpoint {source}: '{name}' is {tensor.dtype}: {error}") from error
    check_finite(full, f"checkpoint {source}")
    return full


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError that names the tensors with a NaN or an infinity. source: begins the message."""
    wrong = [
        name for name, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if wrong:
        named = ", ".join(f"'{name}'" for name in wrong[:_MOST_NAMED])
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise CheckpointError(
            f"{source}: NaN or infinity in {named}{more}: the training diverged, or the file is damaged; take an "
            "earlier checkpoint"
        )


def _oddity(tensor: Tensor) -> str | None:
    """Return what keeps a tensor from being read, if anything does."""
    if tensor.is_meta:
        return "has a shape and no values"
    if tensor.layout is not torch.strided:
        return "is sparse"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_complex():
        return "is complex"
    size = tensor.numel() * tensor.itemsize
    if size > max(_LARGEST_REPEATED_BYTES, tensor.untyped_storage().nbytes()):
        return f"claims {size:,} bytes, and the file holds {tensor.untyped_storage().nbytes():,} of them"
    return None
