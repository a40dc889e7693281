"""Read real queries from a file, to tune and measure an index on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Encoder
from cirrus_client.errors import SearchIndexError, SpaceMismatch
from cirrus_client.index.protocol import QuerySample
from cirrus_client.index.vectors import check_vectors

_BATCH_SIZE = 32


def read_query_sample(path: Path, space: SpaceSpec, encoder: Encoder | None) -> QuerySample:
    """Read query embeddings from a .npy file, or encode the queries of a .jsonl file.

    A .npy file contains embeddings in the gallery's space, float32 [Q, D]. A line of a .jsonl file is an object with
    "image", a path relative to the file's folder, or "text", or both; `encoder` encodes them. Raises SearchIndexError
    if the file can't be read or has another format, SpaceMismatch if the encoder's space is not the gallery's, and
    what the encoder raises.
    """
    if path.suffix == ".npy":
        try:
            embeddings = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SearchIndexError(f"queries {path} can't be read: {error}", path=path) from None
        check_vectors(f"queries {path}", embeddings, (space.dim,))
        return QuerySample(embeddings, path.name)
    if encoder is None:
        raise SearchIndexError(f"queries {path} are encoded first: give --bundle or --server as well", path=path)
    if encoder.space.fingerprint != space.fingerprint:
        differing = encoder.space.differences(space)
        raise SpaceMismatch(
            f"queries {path}: the encoder's space differs from the gallery's in {', '.join(differing)}; give the "
            "bundle that the gallery was embedded with",
            components=differing,
        )
    images, texts = _read_lines(path)
    parts = [
        encoder.encode_queries(images[start : start + _BATCH_SIZE], texts[start : start + _BATCH_SIZE])
        for start in range(0, len(images), _BATCH_SIZE)
    ]
    return QuerySample(np.concatenate(parts), path.name)


def _read_lines(path: Path) -> tuple[list[Path | None], list[str | None]]:
    images: list[Path | None] = []
    texts: list[str | None] = []
    try:
        lines = path.read_text("utf-8-sig").rstrip("\n").split("\n")  # a text may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise SearchIndexError(f"queries {path} can't be read: {error}", path=path) from None
    if lines == [""]:
        raise SearchIndexError(f"queries {path}: the file is empty", path=path)
    for number, line in enumerate(lines, start=1):
        try:
            query = json.loads(line)
            image, text = query.get("image"), query.get("text")
            fits = all(value is None or isinstance(value, str) for value in (image, text))
        except (json.JSONDecodeError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise SearchIndexError(
                f'queries {path}, line {number}: expected an object like {{"image": "a.jpg", "text": "in blue"}}',
                path=path,
            )
        images.append(None if image is None else path.parent / image)
        texts.append(text)
    return images, texts
