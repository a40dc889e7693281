"""Find a backbone by name, with weights from a tag, a file, a head's checkpoint, or a seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch

from cirrus_client.errors import CheckpointError, ExportError
from cirrus_client.image.preprocess import PreprocessSpec
from cirrus_export.backbones.backbone import Backbone
from cirrus_export.backbones.blip import BLIP_KEYS, BlipBackbone, blip_state
from cirrus_export.backbones.blip2 import Blip2Backbone, blip2_keys, blip2_state
from cirrus_export.backbones.lvlm import load_lvlm
from cirrus_export.backbones.open_clip import OpenClipBackbone, open_clip
from cirrus_export.checkpoints.state import StateDict, count_layers, load_strictly, read_state_dict

DEMO_BACKBONE = "cirrus-demo"
FROM_CHECKPOINT = "from-checkpoint"
LVLM = "lvlm"
RANDOM = "random"
BLIP = {"blip-base-coco": BlipBackbone.base, "blip-base-flickr": BlipBackbone.base}
BLIP2: dict[str, Callable[[], Blip2Backbone]] = {
    "blip2-vit-g": Blip2Backbone.vit_g,
    "blip2-vit-l": Blip2Backbone.vit_l,
}
CLIP_KIND, BLIP_KIND = "a CLIP", "a BLIP (blip-base-coco)"
BLIP2_KINDS = {"blip2-vit-g": "BLIP-2's ViT-g (blip2-vit-g)", "blip2-vit-l": "BLIP-2's ViT-L (blip2-vit-l)"}
_KINDS = {
    "visual.conv1.weight": CLIP_KIND,
    "visual_encoder.norm.weight": BLIP_KIND,
    "visual_encoder.cls_token": BLIP2_KINDS["blip2-vit-g"],
    "visual_encoder.class_embedding": BLIP2_KINDS["blip2-vit-l"],
}
"""A key that only one kind of file has, the first that fits."""
_RANDOM_SEED = 20240607
_OPENAI_ARCHIVE_KEYS = ("input_resolution", "context_length", "vocab_size")


def load_backbone(name: str, pretrained: str | None, fine_tuned: StateDict | None = None) -> Backbone:
    """Build a frozen backbone.

    name: an open_clip model, "cirrus-demo", a name of `BLIP` or `BLIP2`, "lvlm" (its weights are a folder), or
    "from-checkpoint": CLIP, BLIP or BLIP-2 in the sizes that the weights have. pretrained: an open_clip tag ("openai",
    "laion2b_s32b_b79k"), a checkpoint file, or "random" (seeded). fine_tuned: the backbone that a head's checkpoint
    carries, in its authors' key names; it wins over `pretrained`, whose weights are then not fetched.

    OpenAI's CLIP and everything fine-tuned from the `clip` package uses QuickGELU: it is forced for the tag "openai",
    for OpenAI's own archives and for `fine_tuned`, whatever the name says (open_clip#771, #915).

    Raises ExportError for an unknown name or tag, or weights that can't be fetched; CheckpointError for a file that
    does not fit.
    """
    _register_demo()
    if name not in (FROM_CHECKPOINT, LVLM, *BLIP, *BLIP2, *open_clip.list_models()):
        near = [model for model in (*BLIP, *BLIP2, *open_clip.list_models()) if model.startswith(name[:4])]
        raise ExportError(f"there is no backbone '{name}'; near it: {', '.join(near) or 'see open_clip'}")
    if fine_tuned is None and pretrained is None:
        raise ExportError(
            f"backbone {name}: the checkpoint carries no backbone, so --pretrained must say where its weights are"
        )
    if name == LVLM:
        return load_lvlm(Path(pretrained or ""))
    state = fine_tuned
    if state is None and pretrained is not None and Path(pretrained).is_file():
        state = read_state_dict(Path(pretrained))
    if state is None:
        assert pretrained is not None
        return _without_state(name, pretrained)
    try:
        return _from_state(name, state, openai=fine_tuned is not None)
    except KeyError as error:
        raise CheckpointError(f"checkpoint {state.source}: {error} is missing, so its sizes are unknown") from None


def _from_state(name: str, state: StateDict, *, openai: bool) -> Backbone:
    _check_kind(name, state)
    if name in BLIP or (name == FROM_CHECKPOINT and "visual_encoder.norm.weight" in state):
        blip = BlipBackbone.shaped_as(state) if name == FROM_CHECKPOINT else BLIP[name]()
        load_strictly(blip, blip_state(state), theirs=BLIP_KEYS.theirs)
        return blip
    if name in BLIP2 or (name == FROM_CHECKPOINT and "ln_vision.weight" in state):
        blip2 = Blip2Backbone.shaped_as(state) if name == FROM_CHECKPOINT else BLIP2[name]()
        load_strictly(blip2, blip2_state(state), theirs=blip2_keys(state).theirs)
        return blip2
    archive = all(key in state for key in _OPENAI_ARCHIVE_KEYS)
    weights = state.derived({key: value for key, value in state.items() if key not in _OPENAI_ARCHIVE_KEYS})
    if name == FROM_CHECKPOINT:
        clip = OpenClipBackbone(_clip_shaped_as(weights))
    else:
        clip = _unfilled(name, quick_gelu=openai or archive)
    load_strictly(clip.clip, weights)
    return clip


def _unfilled(name: str, *, quick_gelu: bool) -> OpenClipBackbone:
    """The architecture, for a file's weights: open_clip would warn that they are random."""
    root = logging.getLogger()
    root.addFilter(_says_nothing_of_random_weights)
    try:
        return _supported(name, open_clip.create_model(name, force_quick_gelu=quick_gelu))
    finally:
        root.removeFilter(_says_nothing_of_random_weights)


