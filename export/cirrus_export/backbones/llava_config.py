"""What a LLaVA's folder says of the model and of its images, and what of it can't be exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError
from cirrus_client.image.preprocess import Crop, PreprocessSpec
from cirrus_export.backbones.settings_beside import prepared_by_transformers
from cirrus_export.checkpoints.image_settings import image_settings
from cirrus_export.checkpoints.rotation import check_rotation

_VISION, _LANGUAGES = "clip_vision_model", ("llama", "mistral", "qwen2")
_RESOLUTIONS = "image_grid_pinpoints"


def check_config(config: Any, path: Path) -> None:
    """Raise CheckpointError for a configuration of transformers that can't be exported. path: of its file."""
    vision, text = config.vision_config, config.text_config
    chosen, states = config.vision_feature_layer, int(vision.num_hidden_layers) + 1
    chosen = [chosen] if isinstance(chosen, int) else chosen
    if vision.model_type != _VISION:
        raise refusal(path, "vision_config.model_type", vision.model_type, f"{_VISION} can be exported")
    if text.model_type not in _LANGUAGES:
        raise refusal(path, "text_config.model_type", text.model_type, f"{', '.join(_LANGUAGES)} can be exported")
    check_rotation(text, path)
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise refusal(path, "text_config.layer_types", "sliding_attention", "only full_attention can be exported")
    if not chosen or not all(-states <= layer < states for layer in chosen):
        raise refusal(path, "vision_feature_layer", chosen, f"the vision tower has {states - 1} layers")


def check_resolutions(folder: Path, config: Any) -> Sequence[Sequence[int]]:
    """Return the heights and widths in which a LLaVA-NeXT sees tiles.

    Raises CheckpointError if they can't be cut into tiles, or if the folder's processor has others.
    """
    path, side, resolutions = folder / "config.json", int(config.vision_config.image_size), config.image_grid_pinpoints
    strategy = config.vision_feature_select_strategy
    if strategy != "default":
        raise refusal(path, "vision_feature_select_strategy", strategy, "tiles are put together without CLS: 'default'")
    if not resolutions or not all(_is_of_tiles(size, side) for size in resolutions):
        raise refusal(path, _RESOLUTIONS, resolutions, f"each must be a height and a width, multiples of {side}")
    file, settings = image_settings(folder) or (path, {})
    said = settings.get(_RESOLUTIONS, resolutions)
    if said != [list(size) for size in resolutions]:
        raise refusal(file, _RESOLUTIONS, said, f"config.json's are {resolutions}: the model reads these alone")
    return resolutions


def spec_of_view(folder: Path, config: Any) -> PreprocessSpec:
    """Return how the folder's processor prepares an image in the vision tower's size.

    Raises CheckpointError for a way that Cirrus has not.
    """
    side_px = int(config.vision_config.image_size)
    spec = prepared_by_transformers(folder, side_px)
    if spec is None:
        return PreprocessSpec(size_px=side_px, crop=Crop.FLOOR)
    file, settings = image_settings(folder) or (folder, {})
    if config.model_type == "llava" and settings.get("do_pad"):
        raise refusal(file, "do_pad", True, "Cirrus does not pad images with their mean colour: only false is possible")
    return spec


def refusal(path: Path, field: str, found: object, expected: str) -> CheckpointError:
    """Return the error of a field with a value that can't be exported."""
    return CheckpointError(f"checkpoint {path}: {field} is {found}, and {expected}")


def _is_of_tiles(size: object, side_px: int) -> bool:
    if not isinstance(size, list | tuple) or len(size) != 2:
        return False
    return all(isinstance(px, int) and px > 0 and px % side_px == 0 for px in size)
