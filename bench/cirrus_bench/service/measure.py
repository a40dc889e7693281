"""Measure the service: what it adds, what it gains in flight, and what it saves by encoding nothing twice."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median

from cirrus_bench.errors import PeerError
from cirrus_bench.measure import this_machine
from cirrus_bench.service.agreement import query_agreement
from cirrus_bench.service.load import Ask as Service
from cirrus_bench.service.load import Caller, Endurance, at_a_rate, in_flight
from cirrus_bench.service.report import Ask, Flight, Reference, ServiceReport
from cirrus_bench.service.subjects import index_of, running, served_copy
from cirrus_bench.subjects import bench_photos
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.index import open_index

CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
_SINGLY = (1, 8, 32)
_PHOTOS, _PHOTO_PX, _ITEMS, _K = 128, 512, 10_000, 10
_ROUNDS, _IN_A_ROW, _WARM_UP = 60, 10, 4
_FLIGHTS_S = 4.0
_LOAD = 0.8
_MEMORY_MIB = 512
EDITS = (
    "the same in blue",
    "with longer sleeves",
    "in red with stripes",
    "shorter and without buttons",
    "is darker with a v-neck",
    "more elegant, in black",
    "with a floral print instead",
    "the same but sleeveless",
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceRequest:
    """What is measured. bundles: the same model at several precisions, float32 first. endurance_s: 0 leaves it out."""

    bundles: Sequence[Bundle]
    work: Path
    endurance_s: float = 0.0


@dataclass(frozen=True)
class _Bodies:
    """Requests for searches. uploads: with the image; items: with the id of an item of the same image."""

    uploads: list[bytes]
    items: list[bytes]

    @staticmethod
    def of(photos: Sequence[Path]) -> _Bodies:
        texts = list(islice(cycle(EDITS), len(photos)))
        encoded = [base64.b64encode(photo.read_bytes()).decode() for photo in photos]
        return _Bodies(
            [_body({"image": image, "text": text}) for image, text in zip(encoded, texts, strict=True)],
            [_body({"id": f"{number:06d}.jpg", "text": text}) for number, text in enumerate(texts)],
        )


def measure_service(request: ServiceRequest) -> ServiceReport:
    """Measure each bundle bare, and served with and without batches, memory and uploads."""
    photos = bench_photos(request.work, count=_PHOTOS, size_px=_PHOTO_PX)
    bodies = _Bodies.of(photos)
    index = index_of(request.bundles[0].spec.space, photos, _ITEMS, request.work / "service-index")
    asks: list[Ask] = []
    flights: list[Flight] = []
    references: list[Reference] = []
    endurance: Endurance | None = None
    for bundle in request.bundles:
        precision = bundle.spec.precision
        batching = served_copy(bundle, request.work / f"served-{precision}", max_batch=bundle.spec.max_batch)
        single = served_copy(bundle, request.work / f"served-singly-{precision}", max_batch=1)
        with running(batching, index, memory_mib=0) as url:
            log.info("%s: one query at a time", precision)
            asks.append(_one_at_a_time(bundle, index, photos, bodies, Caller(url)))
            flights += _flights(url, bodies.uploads, precision, CONCURRENCY, batches=True)
            if request.endurance_s and bundle is request.bundles[-1]:
                best = max(flight.latency.queries_per_s for flight in flights if flight.precision == precision)
                log.info("%s: %.0f s at %.1f requests/s", precision, request.endurance_s, _LOAD * best)
                endurance = at_a_rate(
                    Caller(url), bodies.uploads, requests_per_s=_LOAD * best, seconds=request.endurance_s
                )
        with running(single, index, memory_mib=0) as url:
            flights += _flights(url, bodies.uploads, precision, _SINGLY, batches=False)
        with running(batching, index, memory_mib=_MEMORY_MIB) as url:
            references.append(_references(bundle, Caller(url), photos))
    return ServiceReport(
        bundle=f"{request.bundles[0].spec.recipe} on {request.bundles[0].spec.backbone}",
        items=_ITEMS,
        in_a_row=_IN_A_ROW,
        asks=tuple(asks),
        flights=tuple(flights),
        references=tuple(references),
        agreements=query_agreement(request.work),
        endurance=endurance,
        machine=this_machine(),
    )


def _one_at_a_time(bundle: Bundle, index: Path, photos: Sequence[Path], bodies: _Bodies, ask: Service) -> Ask:
    """Ask the same queries bare and served, ten in a row in turn.

    A machine that gets slower gets slower for both. The first queries of a row do not count: threads of what ran before
    still wait busily for more, on the same cores.
    """
    searched = open_index(index).index
    cutting, uncut = LocalEncoder(bundle), LocalEncoder(bundle, cut_texts=False)
    images = [photo.read_bytes() for photo in photos]

    def bare(encoder: LocalEncoder) -> Callable[[int], float]:
        def run(number: int) -> float:
            started = time.perf_counter()
            image, text = images[number % len(images)], EDITS[number % len(EDITS)]
            searched.search(encoder.encode_queries([image], [text]), _K)
            return time.perf_counter() - started

        return run

    def served(number: int) -> float:
        return answered_s(ask, bodies.uploads[number % len(images)])

    works = {"uncut": bare(uncut), "bare": bare(cutting), "served": served}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for start in range(0, _ROUNDS, _IN_A_ROW):
        for name, work in works.items():
            row = [1e3 * work(number) for number in range(start - _WARM_UP, start + _IN_A_ROW)]
            seconds[name] += row[_WARM_UP:]
    return Ask(
        precision=bundle.spec.precision,
        engine="; ".join(sorted({cutting.graph(name).device for name in ("vision_encoder", "text_encoder")})),
        uncut_ms=median(seconds["uncut"]),
        bare_ms=median(seconds["bare"]),
        served_ms=median(seconds["served"]),
        added_ms=median(there - here for there, here in zip(seconds["served"], seconds["bare"], strict=True)),
    )


def _flights(
    url: str, bodies: Sequence[bytes], precision: Precision, at: Sequence[int], *, batches: bool
) -> list[Flight]:
    flights: list[Flight] = []
    ask = Caller(url)
    for concurrency in at:
        rate = flights[-1].latency.queries_per_s if flights else 10.0
        count = max(3 * concurrency, int(_FLIGHTS_S * rate), 30)
        latency, errors = in_flight(ask, list(islice(cycle(bodies), count)), concurrency)
        log.info("%s, batches %s, %d in flight: %.1f/s", precision, batches, concurrency, latency.queries_per_s)
        flights.append(Flight(precision=precision, batches=batches, latency=latency, errors=errors))
    return flights


def answered_s(ask: Service, body: bytes) -> float:
    """Return the seconds that an answer takes. Raises PeerError if it is none: a refusal is faster than an answer."""
    seconds, good = ask(body)
    if not good:
        raise PeerError(f"the service refused a query, so its time is none of a search: {body[-200:]!r}")
    return seconds


def _references(bundle: Bundle, ask: Service, photos: Sequence[Path]) -> Reference:
    """Ask about each photo by upload, as an item that is new, and as an item that was a reference before."""
    half = len(photos) // 2
    uploads = [
        _body({"image": base64.b64encode(photo.read_bytes()).decode(), "text": EDITS[0]}) for photo in photos[:half]
    ]
    items = range(half, 2 * half)
    new = [_body({"id": f"{number:06d}.jpg", "text": EDITS[1]}) for number in items]
    known = [_body({"id": f"{number:06d}.jpg", "text": f"{EDITS[2]} {number}"}) for number in items]
    same = known
    for body in uploads[:_WARM_UP]:
        ask(body)
    times = [[1e3 * answered_s(ask, body) for body in bodies] for bodies in (uploads[_WARM_UP:], new, known, same)]
    return Reference(
        precision=bundle.spec.precision,
        uploaded_ms=median(times[0]),
        new_item_ms=median(times[1]),
        known_item_ms=median(times[2]),
        known_query_ms=median(times[3]),
    )


def _body(query: dict[str, str]) -> bytes:
    return json.dumps({"queries": [query], "k": _K}).encode()
