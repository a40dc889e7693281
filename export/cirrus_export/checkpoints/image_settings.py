"""Read transformers' settings of images: those in `processor_config.json`, or else `preprocessor_config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirrus_client.errors import CheckpointError

Settings = Mapping[str, Any]
STEPS = ("do_resize", "do_rescale", "do_normalize")
_OF_IMAGES, _OF_PROCESSOR = "preprocessor_config.json", "processor_config.json"
_MARKS = {*STEPS, "image_mean", "size", "crop_size"}


def read_settings(path: Path) -> dict[str, Any]:
    """Return a JSON file's content, nothing if there is no file or it is no object. Raises CheckpointError."""
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: can't be read as JSON ({error}); copy it again") from None
    return content if isinstance(content, dict) else {}


def image_settings(folder: Path) -> tuple[Path, Settings] | None:
    """Return the file of a folder that has settings of images, and the settings. Raises CheckpointError.

    Of a folder that has both files, transformers 5 reads the processor's: the other may be of an earlier release.
    """
    of_processor = read_settings(folder / _OF_PROCESSOR).get("image_processor")
    for name, settings in ((_OF_PROCESSOR, of_processor), (_OF_IMAGES, read_settings(folder / _OF_IMAGES))):
        if isinstance(settings, dict) and settings.keys() & _MARKS:
            return folder / name, settings
    return None
