"""Serve clip-retrieval's backend on loopback with its defaults, without what it would download.

The arguments are a port, the folder of weights, and a folder with `image.index` and `metadata/`. Its server of Flask
listens on every address unless it is told otherwise.
"""

import json
import sys
import tempfile
from pathlib import Path

import driver

kept = driver.let_torchvision_import()

from clip_retrieval.clip_back import clip_back  # noqa: E402
from flask import Flask  # noqa: E402

PORT, WEIGHTS, INDEX = sys.argv[1:4]
run = Flask.run
Flask.run = lambda app, **options: run(app, **options | {"host": "127.0.0.1"})
with tempfile.NamedTemporaryFile("w", suffix=".json") as names:
    json.dump({"photos": INDEX}, names)
    names.flush()
    clip_back(
        indices_paths=names.name,
        port=int(PORT),
        clip_model=f"open_clip:ViT-B-32-quickgelu/{Path(WEIGHTS) / 'open_clip.pt'}",
        enable_mclip_option=False,
        provide_aesthetic_embeddings=False,
    )
