"""MetaCLIP 2 as transformers saves it (facebook/metaclip-2-*): a CLIP of many languages, in any of its sizes.

It differs from OpenAI's CLIP in its vocabulary, and in that a text is read off its first end token, whose id is not the
highest. Source: `modular_metaclip_2.py` of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cirrus_client.errors import CheckpointError
from cirrus_export.backbones.clip_config import METACLIP_2, OF_TRANSFORMERS, ClipConfig
from cirrus_export.backbones.clip_shape import check_sizes, shaped_as
from cirrus_export.backbones.open_clip_models import OPENAI, Config
from cirrus_export.checkpoints.hugging_face_clip import is_hugging_face_clip
from cirrus_export.checkpoints.image_settings import read_settings
from cirrus_export.checkpoints.state import StateDict

_TOKENIZERS = {2: "facebook/xlm-v-base", 1: "google/mt5-base"}
"""Their names on the hub, by the id of the end token."""


def is_metaclip_2(state: StateDict) -> bool:
    """Return whether a file is a MetaCLIP 2 of transformers: its keys are a CLIP's, so its configuration says it."""
    if not is_hugging_face_clip(state):
        return False
    return read_settings(Path(state.source).parent / OF_TRANSFORMERS).get("model_type") == METACLIP_2


def metaclip_2_config(state: StateDict, beside: ClipConfig) -> Config:
    """Return what open_clip's configuration would say of a model. state: its weights in OpenAI's key names.

    Raises CheckpointError if its tokenizer is not known.
    """
    assert beside.end_id is not None
    tokenizer = _TOKENIZERS.get(beside.end_id)
    if tokenizer is None:
        raise CheckpointError(
            f"checkpoint {beside.file}: text_config.eos_token_id is {beside.end_id}; MetaCLIP 2's texts end with "
            + ", ".join(f"{end} ({name})" for end, name in _TOKENIZERS.items())
        )
    text = {
        "context_length": state["positional_embedding"].shape[0],
        "vocab_size": state["token_embedding.weight"].shape[0],
        "hf_tokenizer_name": tokenizer,
    }
    dim = state["text_projection"].shape[1]
    return OPENAI | {"embed_dim": dim, "vision_cfg": {"image_size": beside.image_size_px}, "text_cfg": text}


def create_metaclip_2(state: StateDict, beside: ClipConfig, *, quick_gelu: bool) -> nn.Module:
    """Build a model in the sizes of its weights, with random ones, in evaluation mode."""
    return shaped_as(state, quick_gelu, beside).eval().requires_grad_(False)


def check_named(model: nn.Module, architecture: Mapping[str, Any], beside: ClipConfig) -> None:
    """Refuse heads, sides and an end token that the named architecture does not have. Raises CheckpointError."""
    end_id = architecture["text_cfg"].get("eos_id")
    if beside.end_id != end_id:
        raise CheckpointError(
            f"checkpoint {beside.file}: texts end with token {beside.end_id}, and the architecture's with {end_id}: "
            "name another --backbone, or from-checkpoint"
        )
    check_sizes(model, beside)
