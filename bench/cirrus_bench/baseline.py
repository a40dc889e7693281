"""The baseline: how the released code of the papers embeds a gallery."""

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
    """Embed image files as the authors' `extract_index_features` does; return UNION embeddings, float32 [N, D].

    Source: baohl00/UNION_for_IGROT, `utils.py`. A DataLoader reads batches of 32 with 8 workers. For each batch the
    image encoder runs, then `union_features`, which runs the image encoder again and the text encoder on the empty
    string.
    """
    loader = DataLoader(_Photos(paths, spec), batch_size=BATCH_SIZE, num_workers=WORKERS)
    rows = []
    with torch.no_grad():
        for pixels in loader:
            recipe.backbone.encode_image(pixels)
            rows.append(recipe.target(pixels))
    return torch.cat(rows)
