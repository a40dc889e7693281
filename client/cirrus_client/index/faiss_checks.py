"""Check what was read from a FAISS file: FAISS follows its numbers without a look."""

from __future__ import annotations

from typing import Any

import numpy as np

from cirrus_client.extras import need

LEAST_EFFORT, MOST_EFFORT = 16, 4096
"""The least and the most candidates that a search through a graph keeps."""


def problem_of_lists(index: Any) -> str | None:
    """Return what is wrong with the lists of an IVF index, or None: each vector must be in one of them, once."""
    faiss = need("faiss", "search")
    centres = faiss.downcast_index(index.quantizer)
    lists = faiss.downcast_InvertedLists(index.invlists)
    if type(centres).__name__ != "IndexFlatIP" or (centres.d, centres.ntotal) != (index.d, index.nlist):
        return "the centres of its lists are not those of its vectors"
    if type(lists).__name__ != "ArrayInvertedLists" or (lists.nlist, lists.code_size) != (index.nlist, index.code_size):
        return "its lists are not in the file itself"
    if not 1 <= index.nprobe <= index.nlist:
        return "its search parameters are not those that `cirrus index` sets"
    sizes = [lists.list_size(number) for number in range(index.nlist)]
    numbers = np.concatenate(
        [faiss.rev_swig_ptr(lists.get_ids(n), size) for n, size in enumerate(sizes) if size] or [np.empty(0, np.int64)]
    )
    if len(numbers) != index.ntotal or not np.array_equal(np.sort(numbers), np.arange(index.ntotal)):
        return "its row numbers are not 0 to the number of vectors"
    return None


def problem_of_graph(index: Any) -> str | None:
    """Return what is wrong with the graph of an HNSW index, or None: it must lead to stored vectors alone."""
    faiss, graph, count = need("faiss", "search"), index.hnsw, index.ntotal
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets).astype(np.int64)
    per_level = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    if len(levels) != count or len(offsets) != count + 1 or not LEAST_EFFORT <= graph.efSearch <= MOST_EFFORT:
        return "its graph is not one of its vectors"
    if count == 0:
        return None
    if levels.min() < 1 or levels.max() >= len(per_level) or levels.max() != graph.max_level + 1:
        return "the levels of its graph are not those of its vectors"
    neighbours = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    if offsets[0] != 0 or offsets[-1] != len(neighbours) or not np.array_equal(np.diff(offsets), per_level[levels]):
        return "the lists of its graph do not fit its levels"
    if not 0 <= graph.entry_point < count or neighbours.min() < -1 or neighbours.max() >= count:
        return "its graph leads to vectors that are not there"
    return None
