"""Find a backbone by name, with weights from a tag, a file, a head's checkpoint, or a seed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_export.backbones.open_clip import OpenClipBackbone, open_clip
from cirrus_export.checkpoints.state import StateDict, load_strictly, read_state_dict

DEMO_BACKBONE = "cirrus-demo"
RANDOM = "random"
_RANDOM_SEED = 20240607
_OPENAI_ARCHIVE_KEYS = ("input_resolution", "context_length", "vocab_size")


def load_backbone(name: str, pretrained: str, fine_tuned: StateDict | None = None) -> OpenClipBackbone:
    """Build a frozen CLIP.

    name: an open_clip model name, or "cirrus-demo". pretrained: an open_clip tag ("openai", "laion2b_s32b_b79k"),
    a checkpoint file, or "random" (seeded). fine_tuned: the backbone that a head's checkpoint carries, in OpenAI's
    key names; it wins over `pretrained`, whose weights are then not fetched.

    OpenAI's CLIP and everything fine-tuned from the `clip` package uses QuickGELU: it is forced for the tag "openai",
    for OpenAI's own archives and for `fine_tuned`, whatever the name says (open_clip#771, #915).

    Raises ExportError for an unknown name or tag, or weights that can't be fetched; CheckpointError for a file that
    does not fit.
    """
    _register_demo()
    if name not in open_clip.list_models():
        near = ", ".join(model for model in open_clip.list_models() if model.startswith(name[:5])) or "see open_clip"
        raise ExportError(f"there is no backbone '{name}'; near it: {near}")
    if fine_tuned is not None:
        return _from_state(name, fine_tuned, openai=True)
    if pretrained == RANDOM:
        torch.manual_seed(_RANDOM_SEED)
        return _supported(name, open_clip.create_model(name))
    if Path(pretrained).is_file():
        state = read_state_dict(Path(pretrained))
        openai = all(key in state for key in _OPENAI_ARCHIVE_KEYS)
        weights = {key: value for key, value in state.items() if key not in _OPENAI_ARCHIVE_KEYS}
        return _from_state(name, StateDict(weights, state.source), openai=openai)
    return _from_tag(name, pretrained)


def _from_state(name: str, state: StateDict, *, openai: bool) -> OpenClipBackbone:
    backbone = _supported(name, open_clip.create_model(name, force_quick_gelu=openai))
    try:
        load_strictly(backbone.clip, state)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; the backbone was taken for {name}: try another --backbone") from None
    return backbone


def _from_tag(name: str, tag: str) -> OpenClipBackbone:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise ExportError(
            f"--pretrained {tag}: neither a file nor a tag of {name}; its tags: {known}; 'random' draws weights"
        )
    try:
        return _supported(name, open_clip.create_model(name, pretrained=tag))
    except (OSError, RuntimeError) as error:
        raise ExportError(
            f"the weights '{tag}' of {name} can't be fetched ({error}); download them elsewhere and give the "
            "file's path"
        ) from error


def _supported(name: str, model: torch.nn.Module) -> OpenClipBackbone:
    visual = getattr(model, "visual", None)
    if not isinstance(model, open_clip.CLIP) or not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise ExportError(f"backbone {name}: only CLIP models with a vision transformer are supported")
    return OpenClipBackbone(model)


def _register_demo() -> None:
    if DEMO_BACKBONE not in open_clip.list_models():
        config = files("cirrus_export") / "demo" / f"{DEMO_BACKBONE}.json"
        open_clip.add_model_config(Path(str(config)))
