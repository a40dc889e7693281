"""What an index of each kind costs, as `cirrus bench index` measured it, and what it would cost for another gallery."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from pydantic import Field

from cirrus_client.index.protocol import SearchKind, Storage
from cirrus_client.records import Record

_FIGURES = "figures.json"


class IndexFigures(Record):
    """An index of one kind over a gallery of `images` with `vectors` of width `dim` each.

    build_s: seconds to build it. build_peak_bytes: memory that building takes. own_bytes, mapped_bytes: memory that a
    process holds which opened and searched it, its own and that of mapped files. one_query_ms: of a query alone.
    queries_per_s: of 64 at once. agreement: the share of exact search's ten best that it finds.
    """

    kind: SearchKind
    storage: Storage
    images: int = Field(gt=0)
    vectors: int = Field(gt=0)
    dim: int = Field(gt=0)
    build_s: float
    build_peak_bytes: int
    own_bytes: int
    mapped_bytes: int
    one_query_ms: float
    queries_per_s: float
    agreement: float = Field(ge=0, le=1)


class MeasuredFigures(Record):
    """`figures.json`. machine: what they were measured on."""

    machine: str
    rows: tuple[IndexFigures, ...]


@cache
def measured_figures() -> MeasuredFigures:
    """Return the figures that come with this package."""
    content = files("cirrus_client.index").joinpath(_FIGURES).read_bytes()
    return MeasuredFigures.model_validate_json(content)
