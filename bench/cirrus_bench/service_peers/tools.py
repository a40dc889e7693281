"""How each tool is asked for the ten best images over HTTP, and how its answer is read."""

from __future__ import annotations

import base64
import json
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import faiss
import numpy as np

from cirrus_bench.errors import PeerError
from cirrus_bench.service.load import Caller
from cirrus_client.bundle import Precision

K = 10


class QueryKind(StrEnum):
    """What a query consists of."""

    IMAGE = "image"
    TEXT = "text"


@dataclass(frozen=True)
class Query:
    """An image file or a text, alone."""

    content: bytes | str

    @property
    def kind(self) -> QueryKind:
        """What the query consists of."""
        return QueryKind.TEXT if isinstance(self.content, str) else QueryKind.IMAGE

    @property
    def text(self) -> str:
        """The text, or the image file in base64: what stands in JSON."""
        return self.content if isinstance(self.content, str) else base64.b64encode(self.content).decode()


class Tool(ABC):
    """Finds the rows of the ten best images. Threads may share it."""

    def __init__(self, title: str, precision: Precision, url: str, path: str) -> None:
        """Keep the address. title: the tool and its version. path: what is asked."""
        self.title = title
        self.precision = precision
        self.url = url
        self._caller = Caller(url, path)

    @abstractmethod
    def body(self, query: Query) -> bytes:
        """Return the request that asks a query."""

    @abstractmethod
    def _read(self, answer: Any) -> list[int]:
        """Return the rows that an answer leads to, best first."""

    def rows(self, body: bytes) -> list[int]:
        """Return the rows of the ten best images, best first. Raises PeerError if the tool does not answer."""
        content = self._caller.post(body)
        if content is None:
            raise PeerError(f"{self.title} does not answer a query")
        return self._read(json.loads(content))

    def __call__(self, body: bytes) -> tuple[float, bool]:
        """Return the seconds from the request to the rows, and whether there was an answer."""
        started = time.perf_counter()
        try:
            self.rows(body)
        except PeerError:
            return time.perf_counter() - started, False
        return time.perf_counter() - started, True


class KnnService(Tool):
    """A search as clip-retrieval words it, for rows and scores alone; Cirrus's service understands the same request."""

    def __init__(self, title: str, precision: Precision, url: str) -> None:
        super().__init__(title, precision, url, "/knn-service")

    def body(self, query: Query) -> bytes:
        """See `Tool.body`."""
        wanted = {"modality": "image", "num_images": 0, "num_result_ids": K, "indice_name": None}
        return json.dumps({query.kind: query.text} | wanted).encode()

    def _read(self, answer: Any) -> list[int]:
        return [found["id"] for found in answer]


class EmbeddingsAndFaiss(Tool):
    """Embeddings as infinity and OpenAI word them, and a search by FAISS in this process."""

    def __init__(self, title: str, precision: Precision, url: str, path: str, index: faiss.Index) -> None:
        super().__init__(title, precision, url, path)
        self._index = index

    def body(self, query: Query) -> bytes:
        """See `Tool.body`. Embeddings come as base64, which is faster than numbers."""
        given = query.text if query.kind is QueryKind.TEXT else f"data:image/jpeg;base64,{query.text}"
        return json.dumps({"input": given, "modality": query.kind, "encoding_format": "base64"}).encode()

    def _read(self, answer: Any) -> list[int]:
        embedding = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), dtype="<f4")
        rows: list[int] = self._index.search(embedding[None], K)[1][0].tolist()
        return rows
