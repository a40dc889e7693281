"""The light client of Cirrus: encode composed queries, embed and search a gallery. It never imports torch.

    from cirrus_client import Bundle, LocalEncoder, open_retriever

    retriever = open_retriever(LocalEncoder(Bundle.open("build/union")), "data/index")
    for match in retriever.search(image="dress.jpg", text="the same in blue, with stripes", k=5):
        print(match.rank, match.id, match.score)

A name is imported when it is first used. So a client that only asks a server needs neither FAISS nor an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cirrus_client.bundle import Bundle as Bundle
    from cirrus_client.encoders.local import LocalEncoder as LocalEncoder
    from cirrus_client.encoders.protocol import Encoder as Encoder
    from cirrus_client.encoders.reranker import Reranker as Reranker
    from cirrus_client.errors import CirrusError as CirrusError
    from cirrus_client.gallery.embed import embed_gallery as embed_gallery
    from cirrus_client.gallery.sources.folder import FolderSource as FolderSource
    from cirrus_client.gallery.store import Gallery as Gallery
    from cirrus_client.gallery.store import read_gallery as read_gallery
    from cirrus_client.gallery.writer import GalleryWriter as GalleryWriter
    from cirrus_client.index.backend import IndexBackend as IndexBackend
    from cirrus_client.index.protocol import BuildOptions as BuildOptions
    from cirrus_client.index.saved import build_index as build_index
    from cirrus_client.index.saved import open_index as open_index
    from cirrus_client.retriever import AsyncRetriever as AsyncRetriever
    from cirrus_client.retriever import Match as Match
    from cirrus_client.retriever import Retriever as Retriever
    from cirrus_client.retriever import Term as Term
    from cirrus_client.retriever import open_async_retriever as open_async_retriever
    from cirrus_client.retriever import open_retriever as open_retriever
    from cirrus_client.service.client import AsyncSearchClient as AsyncSearchClient
    from cirrus_client.service.client import SearchClient as SearchClient
    from cirrus_client.triton.encoder import AsyncTritonEncoder as AsyncTritonEncoder
    from cirrus_client.triton.encoder import TritonEncoder as TritonEncoder

_ROOMS = {
    "AsyncRetriever": "retriever",
    "AsyncSearchClient": "service.client",
    "AsyncTritonEncoder": "triton.encoder",
    "BuildOptions": "index.protocol",
    "Bundle": "bundle",
    "CirrusError": "errors",
    "Encoder": "encoders.protocol",
    "FolderSource": "gallery.sources.folder",
    "Gallery": "gallery.store",
    "GalleryWriter": "gallery.writer",
    "IndexBackend": "index.backend",
    "LocalEncoder": "encoders.local",
    "Match": "retriever",
    "Reranker": "encoders.reranker",
    "Retriever": "retriever",
    "Term": "retriever",
    "SearchClient": "service.client",
    "TritonEncoder": "triton.encoder",
    "build_index": "index.saved",
    "embed_gallery": "gallery.embed",
    "open_async_retriever": "retriever",
    "open_index": "index.saved",
    "open_retriever": "retriever",
    "read_gallery": "gallery.store",
}
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and seldom needed

    try:
        return version("cirrus-cir")
    except PackageNotFoundError:  # a checkout that is on the path and not installed
        return "0+unknown"
