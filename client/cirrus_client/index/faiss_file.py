"""Read a FAISS file of an index, and believe what is in it only as far as the manifest says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.index.faiss_kinds import KINDS
from cirrus_client.index.protocol import SearchKind, Storage


def read_faiss(path: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> Any:
    """Return the FAISS index in a file, memory-mapped if FAISS supports it.

    A file that names another file, as FAISS's inverted lists on disk do, makes FAISS open nothing outside the folder,
    and nothing for writing. Raises SearchIndexError if FAISS can't read it, or if its type, metric, width, graph or row
    numbers are not those of `build_faiss` for this space, kind and storage.
    """
    faiss = need("faiss", "search")
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise SearchIndexError(f"{path} can't be read by FAISS {faiss.__version__}: {error}", path=path) from None
    problem = _problem(index, space, kind, storage)
    if problem is not None:
        raise SearchIndexError(
            f"{path} is not the file that the manifest describes: {problem}; build the index again with `cirrus index`",
            path=path,
        )
    return index


def _problem(index: Any, space: SpaceSpec, kind: SearchKind, storage: Storage) -> str | None:
    """Return in what an index differs from the manifest, or None."""
    expected = KINDS[kind].types[storage]
    if type(index).__name__ != expected:
        return f"it is a {type(index).__name__}, expected {expected}"
    if index.metric_type != need("faiss", "search").METRIC_INNER_PRODUCT:
        return "it does not compare by inner product"
    if index.d != space.dim:
        return f"its vectors have {index.d} values, expected {space.dim}"
    if not index.is_trained:
        return "it was never trained"
    return KINDS[kind].problem(index, storage)
