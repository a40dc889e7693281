"""What a shop knows of the garments on the demo's photos: metadata to filter searches by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cirrus_client.files import atomic_path
from cirrus_demo.catalogue import photographed


def write_products(path: Path, *, count: int, seed: int) -> None:
    """Write a Parquet file with a row per photo of `write_photos`, for `cirrus index --metadata`.

    Columns: image_path, kind, colour, pattern, sleeves: text. price: a number, in_stock: true or false; both are drawn.
    """
    garments = photographed(count, seed)
    rng = np.random.default_rng(seed)
    columns = {
        "image_path": list(garments),
        "kind": [str(garment.kind) for garment in garments.values()],
        "colour": [str(garment.colour) for garment in garments.values()],
        "pattern": [str(garment.pattern) for garment in garments.values()],
        "sleeves": [str(garment.sleeve) for garment in garments.values()],
        "price": (rng.integers(10, 100, len(garments)) + 0.95).tolist(),
        "in_stock": (rng.random(len(garments)) < 0.8).tolist(),
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
