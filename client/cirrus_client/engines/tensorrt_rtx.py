"""Run plans of TensorRT for RTX on the GPU, without torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Self

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.engines.kinds import EngineKind
from cirrus_client.engines.tensorrt import TensorRtEngine, check_runs_here
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError
from cirrus_client.files import sha256_of_file, write_atomically
from cirrus_client.plans import Library, read_plans
from cirrus_client.user_cache import user_cache

log = logging.getLogger(__name__)


class TensorRtRtxKind(EngineKind):
    """Plans of TensorRT for RTX that `cirrus compile --for` built from a bundle's graphs."""

    def runs(self, precision: Precision) -> bool:
        """See `EngineKind.runs`. It runs plans, not ONNX files; `open_graph` measures a plan that runs here."""
        return False

    def load(self, path: Path, precision: Precision, *, threads: int | None, bulk: bool) -> TensorRtRtxEngine:
        """Raise EngineError: plans belong to a bundle, so use `load_graph`."""
        raise EngineError("TensorRT for RTX runs the plans of a bundle, not ONNX files: see `cirrus compile --for`")

    def load_graph(self, bundle: Bundle, graph: str, *, threads: int | None, bulk: bool) -> TensorRtRtxEngine:
        """See `EngineKind.load_graph`, and `TensorRtEngine.of`."""
        return TensorRtRtxEngine.of(bundle, graph)


class TensorRtRtxEngine(TensorRtEngine):
    """Runs a plan of TensorRT for RTX. Calls from several threads run one after the other.

    The library compiles kernels for this GPU when they are first needed. They are kept in the user's cache, so that the
    next process does not wait for them; a bundle may come from somebody else, and kernels are code. One query has a
    profile of its own and is replayed as a CUDA graph. Batches are not: each of their sizes would be captured and kept.
    """

    library = Library.RTX

    @classmethod
    def served(cls, folder: Path, graph: str) -> Self:
        """Load a graph's plan from the folder of a served model. Raises BundleError and EngineError, like `of`."""
        record = read_plans(folder, cls.library)
        check_runs_here(record, folder)
        return cls(folder / record.plans[graph].file)

    def _new_contexts(self, path: Path) -> list[Any]:
        folder = user_cache("kernels")
        self._kernels = None if folder is None else folder / f"{sha256_of_file(path)}.kernels"
        self._kept_for: set[tuple[tuple[int, ...], ...]] = set()
        runtime_config = self._engine.create_runtime_config()
        self._cache = runtime_config.create_runtime_cache()
        kept = b"" if self._kernels is None or not self._kernels.is_file() else self._kernels.read_bytes()
        if kept and not self._cache.deserialize(kept):
            log.info("%s is of another GPU, driver or version, and is made again", self._kernels)
        return [self._new_context(path, fixed=largest == 1) for largest in self._largest]

    def _new_context(self, path: Path, *, fixed: bool) -> Any:
        runtime_config = self._engine.create_runtime_config()
        if fixed:
            runtime_config.cuda_graph_strategy = self._tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if not runtime_config.set_runtime_cache(self._cache):
            raise EngineError(f"TensorRT for RTX refuses its kernel cache for {path}: {self._reason()}")
        return self._engine.create_execution_context(runtime_config)

    def _run(self, inputs: Arrays, rows: int) -> dict[str, Any]:
        outputs = super()._run(inputs, rows)
        shapes = tuple(inputs[spec.name].shape for spec in self.inputs)
        if shapes not in self._kept_for:
            self._kept_for.add(shapes)
            self._keep_kernels()
        return outputs

    def _keep_kernels(self) -> None:
        if self._kernels is None:
            return
        try:
            write_atomically(self._kernels, bytes(memoryview(self._cache.serialize())))
        except OSError as error:
            log.info("kernels can't be kept in %s and will be compiled again: %s", self._kernels, error)
