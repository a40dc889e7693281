"""Requests and answers of the service's own API, `/v1`. `docs/search-service.md` shows them."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from cirrus_client.index.filter_models import Filter
from cirrus_client.service.limits import MAX_K, MAX_OFFSET, MAX_QUERIES, MAX_RERANK, MAX_TERMS, MAX_TEXT_CHARS

Image = Annotated[str, Field(min_length=1, description="an image file in base64, or as a data: URI of base64")]
ItemId = Annotated[str, Field(min_length=1, max_length=4_096, description="the id of a gallery item")]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS, description='an edit text, like "the same in blue"')]


class Asked(BaseModel):
    """Base class of what the service is asked: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """Base class of what the service answers. NaN is null."""

    model_config = ConfigDict(ser_json_inf_nan="null")


def with_base64(value: Any) -> Any:
    """Return a value with base64 in the place of bytes, in the alphabet of images in requests, not that of URLs."""
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, dict):
        return {name: with_base64(inner) for name, inner in value.items()}
    return list(map(with_base64, value)) if isinstance(value, list | tuple) else value


Metadata = Annotated[dict[str, Any], PlainSerializer(with_base64, return_type=dict[str, Any], when_used="json")]
"""The columns of an item. Bytes are base64."""


class Term(Asked):
    """A further reference or text of a query. weight: its part in the sum of embeddings; below 0 leads away from it."""

    image: Image | None = None
    id: ItemId | None = None
    text: Text | None = None
    weight: float = Field(default=1.0, ge=-10, le=10)


class Query(Asked):
    """A composed query: a reference image, or a gallery item, and an edit text; both or either.

    also: further terms. The sum of all terms' embeddings, each times its weight, is searched for; the query itself has
    weight 1. It needs a recipe with one vector per image.
    """

    image: Image | None = None
    id: ItemId | None = None
    text: Text | None = None
    also: list[Term] = Field(default=[], max_length=MAX_TERMS)


class SearchRequest(Asked):
    """A search.

    collection: its name, or `name@` and the start of a space's fingerprint; the first one if absent. filter: see
    `Filter`. unique: the name of a column; the best item per value is answered. min_score: lower scores are left out.
    fold: a cosine, like 0.98; an item at least that similar to a better one is listed in its `duplicates`.
    include_reference: whether gallery items that the query names, or whose file is its image, may be answered.
    rerank: how many of the best the bundle's reranker looks at and orders anew, before the page is cut out.
    """

    collection: str | None = None
    queries: list[Query] = Field(min_length=1, max_length=MAX_QUERIES)
    k: int = Field(default=10, ge=1, le=MAX_K)
    offset: int = Field(default=0, ge=0, le=MAX_OFFSET)
    filter: Filter | None = None
    unique: str | None = Field(default=None, max_length=200)
    min_score: float | None = Field(default=None, ge=-100, le=100)
    fold: float | None = Field(default=None, gt=0, le=1)
    include_reference: bool = False
    rerank: int | None = Field(default=None, ge=1, le=MAX_RERANK)


class FoundItem(Answer):
    """An answer to a query. rank: 1 is best. score: cosine. image: a link to the image at this service.

    duplicates: ids of near-duplicates that are folded into this item. rerank_score: the reranker's, by which the items
    that it looked at are ordered; null for the others.
    """

    id: str
    rank: int
    score: float
    metadata: Metadata
    image: str
    duplicates: list[str] = []
    rerank_score: float | None = None


class Result(Answer):
    """The items found for one query, best first. more: whether a larger offset may find more."""

    items: list[FoundItem]
    more: bool


class Timings(Answer):
    """Where the time of a request went, in ms.

    decode: reading and decoding images, and tokenizing. queue: waiting for the encoder. encode: the encoder, for the
    whole batch that the query was part of. search: the index. rerank: reading the candidates and scoring them.
    metadata: reading the items. total: all of it.
    """

    decode_ms: float = 0
    queue_ms: float = 0
    encode_ms: float = 0
    search_ms: float = 0
    rerank_ms: float = 0
    metadata_ms: float = 0
    total_ms: float = 0


class BundleInfo(Answer):
    """The bundle that encoded a query."""

    name: str
    recipe: str
    backbone: str
    precision: str


class SearchAnswer(Answer):
    """One result per query, in their order. space: the fingerprint of the vector space."""

    collection: str
    space: str
    bundle: BundleInfo
    results: list[Result]
    timings: Timings


class Column(Answer):
    """A column of a collection's metadata. type: string, number, integer, boolean, date, time or other.

    values: what it holds if that is a few strings; low, high: the range of numbers, dates and times.
    """

    name: str
    type: str
    values: list[str] | None = None
    low: Any = None
    high: Any = None


class Fidelity(Answer):
    """How true the bundle is to its original.

    figures: by ensemble, what the fidelity gate measured. agreement: of the index with exact search; null if exact.
    """

    passed: bool
    figures: dict[str, dict[str, float]]
    agreement: float | None = None


class VersionInfo(Answer):
    """A version of a collection. active: whether a request that names no space gets it. opened: ISO 8601, UTC.

    images: null while the server that has the index can't be asked.
    """

    space: str
    bundle: BundleInfo
    images: int | None
    opened: str
    active: bool


class CollectionInfo(Answer):
    """What is served under a name. accepts: of "image", "image+text" and "text" those that the recipe answers.

    images: see `VersionInfo`. problem: why the newest files on disk are not served, or that the server of the index
    can't be asked; null if all is well. weighted: whether `also` may be used.
    rerank: whether `rerank` may be used.
    """

    name: str
    space: str
    bundle: BundleInfo
    accepts: list[str]
    weighted: bool
    rerank: bool
    suggest: bool
    images: int | None
    dim: int
    vectors: int
    columns: list[Column]
    fidelity: Fidelity
    versions: list[VersionInfo]
    problem: str | None = None


class Collections(Answer):
    """All collections; the first is the one that a request gets if it names none."""

    collections: list[CollectionInfo]


class ItemAnswer(Answer):
    """A gallery item. image: a link to its image at this service."""

    id: str
    collection: str
    metadata: Metadata
    image: str


class Health(Answer):
    """That the process answers."""

    status: str = "ok"
    version: str


class ReadyPart(Answer):
    """A version of a collection, or the suggester, which has no space and no cosine.

    cosine: the smallest of its canary's stages; null if its bundle has no canary.
    """

    part: str
    space: str | None
    cosine: float | None


class Readiness(Answer):
    """That every part answers rightly."""

    status: str = "ready"
    parts: list[ReadyPart]


class Problem(Answer):
    """A problem document (RFC 9457).

    type: "urn:cirrus:" and the name of the error. Further members are the error's attributes.
    """

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    request_id: str | None = None
