"""The whole GPU side on one bundle: does it run, does it answer as the CPU does, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cirrus_bench.measure import Machine, this_machine
from cirrus_client.bundle import Bundle, Contract
from cirrus_client.engines.engine import Engine
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.errors import CirrusError, EngineError
from cirrus_client.files import write_atomically, write_model
from cirrus_client.gpu import query_gpu
from cirrus_export.fidelity import THRESHOLDS, cosine_min
from cirrus_export.tensorrt_engine import CompileOptions, compile_plans

_BATCH, _ROUNDS = 64, 10
_VECTORS, _QUERIES, _K = 100_000, 256, 10
_GRAPH = "gallery"


class Check(Contract):
    """One thing that was tried. found: figures where it went well, the reason where it did not."""

    name: str
    passed: bool
    found: str


class GpuReport(Contract):
    """Every check, and where it was made."""

    gpu: str
    machine: Machine
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class _Subject:
    """The bundle, a batch of noise, and what the CPU answers to it."""

    bundle: Bundle
    pixels: NDArray[np.float32]
    expected: NDArray[np.float32]

    def compare(self, engine: Engine) -> str:
        """The engine's drift and speed. Raises EngineError where it drifts further than the precision allows."""
        found = engine({"pixels": self.pixels})[self._output]
        cosine = cosine_min(self.expected, found)
        limit = THRESHOLDS[self.bundle.spec.precision].cosine_min
        if not cosine >= limit:
            raise EngineError(f"{engine.device}: cosine to the CPU {cosine:.6f} is under {limit}")
        start = time.perf_counter()
        for _ in range(_ROUNDS):
            engine({"pixels": self.pixels})
        rate = _ROUNDS * len(self.pixels) / (time.perf_counter() - start)
        return f"{engine.device}: cosine to the CPU {cosine:.6f}, {rate:,.0f} images/s at batch {len(self.pixels)}"

    @property
    def _output(self) -> str:
        return self.bundle.spec.graphs[_GRAPH].outputs[0].name


def check_gpu(bundle: Bundle) -> GpuReport:
    """Try every part of the GPU side on a bundle. Raises EngineError if there is no GPU."""
    name, driver, memory = query_gpu("name", "driver_version", "memory.total")
    subject = _subject(bundle)
    checks = {
        "ONNX Runtime on CUDA": lambda: subject.compare(_cuda(bundle)),
        "TensorRT": lambda: "; ".join(_tensorrt(subject)),
        "FAISS on the GPU": _faiss,
    }
    return GpuReport(
        gpu=f"{name}, driver {driver}, {memory}",
        machine=this_machine(),
        checks=tuple(_checked(label, check) for label, check in checks.items()),
    )


def write_report(report: GpuReport, out: Path) -> None:
    """Write `gpu_check.json` and `gpu_check.md`."""
    write_model(out / "gpu_check.json", report)
    write_atomically(out / "gpu_check.md", markdown(report).encode())


def markdown(report: GpuReport) -> str:
    """Return the report as Markdown."""
    lines = [f"# GPU check: {'passed' if report.passed else 'FAILED'}", "", report.gpu, ""]
    lines += [f"- {'pass' if check.passed else '**FAIL**'} {check.name}: {check.found}" for check in report.checks]
    return "\n".join([*lines, "", str(report.machine)]) + "\n"


def _subject(bundle: Bundle) -> _Subject:
    graph = bundle.spec.graphs[_GRAPH]
    pixels = np.random.default_rng(0).standard_normal((_BATCH, *graph.inputs[0].shape), dtype=np.float32)
    on_cpu = OnnxRuntimeEngine(bundle.graph_file(_GRAPH), bundle.spec.precision, providers=["CPUExecutionProvider"])
    return _Subject(bundle, pixels, on_cpu({"pixels": pixels})[graph.outputs[0].name])


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name=name, passed=True, found=check())
    except (CirrusError, ImportError, OSError, RuntimeError) as error:
        return Check(name=name, passed=False, found=str(error))


def _cuda(bundle: Bundle) -> Engine:
    engine = OnnxRuntimeEngine(bundle.graph_file(_GRAPH), bundle.spec.precision, providers=["CUDAExecutionProvider"])
    if "CUDA" not in engine.device:
        raise EngineError(
            f"it runs on {engine.device}: install onnxruntime-gpu and the CUDA and cuDNN it was built for"
        )
    return engine


def _tensorrt(subject: _Subject) -> Iterator[str]:
    compiled = compile_plans(subject.bundle, CompileOptions())
    from cirrus_client.engines.tensorrt_runtime import TensorRtEngine

    yield subject.compare(TensorRtEngine(subject.bundle.root / "engines" / f"{_GRAPH}.plan"))
    for name, plan in compiled.plans.items():
        if plan.attention_fused is not None:
            yield f"attention in {name} is {'' if plan.attention_fused else 'not '}fused"


def _faiss() -> str:
    """Exact search of random unit vectors, against the CPU's answers."""
    import faiss

    generator = np.random.default_rng(0)
    vectors, queries = (generator.standard_normal((count, 512), dtype=np.float32) for count in (_VECTORS, _QUERIES))
    for rows in (vectors, queries):
        faiss.normalize_L2(rows)
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    if not hasattr(faiss, "StandardGpuResources"):
        raise EngineError("this FAISS has no GPU part: pip install faiss-gpu")
    on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, exact)
    (_, expected), (_, found) = exact.search(queries, _K), on_gpu.search(queries, _K)
    shared = float(np.mean([len(set(a) & set(b)) / _K for a, b in zip(expected, found, strict=True)]))
    if shared < 0.999:
        raise EngineError(f"top-{_K} agreement with the CPU is {shared:.4f}")
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        on_gpu.search(queries, _K)
    rate = _ROUNDS * len(queries) / (time.perf_counter() - start)
    return f"top-{_K} agreement with the CPU {shared:.2%}, {rate:,.0f} queries/s over {_VECTORS:,} vectors"
