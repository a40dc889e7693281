"""A table of the shortest times that graphs can take on GPUs, made without a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from cirrus_bench.card_rates import CARD_RATES
from cirrus_bench.floor import graph_work
from cirrus_bench.measure import this_machine
from cirrus_bench.report import Report
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.records import Record


class FloorRow(Record):
    """One graph of a bundle. floors_ms: by card; a card that lacks a precision of the graph is absent."""

    bundle: str
    graph: str
    precision: Precision
    operations: Mapping[Precision, int]
    bytes: int = Field(ge=0)
    floors_ms: Mapping[str, float]


class FloorReport(Report):
    """The floors of all graphs for one batch size."""

    file_name: ClassVar[str] = "floor"

    batch: int
    rows: tuple[FloorRow, ...]

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            "# The shortest times that graphs can take",
            "",
            f"Batch {self.batch}, in milliseconds. Nothing was run. Operations are those of matrix products and "
            "convolutions; a multiply-add is two. Bytes are weights, inputs and outputs, each moved once. Texts are as "
            "short as a graph takes them. A floor is the longer of two times: operations at the card's published dense "
            "rates, and bytes at its memory's. "
            "`make gpu-check` prints which share of it a plan reaches.",
            "",
            f"| bundle | graph | precision | GFLOP | in float32 | MB | {' | '.join(CARD_RATES)} |",
            f"|---|---|---|--:|--:|--:|{'--:|' * len(CARD_RATES)}",
            *(_line(row) for row in self.rows),
        ]
        return "\n".join(lines) + "\n"


def floors_of(bundles: Sequence[Bundle], batch: int) -> FloorReport:
    """Count the work of every graph of bundles. Raises FloorError if that of one can't be counted."""
    rows = []
    for bundle in bundles:
        for graph, spec in bundle.spec.graphs.items():
            work = graph_work(bundle.graph_file(graph), batch, text_length=min(spec.text_lengths, default=0))
            floors = {name: work.floor_s(card) for name, card in CARD_RATES.items()}
            rows.append(
                FloorRow(
                    bundle=f"{bundle.spec.recipe}, {bundle.spec.backbone}",
                    graph=graph,
                    precision=bundle.spec.precision,
                    operations=work.operations,
                    bytes=work.bytes,
                    floors_ms={name: 1000 * seconds for name, seconds in floors.items() if seconds is not None},
                )
            )
    return FloorReport(batch=batch, rows=tuple(rows), machine=this_machine())


def _line(row: FloorRow) -> str:
    every = sum(row.operations.values())
    wide = row.operations.get(Precision.FP32, 0) / every if every else 0.0
    floors = " | ".join(f"{row.floors_ms[name]:.2f}" if name in row.floors_ms else "-" for name in CARD_RATES)
    return (
        f"| {row.bundle} | {row.graph} | {row.precision} | {every / 1e9:,.1f} | {wide:.0%} | {row.bytes / 1e6:,.1f} "
        f"| {floors} |"
    )