def _says_nothing_of_random_weights(record: logging.LogRecord) -> bool:
    return "initialized randomly" not in record.getMessage()


def _check_kind(name: str, state: StateDict) -> None:
    """Say at once which backbone a file holds, where a list of every key that it lacks would not."""
    found = next((kind for key, kind in _KINDS.items() if key in state), None)
    asked = BLIP2_KINDS.get(name) or (BLIP_KIND if name in BLIP else CLIP_KIND)
    if name != FROM_CHECKPOINT and found is not None and found != asked:
        raise CheckpointError(f"checkpoint {state.source}: holds {found}, and --backbone {name} is {asked}")


def _without_state(name: str, pretrained: str) -> Backbone:
    if pretrained != RANDOM:
        if name not in open_clip.list_models():
            raise ExportError(f"--pretrained {pretrained}: there is no such file, and {name} has no tags to fetch")
        return _from_tag(name, pretrained)
    if name == FROM_CHECKPOINT:
        raise ExportError(f"--backbone {FROM_CHECKPOINT} takes its sizes from weights: --pretrained must be a file")
    torch.manual_seed(_RANDOM_SEED)
    if name in BLIP:
        return BLIP[name]()
    if name in BLIP2:
        return BLIP2[name]()
    return _supported(name, open_clip.create_model(name))


def _clip_shaped_as(state: StateDict) -> open_clip.CLIP:
    """OpenAI's CLIP in the sizes of its own state dict, as `clip.model.build_model` infers them; 64 wide heads."""
    patches, words = state["visual.conv1.weight"], state["token_embedding.weight"]
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vision = open_clip.CLIPVisionCfg(
        layers=count_layers(state, r"^visual\.transformer\.resblocks\.(\d+)\."),
        width=patches.shape[0],
        head_width=min(64, patches.shape[0]),
        patch_size=patches.shape[-1],
        image_size=side * patches.shape[-1],
    )
    text = open_clip.CLIPTextCfg(
        context_length=state["positional_embedding"].shape[0],
        vocab_size=words.shape[0],
        width=words.shape[1],
        heads=max(1, words.shape[1] // 64),
        layers=count_layers(state, r"^transformer\.resblocks\.(\d+)\."),
    )
    dim = state["text_projection"].shape[1]
    return open_clip.CLIP(dim, vision_cfg=vision, text_cfg=text, quick_gelu=True)


def _from_tag(name: str, tag: str) -> OpenClipBackbone:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise ExportError(
            f"--pretrained {tag}: neither a file nor a tag of {name}; its tags: {known}; 'random' draws weights"
        )
    _check_preprocessing(name, tag)
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
    pools = (visual.pool_type, model.text_pool_type)
    if pools != ("tok", "argmax") or visual.attn_pool is not None:
        raise ExportError(
            f"backbone {name}: an image must be read off the CLS token and a text off its end, and this model pools "
            f"them otherwise (image: {pools[0]}, text: {pools[1]})"
        )
    return OpenClipBackbone(model)


def _check_preprocessing(name: str, tag: str) -> None:
    """Recipes prepare images as OpenAI's CLIP does; weights trained otherwise would give silently wrong embeddings."""
    config = open_clip.get_pretrained_cfg(name, tag)
    ours = PreprocessSpec(size_px=1)
    expected = {"mean": ours.mean, "std": ours.std, "interpolation": "bicubic", "resize_mode": "shortest"}
    differing = [f"{key} {config[key]}" for key, value in expected.items() if config.get(key, value) != value]
    if differing:
        raise ExportError(
            f"--pretrained {tag}: these weights of {name} were trained on images with {', '.join(differing)}; recipes "
            "prepare images as OpenAI's CLIP does, so their embeddings would be wrong: name another tag"
        )


def _register_demo() -> None:
    if DEMO_BACKBONE not in open_clip.list_models():
        config = files("cirrus_demo") / f"{DEMO_BACKBONE}.json"
        open_clip.add_model_config(Path(str(config)))
