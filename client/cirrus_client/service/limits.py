"""Limits of the service. Those of the request's form are part of the OpenAPI document; the others are options."""

from __future__ import annotations

from dataclasses import dataclass

MAX_QUERIES = 32
MAX_K = 1_000
MAX_OFFSET = 10_000
MAX_RERANK = 100
MAX_TERMS = 8
MAX_INPUTS = 256
MAX_VALUES = 65_536
MAX_TEXT_CHARS = 2_000
MAX_THUMBNAIL_PX = 1_024


@dataclass(frozen=True)
class Limits:
    """What one request may ask of the service.

    max_body_bytes: bytes of a request's body. max_pixels: pixels of one image. max_waiting: queries that wait for the
    encoder, at least those of the largest request; a further one is refused with 429. rate: requests per second and
    key; None does not limit. timeout_s: time limit of one request. memory_bytes: of what images, texts and queries
    became, kept per bundle that encodes in this process, so that nothing is encoded twice; 0 keeps nothing.
    """

    max_body_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_waiting: int = MAX_QUERIES * (1 + MAX_TERMS)
    rate: float | None = None
    timeout_s: float = 30.0
    memory_bytes: int = 512 * 2**20
