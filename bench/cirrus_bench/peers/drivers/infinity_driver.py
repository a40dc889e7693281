"""Run infinity's engine in this process on the bytes of all files at once; it forms the batches itself."""

import asyncio

import driver

kept = driver.let_torchvision_import()

import numpy as np  # noqa: E402
from infinity_emb import AsyncEmbeddingEngine, EngineArgs  # noqa: E402

PHOTOS, WEIGHTS, OUT = driver.paths()
loop = asyncio.new_event_loop()
engine = AsyncEmbeddingEngine.from_args(
    EngineArgs(model_name_or_path=str(WEIGHTS / "transformers"), engine="torch", device="cpu", batch_size=32)
)
loop.run_until_complete(engine.astart())


def embed():
    images = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    rows, _ = loop.run_until_complete(engine.image_embed(images=images))
    np.save(OUT, np.stack(rows))


driver.serve("infinity_emb", embed)
