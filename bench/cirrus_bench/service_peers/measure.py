"""Measure the tools in turn: whether they find the same images, and how fast."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from cirrus_bench.latency import Latency
from cirrus_bench.measure import this_machine
from cirrus_bench.peers.weights import write_weights
from cirrus_bench.service.load import in_flight, latency_of
from cirrus_bench.service_peers.report import ServicePeersReport, ToolRow
from cirrus_bench.service_peers.servers import cirrus_served, start_peer_servers
from cirrus_bench.service_peers.tools import Query, QueryKind, Tool
from cirrus_bench.subjects import bench_photos, zero_shot_subjects
from cirrus_client.agreement import agreement
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index

_IN_FLIGHT = 32
_PHOTOS, _PHOTO_PX, _ROUNDS = 128, 512, 3
_COLOURS = ("black", "white", "red", "blue", "green", "yellow", "grey", "pink")
_PATTERNS = ("plain", "striped", "dotted")
_GARMENTS = ("dress", "shirt")
log = logging.getLogger(__name__)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Singly:
    """A tool's answers to queries one at a time. rows: of the ten best images, int64 [Q, 10]."""

    rows: Rows
    latency: Latency


@dataclass(frozen=True)
class Together:
    """A tool's answers to queries in flight. latencies: of each round. errors: in all of them."""

    latencies: list[Latency]
    errors: int


def measure_service_peers(backbone: str, work: Path) -> ServicePeersReport:
    """Measure Cirrus at every precision that runs here, clip-retrieval's backend, and infinity with FAISS.

    backbone: an open_clip model; its weights are random. work: where photos, bundles and environments are kept.
    """
    load = os.getloadavg()[0]
    subjects = zero_shot_subjects(backbone, work)
    photos = bench_photos(work, count=_PHOTOS, size_px=_PHOTO_PX)
    index = _index(subjects.bundles[Precision.FP32], photos[0].parent, work / "service-peers")
    texts = [f"a {colour} {pattern} {garment}" for colour, pattern, garment in product(_COLOURS, _PATTERNS, _GARMENTS)]
    queries = {
        QueryKind.IMAGE: [Query(photo.read_bytes()) for photo in photos[: len(texts)]],
        QueryKind.TEXT: [Query(text) for text in texts],
    }
    with ExitStack() as stack:
        served = [stack.enter_context(cirrus_served(bundle, index, work)) for bundle in subjects.bundles.values()]
        weights = write_weights(subjects.recipe, work / "peers" / "weights-clip")
        peers, missing = start_peer_servers(stack, weights, index, work / "peers")
        tools = [*peers, *served]
        singly = {kind: ask_singly(tools, of_kind) for kind, of_kind in queries.items()}
        together = {
            kind: ask_together(tools, of_kind, concurrency=_IN_FLIGHT, rounds=_ROUNDS)
            for kind, of_kind in queries.items()
        }
    reference = {kind: answered[served[0]].rows for kind, answered in singly.items()}
    return ServicePeersReport(
        backbone=backbone,
        images=len(photos),
        size_px=_PHOTO_PX,
        queries=len(texts),
        rounds=_ROUNDS,
        in_flight=_IN_FLIGHT,
        rows=tuple(
            _row(tool, kind, singly[kind][tool], together[kind][tool], reference[kind])
            for kind in queries
            for tool in [*served, *peers]
        ),
        chance={kind: agreement(rows, np.roll(rows, 1, axis=0)) for kind, rows in reference.items()},
        load=load,
        missing=missing,
        machine=this_machine(),
    )


def ask_singly(tools: Sequence[Tool], queries: Sequence[Query]) -> dict[Tool, Singly]:
    """Ask the tools each query in turn, so that a machine that gets slower gets slower for all of them.

    Raises PeerError if a tool does not answer a query.
    """
    rows: dict[Tool, list[list[int]]] = {tool: [] for tool in tools}
    seconds: dict[Tool, list[float]] = {tool: [] for tool in tools}
    for tool in tools:
        tool.rows(tool.body(queries[0]))
    for query, tool in product(queries, tools):
        body = tool.body(query)
        started = time.perf_counter()
        rows[tool].append(tool.rows(body))
        seconds[tool].append(time.perf_counter() - started)
    return {
        tool: Singly(np.array(rows[tool], dtype=np.int64), latency_of(seconds[tool], 1, sum(seconds[tool])))
        for tool in tools
    }


def ask_together(
    tools: Sequence[Tool], queries: Sequence[Query], *, concurrency: int, rounds: int
) -> dict[Tool, Together]:
    """Ask each tool all queries, one tool after the other. concurrency: queries in flight."""
    bodies = {tool: [tool.body(query) for query in queries] for tool in tools}
    latencies: dict[Tool, list[Latency]] = {tool: [] for tool in tools}
    errors = dict.fromkeys(tools, 0)
    for number, tool in product(range(1, rounds + 1), tools):
        latency, failed = in_flight(tool, bodies[tool], concurrency, warm_up=False)
        log.info("round %d of %d: %s, %s: %.1f/s", number, rounds, tool.title, tool.precision, latency.queries_per_s)
        latencies[tool].append(latency)
        errors[tool] += failed
    return {tool: Together(latencies[tool], errors[tool]) for tool in tools}


def _index(bundle: Bundle, photos: Path, folder: Path) -> Path:
    """Embed the photos at float32, build an exact index, and return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    embed_gallery(photos, folder / "gallery", LocalEncoder(bundle))
    build_index(read_gallery(folder / "gallery"), folder / "index")
    return folder / "index"


def _row(tool: Tool, kind: QueryKind, singly: Singly, together: Together, reference: Rows) -> ToolRow:
    rates = [one.queries_per_s for one in together.latencies]
    return ToolRow(
        tool=tool.title,
        precision=tool.precision,
        kind=kind,
        top10_agreement=agreement(reference, singly.rows),
        singly=singly.latency,
        together=sorted(together.latencies, key=lambda one: one.queries_per_s)[len(rates) // 2],
        spread=(max(rates) - min(rates)) / median(rates),
        errors=together.errors,
    )
