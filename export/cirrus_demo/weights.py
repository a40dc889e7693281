"""The committed weights: small files in half precision, and the full checkpoints that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = Path(__file__).with_name("weights")
_CLIP_TABLE = "token_embedding.weight"
_SPRC_TABLE = "Qformer.bert.embeddings.word_embeddings.weight"
_ROWS, _ROW_IDS, _NUM_ROWS = ".rows", ".row_ids", ".num_rows"


@dataclass(frozen=True)
class DemoWeights:
    """Checkpoint files as a user would bring them: a CLIP in open_clip's key names, heads in their authors'."""

    clip: Path
    head: Path
    sprc: Path
    phi: Path
    combiner: Path
    magiclens: Path


def materialise(folder: Path) -> DemoWeights:
    """Write the full demo checkpoints, as far as they are trained, into a folder and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        save_file(expand(load_file(path)), folder / path.name)
    return paths_in(folder)


def paths_in(folder: Path) -> DemoWeights:
    """Return where `materialise` writes the checkpoints."""
    names = ("clip", "transagg_union", "sprc", "phi", "combiner", "magiclens")
    return DemoWeights(*(folder / f"{name}.safetensors" for name in names))


def store(clip: dict[str, Tensor], head: dict[str, Tensor]) -> None:
    """Round the CLIP and its TransAgg and UNION heads to half precision and write the files that are committed."""
    save_file(_halved(compress(clip, _CLIP_TABLE)), WEIGHTS / "clip.safetensors")
    save_file(_halved(head), WEIGHTS / "transagg_union.safetensors")


def store_sprc(head: dict[str, Tensor]) -> None:
    """Round the Q-Former to half precision and write it."""
    save_file(_halved(compress(head, _SPRC_TABLE)), WEIGHTS / "sprc.safetensors")


def store_head(name: str, head: dict[str, Tensor]) -> None:
    """Round a head to half precision and write it as `<name>.safetensors`."""
    save_file(_halved(head), WEIGHTS / f"{name}.safetensors")


def compress(state: dict[str, Tensor], table: str) -> dict[str, Tensor]:
    """Keep only those rows of a word embedding that training touched; the others, of some 40,000, are zero."""
    row_ids = state[table].abs().sum(dim=1).nonzero().squeeze(1)
    rest = {key: tensor for key, tensor in state.items() if key != table}
    return rest | {
        table + _ROW_IDS: row_ids,
        table + _ROWS: state[table][row_ids].clone(),
        table + _NUM_ROWS: torch.tensor(len(state[table])),
    }


def expand(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo `compress`."""
    full = {key: value for key, value in stored.items() if not key.endswith((_ROWS, _ROW_IDS, _NUM_ROWS))}
    for key, rows in stored.items():
        if key.endswith(_ROWS):
            table = key.removesuffix(_ROWS)
            full[table] = torch.zeros(int(stored[table + _NUM_ROWS]), rows.shape[1], dtype=rows.dtype)
            full[table][stored[table + _ROW_IDS]] = rows
    return full


def _halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: (tensor.half() if tensor.is_floating_point() else tensor).contiguous() for key, tensor in state.items()
    }
