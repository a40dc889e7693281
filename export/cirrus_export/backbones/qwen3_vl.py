"""Qwen3-VL as an encoder of images and texts: Qwen3-VL-Embedding (arXiv 2601.04720) and models trained from it."""

from __future__ import annotations

from cirrus_export.backbones.qwen_vl import QwenVlBackbone, QwenVlFamily
from cirrus_export.heads.qwen3_vl import Qwen3VlTower, axes_of

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Qwen3VLModel


class Qwen3VlBackbone(QwenVlBackbone):
    """Qwen3-VL, worded like Qwen3-VL-Embedding unless an option says otherwise."""

    mean = std = (0.5, 0.5, 0.5)
    tower_type = Qwen3VlTower
    axes_of = staticmethod(axes_of)
    label = "Qwen3-VL"
    offers = "a vision-language model with deepstack"
    wordings = ("qwen3-vl-embedding",)


class Qwen3VlFamily(QwenVlFamily):
    """Checkpoint folders of Qwen3-VL."""

    backbone_type = Qwen3VlBackbone
    name = "qwen3-vl"
    model_type = "qwen3_vl"
    model_class = Qwen3VLModel
