"""Read real queries from a file, to tune and measure an index on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cirrus_client.bundle import SpaceSpec
from cirrus_client.encoders.protocol import Encoder
from cirrus_client.errors import ItemError, SearchIndexError, SpaceMismatch
from cirrus_client.index.protocol import QuerySample
from cirrus_client.index.vectors import check_vectors
from cirrus_client.invalid_fields import first_problem
from cirrus_client.records import Record

_BATCH_SIZE = 32
_WAY_OUT = 'each line is like {"image": "a.jpg", "text": "in blue"}'


class _Query(Record):
    """A query in a .jsonl file. image: a path relative to the file, or absolute."""

    image: str | None = None
    text: str | None = None


def read_query_sample(path: Path, space: SpaceSpec, encoder: Encoder | None) -> QuerySample:
    """Read query embeddings from a .npy file, or encode the queries of a .jsonl file.

    A .npy file contains embeddings in the gallery's space, float32 [Q, D]. A line of a .jsonl file is an object with
    "image", a path relative to the file's folder, or "text", or both; `encoder` encodes them. Raises SearchIndexError
    if the file can't be read or has another format, or a query can't be encoded, SpaceMismatch if the encoder's space
    is not the gallery's, and what else the encoder raises.
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
        raise SpaceMismatch(
            f"queries {path}: the encoder's space differs from the gallery's in "
            f"{encoder.space.differences_in_words(space)}; give the bundle that the gallery was embedded with",
            components=encoder.space.differences(space),
        )
    queries = _read_lines(path)
    parts = []
    for start in range(0, len(queries), _BATCH_SIZE):
        batch = queries[start : start + _BATCH_SIZE]
        images = [None if query.image is None else path.parent / query.image for query in batch]
        try:
            parts.append(encoder.encode_queries(images, [query.text for query in batch]))
        except ItemError as error:
            line = start + 1 + (error.position or 0)
            raise SearchIndexError(f"queries {path}, line {line}: {error.reason}", path=path) from None
    return QuerySample(np.concatenate(parts), path.name)


def _read_lines(path: Path) -> list[_Query]:
    try:
        lines = path.read_text("utf-8-sig").rstrip("\n").split("\n")  # a text may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise SearchIndexError(f"queries {path} can't be read: {error}", path=path) from None
    if lines == [""]:
        raise SearchIndexError(f"queries {path}: the file is empty", path=path)
    return [_query(line, path, number) for number, line in enumerate(lines, start=1)]


def _query(line: str, path: Path, number: int) -> _Query:
    try:
        return _Query.model_validate_json(line)
    except ValidationError as error:
        problem = first_problem(error, line)[1]
        raise SearchIndexError(f"queries {path}, line {number}: {problem}; {_WAY_OUT}", path=path) from None
