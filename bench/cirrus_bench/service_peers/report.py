"""The report of the service beside other tools."""

from __future__ import annotations

from typing import ClassVar

from cirrus_bench.latency import Latency
from cirrus_bench.report import Report
from cirrus_bench.service_peers.tools import K, QueryKind
from cirrus_client.bundle import Precision
from cirrus_client.records import Record


class ToolRow(Record):
    """One tool and one kind of query.

    top10_agreement: share of the ten best images that are those of Cirrus at fp32. singly: one query at a time.
    together: many in flight, the round of median throughput. spread: of the rounds' throughput, (fastest - slowest) /
    median. errors: queries without an answer, of all rounds.
    """

    tool: str
    precision: Precision
    kind: QueryKind
    top10_agreement: float
    singly: Latency
    together: Latency
    spread: float
    errors: int

    @property
    def title(self) -> str:
        """The name of the row in tables."""
        return f"{self.tool}, {self.precision}"


class ServicePeersReport(Report):
    """Every tool on the same weights, photos and vectors.

    queries: of each kind. in_flight: at once, in `ToolRow.together`. chance: by kind, the share of the ten best images
    that Cirrus finds for another query too. load: processes that wanted a core before the run. missing: tools that
    could not be measured, and why.
    """

    file_name: ClassVar[str] = "service_peers"

    backbone: str
    images: int
    size_px: int
    queries: int
    rounds: int
    in_flight: int
    rows: tuple[ToolRow, ...]
    chance: dict[QueryKind, float]
    load: float
    missing: dict[str, str]

    def of_kind(self, kind: QueryKind) -> list[ToolRow]:
        """Return the rows of a kind of query; the first is Cirrus at fp32."""
        return [row for row in self.rows if row.kind is kind]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            f"# The search service and other tools: plain CLIP, {self.backbone}",
            "",
            f"A query is an uploaded image or a text, alone. Over HTTP on loopback, it finds the {K} best of "
            f"{self.images:,} photos of {self.size_px} px in an exact FAISS index; random weights. All tools have "
            "the same weights and search the same vectors, which Cirrus embedded at fp32. Each runs in a process of "
            "its own with its defaults, on the same cores as the client, and remembers no query. Cirrus and "
            "clip-retrieval get the same request and answer rows and scores; infinity answers an embedding, and the "
            "client searches FAISS.",
        ]
        lines += self.machine.on_cpu("infinity")
        if self.missing:
            lines += ["", *(f"- Not measured: {name}: {reason}" for name, reason in self.missing.items())]
        for kind, title in ((QueryKind.IMAGE, "An image"), (QueryKind.TEXT, "A text")):
            lines += ["", f"## {title}", "", *self._table(kind)]
        return "\n".join([*lines, "", *self._notes(), "", str(self.machine)]) + "\n"

    def _table(self, kind: QueryKind) -> list[str]:
        rows = self.of_kind(kind)
        return [
            f"| tool | top-10 agreement | one at a time: p50, ms | p95, ms | {self.in_flight} in flight: p50, ms "
            "| p95, ms | queries/s | times Cirrus, fp32 | spread | errors |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(
                f"| {row.title} | {row.top10_agreement:.1%} | {row.singly.p50_ms:.1f} | {row.singly.p95_ms:.1f} "
                f"| {row.together.p50_ms:.1f} | {row.together.p95_ms:.1f} | {row.together.queries_per_s:.1f} "
                f"| {row.together.queries_per_s / rows[0].together.queries_per_s:.2f} | {row.spread:.0%} "
                f"| {row.errors} |"
                for row in rows
            ),
        ]

    def _notes(self) -> list[str]:
        chance = " and ".join(f"{self.chance[kind]:.1%} ({kind})" for kind in QueryKind)
        return [
            f"The tools take turns, query by query and round by round; {self.rounds} rounds with {self.in_flight} in "
            f"flight, of which the one of median throughput. Agreement is with Cirrus at fp32 over {self.queries} "
            f"queries of each kind; two different queries share {chance} of their answers. Before the run, "
            f"{self.load:.1f} processes of others wanted a core.",
        ]
