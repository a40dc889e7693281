"""Search indexes over gallery embeddings."""

from cirrus_client.index.faiss_index import FaissIndex, SearchKind
from cirrus_client.index.protocol import Hits, Index

__all__ = ["FaissIndex", "Hits", "Index", "SearchKind"]
