"""Indexes: build, save, open and search them."""

from cirrus_client.index.items import Item, Items, read_metadata
from cirrus_client.index.protocol import (
    Agreement,
    BuildOptions,
    FilteredIndex,
    Hits,
    Index,
    IndexBackend,
    QuerySample,
    SearchKind,
    Storage,
)
from cirrus_client.index.query_sample import read_query_sample
from cirrus_client.index.saved import IndexManifest, SavedIndex, build_index, open_index, update_index

__all__ = [
    "Agreement",
    "BuildOptions",
    "FilteredIndex",
    "Hits",
    "Index",
    "IndexBackend",
    "IndexManifest",
    "Item",
    "Items",
    "QuerySample",
    "SavedIndex",
    "SearchKind",
    "Storage",
    "build_index",
    "open_index",
    "read_metadata",
    "read_query_sample",
    "update_index",
]
