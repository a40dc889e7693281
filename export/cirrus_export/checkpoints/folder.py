"""Checkpoints that are folders, as transformers, open_clip and sentence-transformers save them."""

from __future__ import annotations

import logging
from pathlib import Path

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.adapter import refuse_adapter
from cirrus_export.checkpoints.sentence_transformers import model_folder, own_prompts
from cirrus_export.checkpoints.shards import INDEX

_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
log = logging.getLogger(__name__)


def weights_file(folder: Path) -> Path:
    """Return the file of a folder that holds its weights, or the index of the files that do.

    Raises CheckpointError if there is none, if the folder holds an adapter, or as `model_folder` does.
    """
    prompts = own_prompts(folder)
    if prompts.query:
        log.warning("%s: sentence-transformers puts %r before texts, and Cirrus does not", prompts.file, prompts.query)
    folder = model_folder(folder)
    refuse_adapter(folder)
    found = [folder / file for name in _FILES for file in (name, f"{name}{INDEX}") if (folder / file).is_file()]
    if not found:
        raise CheckpointError(
            f"checkpoint {folder}: none of {', '.join(_FILES)} is in it; name the file with the weights"
        )
    return found[0]
