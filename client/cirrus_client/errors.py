"""Every error that Cirrus raises on purpose, in one tree."""

from __future__ import annotations


class CirrusError(Exception):
    """Base of all errors of Cirrus. Its message names the thing, what was wrong and the way out."""


class InvalidInput(CirrusError):
    """A query or gallery item that can't be encoded; other items are unaffected."""


class InvalidImage(InvalidInput):
    """Bytes that are no image, a broken image, or one over the size limits."""


class InvalidText(InvalidInput):
    """A text that is not UTF-8 or is over the length limit."""


class UnsupportedQuery(InvalidInput):
    """A combination of image and text that the bundle's recipe does not define."""


class BundleError(CirrusError):
    """A bundle that is missing, incomplete, corrupted or failed its fidelity gate."""


class SpaceMismatch(CirrusError):
    """A query and a gallery that live in different vector spaces."""


class GalleryError(CirrusError):
    """An embedded gallery that is missing, incomplete or inconsistent."""


class SearchIndexError(CirrusError):
    """A search index that is missing, corrupted or asked for something it can't do."""


class EngineError(CirrusError):
    """A graph that no available engine can run as asked."""


class ServerError(CirrusError):
    """The inference server answered with an error."""


class ServerUnavailable(ServerError):
    """The inference server can't be reached, is not ready, or stopped during the request."""


class ServerTimeout(ServerError):
    """The inference server did not answer in time."""


class ExportError(CirrusError):
    """An export that can't be done as asked."""


class CheckpointError(ExportError):
    """A checkpoint file that does not hold what the recipe expects."""


class FidelityError(ExportError):
    """The exported graphs do not reproduce the original model."""
