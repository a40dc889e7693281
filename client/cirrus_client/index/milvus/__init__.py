"""An index in a collection of Milvus: on a server, or embedded in this process (milvus-lite)."""

from cirrus_client.index.milvus.index import MilvusIndex

__all__ = ["MilvusIndex"]
