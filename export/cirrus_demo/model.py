"""The demo's CLIP: its architecture under open_clip's name, its preprocessing and its tokenizer."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.image.preprocess import Pad, PreprocessSpec
from cirrus_export.checkpoints.state import load_strictly, read_state_dict

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip
from open_clip.tokenizer import SimpleTokenizer

MODEL_NAME = "cirrus-demo"
MODEL_CONFIG = Path(__file__).with_name(f"{MODEL_NAME}.json")
PREPROCESS = PreprocessSpec(size_px=96, pad=Pad.TARGET, convert_rgb="after_crop")


def register_model() -> None:
    """Make the name known to `open_clip.create_model`."""
    if MODEL_NAME not in open_clip.list_models():
        open_clip.add_model_config(MODEL_CONFIG)


def create_clip() -> open_clip.CLIP:
    """Return the CLIP with random weights, in evaluation mode."""
    register_model()
    return open_clip.create_model(MODEL_NAME).eval()


def load_clip(path: Path) -> open_clip.CLIP:
    """Return the CLIP with the weights of a file. Raises CheckpointError."""
    clip = create_clip()
    load_strictly(clip, read_state_dict(path))
    return clip


def create_tokenizer() -> SimpleTokenizer:
    """Return CLIP's byte-pair tokenizer with this model's context length."""
    register_model()
    return open_clip.get_tokenizer(MODEL_NAME)
