"""How images were prepared for weights, as the file of settings beside them says.

It is transformers' `processor_config.json` or `preprocessor_config.json`, or open_clip's `open_clip_config.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cirrus_client.errors import CheckpointError
from cirrus_client.image.preprocess import Crop, Interpolation, Pad, PreprocessSpec
from cirrus_export.backbones.clip_config import OF_OPEN_CLIP, folder_of
from cirrus_export.backbones.family import Weights
from cirrus_export.checkpoints.hugging_face_clip import is_hugging_face_clip
from cirrus_export.checkpoints.hugging_face_siglip import is_hugging_face_siglip
from cirrus_export.checkpoints.image_settings import STEPS, Settings, image_settings, read_settings

_SIDE_PX = 224
_FILTERS = {Image.Resampling.BICUBIC: Interpolation.BICUBIC, Image.Resampling.BILINEAR: Interpolation.BILINEAR}


@dataclass(frozen=True)
class SettingsBeside:
    """A file of settings of images.

    of_images: its settings, named as in open_clip's `PreprocessCfg`; what the file leaves out is not among them. crop:
    how the library that reads the file rounds.
    """

    file: Path
    of_images: Settings
    crop: Crop


def settings_beside(weights: Weights) -> SettingsBeside | None:
    """Return the settings in the folder of a CLIP's file that was read, None if there are none.

    Raises CheckpointError if they can't be read, or prepare images in a way that open_clip does not have.
    """
    folder = folder_of(weights)
    if folder is None or weights.state is None:
        return None
    if not (is_hugging_face_clip(weights.state) or is_hugging_face_siglip(weights.state)):
        found = read_settings(folder / OF_OPEN_CLIP).get("preprocess_cfg")
        return SettingsBeside(folder / OF_OPEN_CLIP, found, Crop.ROUND) if isinstance(found, dict) else None
    named = image_settings(folder)
    if named is None:
        return None
    file, settings = named
    return SettingsBeside(file, in_open_clips_form(settings, file), Crop.FLOOR)


def prepared_by_transformers(folder: Path, side_px: int) -> PreprocessSpec | None:
    """Return how the processor in a folder that transformers saved prepares images, None if there are no settings.

    side_px: of the images that the vision tower of the folder's `config.json` sees. Raises CheckpointError for a way
    that Cirrus has not, and for another size.
    """
    found = image_settings(folder)
    if found is None:
        return None
    file, settings = found
    said = in_open_clips_form(settings, file)
    if said["size"] != side_px:
        raise CheckpointError(
            f"checkpoint {file}: size is {said['size']}, and the vision tower of config.json sees {side_px} pixels"
        )
    levels = {name: said[name] for name in ("mean", "std") if said[name] is not None}
    try:
        return PreprocessSpec(
            size_px=side_px,
            pad=Pad.NONE if said["resize_mode"] == "shortest" else Pad.STRETCH,
            crop=Crop.FLOOR,
            interpolation=Interpolation(said["interpolation"]),
            **levels,
        )
    except ValueError as error:
        raise CheckpointError(f"checkpoint {file}: its settings of images can't be read: {error}") from None


def in_open_clips_form(settings: Settings, file: Path) -> Settings:
    """Return transformers' settings of images in open_clip's form; the defaults are those of `CLIPImageProcessor`.

    Raises CheckpointError if they can't be read, or prepare images in a way that Cirrus does not have.
    """
    try:
        return _converted(settings, file)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {file}: its settings of images can't be read: {error}") from None


def _converted(settings: Settings, file: Path) -> Settings:
    skipped = [step for step in STEPS if settings.get(step, True) is not True]
    if skipped:
        raise CheckpointError(f"checkpoint {file}: {skipped[0]} is {settings[skipped[0]]}, and a CLIP needs this step")
    resample = settings.get("resample", Image.Resampling.BICUBIC)
    if resample not in _FILTERS:
        raise CheckpointError(f"checkpoint {file}: resample {resample!r}; Cirrus resizes bicubic (3) or bilinear (2)")
    if abs(float(settings.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-4:
        raise CheckpointError(f"checkpoint {file}: rescale_factor {settings['rescale_factor']}, expected 1/255")
    side_px, mode = _side_and_mode(settings, file)
    return {
        "size": side_px,
        "resize_mode": mode,
        "interpolation": _FILTERS[resample].value,
        "mean": settings.get("image_mean"),
        "std": settings.get("image_std"),
    }


def _side_and_mode(settings: Settings, file: Path) -> tuple[int, str]:
    """Return the square's side, and open_clip's word for how an image becomes that square."""
    size, crop = settings.get("size", _SIDE_PX), settings.get("crop_size", _SIDE_PX)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    resized = {shortest} if shortest is not None else {size.get("height"), size.get("width")}
    crops = settings.get("do_center_crop", "crop_size" in settings or shortest is not None)
    if not crops:
        cropped, mode = resized, "squash"
        fits = shortest is None
    else:
        cropped = {crop.get("height"), crop.get("width")} if isinstance(crop, dict) else {crop}
        mode = "squash" if shortest is None else "shortest"
        fits = cropped == resized
    if not fits or len(cropped) != 1 or not all(isinstance(side, int) for side in cropped):
        raise CheckpointError(
            f"checkpoint {file}: size {size} and crop_size {crop if crops else None}; "
            "Cirrus resizes the shorter side to the square that it crops, or both sides at once"
        )
    return cropped.pop(), mode
