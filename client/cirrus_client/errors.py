"""Every error that Cirrus raises on purpose, in one tree.

A message is for a person: it names the thing, what was found, what was expected, and the way out. The attributes are
for a program: which item, which file, which parts differ.

    CirrusError
    ├── ItemError               reason, item, position
    │   ├── InvalidInput
    │   │   ├── InvalidImage
    │   │   │   └── UnsupportedImage
    │   │   ├── InvalidText
    │   │   └── UnsupportedQuery
    │   └── UnreadableImage     path, errno
    ├── UnsupportedFormat       path, supported
    ├── SpaceMismatch           components
    ├── StoredDataError         path, field
    │   ├── BundleError
    │   ├── GalleryError
    │   ├── SearchIndexError
    │   └── TransferError       url
    ├── OutputError             path, holder
    ├── EngineError
    ├── ClusterError            address
    ├── MissingPackage          package, requirement
    ├── PluginError             name
    ├── ServerError             url
    │   ├── ServerUnavailable
    │   ├── ServerOverloaded
    │   └── ServerTimeout
    ├── ServiceError
    │   ├── InvalidRequest      field
    │   ├── InvalidFilter       place
    │   ├── LimitExceeded       limit, allowed
    │   ├── UnknownCollection   name, known
    │   ├── UnknownItem         id
    │   ├── AccessDenied
    │   ├── TooManyRequests     retry_after_s
    │   └── NotReady            part
    └── ExportError
        ├── CheckpointError
        └── FidelityError
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self


class CirrusError(Exception):
    """Base of all errors of Cirrus. They pickle, so that they come back from other processes as they are."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make the error again, without its constructor, whose arguments it does not keep."""
        return _made_again, (type(self), self.args, self.__dict__)


