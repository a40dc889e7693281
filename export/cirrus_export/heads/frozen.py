"""Prepare a module for inference."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Return the module in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)
