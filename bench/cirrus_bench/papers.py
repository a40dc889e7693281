"""The papers' way to embed a gallery, as their released code does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_export.recipes.transagg_union import TransAggUnion

BATCH_SIZE = 32
WORKERS = 8


class _Photos(Dataset[Tensor]):
    def __init__(self, paths: Sequence[Path], spec: PreprocessSpec) -> None:
        self._paths = paths
        self._spec = spec

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, position: int) -> Tensor:
        return torch.from_numpy(preprocess(self._paths[position].read_bytes(), self._spec))


def embed(recipe: TransAggUnion, paths: Sequence[Path], spec: PreprocessSpec) -> Tensor:
    """Return UNION gallery embeddings [N, D] the way `extract_index_features` makes them.

    baohl00/UNION_for_IGROT `utils.py`: a DataLoader of batch 32 with 8 workers, and for each batch the image encoder,
    then `union_features`, which runs the image encoder again and the text encoder on the empty string. fp32.
    """
    loader = DataLoader(_Photos(paths, spec), batch_size=BATCH_SIZE, num_workers=WORKERS)
    rows = []
    with torch.no_grad():
        for pixels in loader:
            recipe.backbone.encode_image(pixels)
            rows.append(recipe.target(pixels))
    return torch.cat(rows)
