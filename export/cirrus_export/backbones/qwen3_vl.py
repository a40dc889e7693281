"""Qwen3-VL as an encoder of images and texts: Qwen3-VL-Embedding (arXiv 2601.04720) and models trained from it."""

from __future__ import annotations

import unicodedata

from cirrus_export.backbones.qwen_vl import QwenVlBackbone, QwenVlFamily
from cirrus_export.heads.qwen3_vl import Qwen3VlTower, axes_of

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Qwen3VLModel


class Qwen3VlBackbone(QwenVlBackbone):
    """Qwen3-VL in the wording of its embedding models."""

    mean = std = (0.5, 0.5, 0.5)
    tower_type = Qwen3VlTower
    axes_of = staticmethod(axes_of)
    label = "Qwen3-VL"
    default_instruction = "Represent the user's input."

    def worded(self, instruction: str) -> str:
        """See `QwenVlBackbone.worded`. A full stop is put behind one that ends without punctuation."""
        stripped = instruction.strip()
        ends = not stripped or unicodedata.category(stripped[-1]).startswith("P")
        return stripped if ends else f"{stripped}."


class Qwen3VlFamily(QwenVlFamily):
    """Checkpoint folders of Qwen3-VL."""

    backbone_type = Qwen3VlBackbone
    name = "qwen3-vl"
    model_type = "qwen3_vl"
    model_class = Qwen3VLModel
