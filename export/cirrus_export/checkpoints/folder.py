"""Checkpoints that are folders, as transformers and open_clip save them."""

from __future__ import annotations

from pathlib import Path

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.adapter import refuse_adapter

_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")


def weights_file(folder: Path) -> Path:
    """Return the file of a folder that holds its weights.

    Raises CheckpointError if none does, or several do, or if the folder holds an adapter.
    """
    refuse_adapter(folder)
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is not None:
        return found
    if any((folder / f"{name}.index.json").is_file() for name in _FILES):
        raise CheckpointError(
            f"checkpoint {folder}: its weights are in several files; save them in one, with "
            "`model.save_pretrained(folder, max_shard_size='100GB')`"
        )
    raise CheckpointError(f"checkpoint {folder}: none of {', '.join(_FILES)} is in it; name the file with the weights")
