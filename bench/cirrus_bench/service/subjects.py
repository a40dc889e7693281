"""What is served: an index of many items over a few photos, copies of a bundle, and a service in its own process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cirrus_bench.service.process import serving
from cirrus_client.bundle import Bundle, FidelityStatus, SpaceSpec, write_contract
from cirrus_client.gallery import Embedded, FolderSource, GalleryWriter, Shard, read_gallery
from cirrus_client.index import build_index
from cirrus_client.triton.server import free_ports


def index_of(space: SpaceSpec, photos: Sequence[Path], items: int, folder: Path) -> Path:
    """Build an exact index of random embeddings, whose items are the photos over and over, and return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(items):
        os.link(photos[number % len(photos)], images / f"{number:06d}.jpg")
    files = tuple(FolderSource(images).list().files)
    rows = np.random.default_rng(0).standard_normal((len(files), *space.item_shape), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    writer = GalleryWriter.open(folder / "gallery", images=str(images), space=space)
    writer.commit(Shard(files), Embedded(rows, files))
    build_index(read_gallery(folder / "gallery"), folder / "index")
    return folder / "index"


def served_copy(bundle: Bundle, folder: Path, *, max_batch: int) -> Bundle:
    """Return a copy of a bundle that encodes at most so many queries at once.

    It counts as verified: random weights, of which only the speed is looked at, may miss their gate at low precision.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle.root, folder, copy_function=os.link, ignore=shutil.ignore_patterns("triton", "bundle.json"))
    spec = bundle.spec.model_copy(update={"max_batch": max_batch, "fidelity": FidelityStatus(passed=True)})
    write_contract(folder, spec)
    return Bundle.open(folder)


@contextmanager
def running(bundle: Bundle, index: Path, *, memory_mib: int) -> Iterator[str]:
    """Run `cirrus serve` in a process of its own, encoding in that process, and yield its URL."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "cirrus_client.cli", "serve", str(bundle.root), "--index", str(index), "--in-process"),
        *("--port", str(port), "--memory-mib", str(memory_mib)),
    ]
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/healthz", log=bundle.root.with_suffix(".log")):
        yield url
