"""Embeddings for other tools: queries by the query ensembles, gallery images by the target's."""

from __future__ import annotations

import asyncio
import base64
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator

from cirrus_client.bundle import BundleSpec
from cirrus_client.encoders.protocol import Embeddings
from cirrus_client.errors import InvalidRequest, ItemError, LimitExceeded, UnsupportedQuery
from cirrus_client.names import EnsembleName
from cirrus_client.service.collection import Version
from cirrus_client.service.limits import MAX_INPUTS, MAX_TEXT_CHARS
from cirrus_client.service.search import check_pixels
from cirrus_client.service.stopwatch import Stopwatch
from cirrus_client.service.together import all_of

T = TypeVar("T")


def check_count(given: Any) -> Any:
    """Return a list of a request as it is. Raises LimitExceeded for one that is too long, before its items are read."""
    if isinstance(given, list) and len(given) > MAX_INPUTS:
        raise LimitExceeded(
            f"{len(given):,} inputs, the limit is {MAX_INPUTS}: send several requests",
            limit="inputs",
            allowed=MAX_INPUTS,
        )
    return given


Inputs = Annotated[list[T], BeforeValidator(check_count)]
"""A list of at most 256 items."""


class Side(StrEnum):
    """What an embedding is for: to search with, or to be found."""

    QUERY = "query"
    DOCUMENT = "document"


_LONGEST_TOLD = 100
_INSTRUCTED = {
    EnsembleName.ENCODE_QUERY: "query",
    EnsembleName.ENCODE_TEXT_QUERY: "text",
    EnsembleName.ENCODE_TARGET: "target",
}
_SIDES = {
    **dict.fromkeys(("query", "search_query", "retrieval.query"), Side.QUERY),
    **dict.fromkeys(("document", "passage", "search_document", "retrieval.passage", "image"), Side.DOCUMENT),
}


@dataclass(frozen=True)
class Content:
    """What one embedding is of: an image, a text, or an image with an edit.

    instruction: what the model shall read it with, None for the bundle's own.
    """

    image: bytes | None = None
    text: str | None = None
    instruction: str | None = None


def side_of(name: str | None, field: str) -> Side | None:
    """Return the side that a dialect's field, `input_type` or `task`, names; None for None. Raises InvalidRequest."""
    if name is None:
        return None
    if name.lower() not in _SIDES:
        raise InvalidRequest(f"{field} {name!r} is not one of {', '.join(_SIDES)}", field=field)
    return _SIDES[name.lower()]


async def embed(version: Version, contents: Sequence[Content], side: Side | None) -> list[Embeddings]:
    """Return one embedding per content: float32 [D], or [V, D] for a gallery image of V vectors.

    side: None takes an image alone for a gallery image and everything else for a query. Raises LimitExceeded,
    InvalidImage, InvalidText, UnsupportedQuery, also for another instruction than the bundle's, and what the encoder
    raises.
    """
    await asyncio.to_thread(_check, version, contents)
    sides = [side or (Side.QUERY if content.text is not None else Side.DOCUMENT) for content in contents]
    for place, (content, one) in enumerate(zip(contents, sides, strict=True)):
        _check_instruction(version.spec, content, one, place)
    queries = [place for place, one in enumerate(sides) if one is Side.QUERY]
    documents = [place for place, one in enumerate(sides) if one is Side.DOCUMENT]
    found = await all_of((_queries(version, contents, queries), _documents(version, contents, documents)))
    by_place = dict(zip([*queries, *documents], [*found[0], *found[1]], strict=True))
    return [by_place[place] for place in range(len(contents))]


async def tokens_of(version: Version, contents: Sequence[Content]) -> int:
    """Return how many tokens the texts of contents are, as their usage is counted."""
    texts = [content.text for content in contents if content.text is not None]
    return await asyncio.to_thread(_count_tokens, version, texts) if texts else 0


def as_base64(embedding: Embeddings) -> str:
    """Return an embedding as base64 of little-endian float32."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()


def _count_tokens(version: Version, texts: Sequence[str]) -> int:
    return int((version.tokenizer(texts) != version.spec.tokenizer.pad_id).sum())


def _check(version: Version, contents: Sequence[Content]) -> None:
    for place, content in enumerate(contents):
        if content.image is not None:
            check_pixels(content.image, version.max_pixels, place, item="input")
        if content.text is not None and len(content.text) > MAX_TEXT_CHARS:
            raise LimitExceeded(
                f"input {place} has {len(content.text):,} characters, the limit is {MAX_TEXT_CHARS:,}",
                limit="text",
                allowed=MAX_TEXT_CHARS,
            )


def _check_instruction(spec: BundleSpec, content: Content, side: Side, place: int) -> None:
    if content.instruction is None:
        return
    name = EnsembleName.ENCODE_TARGET
    if side is Side.QUERY:
        name = EnsembleName.ENCODE_TEXT_QUERY if content.image is None else EnsembleName.ENCODE_QUERY
    own = (spec.instructions or {}).get(name, "")
    if own == content.instruction.strip():
        return
    if spec.instructions is None:
        reason = f"bundle {spec.name} was exported before instructions were recorded: export it again, or leave it out"
    elif not own:
        reason = f"{name} of bundle {spec.name} reads none: leave it out"
    else:
        option = f"{_INSTRUCTED[name]}_instruction"
        reason = f"{name} of bundle {spec.name} reads {own!r}: send that or none, or export it with --option {option}"
    said = textwrap.shorten(content.instruction, _LONGEST_TOLD, placeholder=" ...")
    raise UnsupportedQuery(f"its instruction is {said!r}, and {reason}", item="input", position=place)


async def _queries(version: Version, contents: Sequence[Content], places: Sequence[int]) -> Sequence[Embeddings]:
    if not places:
        return []
    pairs = [(contents[place].image, contents[place].text) for place in places]
    try:
        return list(await version.encoder.encode(pairs, Stopwatch()))
    except ItemError as error:
        raise error if error.position is None else error.at("input", places[error.position]) from None


async def _documents(version: Version, contents: Sequence[Content], places: Sequence[int]) -> Sequence[Embeddings]:
    images = []
    for place in places:
        image, text = contents[place].image, contents[place].text
        if image is None or text is not None:
            raise UnsupportedQuery(
                "a gallery of this collection has images alone: a text is a query (input_type 'query')",
                item="input",
                position=place,
            )
        images.append(image)
    if not images:
        return []
    try:
        return list(np.asarray(await version.encoder.encode_targets(images)))
    except ItemError as error:
        raise error if error.position is None else error.at("input", places[error.position]) from None
