"""Weights in several files, the shards, beside an index that names the shard of each tensor.

transformers and accelerate save a model over their `max_shard_size` so: `model.safetensors.index.json` beside
`model-00001-of-00002.safetensors` and its like, or `pytorch_model.bin.index.json` beside files of `torch.save`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.image_settings import read_settings
from cirrus_export.checkpoints.wrappers import is_state_dict, listed

INDEX = ".index.json"
_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}(?=\.)")


def is_index(path: Path) -> bool:
    """Return whether a file is an index of shards, by its name."""
    return path.name.endswith(INDEX) and path.is_file()


def read_shards(index: Path, read: Callable[[Path], object]) -> dict[str, Tensor]:
    """Return the tensors of all shards of an index. read: returns what one shard holds.

    Raises CheckpointError for an index that names no shards beside it, for a shard that is missing or no state dict,
    and for a tensor that the shards lack, or have twice.
    """
    shard_of = read_settings(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(map(_is_file_name, shard_of.values())):
        raise CheckpointError(f"checkpoint {index}: names no files of weights beside it; copy it again")
    shards = [index.parent / name for name in sorted(set(shard_of.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"checkpoint {index}: its weights are in {len(shards)} files, and {listed(missing)} is not beside it: copy "
            "the whole folder"
        )
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        content = read(shard)
        if not is_state_dict(content) or tensors.keys() & content.keys():
            raise CheckpointError(f"checkpoint {shard}: is no part of {index.name}; copy the folder again")
        tensors |= content
    lost = [name for name in shard_of if name not in tensors]
    if lost:
        raise CheckpointError(f"checkpoint {index}: {listed(lost)} is in none of its files; copy the folder again")
    return tensors


def refuse_one_of_several(path: Path) -> None:
    """Raise CheckpointError for a shard, which is no model without the others."""
    index = path.with_name(_OF_SEVERAL.sub("", path.name) + INDEX)
    if _OF_SEVERAL.search(path.name) and index.is_file():
        raise CheckpointError(f"checkpoint {path}: is one of several files of weights: name {index.name}")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name
