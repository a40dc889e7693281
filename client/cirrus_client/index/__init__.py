"""Search indexes over gallery embeddings."""

from cirrus_client.index.flat import FlatIndex
from cirrus_client.index.protocol import Hits, Index

__all__ = ["FlatIndex", "Hits", "Index"]
