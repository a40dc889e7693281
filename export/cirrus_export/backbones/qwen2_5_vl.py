"""Qwen2.5-VL as an encoder of images and texts: LamRA-Ret (arXiv 2412.01720), and models that VLM2Vec's code trains."""

from __future__ import annotations

from cirrus_export.backbones.qwen2_vl import Qwen2VlBackbone
from cirrus_export.backbones.qwen_vl import QwenVlFamily
from cirrus_export.heads.qwen2_5_vl import Qwen25VlTower

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Qwen2_5_VLModel


class Qwen25VlBackbone(Qwen2VlBackbone):
    """Qwen2.5-VL: Qwen2-VL's pixels and language model, and a vision tower of its own."""

    tower_type = Qwen25VlTower
    label = "Qwen2.5-VL"
    wordings = ("lamra", "vlm2vec")


class Qwen25VlFamily(QwenVlFamily):
    """Checkpoint folders of Qwen2.5-VL."""

    backbone_type = Qwen25VlBackbone
    name = "qwen2.5-vl"
    model_type = "qwen2_5_vl"
    model_class = Qwen2_5_VLModel
