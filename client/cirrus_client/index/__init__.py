"""Indexes: build, save, open and search them."""

from cirrus_client.index.backend import IndexBackend
from cirrus_client.index.items import Item, Items
from cirrus_client.index.manifest import IndexManifest
from cirrus_client.index.parquet_items import read_metadata
from cirrus_client.index.protocol import (
    Agreement,
    BuildOptions,
    FilteredIndex,
    Hits,
    Index,
    QuerySample,
    SearchKind,
    Selection,
    Storage,
)
from cirrus_client.index.query_sample import read_query_sample
from cirrus_client.index.saved import SavedIndex, build_index, open_index, update_index

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
    "Selection",
    "Storage",
    "build_index",
    "open_index",
    "read_metadata",
    "read_query_sample",
    "update_index",
]
