"""What lies beside a CLIP's weights and says what they do not show: the configuration of transformers, or of open_clip.

A configuration is read as data: nothing that it names is imported or fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError
from cirrus_export.backbones.family import Weights
from cirrus_export.checkpoints.hugging_face_clip import is_hugging_face_clip
from cirrus_export.checkpoints.image_settings import read_settings
from cirrus_export.checkpoints.state import StateDict
from cirrus_export.checkpoints.tokenizer_file import TOKENIZER

import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from transformers import CLIPConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

OF_OPEN_CLIP, OF_TRANSFORMERS = "open_clip_config.json", "config.json"
METACLIP_2 = "metaclip_2"
_MODEL_TYPE = "clip"
_TOWERS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_LAYER_NORM_EPS = 1e-5
_UNSEEN = {
    "vision_cfg": ("head_width", "pool_type", "norm_kwargs", "act_kwargs"),
    "text_cfg": ("heads", "pool_type", "no_causal_mask", "norm_kwargs", "act_kwargs"),
}
_LAST_NORMS = ("vision_model.post_layernorm.weight", "text_model.final_layer_norm.weight")


@dataclass(frozen=True)
class ClipConfig:
    """A configuration.

    heads: of attention in the vision and in the text tower, None if it leaves them to the model. image_size_px: the
    side of an image, None if it is not said. architecture: the whole model in open_clip's terms, if it is open_clip's.
    end_id: of the token that a text of MetaCLIP 2 is read off, None for a CLIP.
    """

    file: Path
    quick_gelu: bool
    heads: tuple[int, int] | None = None
    image_size_px: int | None = None
    architecture: Mapping[str, Any] | None = None
    end_id: int | None = None


def config_beside(weights: Weights) -> ClipConfig | None:
    """Return the configuration in the folder of a CLIP's file, None if none is a CLIP's or the weights have a tag.

    Raises CheckpointError if it can't be read, or describes another model than the file, or one that OpenAI's form does
    not have.
    """
    state, folder = weights.state, folder_of(weights)
    if state is None or folder is None:
        return None
    if is_hugging_face_clip(state):
        path = folder / OF_TRANSFORMERS
        content = read_settings(path)
        return _of_transformers(path, content, state) if all(key in content for key in _TOWERS[:2]) else None
    return described_by_open_clip(folder)


def check_architecture(beside: ClipConfig | None, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the configuration beside a file says of a model what `config` denies.

    config: an architecture of open_clip. What the weights' shapes show is left to them.
    """
    if beside is None or beside.architecture is None:
        return
    said, known = (_unseen(beside.file, architecture) for architecture in (beside.architecture, config))
    wrong = [field for field, value in said.items() if known[field] != value]
    if wrong:
        raise CheckpointError(
            f"checkpoint {beside.file}: {wrong[0]} is {said[wrong[0]]}, and the architecture's is {known[wrong[0]]}: "
            "name another --backbone, or from-checkpoint for a CLIP"
        )


def folder_of(weights: Weights) -> Path | None:
    """Return the folder whose other files describe a file that was read, None if others do: a tag, or a head's file."""
    if weights.state is None or weights.tag is not None or weights.fine_tuned:
        return None
    return Path(weights.state.source).parent


def tokenizer_beside(weights: Weights) -> Path | None:
    """Return the `tokenizer.json` in the folder of a file that was read, also a tag's; None if there is none."""
    if weights.state is None or weights.fine_tuned:
        return None
    file = Path(weights.state.source).with_name(TOKENIZER)
    return file if file.is_file() else None


def described_by_open_clip(folder: Path) -> ClipConfig | None:
    """Return open_clip's configuration in a folder, None if there is none. Raises CheckpointError."""
    path = folder / OF_OPEN_CLIP
    model = read_settings(path).get("model_cfg")
    if not isinstance(model, dict):
        return None
    whole = all(isinstance(model.get(part), dict) for part in _UNSEEN)
    return ClipConfig(path, bool(model.get("quick_gelu", False)), architecture=model if whole else None)


def _unseen(path: Path, architecture: Mapping[str, Any]) -> dict[str, object]:
    """Return what of an architecture of open_clip its weights do not show."""
    try:
        towers = {"vision_cfg": CLIPVisionCfg(**architecture["vision_cfg"])}
        towers |= {"text_cfg": CLIPTextCfg(**architecture["text_cfg"])}
    except TypeError as error:
        raise CheckpointError(f"checkpoint {path}: its model_cfg is no model of open_clip: {error}") from None
    return {
        f"{part}.{field}": getattr(towers[part], field) or None for part, fields in _UNSEEN.items() for field in fields
    }


def _of_transformers(path: Path, content: dict[str, Any], state: StateDict) -> ClipConfig:
    kind = str(content.get("model_type", _MODEL_TYPE))
    # a type that transformers does not know says nothing
    if kind not in (_MODEL_TYPE, METACLIP_2) and kind in CONFIG_MAPPING_NAMES:
        raise CheckpointError(f"checkpoint {path}: describes a model of type {kind!r}, expected {_MODEL_TYPE!r}")
    try:
        config = CLIPConfig(**{key: content[key] for key in _TOWERS if key in content})
        vision, text = config.vision_config, config.text_config
        found = {tower.hidden_act for tower in (vision, text)}, {tower.layer_norm_eps for tower in (vision, text)}
        sizes = int(vision.hidden_size), int(text.hidden_size)
        heads = int(vision.num_attention_heads), int(text.num_attention_heads)
        image_size_px = int(vision.image_size)
        end_id = int(text.eos_token_id) if kind == METACLIP_2 else None
    except Exception as error:  # transformers raises whatever a value leads to
        raise CheckpointError(f"checkpoint {path}: is no configuration of a CLIP ({error}); copy it again") from None
    activations, epsilons = found
    if len(activations) > 1 or not activations <= _ACTIVATIONS.keys() or epsilons != {_LAYER_NORM_EPS}:
        raise CheckpointError(
            f"checkpoint {path}: hidden_act {sorted(map(str, activations))} and layer_norm_eps {sorted(epsilons)}; a "
            f"CLIP has {' or '.join(_ACTIVATIONS)} in both towers, and {_LAYER_NORM_EPS}"
        )
    widths = tuple(state[norm].shape[0] for norm in _LAST_NORMS if norm in state)
    if sizes != widths:
        raise CheckpointError(f"checkpoint {path}: describes towers {sizes} wide, in {state.source} they are {widths}")
    return ClipConfig(path, _ACTIVATIONS[activations.pop()], heads, image_size_px, end_id=end_id)
