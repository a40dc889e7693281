"""The shape of a CLIP that open_clip builds: whether it is OpenAI's, and which one a file was saved from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError
from cirrus_export.backbones.clip_config import ClipConfig, described_by_open_clip
from cirrus_export.checkpoints.state import StateDict, count_layers

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
import open_clip

CLIP_KIND = "a CLIP"
"""What a family calls a file with a CLIP's keys."""
_HEAD_WIDTH = 64


def shows_every_token(config: Mapping[str, Any]) -> bool:
    """Return whether a model of open_clip has the form of OpenAI's CLIP with a vision transformer."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    return (
        not config.get("custom_text")
        and "timm_model_name" not in vision
        and isinstance(vision.get("layers", 0), int)
        and vision.get("pool_type", "tok") == "tok"
        and not vision.get("attentional_pool")
        and text.get("pool_type", "argmax") == "argmax"
        and not any(key in text for key in ("hf_model_name", "hf_tokenizer_name"))
        and not any(text.get(key) for key in ("no_causal_mask", "proj_bias", "embed_cls"))
    )


def has_openai_keys(state: StateDict) -> bool:
    """Return whether a file holds a vision transformer beside a text tower, in the key names of OpenAI's CLIP."""
    return "visual.class_embedding" in state and "token_embedding.weight" in state


def is_said_to_differ(state: StateDict) -> bool:
    """Return whether open_clip's configuration beside a file says that it is no CLIP of OpenAI's form."""
    beside = described_by_open_clip(Path(state.source).parent)
    if beside is None or beside.architecture is None:
        return False
    return not shows_every_token(beside.architecture)


def check_sizes(clip: open_clip.CLIP, beside: ClipConfig | None) -> None:
    """Refuse sizes of a CLIP of transformers that its weights do not show, where an architecture has others."""
    if beside is None or beside.heads is None:
        return
    built = tuple(tower.resblocks[0].attn.num_heads for tower in (clip.visual.transformer, clip.transformer))
    if beside.heads != built:
        raise CheckpointError(
            f"checkpoint {beside.file}: {beside.heads} attention heads in the vision and the text tower, and the "
            f"architecture has {built}: name another --backbone, or from-checkpoint"
        )
    if beside.image_size_px not in (side := clip.visual.image_size):
        raise CheckpointError(
            f"checkpoint {beside.file}: images of {beside.image_size_px} px, and the architecture's have {side[0]}: "
            "name another --backbone, or from-checkpoint"
        )


def shaped_as(state: StateDict, quick_gelu: bool, beside: ClipConfig | None) -> open_clip.CLIP:
    """Build OpenAI's CLIP in the sizes of its own state dict, as `clip.model.build_model` infers them.

    open_clip's own configuration beside the file says all of it. Else attention heads and the side of an image are
    those of transformers' configuration, or else the heads of open_clip's models of these widths.
    """
    if beside is not None and beside.architecture is not None:
        return _built_as(beside.architecture, quick_gelu, beside.file)
    heads, image_size_px = (None, None) if beside is None else (beside.heads, beside.image_size_px)
    patches, words = state["visual.conv1.weight"], state["token_embedding.weight"]
    width, text_width = patches.shape[0], words.shape[1]
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vision = open_clip.CLIPVisionCfg(
        layers=count_layers(state, r"^visual\.transformer\.resblocks\.(\d+)\."),
        width=width,
        head_width=width // heads[0] if heads else min(_vision_head_widths().get(width, _HEAD_WIDTH), width),
        mlp_ratio=_mlp_ratio(state, "visual.transformer."),
        patch_size=patches.shape[-1],
        image_size=image_size_px or side * patches.shape[-1],
    )
    text = open_clip.CLIPTextCfg(
        context_length=state["positional_embedding"].shape[0],
        vocab_size=words.shape[0],
        width=text_width,
        heads=heads[1] if heads else max(1, text_width // _HEAD_WIDTH),
        mlp_ratio=_mlp_ratio(state, "transformer."),
        layers=count_layers(state, r"^transformer\.resblocks\.(\d+)\."),
        **_pooling(beside),
    )
    dim = state["text_projection"].shape[1]
    return open_clip.CLIP(dim, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)


def _built_as(architecture: Mapping[str, Any], quick_gelu: bool, file: Path) -> open_clip.CLIP:
    """Build the CLIP of OpenAI's form that open_clip's configuration beside a file describes."""
    own = {key: value for key, value in architecture.items() if key not in ("custom_text", "init_logit_bias")}
    try:
        return open_clip.CLIP(**own | {"quick_gelu": quick_gelu})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {file}: its model_cfg is no CLIP of open_clip: {error}") from None


def _pooling(beside: ClipConfig | None) -> dict[str, Any]:
    """Return open_clip's settings of how a text is read off its end."""
    end_id = None if beside is None else beside.end_id
    return {} if end_id is None else {"pool_type": "eos", "eos_id": end_id}


def _mlp_ratio(state: StateDict, tower: str) -> float:
    """Return the ratio of which open_clip's rounding down makes the hidden width that the file has."""
    hidden, width = state[f"{tower}resblocks.0.mlp.c_fc.weight"].shape
    return (hidden + 0.5) / width


def _vision_head_widths() -> dict[int, int]:
    """Return how wide attention heads are in open_clip's vision transformers, by the tower's width: one for each."""
    configs = filter(shows_every_token, map(open_clip.get_model_config, open_clip.list_models()))
    towers = (config["vision_cfg"] for config in configs)
    return {tower["width"]: tower.get("head_width", _HEAD_WIDTH) for tower in towers}
