"""The demo's CLIP: a backbone family of one model, its preprocessing and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.backbones.open_clip import OpenClipFamily
from cirrus_export.backbones.open_clip_models import Config
from cirrus_export.checkpoints.state import StateDict, load_strictly, read_state_dict

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.tokenizer import SimpleTokenizer

MODEL_NAME = "cirrus-demo"
MODEL_CONFIG = Path(__file__).with_name(f"{MODEL_NAME}.json")
PREPROCESS = PreprocessSpec(size_px=96, pad=Pad.TARGET, convert_rgb="after_crop")


class DemoFamily(OpenClipFamily):
    """`--backbone cirrus-demo`: an entry point `cirrus.backbones` of this distribution."""

    def names(self) -> Sequence[str]:
        """Return the one name."""
        return (MODEL_NAME,)

    def config(self, name: str) -> Config:
        """Return the architecture, in open_clip's form."""
        config: Config = json.loads(MODEL_CONFIG.read_text())
        return config

    def kind_of(self, state: StateDict) -> None:
        """Return None: its files are CLIP's, and `OpenClipFamily` recognises them."""

    def tags(self, name: str) -> Sequence[str]:
        """Return none: the weights are files."""
        return ()


def create_clip() -> open_clip.CLIP:
    """Return the CLIP with random weights, in evaluation mode."""
    return open_clip.CLIP(**DemoFamily().config(MODEL_NAME)).eval()


def load_clip(path: Path) -> open_clip.CLIP:
    """Return the CLIP with the weights of a file. Raises CheckpointError."""
    clip = create_clip()
    load_strictly(clip, read_state_dict(path))
    return clip


def create_tokenizer() -> SimpleTokenizer:
    """Return CLIP's byte-pair tokenizer with this model's context length."""
    return SimpleTokenizer(context_length=DemoFamily().config(MODEL_NAME)["text_cfg"]["context_length"])
