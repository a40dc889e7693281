"""The report of the service's bench."""

from __future__ import annotations

from typing import ClassVar

from cirrus_bench.latency import Latency
from cirrus_bench.report import Report
from cirrus_bench.service.agreement import QueryAgreement
from cirrus_bench.service.load import Endurance
from cirrus_client.bundle import Precision
from cirrus_client.records import Record


class Ask(Record):
    """Median ms of one query at a time: an uploaded image and an edit.

    uncut_ms, bare_ms: engine and FAISS in process, with texts at their full length and cut. served_ms: the service.
    added_ms: median of what the service takes longer than `bare_ms` for the same query.
    """

    precision: Precision
    engine: str
    uncut_ms: float
    bare_ms: float
    served_ms: float
    added_ms: float


class Flight(Record):
    """Uploaded queries in flight at the service. batches: whether it encodes what is in flight together."""

    precision: Precision
    batches: bool
    latency: Latency
    errors: int


class Reference(Record):
    """Median ms of one query at a time at the service, by what is known of it.

    uploaded_ms, new_item_ms: the image is not known. known_item_ms: the item was a reference before, with another edit.
    known_query_ms: the whole query was there before.
    """

    precision: Precision
    uploaded_ms: float
    new_item_ms: float
    known_item_ms: float
    known_query_ms: float


class ServiceReport(Report):
    """One model at several precisions, bare and served.

    in_a_row: queries that the bare engine and the service are asked, one at a time, before it is the other's turn.
    agreements: top-10 agreement by precision, of the demo's trained model.
    """

    file_name: ClassVar[str] = "service"

    bundle: str
    items: int
    in_a_row: int = 1
    asks: tuple[Ask, ...]
    flights: tuple[Flight, ...]
    references: tuple[Reference, ...]
    agreements: tuple[QueryAgreement, ...]
    endurance: Endurance | None

    def markdown(self) -> str:
        """Render the report as Markdown."""
        today = self.asks[0].uncut_ms
        in_a_row = f", {self.in_a_row} queries in a row each" if self.in_a_row > 1 else ""
        lines = [
            f"# The search service: {self.bundle}",
            "",
            f"HTTP in, JSON out, search over {self.items:,} items included, encoded in the service's process; random "
            "weights. The client runs on the same cores.",
            "",
            "## One query at a time",
            "",
            "An uploaded 512 px photo and an edit of 5 to 9 tokens; median ms. Bare is the engine and FAISS in one "
            f"process, asked in turn with the service{in_a_row}.",
            "",
            "| precision | bare, uncut texts | bare, cut texts | times fp32 uncut | served | added | added, % |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {ask.precision} | {ask.uncut_ms:.1f} | {ask.bare_ms:.1f} | {today / ask.bare_ms:.2f} "
                f"| {ask.served_ms:.1f} | {ask.added_ms:.1f} | {ask.added_ms / ask.bare_ms:.0%} |"
                for ask in self.asks
            ),
            "",
            "## In flight",
            "",
            "| precision | batches | in flight | p50, ms | p95, ms | p99, ms | queries/s | errors |",
            "|---|---|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {one.precision} | {'yes' if one.batches else 'no'} | {one.latency.concurrency} "
                f"| {one.latency.p50_ms:.1f} | {one.latency.p95_ms:.1f} | {one.latency.p99_ms:.1f} "
                f"| {one.latency.queries_per_s:.1f} | {one.errors} |"
                for one in self.flights
            ),
            "",
            "## What is known is not encoded again",
            "",
            "Median ms at the service, one query at a time.",
            "",
            "| precision | uploaded | new item | known item, another edit | upload : known item | the same query |",
            "|---|--:|--:|--:|--:|--:|",
            *(
                f"| {one.precision} | {one.uploaded_ms:.1f} | {one.new_item_ms:.1f} | {one.known_item_ms:.1f} "
                f"| {one.uploaded_ms / one.known_item_ms:.2f} | {one.known_query_ms:.1f} |"
                for one in self.references
            ),
            "",
            "## Queries at a lower precision",
            "",
            "Composed queries of the demo's trained model, compared with its fp32 queries, over a gallery at fp32.",
            "",
            "| precision | queries | gallery | top-10 agreement | cosine (min) |",
            "|---|--:|--:|--:|--:|",
            *(
                f"| {one.precision} | {one.queries} | {one.gallery} | {one.top10_agreement:.2%} "
                f"| {one.cosine_min:.6f} |"
                for one in self.agreements
            ),
        ]
        if self.endurance is not None:
            held = self.endurance
            lines += [
                "",
                "## Under load",
                "",
                f"{held.seconds:.0f} s at {held.requests_per_s:.1f} requests/s, 80% of the most that the last "
                f"precision takes: {held.requests:,} requests, **{held.errors} errors**; p50 {held.p50_ms:.1f} ms, "
                f"p95 {held.p95_ms:.1f} ms, p99 {held.p99_ms:.1f} ms.",
            ]
        return "\n".join([*lines, "", str(self.machine)]) + "\n"
