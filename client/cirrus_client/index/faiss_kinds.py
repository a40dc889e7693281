"""The kinds of FAISS indexes: how each is built, how it is made to search harder, and how it searches exactly."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cirrus_client.extras import need
from cirrus_client.index.faiss_checks import LEAST_EFFORT, MOST_EFFORT, problem_of_graph, problem_of_lists
from cirrus_client.index.protocol import SearchKind, Storage
from cirrus_client.index.vectors import GalleryVectors

_VECTORS_PER_LIST = 39  # FAISS warns of badly placed lists below
_TRAINING_VECTORS_PER_LIST = 64
_NEIGHBOURS = 32
_BUILDING_EFFORT = 40
_GRAPH_PLACES = 20  # bytes of a vector's level, the place of its neighbours, and those of upper levels
_CODE_BITS = 2
_CODE_FACTORS = 20  # bytes beside the bits of a code
_CANDIDATES = (4, 16, 64)


class FaissKind(ABC):
    """How FAISS serves one `SearchKind`. types: the class of an index that is read, for each storage."""

    types: ClassVar[Mapping[Storage, str]]
    has_gpu_copy: ClassVar[bool]

    @abstractmethod
    def build(self, vectors: GalleryVectors, storage: Storage) -> Any:
        """Build an index block by block. Memory holds the index and one block."""

    def updated(self, old: Any, places: NDArray[np.int64], vectors: GalleryVectors, storage: Storage) -> Any:
        """Build an index, and take what is in an older one from it. The others are built anew.

        places: the new number of every vector of the old index, or -1 where it is gone, int64 [old.ntotal].
        """
        return self.build(vectors, storage)

    @abstractmethod
    def efforts(self, index: Any) -> Iterator[None]:
        """Make an index search harder with every step, from the fastest setting on. It keeps the last setting."""

    @abstractmethod
    def exhaustive(self, index: Any, selector: Any = None) -> tuple[Any, Any]:
        """Return an index and search parameters with which every stored vector is compared.

        selector: a FAISS IDSelector of the vectors that may be found, or None for all.
        """

    @abstractmethod
    def problem(self, index: Any, storage: Storage) -> str | None:
        """Return in what a read index of the right type differs from one that `build` makes, or None."""

    @abstractmethod
    def memory_bytes(self, vectors: int, dim: int, storage: Storage) -> int:
        """Return the memory in which an index of `vectors` vectors is searched without waiting for a disk.

        For `RaBitQ` that is the codes: the exact vectors of the best candidates are read from their file.
        """

    def readable(self, index: Any) -> Any:
        """Return what gives exact vectors back by their numbers. Only one thread at a time may call it."""
        return self.exhaustive(index)[0]


class Flat(FaissKind):
    """Compares a query with every vector."""

    types: ClassVar = {Storage.FLOAT32: "IndexFlatIP", Storage.FLOAT16: "IndexScalarQuantizer"}
    has_gpu_copy = True

    def build(self, vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.build`."""
        index = _empty_flat(vectors.space.dim, storage)
        # Reserve all memory first: growing step by step copies the vectors repeatedly and needs three times the memory.
        index.codes.resize(len(vectors) * index.code_size)
        for block in vectors.blocks():
            index.add(block)
        return index

    def efforts(self, index: Any) -> Iterator[None]:
        """See `FaissKind.efforts`. There is one setting."""
        yield

    def exhaustive(self, index: Any, selector: Any = None) -> tuple[Any, Any]:
        """See `FaissKind.exhaustive`."""
        return index, need("faiss", "search").SearchParameters(sel=selector)

    def memory_bytes(self, vectors: int, dim: int, storage: Storage) -> int:
        """See `FaissKind.memory_bytes`."""
        return vectors * dim * storage.value_bytes

    def problem(self, index: Any, storage: Storage) -> str | None:
        """See `FaissKind.problem`."""
        return None if index.code_size == index.d * storage.value_bytes else f"it does not store {storage} values"


