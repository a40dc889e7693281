"""The interface of query and gallery encoders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import InvalidInput, InvalidText, ItemError, UnsupportedQuery
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.names import EnsembleName

T = TypeVar("T")
RECIPES_OF_TEXTS = (
    "bge-vl",
    "blip2-qformer",
    "clip",
    "clip4cir",
    "conesep",
    "habit",
    "hint",
    "intent",
    "lincir",
    "pic2word",
    "ptha",
    "retrieval-dpo",
    "searle",
    "sprc",
    "transagg",
    "vlm-embedder",
)
"""Cirrus's recipes whose gallery is in a space of texts, so that a text alone is a query."""

Embeddings = NDArray[np.float32]
"""float32 [B, D], L2-normalised; [B, V, D] for gallery images of V vectors."""


class Encoder(Protocol):
    """Turns composed queries and gallery images into embeddings of one space.

    Threads may share an encoder: each call returns its own answer.
    """

    @property
    def space(self) -> SpaceSpec:
        """The vector space of every embedding that this encoder returns."""
        ...

    @property
    def concurrency(self) -> int:
        """Number of concurrent calls of `encode_prepared` that keep the engine busy."""
        ...

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """Return one query embedding per (image, text) pair, float32 [B, D]. Image or text may be None.

        Raises InvalidImage or InvalidText for a bad item, UnreadableImage for a path that can't be read, and
        UnsupportedQuery for a combination that the recipe does not define. Each has the position of the pair.
        """
        ...

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """Return one gallery embedding per image, float32 [B, D], or [B, V, D] if the space has V vectors per image.

        Raises InvalidImage or UnreadableImage with the position of the image.
        """
        ...

    def prepare(self, image: bytes) -> Any:
        """Do the part of encoding a gallery image that can run in parallel threads, like decoding.

        Only `encode_prepared` of the same encoder takes the result. Raises InvalidImage.
        """
        ...

    def encode_prepared(self, prepared: Sequence[Any]) -> Embeddings:
        """Return one gallery embedding per prepared image, in the shape that `encode_targets` returns."""
        ...


class AsyncEncoder(Protocol):
    """The query methods of `Encoder` for asyncio. Tasks of one event loop may share it."""

    async def space(self) -> SpaceSpec:
        """Return the vector space of every embedding that this encoder returns."""
        ...

    async def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`."""
        ...

    async def close(self) -> None:
        """Close the encoder's connections."""
        ...


def is_async(encoder: Encoder | AsyncEncoder) -> TypeGuard[AsyncEncoder]:
    """Return whether an encoder is an `AsyncEncoder`."""
    return iscoroutinefunction(encoder.encode_queries)


def prepare_all(images: Sequence[ImageInput], prepare: Callable[[bytes], T], *, item: str = "image") -> list[T]:
    """Prepare gallery images in order. Raises the error of `prepare` with the position of the image.

    item: what the images are, for errors.
    """
    prepared = []
    for position, image in enumerate(images):
        try:
            prepared.append(prepare(image_bytes(image)))
        except ItemError as error:
            raise error.at(item, position) from None
    return prepared


def query_pairs(
    images: Sequence[ImageInput | None], texts: Sequence[str | None]
) -> Iterator[tuple[ImageInput | None, str | None]]:
    """Yield the image and the text of each query. Raises InvalidInput unless there are as many of both."""
    if isinstance(images, str | bytes) or isinstance(texts, str | bytes):
        raise InvalidInput("images and texts are sequences, with one of each per query; put a single one into a list")
    if len(images) != len(texts):
        raise InvalidInput(f"{len(images)} images and {len(texts)} texts; a query has one of each, and one may be None")
    return zip(images, texts, strict=True)


def check_query(
    image: object | None, text: object, *, position: int | None, ensembles: Collection[EnsembleName]
) -> None:
    """Raise UnsupportedQuery if a pair is empty, or if the bundle has no ensemble for it; InvalidText for no text."""
    if text is not None and not isinstance(text, str):
        raise InvalidText(f"a text is a str, and not of type {type(text).__name__}", item="query", position=position)
    if image is not None:
        if EnsembleName.ENCODE_QUERY not in ensembles:
            raise UnsupportedQuery(
                "it has an image, and this bundle's recipe answers texts alone: leave out the image",
                item="query",
                position=position,
            )
        return
    if text is None or not text.strip():
        raise UnsupportedQuery("it has neither an image nor a text", item="query", position=position)
    if EnsembleName.ENCODE_TEXT_QUERY not in ensembles:
        raise UnsupportedQuery(
            "it has no image, and this bundle's recipe composes text with an image: give an image, or export a recipe "
            f"that answers a text alone: {', '.join(RECIPES_OF_TEXTS)}",
            item="query",
            position=position,
        )
