"""Encode queries, and nothing twice: what an image or a text became is kept and used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.bundle import DYNAMIC
from cirrus_client.encoders.local import LocalEncoder, Pixels
from cirrus_client.encoders.memory import RecentArrays
from cirrus_client.encoders.protocol import Embeddings, prepare_all
from cirrus_client.encoders.reranker import Scores, check_reranked
from cirrus_client.ensemble import EMBEDDING, Arrays, EnsembleSpec, StepSpec
from cirrus_client.errors import ItemError
from cirrus_client.image.inputs import ImageInput, image_bytes
from cirrus_client.names import EnsembleName, TensorName

TokenIds = NDArray[np.int64]
Tensors = dict[str, NDArray[Any]]


class Kept(StrEnum):
    """What is kept: a whole query's embedding, or what the encoders make of its image or of its text."""

    QUERY = "query"
    IMAGE = "image"
    TEXT = "text"


@dataclass(frozen=True)
class KnownQuery:
    """A query that is tokenized, and decoded unless its image is known.

    image: the sha256 of the image file, or None. pixels: None if there is no image, or its features are known.
    image_features, text_features: what the encoders made of the image, and of the text. embedding: the query's
    embedding, if the whole query is known.
    """

    token_ids: TokenIds
    image: bytes | None = None
    pixels: Pixels | None = None
    image_features: Arrays | None = None
    text_features: Arrays | None = None
    embedding: Embeddings | None = None

    @property
    def key(self) -> tuple[bytes | None, bytes]:
        """What identifies the query: the sha256 of its image file, if it has one, and its token ids."""
        return self.image, self.text

    @property
    def text(self) -> bytes:
        """What identifies the text: its token ids as bytes."""
        return self.token_ids.tobytes()

    @property
    def is_decoded(self) -> bool:
        """Whether nothing of the image file is needed any more."""
        return self.image is None or any(
            there is not None for there in (self.pixels, self.image_features, self.embedding)
        )


@dataclass(frozen=True)
class Condition:
    """What a reranker keeps of a query: what ENCODE_CONDITION made of it, and its token ids."""

    condition: NDArray[np.float32]
    token_ids: TokenIds


