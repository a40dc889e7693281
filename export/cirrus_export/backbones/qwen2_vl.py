"""Qwen2-VL as an encoder of images and texts.

GME (arXiv 2412.16855), Ops-MM-embedding, LamRA-Ret (arXiv 2412.01720), VLM2Vec (arXiv 2410.05160).
"""

from __future__ import annotations

from typing import ClassVar

from cirrus_export.backbones.qwen_vl import QwenVlBackbone, QwenVlFamily
from cirrus_export.heads.qwen2_vl import Qwen2VlTower, axes_of

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from transformers import Qwen2VLModel


class Qwen2VlBackbone(QwenVlBackbone):
    """Qwen2-VL. The wording says whose embedding model it is."""

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)
    tower_type = Qwen2VlTower
    axes_of = staticmethod(axes_of)
    label = "Qwen2-VL"
    wordings: ClassVar[tuple[str, ...]] = ("ops-mm-embedding", "gme", "lamra", "unite", "vlm2vec")


class Qwen2VlFamily(QwenVlFamily):
    """Checkpoint folders of Qwen2-VL."""

    backbone_type = Qwen2VlBackbone
    name = "qwen2-vl"
    model_type = "qwen2_vl"
    model_class = Qwen2VLModel
    known_code = frozenset({"modeling_gme_qwen2vl"})
