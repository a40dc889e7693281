"""Find the kind of a source by the scheme of its URL or the suffix of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cirrus_client.errors import GalleryError
from cirrus_client.gallery.source import AnySource
from cirrus_client.gallery.sources.columns import Columns
from cirrus_client.gallery.sources.store import scheme_of
from cirrus_client.gallery.sources.suffixes import suffix_of
from cirrus_client.plugins import find_plugin, known_plugins

SOURCES = {
    "folder": "cirrus_client.gallery.sources.folder:open_folder",
    "url": "cirrus_client.gallery.sources.remote:open_url",
    ".tar": "cirrus_client.gallery.sources.tars:TarSource",
    ".parquet": "cirrus_client.gallery.sources.tables:open_table",
    ".txt": "cirrus_client.gallery.sources.listed:open_list",
}
SOURCE_GROUP = "cirrus.sources"
_WHAT = "source"

OpenSource = Callable[[str, Columns], AnySource]
"""Returns the source at a location. What `SOURCES` and the entry points of `cirrus.sources` name."""


def open_source(location: Path | str, columns: Columns | None = None) -> AnySource:
    """Return the source of images at a location.

    An entry point named like the URL's scheme comes first, then the suffix, then `url` or `folder`. A folder is one
    whatever its name. columns: for tables. Raises GalleryError if the location is none that its kind can use,
    PluginError for a broken plug-in, and MissingPackage if a package for the location is missing.
    """
    location = str(location)
    if not location:
        raise GalleryError("images: the location is empty; give '.' for the folder in which this runs")
    known = known_plugins(what=_WHAT, table=SOURCES, group=SOURCE_GROUP)
    scheme, suffix = scheme_of(location), suffix_of(location)
    name = "folder" if scheme is None else "url"
    if scheme in known:
        name = str(scheme)
    elif suffix in known and not (scheme is None and Path(location).is_dir()):
        name = suffix
    opener: OpenSource = find_plugin(name, what=_WHAT, table=SOURCES, group=SOURCE_GROUP)
    return opener(location, columns or Columns())