def _made_again(kind: type[CirrusError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CirrusError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class ItemError(CirrusError):
    """A query or gallery image that can't be encoded.

    reason: what is wrong with it. item, position: which item of the call it is, like "query" and 3, counted from 0;
    None if it was the only one.
    """

    def __init__(self, reason: str, *, item: str | None = None, position: int | None = None) -> None:
        super().__init__(reason if position is None else f"{item} {position}: {reason}")
        self.reason = reason
        self.item = item
        self.position = position

    def at(self, item: str, position: int) -> Self:
        """Return a copy of this error that names the item of a call, like "query" and 3."""
        return type(self)(self.reason, item=item, position=position)


class InvalidInput(ItemError):
    """The item itself is wrong, and stays so: a verdict on its content."""


class InvalidImage(InvalidInput):
    """Bytes that are not an image, a broken image, or an image over the size limits."""


class UnsupportedImage(InvalidImage):
    """An image in a format whose decoder is not installed here. Unlike its base, it is no verdict on the bytes."""


class InvalidText(InvalidInput):
    """A text that is not UTF-8 or is over the length limit."""


class UnsupportedQuery(InvalidInput):
    """A combination of image and text, or a second stage, that the bundle's recipe does not define."""


class UnreadableImage(ItemError):
    """An image file that can't be read: the path or the machine is at fault. It says nothing about the image.

    path: the file as it was named; None for a PIL image. errno: the operating system's number, as in `OSError`; None if
    the system was not asked.
    """

    def __init__(
        self,
        reason: str,
        *,
        path: str | None = None,
        errno: int | None = None,
        item: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(reason, item=item, position=position)
        self.path = path
        self.errno = errno

    def at(self, item: str, position: int) -> Self:
        """See `ItemError.at`."""
        return type(self)(self.reason, path=self.path, errno=self.errno, item=item, position=position)


class UnsupportedFormat(CirrusError):
    """A file whose suffix names a format that can't be written. path: the file. supported: suffixes that work."""

    def __init__(self, message: str, *, path: Path, supported: tuple[str, ...]) -> None:
        super().__init__(message)
        self.path = path
        self.supported = supported


class SpaceMismatch(CirrusError):
    """A query and a gallery, or a gallery and an encoder, in different vector spaces.

    components: names of the parts in which the two spaces differ, like "backbone" or "preprocess".
    """

    def __init__(self, message: str, *, components: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.components = components


class StoredDataError(CirrusError):
    """A bundle, gallery, index or cache that can't be used.

    path: the file or folder at fault. field: the wrong field of a JSON record. Both may be None.
    """

    def __init__(self, message: str, *, path: Path | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.field = field


class BundleError(StoredDataError):
    """A bundle that is missing, incomplete, corrupted or failed its fidelity gate."""


class GalleryError(StoredDataError):
    """An embedded gallery that is missing, incomplete or inconsistent."""


class SearchIndexError(StoredDataError):
    """A search index that is missing or corrupted, or a request that it can't answer."""


class TransferError(StoredDataError):
    """A folder that can't be pushed to a store or pulled from it. url: where it is, or should be, there."""

    def __init__(
        self, message: str, *, path: Path | None = None, field: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(message, path=path, field=field)
        self.url = url


class OutputError(CirrusError):
    """An output that can't be written: it holds what its command did not write, or another process is writing it.

    path: the folder. holder: the process that is writing it, like "process 4711 on db1"; None where that is not why.
    """

    def __init__(self, message: str, *, path: Path, holder: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.holder = holder


class EngineError(CirrusError):
    """A graph that can't be loaded or run, an engine that is not available here, or one that answers wrongly."""


class ClusterError(CirrusError):
    """A Ray cluster that can't be reached, has no room for a worker, or lost what can't be started anew.

    address: as it was given, or Ray's own.
    """

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(message)
        self.address = address


class MissingPackage(CirrusError):
    """A package that this job needs and that is not installed.

    package: what can't be imported. requirement: what `pip install` takes to bring it, like "cirrus-cir[cpu]".
    """

    def __init__(self, message: str, *, package: str, requirement: str) -> None:
        super().__init__(message)
        self.package = package
        self.requirement = requirement


class PluginError(CirrusError):
    """A recipe, backbone, engine or index backend that can't be found or registered under its name.

    name: that name, `module:Class` or `FILE.py:Class`.
    """

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class ServerError(CirrusError):
    """A server, Triton or Milvus, answered with an error. url: its address, like "localhost:8001"."""

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class ServerUnavailable(ServerError):
    """A server can't be reached, is not ready, or stopped during the request."""


class ServerOverloaded(ServerError):
    """The inference server's queue is full. The request was not tried again: that would lengthen the queue."""


class ServerTimeout(ServerError):
    """A server did not answer in time."""


class ServiceError(CirrusError):
    """A request that the search service refuses."""


class InvalidRequest(ServiceError):
    """A request that is not of the documented form. field: where, like "queries.0.image"; may be None."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidFilter(ServiceError):
    """A filter that does not fit the columns of a collection. place: where in its tree, like "and.1.column"."""

    def __init__(self, message: str, *, place: str) -> None:
        super().__init__(message)
        self.place = place


class LimitExceeded(ServiceError):
    """A request over a limit of the service. limit: its name, like "max_body_bytes". allowed: its value."""

    def __init__(self, message: str, *, limit: str, allowed: int) -> None:
        super().__init__(message)
        self.limit = limit
        self.allowed = allowed


class UnknownCollection(ServiceError):
    """A collection that is not served. name: what was asked for. known: what is served."""

    def __init__(self, message: str, *, name: str, known: tuple[str, ...]) -> None:
        super().__init__(message)
        self.name = name
        self.known = known


class UnknownItem(ServiceError):
    """An item that a collection does not have, or that has no image. id: the item's."""

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message)
        self.id = id


class AccessDenied(ServiceError):
    """A request without an API key, or with one that the service does not know."""


class TooManyRequests(ServiceError):
    """More requests than the service takes, or than a key may send. retry_after_s: when to try again."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(ServiceError):
    """A part of the service that is not ready or does not answer rightly. part: which, like "encode_query"."""

    def __init__(self, message: str, *, part: str) -> None:
        super().__init__(message)
        self.part = part


class ExportError(CirrusError):
    """An export that can't be done as asked."""


class CheckpointError(ExportError):
    """A checkpoint file that does not hold what the recipe expects."""


class FidelityError(ExportError):
    """The exported graphs do not reproduce the original model."""