class RememberingEncoder:
    """Encodes queries like a `LocalEncoder` and keeps, up to a number of bytes, what it computed. Threads may share it.

    A known image is neither decoded nor encoded again, a known text is not encoded again, and of a known query nothing
    is computed. Answers are the same: features are kept as float32. Features of images are keyed by the sha256 of the
    file, those of texts by their token ids.
    """

    def __init__(
        self, encoder: LocalEncoder, *, max_bytes: int, observe: Callable[[Kept, bool], None] = lambda kept, known: None
    ) -> None:
        """Keep the encoder. observe: is told what was looked for, and whether it was known."""
        self.encoder = encoder
        self._observe = observe
        self._recent = RecentArrays(max_bytes)
        spec = encoder.bundle.spec
        composed = spec.ensembles.get(EnsembleName.ENCODE_QUERY)
        self._image_steps = () if composed is None else steps_from(composed, TensorName.PIXELS)
        self._text_steps = () if composed is None else steps_from(composed, TensorName.TOKEN_IDS)
        self._image_bytes = 0
        self._dynamic = {
            step.outputs[tensor.name]
            for step in self._text_steps
            for tensor in spec.graphs[step.model].outputs
            if tensor.shape[:1] == (DYNAMIC,) and tensor.name in step.outputs
        }

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self._recent.nbytes

    def prepare_query(self, image: bytes | None, text: str | None) -> KnownQuery:
        """Tokenize a query, and decode its image unless that is known. See `LocalEncoder.prepare_query`."""
        return self.decode(self.look_up(image, text), image)

    def look_up(self, image: bytes | None, text: str | None) -> KnownQuery:
        """Tokenize a query, and add what is known of it and of its image. Raises as `LocalEncoder.prepare_text`."""
        digest = None if image is None else hashlib.sha256(image).digest()
        query = KnownQuery(self.encoder.prepare_text(text, with_image=image is not None), digest)
        known = self._look_up(Kept.QUERY, query.key)
        if known is not None:
            return replace(query, embedding=known[EMBEDDING])
        return query if image is None else self._with_image_features(query)

    def decode(self, query: KnownQuery, image: bytes | None) -> KnownQuery:
        """Add the pixels of a query's image file, if it has one that is not known. Raises InvalidImage."""
        if image is None or query.is_decoded:
            return query
        return replace(query, pixels=self.encoder.prepare_image(image))

    def encode_texts(self, queries: Sequence[KnownQuery]) -> list[KnownQuery]:
        """Add what the text encoder makes of texts, where it needs no image for that.

        queries: at most the bundle's `max_batch`, each with an image. It can be called while that is decoded.
        """
        if not self._text_steps:
            return list(queries)
        known = self._text_features(queries)
        return [replace(query, text_features=known[query.text]) for query in queries]

    def encode_prepared_queries(self, prepared: Sequence[KnownQuery]) -> Embeddings:
        """Return one query embedding per prepared query, float32 [B, D]."""
        new = {query.key: query for query in prepared if query.embedding is None}
        composed = [query for query in new.values() if query.image is not None]
        texts = [query for query in new.values() if query.image is None]
        found = dict(zip([query.key for query in (*composed, *texts)], self._encoded(composed, texts), strict=True))
        for key, embedding in found.items():
            self._recent.put((Kept.QUERY, key), {EMBEDDING: embedding})
        rows = [found[query.key] if query.embedding is None else query.embedding for query in prepared]
        return np.stack(rows) if rows else np.empty((0, self.encoder.space.dim), dtype=np.float32)

    def scores(self, image: ImageInput | None, text: str | None, candidates: Sequence[ImageInput]) -> Scores:
        """See `Reranker.scores`."""
        check_reranked(image, self.encoder.bundle.spec.ensembles)
        assert image is not None
        try:
            condition = self.condition(image_bytes(image), text)
        except ItemError as error:
            raise error.at("query", 0) from None
        prepared = prepare_all(candidates, self.prepare_candidate, item="candidate")
        size = self.encoder.bundle.spec.max_batch
        parts = [prepared[start : start + size] for start in range(0, len(prepared), size)]
        found = [self.score([(condition, one) for one in part]) for part in parts]
        return np.concatenate([np.empty(0, dtype=np.float32), *found])

    def condition(self, image: bytes, text: str | None) -> Condition:
        """Encode what a reranker keeps of a query. Raises InvalidImage or InvalidText."""
        token_ids = self.encoder.prepare_text(text, with_image=True)
        query = replace(self.prepare_candidate(image), token_ids=token_ids)
        given = {**self._of_images([query]), **self._of_texts([query])}
        return Condition(self.encoder.encode_tensors(EnsembleName.ENCODE_CONDITION, given)[0], token_ids)

    def prepare_candidate(self, image: bytes) -> KnownQuery:
        """Decode a gallery image that is to be scored, unless it is known. Raises InvalidImage."""
        candidate = KnownQuery(np.empty(0, dtype=np.int64), hashlib.sha256(image).digest())
        return self.decode(self._with_image_features(candidate), image)

    def score(self, candidates: Sequence[tuple[Condition, KnownQuery]]) -> Scores:
        """Return the score of each prepared candidate for the query beside it, float32 [k].

        candidates: one batch, at most the bundle's `max_batch`.
        """
        given: Tensors = {
            **self._of_images([image for _, image in candidates]),
            TensorName.CONDITION: np.stack([query.condition for query, _ in candidates]),
            TensorName.TOKEN_IDS: np.stack([query.token_ids for query, _ in candidates]),
        }
        return self.encoder.encode_tensors(EnsembleName.SCORE_CANDIDATE, given)[:, 0]

    def learn(self, image: bytes) -> bool:
        """Encode an image ahead, and return whether there is room for more.

        Without room nothing is encoded: it would take the place of what was asked for. Raises InvalidImage.
        """
        digest = hashlib.sha256(image).digest()
        if not self._image_steps or self._recent.nbytes + self._image_bytes > self._recent.max_bytes:
            return False
        if self._recent.get((Kept.IMAGE, digest)) is None:
            self._of_images([KnownQuery(np.empty(0, dtype=np.int64), digest, self.encoder.prepare_image(image))])
        return True

    def _encoded(self, composed: Sequence[KnownQuery], texts: Sequence[KnownQuery]) -> list[Embeddings]:
        size = self.encoder.bundle.spec.max_batch
        rows: list[Embeddings] = []
        for start in range(0, len(composed), size):
            part = composed[start : start + size]
            given = {**self._of_images(part), **self._of_texts(part)}
            rows += list(self.encoder.encode_tensors(EnsembleName.ENCODE_QUERY, given))
        if texts:
            given = {TensorName.TOKEN_IDS: np.stack([query.token_ids for query in texts])}
            rows += list(self.encoder.encode_tensors(EnsembleName.ENCODE_TEXT_QUERY, given))
        return [row.copy() for row in rows]

    def _of_images(self, queries: Sequence[KnownQuery]) -> Tensors:
        """Return what the image encoder makes of the queries' images, or their pixels if there is none."""
        if not self._image_steps:
            return {TensorName.PIXELS: np.stack([query.pixels for query in queries if query.pixels is not None])}
        known = {query.image: query.image_features for query in queries if query.image_features is not None}
        new = {query.image: query.pixels for query in queries if query.image not in known and query.pixels is not None}
        if new:
            tensors = self.encoder.run_steps(self._image_steps, {TensorName.PIXELS: np.stack(list(new.values()))})
            for row, image in enumerate(new):
                known[image] = {name: values[row].copy() for name, values in tensors.items()}
                self._image_bytes = sum(values.nbytes for values in known[image].values())
                self._recent.put((Kept.IMAGE, image), known[image])
        features = [known[query.image] for query in queries]
        return {name: np.stack([one[name] for one in features]) for name in features[0]}

    def _with_image_features(self, query: KnownQuery) -> KnownQuery:
        """Add what the image encoder made of a query's image, if that is known."""
        if not self._image_steps:
            return query
        return replace(query, image_features=self._look_up(Kept.IMAGE, query.image))

    def _of_texts(self, queries: Sequence[KnownQuery]) -> Tensors:
        """Return the token ids of the queries, cut to what the batch needs, and what the text encoder makes of them."""
        token_ids = self.encoder.bundle.spec.tokenizer.cut(np.stack([query.token_ids for query in queries]))
        if not self._text_steps:
            return {TensorName.TOKEN_IDS: token_ids}
        known = self._text_features(queries)
        features = [known[query.text] for query in queries]
        length = token_ids.shape[1]
        return {TensorName.TOKEN_IDS: token_ids} | {
            name: np.stack([_padded(one[name], length) if name in self._dynamic else one[name] for one in features])
            for name in features[0]
        }

    def _text_features(self, queries: Sequence[KnownQuery]) -> dict[bytes, Arrays]:
        """Return what the text encoder makes of the queries' texts, by their token ids, each cut to its own length."""
        cut = self.encoder.bundle.spec.tokenizer.cut
        known: dict[bytes, Arrays] = {}
        new: dict[bytes, TokenIds] = {}
        for query in queries:
            key = query.text
            if key not in known and key not in new:
                features = query.text_features or self._look_up(Kept.TEXT, key)
                if features is None:
                    new[key] = query.token_ids
                else:
                    known[key] = features
        if new:
            token_ids = cut(np.stack(list(new.values())))
            tensors = self.encoder.run_steps(self._text_steps, {TensorName.TOKEN_IDS: token_ids})
            for row, (key, ids) in enumerate(new.items()):
                own = cut(ids[None]).shape[1]
                known[key] = {
                    name: (values[row, :own] if name in self._dynamic else values[row]).copy()
                    for name, values in tensors.items()
                }
                self._recent.put((Kept.TEXT, key), known[key])
        return known

    def _look_up(self, kept: Kept, key: object) -> Arrays | None:
        found = self._recent.get((kept, key))
        self._observe(kept, found is not None)
        return found


def steps_from(ensemble: EnsembleSpec, tensor: str) -> tuple[StepSpec, ...]:
    """Return the steps of an ensemble that can run when one tensor alone is given."""
    steps: list[StepSpec] = []
    there = {tensor}
    for step in ensemble.steps:
        if step.inputs and set(step.inputs.values()) <= there:
            steps.append(step)
            there |= set(step.outputs.values())
    return tuple(steps)


def _padded(tokens: NDArray[Any], length: int) -> NDArray[Any]:
    """Return a text's tokens with zeros up to a length. Where texts may be cut, nobody reads what is behind one."""
    return np.concatenate([tokens, np.zeros((length - len(tokens), *tokens.shape[1:]), dtype=tokens.dtype)])
