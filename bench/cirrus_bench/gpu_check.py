"""Check everything that uses a GPU on this machine: whether it runs, whether its results are right, and how fast it is.

A check passes, fails, or is not done because the part is not installed. The report lists every check with the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

from cirrus_bench.card_rates import rates_of
from cirrus_bench.floor import graph_work
from cirrus_bench.measure import this_machine
from cirrus_bench.report import Report
from cirrus_bench.subjects import demo_request
from cirrus_client.bundle import Bundle, Precision, Similarity, SpaceSpec
from cirrus_client.engines.engine import Engine
from cirrus_client.engines.nvidia import Gpu, load_tensorrt, this_gpu
from cirrus_client.engines.onnx_runtime import TENSORRT_PROVIDERS, OnnxRuntimeEngine
from cirrus_client.engines.tensorrt import TensorRtEngine
from cirrus_client.engines.tensorrt_rtx import TensorRtRtxEngine
from cirrus_client.ensemble import IMAGE_PREPROCESS, Model, run
from cirrus_client.errors import CirrusError, EngineError
from cirrus_client.image.decode import decode
from cirrus_client.image.nvjpeg import NvJpegDecoder
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.names import EnsembleName, TensorName
from cirrus_client.plans import Fusion, Library, read_plans
from cirrus_client.records import Record
from cirrus_demo.probe import rendered_probe
from cirrus_demo.weights import materialise
from cirrus_export.compile.ahead_of_time import compile_ahead
from cirrus_export.compile.cards import is_supported, sm
from cirrus_export.compile.tensorrt_engine import CompileOptions, compile_plans
from cirrus_export.gate.plan_fidelity import GraphValues, hold_to_graphs
from cirrus_export.gate.probe import Probe
from cirrus_export.pipeline import ExportRequest, export

_FULL_SIZE = "ViT-L-14"
_REPEATS = 10
_LEVELS = 2.0
log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """The result of a check. NOT_INSTALLED: the part is not on this machine."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_INSTALLED = "not installed"


class Check(Record):
    """One check of a part. bundle: "-" where no bundle is involved.

    found: one line, what was measured or why it failed. images_per_s: of the graphs that embed a gallery, from pixels
    to embeddings, both in host memory. highest_images_per_s: what the card's published rates allow for these graphs;
    None where the card's rates are not known, or the graphs are not computed as they are written.
    """

    part: str
    bundle: str
    outcome: Outcome
    found: str
    images_per_s: float | None = None
    highest_images_per_s: float | None = None

    @property
    def share_of_highest(self) -> float | None:
        """The measured speed as a share of what the card's published rates allow."""
        if self.images_per_s is None or self.highest_images_per_s is None:
            return None
        return self.images_per_s / self.highest_images_per_s


class GpuReport(Report):
    """All checks on one GPU."""

    file_name: ClassVar[str] = "gpu_check"

    gpu: str
    compute_capability: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(check.outcome is not Outcome.FAIL for check in self.checks)

    def markdown(self) -> str:
        """Render the report as Markdown."""
        machine = self.machine
        verdict = "Nothing failed." if self.passed else "**Something failed.**"
        lines = [
            f"# GPU check: {self.gpu}",
            "",
            f"{verdict} Compute capability {self.compute_capability}; {machine.processor}, {machine.cores} cores; "
            f"Python {machine.python}, {machine.package_list}.",
            "",
            "| check | bundle | outcome | found | images/s | of the card's rates |",
            "|---|---|---|---|--:|--:|",
            *(
                f"| {check.part} | {check.bundle} | {check.outcome} | {check.found.replace('|', '/')} | "
                f"{'' if check.images_per_s is None else f'{check.images_per_s:,.0f}'} | "
                f"{'' if check.share_of_highest is None else f'{check.share_of_highest:.0%}'} |"
                for check in self.checks
            ),
            "",
            "Images/s: the graphs that embed a gallery image, from pixels to embeddings, both in host memory, without "
            "decoding. Of the card's rates: that speed divided by the highest that the operations and bytes per second "
            "which NVIDIA publishes for the card allow for these graphs; copies from and to the host count against it.",
        ]
        return "\n".join(lines) + "\n"


class _NotInstalled(Exception):
    """The part to check is not installed."""


@dataclass
class _Finding:
    """What a check that passed has found."""

    text: str
    images_per_s: float | None = None
    highest_images_per_s: float | None = None


