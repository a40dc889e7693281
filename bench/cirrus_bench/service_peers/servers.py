"""Start the tools: Cirrus at several precisions, clip-retrieval's backend, and infinity with FAISS."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import faiss
import pyarrow as pa
import pyarrow.parquet as pq

from cirrus_bench.errors import PeerError
from cirrus_bench.peers.install import CLIP_RETRIEVAL, INFINITY, Peer, install, installed_version
from cirrus_bench.service.process import serving
from cirrus_bench.service.subjects import running, served_copy
from cirrus_bench.service_peers.tools import EmbeddingsAndFaiss, KnnService, Tool
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.index.faiss_backend import VECTORS
from cirrus_client.triton.server import free_ports

log = logging.getLogger(__name__)


@contextmanager
def cirrus_served(bundle: Bundle, index: Path, folder: Path) -> Iterator[Tool]:
    """Run the search service with a bundle, remembering nothing, and yield it. folder: for a copy of the bundle."""
    precision = bundle.spec.precision
    copy = served_copy(bundle, folder / f"served-{precision}", max_batch=bundle.spec.max_batch)
    with running(copy, index, memory_mib=0) as url:
        yield KnnService("Cirrus", precision, url)


def start_peer_servers(stack: ExitStack, weights: Path, index: Path, folder: Path) -> tuple[list[Tool], dict[str, str]]:
    """Install and start both peers; return those that run, and by name the reasons why the others do not.

    stack: what stops them. weights: what `write_weights` wrote. index: an exact index of float32. folder: where their
    environments and files are kept.
    """
    start: dict[str, Callable[[], AbstractContextManager[Tool]]] = {
        CLIP_RETRIEVAL.name: partial(_clip_retrieval, weights, index, folder),
        INFINITY.name: partial(_infinity, weights, index, folder),
    }
    tools: list[Tool] = []
    missing: dict[str, str] = {}
    for name, started in start.items():
        log.info("installing and starting %s", name)
        try:
            tools.append(stack.enter_context(started()))
        except PeerError as error:
            missing[name] = str(error)
    return tools, missing


@contextmanager
def _clip_retrieval(weights: Path, index: Path, folder: Path) -> Iterator[Tool]:
    """Run the backend over the index's own file, in the folder that it expects."""
    python, own = install(CLIP_RETRIEVAL, folder), folder / "clip-retrieval-index"
    shutil.rmtree(own, ignore_errors=True)
    (own / "metadata").mkdir(parents=True)
    os.link(index / VECTORS, own / "image.index")
    rows = faiss.read_index(str(index / VECTORS)).ntotal
    pq.write_table(pa.table({"url": [str(row) for row in range(rows)]}), own / "metadata" / "metadata_0.parquet")
    with _served(CLIP_RETRIEVAL, python, [weights, own], "/indices-list", folder) as url:
        yield KnnService(f"clip-retrieval {installed_version(python, 'clip_retrieval')}", Precision.FP32, url)


@contextmanager
def _infinity(weights: Path, index: Path, folder: Path) -> Iterator[Tool]:
    python, searched = install(INFINITY, folder), faiss.read_index(str(index / VECTORS))
    with _served(INFINITY, python, [weights], "/health", folder) as url:
        title = f"infinity {installed_version(python, 'infinity_emb')} + FAISS"
        yield EmbeddingsAndFaiss(title, Precision.FP32, url, "/embeddings", searched)


@contextmanager
def _served(peer: Peer, python: Path, arguments: Sequence[Path], ready: str, folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [str(python.absolute()), str(peer.server), str(port), *(str(path.absolute()) for path in arguments)]
    with serving(command, f"{url}{ready}", log=folder / f"{peer.name}.log", folder=folder):
        yield url
