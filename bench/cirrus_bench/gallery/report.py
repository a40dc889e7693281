"""The gallery bench's report."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cirrus_bench.gallery.case import BASELINE, CACHED_FEATURES, Case, Method, Stage, cirrus, decode
from cirrus_bench.report import Report, plot
from cirrus_client.bundle import Precision
from cirrus_client.image.preprocess import Decoding
from cirrus_client.records import Record

PAPER_GALLERIES = {"CIRCO": 123_403, "FashionIQ": 74_381}
"""Images in the galleries that papers embed."""
HEAD_ROWS = 2048
"""Embeddings that go through a target head in one run."""
CACHED_IMAGES = 4096
"""Files of the job over cached features: enough that it takes about a second."""
_COLOURS = {Method.BASELINE: "#d1495b", Method.CIRRUS: "#1f6feb", Method.PEER: "#9aa4b2"}


class Fidelity(Record):
    """How near embeddings are to a reference's.

    cosine_min: the smallest cosine of an image's two embeddings. top10_agreement: the share of each image's ten
    nearest neighbours that are the same.
    """

    cosine_min: float
    top10_agreement: float


class Row(Case):
    """One case and its figures.

    images_per_s: from the median time. spread: (slowest - fastest) / median. peak_bytes: memory on top of what the
    process held before; a peer's is that of its whole process. gallery_seconds: time that the galleries of papers
    would take. fidelity: compared with the baseline's embeddings; a peer's with those of the plain image encoder.
    """

    images_per_s: float
    spread: float
    peak_bytes: int
    gallery_seconds: dict[str, float]
    fidelity: Fidelity | None = None


class SweepRow(Record):
    """The gallery graph alone at one precision and batch size, on the engine that `auto` chooses."""

    precision: Precision
    device: str
    batch_size: int
    images_per_s: float


class PeakRate(Record):
    """Operations per second that an engine reaches in products of 2,048 x 2,048 matrices."""

    precision: Precision
    device: str
    operations_per_s: float


class GalleryReport(Report):
    """Every row of one run.

    sweep: the gallery graph by batch size. peak_rates: of the fastest engine at each precision. operations_per_image:
    of the gallery graph; a multiply-add is two. union_cost: extra time of the UNION head, as a fraction of the rest
    of the gallery graph's time. missing: peers that could not be measured, and why.
    """

    file_name: ClassVar[str] = "report"

    backbone: str
    images: int
    size_px: int
    repeats: int
    rows: tuple[Row, ...]
    sweep: tuple[SweepRow, ...]
    peak_rates: tuple[PeakRate, ...]
    operations_per_image: int
    union_cost: float
    missing: dict[str, str]

    def of_stage(self, stage: Stage) -> list[Row]:
        """Return the rows of a stage in the order in which they were measured."""
        return [row for row in self.rows if row.stage is stage]

    def of_case(self, case: Case) -> Row:
        """Return the row of a case. Raises StopIteration if it was not measured."""
        return next(row for row in self.rows if all(getattr(row, name) == value for name, value in case))

    def gallery_graph(self, precision: Precision) -> Row:
        """Return the row of the gallery graph at a precision."""
        return next(row for row in self.of_stage(Stage.GALLERY_GRAPH) if row.precision is precision)

    def ceiling(self, rate: PeakRate) -> float:
        """Return the images per second that the gallery graph would reach at a peak rate."""
        return rate.operations_per_s / self.operations_per_image

    def speed_up(self, images_per_s: float) -> float:
        """Return how many times as fast as the baseline a rate is."""
        return images_per_s / self.of_case(BASELINE).images_per_s

    def speed_up_ceiling(self, rate: PeakRate) -> float:
        """Return the upper bound of the speed-up: the graph at its peak rate, and decoding on the same cores."""
        decoding = self.of_case(decode(Decoding.EXACT)).images_per_s
        return self.speed_up(in_turn(self.ceiling(rate), decoding))

    def markdown(self) -> str:
        """Render the report as Markdown."""
        lines = [
            f"# Embedding a gallery: {self.backbone} + UNION",
            "",
            f"{self.images} JPEG photos of {self.size_px} px, random weights, medians of {self.repeats} interleaved "
            "rounds in one run. Spread is (slowest - fastest) / median.",
            "",
            "## End to end: from files to embeddings on disk",
            *self.machine.on_cpu("PyTorch, the baseline included,"),
            "",
            *_end_to_end(self),
            "",
            f"`{BASELINE.title}` is `extract_index_features` of baohl00/UNION_for_IGROT: a DataLoader of batch 32 with "
            "8 workers, and for each batch the image encoder twice and the text encoder on the empty string. Memory is "
            "what a row takes on top of the process; the baseline's loader processes are not counted, and a peer's is "
            "that of its whole process. Fidelity compares the embeddings with the baseline's: the smallest cosine, and "
            "the share of each image's ten nearest neighbours that are the same. Peers embed with plain CLIP, without "
            "UNION and padding, and are compared with plain CLIP. Under random weights photos look alike, which makes "
            "neighbours a hard test; precision.md has the figures of trained weights.",
            "",
            *(f"- Not measured: {reason}" for reason in self.missing.values()),
            "",
            "## Stage by stage",
            "",
            "| stage | runs on | images/s | spread | memory, MiB |",
            "|---|---|--:|--:|--:|",
            *(
                f"| {row.stage} | {row.title} | {row.images_per_s:,.1f} | {row.spread:.0%} "
                f"| {row.peak_bytes / 2**20:,.0f} |"
                for row in self.rows
                if row.stage is not Stage.END_TO_END
            ),
            "",
            "The encoder gives an image's embedding and all its tokens, as queries need them. The target head's rows "
            f"are for {HEAD_ROWS:,} embeddings. The gallery graph gives UNION's embedding alone, so its last block is "
            "computed for the CLS token only.",
            "",
            *_conclusions(self),
            "",
            "## The machine's ceiling",
            "",
            *_ceiling(self),
            "",
            "## Batch size",
            "",
            *_sweep(self),
            "",
            str(self.machine),
        ]
        return "\n".join(lines) + "\n"

    def write(self, out: Path) -> list[Path]:
        """Write `report.json`, `report.md` and `report.png`, and return their paths."""
        return [*super().write(out), _plot(self, out / f"{self.file_name}.png")]


def in_turn(first: float, second: float) -> float:
    """Return the rate of two jobs that the same cores do in turn, from the rate of each alone."""
    return 1 / (1 / first + 1 / second)


def _end_to_end(report: GalleryReport) -> list[str]:
    heads = "".join(f" {name} ({count:,}), s |" for name, count in PAPER_GALLERIES.items())
    lines = [
        f"| way | images/s | times the baseline | spread | memory, MiB | cosine (min) | top-10 agreement |{heads}",
        "|---|--:|--:|--:|--:|--:|--:|" + "--:|" * len(PAPER_GALLERIES),
    ]
    for row in report.of_stage(Stage.END_TO_END):
        seconds = "".join(f" {value:,.0f} |" for value in row.gallery_seconds.values())
        found = row.fidelity
        fidelity = "| - | - |" if found is None else f"| {found.cosine_min:.6f} | {found.top10_agreement:.1%} |"
        lines.append(
            f"| {row.title} | {row.images_per_s:,.1f} | {report.speed_up(row.images_per_s):.2f} "
            f"| {row.spread:.0%} | {row.peak_bytes / 2**20:,.0f} {fidelity}{seconds}"
        )
    return lines


def _conclusions(report: GalleryReport) -> list[str]:
    decoding = report.of_case(decode(Decoding.EXACT)).images_per_s
    lines = []
    for precision in dict.fromkeys(rate.precision for rate in report.peak_rates):
        end = report.of_case(cirrus(precision)).images_per_s
        graph = report.gallery_graph(precision).images_per_s
        lines.append(
            f"- {precision}: end to end runs at {end / min(graph, decoding):.0%} of the slower of decoding and the "
            f"graph alone, and at {end / in_turn(graph, decoding):.0%} of what cores reach that do both in turn."
        )
    cached = report.of_case(CACHED_FEATURES).images_per_s
    return [
        *lines,
        f"- A new head over cached features ({CACHED_IMAGES:,} files, the photos under several names) is "
        f"**{report.speed_up(cached):.0f} times** as fast as the baseline, which embeds again, and "
        f"{cached / report.of_case(cirrus(Precision.FP32)).images_per_s:.0f} times as fast as Cirrus from the files at "
        "fp32.",
        f"- UNION's own cost over the plain image embedding: **{report.union_cost:.2%}** of the time of the gallery "
        "graph without it.",
    ]


def _ceiling(report: GalleryReport) -> list[str]:
    lines = [
        f"One image is {report.operations_per_image / 1e9:.1f} G operations in the gallery graph. The peak rate is "
        "that of products of 2,048 x 2,048 matrices, measured in the same rounds. The last column is the upper bound "
        "for this machine: the graph at its peak rate, decoding on the same cores, and nothing else.",
        "",
        "| precision | engine | peak rate, G operations/s | images/s at that rate | gallery graph, images/s | share "
        "| upper bound end to end, times the baseline |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for rate in report.peak_rates:
        ceiling = report.ceiling(rate)
        reached = report.gallery_graph(rate.precision).images_per_s
        lines.append(
            f"| {rate.precision} | {rate.device} | {rate.operations_per_s / 1e9:,.0f} | {ceiling:,.1f} "
            f"| {reached:,.1f} | {reached / ceiling:.0%} | {report.speed_up_ceiling(rate):.1f} |"
        )
    return lines


def _sweep(report: GalleryReport) -> list[str]:
    sizes = sorted({row.batch_size for row in report.sweep})
    lines = [
        "The gallery graph alone, images/s, on the engine that `auto` chooses.",
        "",
        f"| precision | engine |{''.join(f' batch {size} |' for size in sizes)}",
        "|---|---|" + "--:|" * len(sizes),
    ]
    for precision in dict.fromkeys(row.precision for row in report.sweep):
        rows = [row for row in report.sweep if row.precision is precision]
        rates = "".join(f" {row.images_per_s:,.1f} |" for row in rows)
        lines.append(f"| {precision} | {rows[0].device} |{rates}")
    return lines


def _plot(report: GalleryReport, file: Path) -> Path:
    rows = [row for row in report.of_stage(Stage.END_TO_END) if row.method in _COLOURS]
    rows.sort(key=lambda row: row.images_per_s)
    title = f"{report.backbone} + UNION on {report.machine.cores} cores"
    with plot(file, title, (9, 0.42 * len(rows) + 1.4)) as axes:
        bars = axes.barh(
            [row.title for row in rows],
            [row.images_per_s for row in rows],
            color=[_COLOURS[row.method] for row in rows],
            height=0.62,
        )
        labels = [f"{row.images_per_s:.1f}  ({report.speed_up(row.images_per_s):.1f}x)" for row in rows]
        axes.bar_label(bars, labels=labels, padding=4, fontsize=9)
        axes.set_xlim(right=1.18 * rows[-1].images_per_s)
        axes.set_xlabel("images per second, from JPEG files to embeddings on disk")
    return file