@dataclass
class _Checks:
    """Runs checks and collects their outcomes. A check that fails does not stop the next."""

    done: list[Check] = field(default_factory=list)

    def run(self, part: str, bundle: str, check: Callable[[], _Finding]) -> None:
        log.info("%s: %s", part, bundle)
        try:
            found = check()
        except _NotInstalled as reason:
            self._add(part, bundle, Outcome.NOT_INSTALLED, _Finding(str(reason)))
        except CirrusError as error:
            self._add(part, bundle, Outcome.FAIL, _Finding(str(error)))
        except Exception as error:  # a part's own error is what this report is for
            self._add(part, bundle, Outcome.FAIL, _Finding(f"{type(error).__name__}: {error}"))
        else:
            self._add(part, bundle, Outcome.PASS, found)

    def _add(self, part: str, bundle: str, outcome: Outcome, found: _Finding) -> None:
        line = " ".join(found.text.split())
        self.done.append(
            Check(
                part=part,
                bundle=bundle,
                outcome=outcome,
                found=line,
                images_per_s=found.images_per_s,
                highest_images_per_s=found.highest_images_per_s,
            )
        )


def check_gpu(gpu: Gpu, work: Path, *, full_size: bool) -> GpuReport:
    """Run every check, on demo bundles of every precision that GPUs compute in.

    gpu: this machine's. full_size: also on a random ViT-L-14 in fp16. work: where the bundles are written.
    """
    checks = _Checks()
    probe = rendered_probe(queries=24, gallery=64)
    for request in _requests(work, full_size=full_size):
        _check_bundle(checks, request, probe)
    checks.run("FAISS on the GPU", "-", _faiss)
    checks.run("nvJPEG decode", "-", lambda: _nvjpeg(probe.gallery[0]))
    return GpuReport(
        gpu=gpu.name, compute_capability=gpu.compute_capability, machine=this_machine(), checks=tuple(checks.done)
    )


def _requests(work: Path, *, full_size: bool) -> Iterable[ExportRequest]:
    weights = materialise(work / "weights")
    for precision in (Precision.FP32, Precision.FP16, Precision.BF16):
        yield demo_request(weights, work / f"demo-{precision}", precision)
    if full_size:
        yield ExportRequest(
            recipe="transagg-union",
            backbone=_FULL_SIZE,
            pretrained="random",
            head="random",
            out=work / f"{_FULL_SIZE}-fp16",
            precision=Precision.FP16,
        )


def _check_bundle(checks: _Checks, request: ExportRequest, probe: Probe) -> None:
    name = request.out.name
    checks.run("export", name, lambda: _export(request, probe))
    if checks.done[-1].outcome is Outcome.PASS:
        bundle = Bundle.open(request.out)
        checks.run("ONNX Runtime on CUDA", name, lambda: _onnx_runtime(bundle, probe, TENSORRT_PROVIDERS[1:]))
        checks.run("ONNX Runtime on TensorRT", name, lambda: _onnx_runtime(bundle, probe, TENSORRT_PROVIDERS))
        checks.run("TensorRT compile", name, lambda: _compile(bundle, probe))
        if checks.done[-1].outcome is Outcome.PASS:
            checks.run("TensorRT attention", name, lambda: _attention(bundle))
            checks.run("TensorRT run", name, lambda: _tensorrt(bundle))
        checks.run("TensorRT for RTX compile", name, lambda: _compile_rtx(bundle))
        if checks.done[-1].outcome is Outcome.PASS:
            checks.run("TensorRT for RTX run", name, lambda: _tensorrt_rtx(bundle, probe))


def _export(request: ExportRequest, probe: Probe) -> _Finding:
    export(request, probe)
    return _Finding("the fidelity gate was passed")


def _onnx_runtime(bundle: Bundle, probe: Probe, providers: Sequence[str]) -> _Finding:
    if providers[0] not in onnxruntime.get_available_providers():
        raise _NotInstalled(f"this ONNX Runtime has no {providers[0]}: pip install onnxruntime-gpu")

    def load(graph: str) -> Engine:
        return OnnxRuntimeEngine(bundle.graph_file(graph), bundle.spec.precision, providers=providers)

    cosines = hold_to_graphs(bundle, GraphValues(bundle, probe), load)
    return _Finding(f"smallest cosine to the CPU {min(cosines.values()):.6f}", _images_per_s(bundle, load))


def _compile(bundle: Bundle, probe: Probe) -> _Finding:
    start = time.perf_counter()
    record = compile_plans(bundle, probe, CompileOptions())
    seconds = time.perf_counter() - start
    cosine = min(plan.cosine_min for plan in record.plans.values() if plan.cosine_min is not None)
    return _Finding(f"TensorRT {record.tensorrt}, {seconds:.0f} s, smallest cosine to the graphs {cosine:.6f}")


