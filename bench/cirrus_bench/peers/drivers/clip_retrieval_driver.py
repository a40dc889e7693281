"""Run clip-retrieval's own inference command with its defaults for a folder of files, except the batch size.

Its model loader keeps the model in the process, so only the first run loads it.
"""

import tempfile
from pathlib import Path

import driver

kept = driver.let_torchvision_import()

import numpy as np  # noqa: E402
from clip_retrieval.clip_inference.main import main  # noqa: E402


def embed():
    photos, weights, out = driver.paths()
    with tempfile.TemporaryDirectory() as folder:
        main(
            str(photos),
            folder,
            batch_size=32,
            enable_text=False,
            clip_model=f"open_clip:ViT-B-32-quickgelu/{weights.resolve() / 'open_clip.pt'}",
        )
        np.save(out, np.concatenate([np.load(part) for part in sorted(Path(folder).glob("img_emb/*.npy"))]))


if __name__ == "__main__":  # its logger is a process that imports this file
    embed()
    driver.serve("clip_retrieval", embed)
