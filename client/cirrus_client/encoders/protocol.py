"""What an encoder is, whatever runs behind it."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cirrus_client.bundle import SpaceSpec
from cirrus_client.errors import InvalidImage, InvalidInput, UnsupportedQuery
from cirrus_client.names import EnsembleName

T = TypeVar("T")

Embeddings = NDArray[np.float32]
"""float32 [B, D], L2-normalised; [B, V, D] for gallery items of several vectors."""

ImageInput = bytes | str | Path | Image.Image
"""Encoded bytes, the path of an image file, or a decoded picture."""


class Encoder(Protocol):
    """Turns composed queries and gallery images into embeddings of one space.

    Threads may share an encoder: every answer is that of its own call.
    """

    @property
    def space(self) -> SpaceSpec:
        """The vector space of every embedding that this encoder returns."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls of `encode_prepared` it takes at once to keep the engine busy."""
        ...

    def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """Return one query embedding per (image, text) pair, float32 [B, D]; either of a pair may be None.

        Raises InvalidImage or InvalidText naming the position of the bad item, and UnsupportedQuery for a
        combination that the recipe does not define.
        """
        ...

    def encode_targets(self, images: Sequence[ImageInput]) -> Embeddings:
        """Return one gallery embedding per image, float32 [B, D], or [B, V, D] where the space has V vectors an item.

        Raises InvalidImage naming the position.
        """
        ...

    def prepare(self, image: bytes) -> Any:
        """Do the part of encoding a gallery image that can run in parallel threads.

        Raises InvalidImage. The result is only meant for `encode_prepared` of the same encoder.
        """
        ...

    def encode_prepared(self, prepared: Sequence[Any]) -> Embeddings:
        """Return one gallery embedding per prepared image, of the shape that `encode_targets` has."""
        ...


class AsyncEncoder(Protocol):
    """`Encoder` for asyncio, as far as queries go. Tasks of one event loop may share it."""

    async def space(self) -> SpaceSpec:
        """Return the vector space of every embedding that this encoder returns."""
        ...

    async def encode_queries(self, images: Sequence[ImageInput | None], texts: Sequence[str | None]) -> Embeddings:
        """See `Encoder.encode_queries`."""
        ...

    async def close(self) -> None:
        """Close what the encoder holds open."""
        ...


def is_async(encoder: Encoder | AsyncEncoder) -> TypeGuard[AsyncEncoder]:
    """Return whether an encoder is one for asyncio."""
    return iscoroutinefunction(encoder.encode_queries)


def image_bytes(image: ImageInput) -> bytes:
    """Return the encoded bytes of an image; a decoded picture is encoded as PNG, which loses nothing.

    Raises InvalidImage if a path can't be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise InvalidImage(f"can't read image file {image}: {error.strerror}") from None


def prepare_all(images: Sequence[ImageInput], prepare: Callable[[bytes], T]) -> list[T]:
    """Prepare gallery images in order. Raises what `prepare` raises, naming the position."""
    prepared = []
    for position, image in enumerate(images):
        try:
            prepared.append(prepare(image_bytes(image)))
        except InvalidInput as error:
            raise error.at("image", position) from None
    return prepared


def check_query(image: object | None, text: str | None, *, position: int, ensembles: Collection[EnsembleName]) -> None:
    """Raise UnsupportedQuery if the pair is empty, or is not of a kind that the bundle has an ensemble for."""
    if image is not None:
        if EnsembleName.ENCODE_QUERY not in ensembles:
            raise UnsupportedQuery(
                "it has an image, and this bundle's recipe answers texts alone: leave the image away",
                item="query",
                position=position,
            )
        return
    if not text:
        raise UnsupportedQuery("it has neither an image nor a text", item="query", position=position)
    if EnsembleName.ENCODE_TEXT_QUERY not in ensembles:
        raise UnsupportedQuery(
            "it has no image, and this bundle's recipe composes text with an image", item="query", position=position
        )