def _attention(bundle: Bundle) -> _Finding:
    """Report how many attentions each plan fused; fail only if the plan does not say.

    A plan without fused attention is slow, but not wrong.
    """
    found = {graph: plan.attention for graph, plan in read_plans(bundle.root).plans.items()}
    listed = ", ".join(
        f"{graph} {attention.fusion} ({attention.fused_layers} of {attention.attentions})"
        for graph, attention in found.items()
    )
    if any(attention.fusion is Fusion.UNKNOWN for attention in found.values()):
        raise EngineError(f"the engine inspector lists no layers: {listed}")
    return _Finding(listed)


def _tensorrt(bundle: Bundle) -> _Finding:
    rate = _images_per_s(bundle, lambda graph: TensorRtEngine.of(bundle, graph))
    return _Finding(f"TensorRT {load_tensorrt().__version__}", rate, highest_images_per_s(bundle, this_gpu().name))


def highest_images_per_s(bundle: Bundle, gpu: str) -> float | None:
    """Return how many images a GPU could embed per second at its published rates, without a copy from or to the host.

    gpu: CUDA's name of it. None if its rates are not known, or it lacks a precision of the bundle's graphs.
    """
    card, rows = rates_of(gpu), bundle.spec.max_batch
    if card is None:
        return None
    floors = [graph_work(bundle.graph_file(graph), rows).floor_s(card) for graph in _graphs_of_gallery(bundle)]
    known = [floor for floor in floors if floor is not None]
    return rows / sum(known) if len(known) == len(floors) else None


def _graphs_of_gallery(bundle: Bundle) -> list[str]:
    steps = bundle.spec.ensembles[EnsembleName.ENCODE_TARGET].steps
    return [step.model for step in steps if step.model != IMAGE_PREPROCESS]


def _compile_rtx(bundle: Bundle) -> _Finding:
    capability = this_gpu().compute_capability
    if not is_supported(capability):
        raise _NotInstalled(f"TensorRT for RTX does not run on compute capability {capability}")
    start = time.perf_counter()
    record = compile_ahead(bundle, [sm(capability)])
    return _Finding(f"{Library.RTX.label} {record.tensorrt}, {time.perf_counter() - start:.0f} s")


def _tensorrt_rtx(bundle: Bundle, probe: Probe) -> _Finding:
    """Hold the plans to their graphs for the first time: they were compiled without being run."""

    def load(graph: str) -> Engine:
        return TensorRtRtxEngine.of(bundle, graph)

    cosines = hold_to_graphs(bundle, GraphValues(bundle, probe), load)
    return _Finding(f"smallest cosine to the graphs {min(cosines.values()):.6f}", _images_per_s(bundle, load))


def _images_per_s(bundle: Bundle, load: Callable[[str], Engine]) -> float:
    ensemble = bundle.spec.ensembles[EnsembleName.ENCODE_TARGET]
    models: dict[str, Model] = {graph: load(graph) for graph in _graphs_of_gallery(bundle)}
    size_px = bundle.spec.preprocess.size_px
    rows = bundle.spec.max_batch
    pixels = np.random.default_rng(0).standard_normal((rows, 3, size_px, size_px), dtype=np.float32)
    run(ensemble, models, {}, given={TensorName.PIXELS: pixels})
    start = time.perf_counter()
    for _ in range(_REPEATS):
        run(ensemble, models, {}, given={TensorName.PIXELS: pixels})
    return _REPEATS * rows / (time.perf_counter() - start)


def _faiss() -> _Finding:
    generator = np.random.default_rng(0)
    vectors, queries = (generator.standard_normal((count, 256), dtype=np.float32) for count in (50_000, 200))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    index = index_in_memory(SpaceSpec.of({}, dim=256, vectors=1, similarity=Similarity.COSINE), vectors)[0]
    if not index.on_gpu:
        raise _NotInstalled("this FAISS has no GPU support: pip install faiss-gpu")
    scores = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :10]
    difference = float(np.abs(index.search(queries, 10).scores - scores).max())
    if not difference < 1e-4:
        raise EngineError(f"the ten best scores differ from the CPU's by up to {difference:.1e}")
    return _Finding(f"exact search, 50,000 vectors: scores within {difference:.1e} of the CPU's")


def _nvjpeg(image: bytes) -> _Finding:
    try:
        decoder = NvJpegDecoder()
    except EngineError as error:
        raise _NotInstalled(str(error)) from None
    decoded = decoder(image)
    if decoded is None:
        raise EngineError("no GPU decoder took a JPEG: pip install nvidia-nvjpeg-cu13, or -cu12 for CUDA 12")
    reference = np.asarray(decode(image).convert("RGB")).astype(np.float32)
    difference = float(np.abs(decoded.astype(np.float32) - reference).mean())
    if not difference < _LEVELS:
        raise EngineError(f"pixels differ from Pillow's by {difference:.2f} of 255 levels on average")
    return _Finding(f"pixels within {difference:.2f} of 255 levels of Pillow's on average")
