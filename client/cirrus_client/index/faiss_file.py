"""Read a FAISS file of an index, and believe what is in it only as far as the manifest says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import SearchIndexError
from cirrus_client.extras import need
from cirrus_client.index.protocol import SearchKind, Storage

_TYPES = {
    (SearchKind.EXACT, Storage.FLOAT32): "IndexFlatIP",
    (SearchKind.EXACT, Storage.FLOAT16): "IndexScalarQuantizer",
    (SearchKind.APPROXIMATE, Storage.FLOAT32): "IndexIVFFlat",
    (SearchKind.APPROXIMATE, Storage.FLOAT16): "IndexIVFScalarQuantizer",
}
_BYTES = {Storage.FLOAT32: 4, Storage.FLOAT16: 2}


def read_faiss(path: Path, space: SpaceSpec, kind: SearchKind, storage: Storage) -> Any:
    """Return the FAISS index in a file, memory-mapped if FAISS supports it.

    A file that names another file, as FAISS's inverted lists on disk do, makes FAISS open nothing outside the folder,
    and nothing for writing. Raises SearchIndexError if FAISS can't read it, or if its type, metric, width or row
    numbers are not those of `build_faiss` for this space, kind and storage.
    """
    faiss = need("faiss", "search")
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", 0) | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
    try:
        index = faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise SearchIndexError(f"{path} can't be read by FAISS {faiss.__version__}: {error}", path=path) from None
    problem = _problem(faiss, index, space, kind, storage)
    if problem is not None:
        raise SearchIndexError(
            f"{path} is not the file that the manifest describes: {problem}; build the index again with `cirrus index`",
            path=path,
        )
    return index


def _problem(faiss: Any, index: Any, space: SpaceSpec, kind: SearchKind, storage: Storage) -> str | None:
    """Return in what an index differs from the manifest, or None."""
    expected = _TYPES[kind, storage]
    if type(index).__name__ != expected:
        return f"it is a {type(index).__name__}, expected {expected}"
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return "it does not compare by inner product"
    if index.d != space.dim:
        return f"its vectors have {index.d} values, expected {space.dim}"
    if index.code_size != space.dim * _BYTES[storage]:
        return f"it does not store {storage} values"
    if not index.is_trained:
        return "it was never trained"
    return None if kind is SearchKind.EXACT else _problem_of_lists(faiss, index)


def _problem_of_lists(faiss: Any, index: Any) -> str | None:
    centres = faiss.downcast_index(index.quantizer)
    lists = faiss.downcast_InvertedLists(index.invlists)
    if type(centres).__name__ != "IndexFlatIP" or (centres.d, centres.ntotal) != (index.d, index.nlist):
        return "the centres of its lists are not those of its vectors"
    if type(lists).__name__ != "ArrayInvertedLists" or (lists.nlist, lists.code_size) != (index.nlist, index.code_size):
        return "its lists are not in the file itself"
    if index.by_residual or not 1 <= index.nprobe <= index.nlist:
        return "its search parameters are not those that `cirrus index` sets"
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    numbers = np.concatenate(
        [faiss.rev_swig_ptr(lists.get_ids(n), size) for n, size in enumerate(sizes) if size] or [np.empty(0, np.int64)]
    )
    if len(numbers) != index.ntotal or not np.array_equal(np.sort(numbers), np.arange(index.ntotal)):
        return "its row numbers are not 0 to the number of vectors"
    return None
