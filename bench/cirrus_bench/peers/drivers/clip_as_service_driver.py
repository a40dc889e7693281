"""Run clip-as-service's executor in this process on the bytes of every file.

It only knows models that it downloads; the download of one of the same architecture is replaced by our file.
"""

import asyncio

import driver

kept = driver.let_torchvision_import()

import numpy as np  # noqa: E402
from clip_server.executors.clip_torch import CLIPEncoder  # noqa: E402
from clip_server.model import openclip_model  # noqa: E402
from docarray import Document, DocumentArray  # noqa: E402

PHOTOS, WEIGHTS, OUT = driver.paths()
openclip_model.download_model = lambda *_, **__: str(WEIGHTS / "open_clip.pt")
load = openclip_model.load_openclip_model
openclip_model.load_openclip_model = lambda **options: load(**options | {"model_name": "ViT-B-32-quickgelu"})
executor = CLIPEncoder(name="ViT-B-32::laion400m_e32", device="cpu", minibatch_size=32)
loop = asyncio.new_event_loop()


def embed():
    images = DocumentArray(Document(blob=path.read_bytes()) for path in sorted(PHOTOS.glob("*.jpg")))
    loop.run_until_complete(executor.encode(images))
    np.save(OUT, images.embeddings)


driver.serve("clip_server", embed)
