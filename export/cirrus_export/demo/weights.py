"""The committed weights: small files in half precision, and the full checkpoints that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = Path(__file__).with_name("weights")
_TOKEN_EMBEDDING = "token_embedding.weight"
_ROW_IDS = "token_embedding.row_ids"
_ROWS = "token_embedding.rows"


@dataclass(frozen=True)
class DemoWeights:
    """Checkpoint files as a user would bring them: a CLIP in open_clip's key names, a head in its authors'."""

    clip: Path
    head: Path


def materialise(folder: Path) -> DemoWeights:
    """Write the full demo checkpoints into a folder and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    written = DemoWeights(folder / "clip.safetensors", folder / "transagg_union.safetensors")
    save_file(expand(load_file(WEIGHTS / written.clip.name)), written.clip)
    save_file(load_file(WEIGHTS / written.head.name), written.head)
    return written


def store(clip: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    """Round to half precision and write the files that are committed."""
    WEIGHTS.mkdir(exist_ok=True)
    save_file(_halved(compress(clip)), WEIGHTS / "clip.safetensors")
    save_file(_halved(head), WEIGHTS / "transagg_union.safetensors")


def compress(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep only the rows of the token embedding that training touched; the 49,408 others are zero."""
    table = clip[_TOKEN_EMBEDDING]
    row_ids = table.abs().sum(dim=1).nonzero().squeeze(1)
    rest = {key: tensor for key, tensor in clip.items() if key != _TOKEN_EMBEDDING}
    return rest | {
        _ROW_IDS: row_ids,
        _ROWS: table[row_ids].clone(),
        "token_embedding.num_rows": torch.tensor(len(table)),
    }


def expand(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `compress`."""
    row_ids, rows = stored[_ROW_IDS], stored[_ROWS]
    table = torch.zeros(int(stored["token_embedding.num_rows"]), rows.shape[1], dtype=rows.dtype)
    table[row_ids] = rows
    return {key: tensor for key, tensor in stored.items() if not key.startswith("token_embedding.")} | {
        _TOKEN_EMBEDDING: table
    }


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for key, tensor in state.items()
    }
