"""docs/benchmarks.md: every figure on the page is read from a committed report."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cirrus_bench.full_size import FullSizeReport
from cirrus_bench.gallery.case import BASELINE, CACHED_FEATURES, Case, Method, Stage, cirrus, peer
from cirrus_bench.gallery.report import GalleryReport
from cirrus_bench.indexes import IndexBenchReport
from cirrus_bench.precisions import PrecisionReport
from cirrus_bench.queries import QueryReport
from cirrus_bench.retrieval.report import RetrievalReport
from cirrus_bench.search import SearchReport
from cirrus_bench.service.report import ServiceReport
from cirrus_bench.service_peers.report import ServicePeersReport
from cirrus_bench.service_peers.tools import QueryKind
from cirrus_client.bundle import Precision
from cirrus_client.image.preprocess import Decoding
from tests.bench.test_reports import committed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
GALLERY = committed(GalleryReport)
QUERIES = committed(QueryReport)


def speed_rows() -> list[str]:
    peers = sorted(
        (row for row in GALLERY.of_stage(Stage.END_TO_END) if row.method is Method.PEER),
        key=lambda row: row.images_per_s,
    )
    cases: dict[str, Case] = {
        BASELINE.title: BASELINE,
        **{f"{row.title}, plain CLIP": peer(row.title) for row in peers},
        **{
            f"**Cirrus, {precision}**" + (", `--decode fast`" if decoding is Decoding.FAST else ""): cirrus(
                precision, decoding
            )
            for precision in (Precision.FP32, Precision.BF16, Precision.INT8)
            for decoding in (Decoding.EXACT, Decoding.FAST)
        },
        "**Cirrus, new head on cached features**": CACHED_FEATURES,
    }
    rows = []
    for title, case in cases.items():
        row = GALLERY.of_case(case)
        found = row.fidelity
        drift = "- | -" if found is None else f"{found.cosine_min:.6f} | {found.top10_agreement:.1%}"
        rows.append(f"| {title} | {row.images_per_s:,.1f} | {GALLERY.speed_up(row.images_per_s):.2f} | {drift} |")
    return rows


def retrieval_rows() -> list[str]:
    titles = {
        ("transagg-union", None): "`transagg-union`",
        ("sprc", None): "`sprc` (Q-Former)",
        ("sprc", 50): "`sprc`, its best 50 re-ranked",
        ("magiclens", None): "`magiclens`",
        ("clip4cir", None): "`clip4cir` (Combiner)",
        ("searle", None): "`searle` (phi)",
        ("clip-sum", None): "`clip`: sum of image and text",
        ("clip-text", None): "`clip`: text only",
        ("clip-image", None): "`clip`: image only",
    }
    found = {(one.bundle, one.rerank): one for one in committed(RetrievalReport).evaluations}
    return [
        f"| {title} | {found[row].score('Recall@10'):.1%} | {found[row].score('Recall@50'):.1%} "
        f"| {found[row].vectors} | {found[row].query_ms:.1f} | {found[row[0], None].image_ms:.1f} |"
        for row, title in titles.items()
    ]


def ceiling_rows() -> list[str]:
    return [
        f"| {rate.precision} | {GALLERY.ceiling(rate):.1f} | {GALLERY.gallery_graph(rate.precision).images_per_s:.1f} "
        f"| {GALLERY.speed_up_ceiling(rate):.1f} "
        f"| {GALLERY.speed_up(GALLERY.of_case(cirrus(rate.precision)).images_per_s):.1f} |"
        for rate in GALLERY.peak_rates
    ]


def demo_rows() -> list[str]:
    metrics = json.loads((ROOT / "export/cirrus_demo/weights/metrics.json").read_text())
    titles = {
        "composed": "image and text composed (`transagg-union`)",
        "image_only": "image only",
        "text_only": "text only",
        "untrained_sum": "untrained sum of image and text",
        "sketch": "sketch without text",
    }
    return [
        f"| {title} | {metrics[name]['at_1']:.1%} | {metrics[name]['at_10']:.1%} | {metrics[name]['at_50']:.1%} |"
        for name, title in titles.items()
    ]


def precision_rows() -> list[str]:
    report = committed(PrecisionReport)
    return [
        f"| {row.precision} | {row.cosine_min:.6f} | {row.top10_agreement:.1%} | {row.recall_at_10:.1%} "
        f"| {row.images_per_s / report.rows[0].images_per_s:.2f} |"
        for row in report.rows
    ]


def query_rows() -> list[str]:
    latencies = [("in process", QUERIES.in_process), *(("through Triton", found) for found in QUERIES.served)]
    return [
        f"| {title} | {found.concurrency} | {found.p50_ms:,.0f} | {found.p99_ms:,.0f} | {found.queries_per_s:.1f} |"
        for title, found in latencies
    ]


SERVICES = {"Intel Xeon": committed(ServiceReport), "AMD EPYC": committed(ServiceReport, "service_amd")}


def service_rows() -> list[str]:
    rows = []
    for machine, report in SERVICES.items():
        for ask, reference, found in zip(report.asks, report.references, report.agreements, strict=True):
            rates = {
                flight.latency.concurrency: flight.latency.queries_per_s
                for flight in report.flights
                if flight.precision == ask.precision and flight.batches
            }
            rows.append(
                f"| {machine}, {ask.precision} | {ask.uncut_ms:.0f} | {ask.bare_ms:.0f} "
                f"| {report.asks[0].uncut_ms / ask.bare_ms:.2f} | {ask.served_ms:.0f} | {ask.added_ms:.1f} "
                f"| {rates[32] / rates[1]:.2f} | {reference.uploaded_ms / reference.known_item_ms:.1f} "
                f"| {found.top10_agreement:.1%} |"
            )
    return rows


def service_sentences() -> list[str]:
    alone = {
        (machine, flight.precision): f"{flight.latency.p50_ms:.0f} ms"
        for machine, report in SERVICES.items()
        for flight in report.flights
        if flight.latency.concurrency == 1 and not flight.batches
    }
    intel, amd = (report.endurance for report in SERVICES.values())
    assert intel is not None
    assert amd is not None
    return [
        f"search over {SERVICES['Intel Xeon'].items:,} items included",
        f"with one query in flight it took {alone['Intel Xeon', Precision.INT8]} there at int8",
        f"and no batches the service took {alone['AMD EPYC', Precision.FP32]}",
        f"For {intel.seconds:.0f} s at 80% of the most that int8 takes, the Xeon answered {intel.requests:,} requests "
        f"with {intel.errors} errors, p99 {intel.p99_ms:.1f} ms, and the EPYC {amd.requests:,} with {amd.errors} "
        f"errors, p99 {amd.p99_ms:.1f} ms",
        f"half of its answers took {intel.p50_ms:.0f} ms at most",
    ]


def service_peer_rows() -> list[str]:
    report = committed(ServicePeersReport)
    rows = zip(*(report.of_kind(kind) for kind in QueryKind), strict=True)
    return [
        f"| {by_image.title} "
        + "".join(
            f"| {row.singly.p50_ms:,.0f} | {row.together.queries_per_s:.1f} | {row.top10_agreement:.1%} "
            for row in (by_image, by_text)
        )
        + "|"
        for by_image, by_text in rows
    ]


def search_rows() -> list[str]:
    return [
        f"| {row.title} | {row.images:,} | {row.vectors} | {row.queries_per_s:,.0f} | {row.one_query_ms:.2f} "
        f"| {row.agreement:.1%} |"
        for row in committed(SearchReport).rows
    ]


def index_rows() -> list[str]:
    return [
        f"| {row.images:,} | {row.vectors} x {row.dim} | `{row.kind}` | {row.storage} | {row.build_s:,.0f} "
        f"| {(row.own_bytes + row.mapped_bytes) / 2**30:.2f} | {row.own_bytes / 2**30:.2f} | {row.one_query_ms:.2f} "
        f"| {row.queries_per_s:,.0f} | {row.agreement:.1%} |"
        for row in committed(IndexBenchReport).rows
    ]


def full_size_rows() -> list[str]:
    return [
        f"| `{row.recipe}` | {row.backbone} | {row.seconds:,.0f} | {row.peak_bytes / 2**30:.1f} "
        f"| {row.disk_bytes / 2**30:.2f} |"
        for row in committed(FullSizeReport).rows
    ]


def sentences() -> list[str]:
    """The figures of the running text, in the words that they stand in."""
    metrics = json.loads((ROOT / "export/cirrus_demo/weights/metrics.json").read_text())
    precision, cached = committed(PrecisionReport), GALLERY.of_case(CACHED_FEATURES).images_per_s
    bf16 = next(rate for rate in GALLERY.peak_rates if rate.precision is Precision.BF16)
    reached = GALLERY.speed_up(GALLERY.of_case(cirrus(Precision.BF16)).images_per_s)
    analyzed = QUERIES.analyzed[0]
    return [
        f"{GALLERY.machine.processor}, {GALLERY.machine.cores} cores, GPU: {GALLERY.machine.gpu}",
        f"Python {GALLERY.machine.python}, {GALLERY.machine.package_list}",
        f"{GALLERY.images} JPEG photos of {GALLERY.size_px:,} px, medians of {GALLERY.repeats} rounds",
        f"{metrics['queries']:,} queries in three galleries of {metrics['gallery_a_kind']} images each",
        f"By chance, Recall@10 would be {metrics['chance_at_10']:.1%}",
        f"a gallery of {metrics['sketch_gallery']} images, where chance reaches {metrics['sketch_chance_at_10']:.1%}",
        f"{GALLERY.operations_per_image / 1e9:.1f} G operations",
        f"{GALLERY.speed_up_ceiling(bf16):.1f} times the baseline at bf16; Cirrus reaches "
        f"{reached / GALLERY.speed_up_ceiling(bf16):.0%} of it",
        f"UNION adds {GALLERY.union_cost:.1%} to the time of the image encoder",
        f"a new head over cached features runs {GALLERY.speed_up(cached):.0f} times as fast as the baseline",
        f"{precision.queries} labelled queries over {precision.gallery} images",
        f"the original's Recall@10 is {precision.recall_at_10_original:.1%}",
        f"Triton adds {QUERIES.overhead_ms:.1f} ms to the median",
        f"perf_analyzer, NVIDIA's own load generator, measures {analyzed.p50_ms:.1f} ms",
        *service_sentences(),
        f"at {QUERIES.bulk.served / QUERIES.bulk.in_process:.0%} of the rate in process",
    ]


def tables() -> list[list[str]]:
    return [
        speed_rows(),
        retrieval_rows(),
        ceiling_rows(),
        demo_rows(),
        precision_rows(),
        query_rows(),
        service_rows(),
        service_peer_rows(),
        search_rows(),
        index_rows(),
        full_size_rows(),
    ]


def test_every_table_is_that_of_a_committed_report() -> None:
    found = [block.splitlines()[2:] for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)]
    assert found == tables()


def test_every_figure_of_the_text_is_that_of_a_committed_report() -> None:
    text = " ".join(re.sub(r"^\|.*$", "", PAGE, flags=re.MULTILINE).split())
    for sentence in sentences():
        assert sentence in text
        text = text.replace(sentence, "")
    assert re.findall(r"\d+(?:[.,]\d+)*%?\s*(?:times|ms|images/s|GiB|%)|\d+[.,]\d+%?|\d+%", text) == []