class Ivf(FaissKind):
    """Sorts vectors into lists around centres, and searches the `nprobe` lists nearest to a query."""

    types: ClassVar = {Storage.FLOAT32: "IndexIVFFlat", Storage.FLOAT16: "IndexIVFScalarQuantizer"}
    has_gpu_copy = True

    def build(self, vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.build`."""
        faiss, lists = need("faiss", "search"), _lists_of(len(vectors))
        coarse = faiss.IndexFlatIP(vectors.space.dim)
        index = self.empty(coarse, lists, storage)
        index.train(vectors.sample(_TRAINING_VECTORS_PER_LIST * lists))
        nearest = np.concatenate([coarse.search(block, 1)[1][:, 0].astype(np.int32) for block in vectors.blocks()])
        for number, size in enumerate(np.bincount(nearest, minlength=lists)):
            index.invlists.resize(number, int(size))
            index.invlists.resize(number, 0)  # the list keeps its memory, so adding vectors does not copy it
        first = 0
        for block in vectors.blocks():
            assigned = nearest[first : first + len(block)].astype(np.int64)
            index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(assigned))
            first += len(block)
        return index

    def updated(self, old: Any, places: NDArray[np.int64], vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.updated`. The centres stay, unless a new index would have twice or half as many."""
        if not old.nlist / 2 <= _lists_of(len(vectors)) <= 2 * old.nlist:
            return self.build(vectors, storage)
        faiss = need("faiss", "search")
        index = self.empty(faiss.clone_index(faiss.downcast_index(old.quantizer)), old.nlist, storage)
        index.is_trained = True
        for number in range(old.nlist):
            _take(old.invlists, index.invlists, number, places)
        new = np.ones(len(vectors), dtype=np.bool_)
        new[places[places >= 0]] = False
        first = 0
        for block in vectors.blocks():
            numbers = np.flatnonzero(new[first : first + len(block)])
            if len(numbers):
                added, ids = np.ascontiguousarray(block[numbers]), first + numbers  # FAISS gets bare pointers to them
                assigned = np.ascontiguousarray(index.quantizer.search(added, 1)[1][:, 0])
                index.add_core(len(added), faiss.swig_ptr(added), faiss.swig_ptr(ids), faiss.swig_ptr(assigned))
            first += len(block)
        index.ntotal = len(vectors)
        return index

    def empty(self, coarse: Any, lists: int, storage: Storage) -> Any:
        """Return an index without vectors. coarse: the index of its centres, trained or not."""
        faiss = need("faiss", "search")
        if storage is Storage.FLOAT16:
            half = faiss.ScalarQuantizer.QT_fp16
            return faiss.IndexIVFScalarQuantizer(coarse, coarse.d, lists, half, faiss.METRIC_INNER_PRODUCT, False)
        return faiss.IndexIVFFlat(coarse, coarse.d, lists, faiss.METRIC_INNER_PRODUCT)

    def efforts(self, index: Any) -> Iterator[None]:
        """See `FaissKind.efforts`. The number of searched lists doubles."""
        index.nprobe = 1
        yield
        while index.nprobe < index.nlist:
            index.nprobe = min(2 * index.nprobe, index.nlist)
            yield

    def exhaustive(self, index: Any, selector: Any = None) -> tuple[Any, Any]:
        """See `FaissKind.exhaustive`."""
        return index, need("faiss", "search").SearchParametersIVF(nprobe=index.nlist, sel=selector)

    def memory_bytes(self, vectors: int, dim: int, storage: Storage) -> int:
        """See `FaissKind.memory_bytes`."""
        return Flat().memory_bytes(vectors, dim, storage) + _memory_of_lists(vectors, dim)

    def problem(self, index: Any, storage: Storage) -> str | None:
        """See `FaissKind.problem`."""
        if index.code_size != index.d * storage.value_bytes:
            return f"it does not store {storage} values"
        return "its vectors are stored as differences" if index.by_residual else problem_of_lists(index)

    def readable(self, index: Any) -> Any:
        """See `FaissKind.readable`. It needs a map of where each vector is."""
        if index.direct_map.type == need("faiss", "search").DirectMap.NoMap:
            index.make_direct_map()
        return index


class Hnsw(FaissKind):
    """Follows a graph of neighbours towards a query (Malkov and Yashunin, 2018), and keeps the `efSearch` best."""

    types: ClassVar = {Storage.FLOAT32: "IndexHNSWFlat", Storage.FLOAT16: "IndexHNSWSQ"}
    has_gpu_copy = False

    def build(self, vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.build`."""
        faiss, dim = need("faiss", "search"), vectors.space.dim
        if storage is Storage.FLOAT16:
            half = faiss.ScalarQuantizer.QT_fp16
            index = faiss.IndexHNSWSQ(dim, half, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.IndexHNSWFlat(dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILDING_EFFORT
        stored = _stored(index)
        stored.codes.resize(len(vectors) * stored.code_size)
        for block in vectors.blocks():
            index.add(block)
        return index

    def efforts(self, index: Any) -> Iterator[None]:
        """See `FaissKind.efforts`. The number of kept candidates doubles."""
        index.hnsw.efSearch = LEAST_EFFORT
        yield
        while index.hnsw.efSearch < min(MOST_EFFORT, index.ntotal):
            index.hnsw.efSearch *= 2
            yield

    def exhaustive(self, index: Any, selector: Any = None) -> tuple[Any, Any]:
        """See `FaissKind.exhaustive`. The graph is left aside: with a narrow selector it finds too few."""
        return _stored(index), need("faiss", "search").SearchParameters(sel=selector)

    def memory_bytes(self, vectors: int, dim: int, storage: Storage) -> int:
        """See `FaissKind.memory_bytes`."""
        return Flat().memory_bytes(vectors, dim, storage) + vectors * (2 * _NEIGHBOURS * 4 + _GRAPH_PLACES)

    def problem(self, index: Any, storage: Storage) -> str | None:
        """See `FaissKind.problem`."""
        return _problem_of_stored(_stored(index), index, storage) or problem_of_graph(index)


class RaBitQ(FaissKind):
    """Sorts 2-bit codes of the vectors into lists, and compares the best candidates' exact vectors.

    The codes are RaBitQ's (Gao and Long, 2024; of several bits, Gao et al., 2025). The exact vectors stay on disk where
    the file is memory-mapped.
    """

    types: ClassVar = {Storage.FLOAT32: "IndexRefineFlat", Storage.FLOAT16: "IndexRefine"}
    has_gpu_copy = False

    def build(self, vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.build`."""
        codes, stored = _Codes().build(vectors, storage), Flat().build(vectors, storage)
        return need("faiss", "search").IndexRefine(codes, stored)

    def updated(self, old: Any, places: NDArray[np.int64], vectors: GalleryVectors, storage: Storage) -> Any:
        """See `FaissKind.updated`."""
        codes = _Codes().updated(_codes_of(old), places, vectors, storage)
        return need("faiss", "search").IndexRefine(codes, Flat().build(vectors, storage))

    def efforts(self, index: Any) -> Iterator[None]:
        """See `FaissKind.efforts`. The number of lists doubles; then again, with more candidates."""
        codes = _codes_of(index)
        for index.k_factor in _CANDIDATES:
            yield from _Codes().efforts(codes)

    def exhaustive(self, index: Any, selector: Any = None) -> tuple[Any, Any]:
        """See `FaissKind.exhaustive`. The exact vectors are compared."""
        return _exact(index), need("faiss", "search").SearchParameters(sel=selector)

    def memory_bytes(self, vectors: int, dim: int, storage: Storage) -> int:
        """See `FaissKind.memory_bytes`."""
        return vectors * (dim * _CODE_BITS // 8 + _CODE_FACTORS) + _memory_of_lists(vectors, dim)

    def problem(self, index: Any, storage: Storage) -> str | None:
        """See `FaissKind.problem`."""
        codes = _codes_of(index)
        if type(codes).__name__ != "IndexIVFRaBitQ" or (codes.d, codes.ntotal) != (index.d, index.ntotal):
            return "its codes are not RaBitQ's of its vectors"
        if not 1 <= index.k_factor <= _CANDIDATES[-1]:
            return "its search parameters are not those that `cirrus index` sets"
        return _problem_of_stored(_exact(index), index, storage) or problem_of_lists(codes)


class _Codes(Ivf):
    def empty(self, coarse: Any, lists: int, storage: Storage) -> Any:
        faiss = need("faiss", "search")
        return faiss.IndexIVFRaBitQ(coarse, coarse.d, lists, faiss.METRIC_INNER_PRODUCT, True, _CODE_BITS)


KINDS: Mapping[SearchKind, FaissKind] = {
    SearchKind.EXACT: Flat(),
    SearchKind.APPROXIMATE: Ivf(),
    SearchKind.HNSW: Hnsw(),
    SearchKind.RABITQ: RaBitQ(),
}


def kind_of(index: Any) -> FaissKind:
    """Return the kind of a FAISS index, by its class."""
    return next(kind for kind in KINDS.values() if type(index).__name__ in kind.types.values())


def _codes_of(index: Any) -> Any:
    return need("faiss", "search").downcast_index(index.base_index)


def _lists_of(count: int) -> int:
    """Return the number of lists that an index of `count` vectors gets."""
    return max(1, min(int(4 * math.sqrt(count)), count // _VECTORS_PER_LIST))


def _memory_of_lists(vectors: int, dim: int) -> int:
    """Return the memory of the centres, and of the vectors' numbers."""
    return _lists_of(vectors) * dim * 4 + vectors * 8


def _take(old: Any, new: Any, number: int, places: NDArray[np.int64]) -> None:
    """Copy the codes of one list that are not gone, under their new numbers."""
    faiss, size = need("faiss", "search"), old.list_size(number)
    if not size:
        return
    numbers = places[faiss.rev_swig_ptr(old.get_ids(number), size)]
    codes = faiss.rev_swig_ptr(old.get_codes(number), size * old.code_size).reshape(size, -1)
    here = np.flatnonzero(numbers >= 0)
    kept, kept_codes = numbers[here], codes[here]
    if len(here):
        new.add_entries(number, len(here), faiss.swig_ptr(kept), faiss.swig_ptr(kept_codes))


def _empty_flat(dim: int, storage: Storage) -> Any:
    faiss = need("faiss", "search")
    if storage is Storage.FLOAT16:
        return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    return faiss.IndexFlatIP(dim)


def _stored(index: Any) -> Any:
    return need("faiss", "search").downcast_index(index.storage)


def _exact(index: Any) -> Any:
    return need("faiss", "search").downcast_index(index.refine_index)


def _problem_of_stored(stored: Any, index: Any, storage: Storage) -> str | None:
    """Check the flat index of exact vectors inside another index."""
    if type(stored).__name__ != Flat.types[storage] or (stored.d, stored.ntotal) != (index.d, index.ntotal):
        return "its stored vectors are not those of the index"
    if stored.metric_type != index.metric_type:
        return "it does not compare by inner product"
    return Flat().problem(stored, storage)
