"""Choose the engine for a graph: of those that are installed and run its precision, the fastest by measurement."""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from cirrus_client.agreement import cosine_min
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.cores import usable_cores
from cirrus_client.engines.engine import Engine, EngineName, sample
from cirrus_client.engines.kinds import candidates, engine_kind
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import BundleError, EngineError, MissingPackage
from cirrus_client.extras import installed_version
from cirrus_client.files import write_model
from cirrus_client.plans import Library, has_plans
from cirrus_client.records import Record
from cirrus_client.user_cache import user_cache

_BATCH_SIZE = 4
_ROUNDS = 3
_AGREEMENT = {
    Precision.FP32: 0.9999,
    Precision.FP16: 0.999,
    Precision.BF16: 0.98,
    Precision.INT8: 0.98,
    Precision.FP8: 0.98,
}
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino")
log = logging.getLogger(__name__)


class Choice(Record):
    """The engine that was chosen for a graph on this machine, and why."""

    engine: str
    why: str


def open_graph(
    bundle: Bundle, graph: str, *, engine: str | None = None, threads: int | None = None, bulk: bool = False
) -> Engine:
    """Load a graph of a bundle on the named engine, or on the fastest one.

    The fastest is the graph's TensorRT plan, if there is one that runs on this GPU, else the engine that `choose`
    returns. A plan of TensorRT for RTX, which no GPU has run, is measured against that one and taken only if it agrees
    and is faster. threads, bulk: see `open_engine`. Raises what `open_engine` raises, BundleError if TENSORRT or
    TENSORRT_RTX is named and the bundle has no plan of the graph, and EngineError if a named plan of TensorRT for RTX
    does not reproduce its graph.
    """
    if engine is None:
        return _chosen(bundle, graph, threads=threads, bulk=bulk)[1]
    opened = engine_kind(engine).load_graph(bundle, graph, threads=threads, bulk=bulk)
    if engine == EngineName.TENSORRT_RTX:
        _hold_to_graph(bundle.graph_file(graph), bundle.spec.precision, opened)
    return opened


def chosen_engine(bundle: Bundle, graph: str, *, threads: int | None = None, bulk: bool = False) -> str:
    """Return the name of the engine on which `open_graph` loads a graph where none is named."""
    return _chosen(bundle, graph, threads=threads, bulk=bulk)[0]


def open_served_graph(path: Path, precision: Precision, *, bulk: bool = False) -> Engine:
    """Load a graph of a served model: its ONNX file, or its plan of TensorRT for RTX in `engines-rtx/` beside that.

    The plan is taken if it runs here, agrees with the graph and is the faster one. precision, bulk: see `open_engine`,
    and what it raises.
    """

    def load(name: str) -> Engine:
        from cirrus_client.engines.tensorrt_rtx import TensorRtRtxEngine

        return TensorRtRtxEngine.served(path.parent, path.stem)

    plan = _plan_that_runs(path.parent, path.stem, Library.RTX, load)
    if plan is None:
        return open_engine(path, precision, bulk=bulk)
    return _plan_or_faster(path, precision, plan, threads=None, bulk=bulk)[1]


def _chosen(bundle: Bundle, graph: str, *, threads: int | None, bulk: bool) -> tuple[str, Engine]:
    path, precision = bundle.graph_file(graph), bundle.spec.precision

    def load(name: str) -> Engine:
        return engine_kind(name).load_graph(bundle, graph, threads=threads, bulk=bulk)

    plan = _plan_that_runs(bundle.root, graph, Library.TENSORRT, load)
    if plan is not None:
        log.info("%s runs on tensorrt: a plan was compiled for this GPU", graph)
        return EngineName.TENSORRT.value, plan
    plan = _plan_that_runs(bundle.root, graph, Library.RTX, load)
    if plan is not None:
        return _plan_or_faster(path, precision, plan, threads=threads, bulk=bulk)
    choice, measured = _choose(path, precision, load, threads=threads, bulk=bulk)
    return choice.engine, measured or load(choice.engine)


def _plan_that_runs(root: Path, graph: str, library: Library, load: Callable[[str], Engine]) -> Engine | None:
    """Return a graph's plan of a library if it can be loaded here."""
    if not has_plans(root, library):
        return None
    try:
        return load(library.value)
    except (BundleError, EngineError, MissingPackage) as error:
        log.warning("%s does not run on its %s plan: %s", graph, library.label, error)
        return None


def _plan_or_faster(
    path: Path, precision: Precision, plan: Engine, *, threads: int | None, bulk: bool
) -> tuple[str, Engine]:
    """Return a plan no GPU has run if it agrees with what `choose` returns and is faster, else that, and its name."""
    load = partial(_load, path, precision, threads, bulk)
    try:
        graphs_own, measured = _choose(path, precision, load, threads=threads, bulk=bulk)
    except EngineError as error:
        raise EngineError(f"{path} has a plan that no GPU has run, and nothing to compare it with: {error}") from None
    engines = {
        graphs_own.engine: measured or load(graphs_own.engine),
        EngineName.TENSORRT_RTX.value: plan,
    }
    choice = _measure(precision, engines)
    log.info("%s runs on %s: %s", path.stem, choice.engine, choice.why)
    return choice.engine, engines[choice.engine]


def _hold_to_graph(path: Path, precision: Precision, plan: Engine) -> None:
    """Compare a plan that was compiled without a GPU with its ONNX graph. Raises EngineError if they differ."""
    reference = open_engine(path, precision)
    noise = _noise(reference)
    cosine = _cosine_min(reference(noise), plan(noise))
    if not cosine >= _AGREEMENT[precision]:  # a NaN differs
        raise EngineError(
            f"{plan.device} does not reproduce {path}: cosine {cosine:.6f} to {reference.device}, {precision} needs "
            f"{_AGREEMENT[precision]}; run it on another engine"
        )


def open_engine(
    path: Path,
    precision: Precision,
    *,
    engine: str | None = None,
    threads: int | None = None,
    bulk: bool = False,
) -> Engine:
    """Load an ONNX graph on the named engine, or on the one that `choose` returns.

    precision: the precision of the graph's bundle. engine: a name in `ENGINES` or of an installed plug-in,
    `module:Class`, or None to choose. threads: CPU threads per run; None leaves it to the engine. bulk: optimise for
    throughput instead of the latency of one batch. Raises EngineError if the engine can't run the graph,
    MissingPackage if its package is not installed, PluginError if the name is unknown.
    """
    load = partial(_load, path, precision, threads, bulk)
    if engine is not None:
        return load(engine)
    choice, measured = _choose(path, precision, load, threads=threads, bulk=bulk)
    return measured or load(choice.engine)


def choose(path: Path, precision: Precision, *, threads: int | None = None, bulk: bool = False) -> Choice:
    """Return the engine to run a graph on.

    If several engines can load it, each runs a batch of noise a few times. The fastest of those that agree with ONNX
    Runtime is chosen. The choice is kept in the user's cache folder until the graph, the versions or the options
    change. Raises EngineError if no installed engine runs this precision, or none can load the graph.
    """
    return _choose(path, precision, partial(_load, path, precision, threads, bulk), threads=threads, bulk=bulk)[0]


def _choose(
    path: Path, precision: Precision, load: Callable[[str], Engine], *, threads: int | None, bulk: bool
) -> tuple[Choice, Engine | None]:
    """Return the engine that `choose` returns, and the loaded graph if it was measured just now."""
    names = candidates(precision)
    if not names:
        raise EngineError(
            f"no engine here runs {precision} graphs: install onnxruntime-gpu on an NVIDIA GPU, or OpenVINO "
            f"(pip install openvino) on a CPU with {precision} arithmetic; use --precision fp32"
        )
    if len(names) == 1:
        return Choice(engine=names[0], why=f"the only engine here that runs {precision}"), None
    cache = user_cache("engines")
    kept = None if cache is None else cache / _file_of_choice(path, precision, threads, bulk)
    earlier = None if kept is None else _read_choice(kept)
    if earlier is not None and earlier.engine in names:
        return earlier, None
    loaded = _loadable(path, names, load)
    if len(loaded) == 1:
        (name,) = loaded
        return Choice(engine=name, why="the only engine here that loads this graph"), loaded[name]
    choice = _measure(precision, loaded)
    log.info("%s runs on %s: %s", path.stem, choice.engine, choice.why)
    if kept is not None:
        try:
            write_model(kept, choice)
        except OSError as error:
            log.warning("the choice of engine can't be kept and will be measured again: %s", error)
    return choice, loaded[choice.engine]


def _loadable(path: Path, names: Sequence[str], load: Callable[[str], Engine]) -> dict[str, Engine]:
    """Load a graph on every engine that can. Raises what the first one raises, if none can."""
    loaded: dict[str, Engine] = {}
    refusals: dict[str, EngineError] = {}
    for name in names:
        try:
            loaded[name] = load(name)
        except EngineError as error:
            refusals[name] = error
    if not loaded:
        raise refusals[names[0]]
    for name, refusal in refusals.items():
        log.warning("%s does not run on %s: %s", path.stem, name, refusal)
    return loaded


def _load(path: Path, precision: Precision, threads: int | None, bulk: bool, engine: str) -> Engine:
    return engine_kind(engine).load(path, precision, threads=threads, bulk=bulk)


def _read_choice(kept: Path) -> Choice | None:
    try:
        return Choice.model_validate_json(kept.read_bytes())
    except (OSError, ValidationError):
        return None


def _measure(precision: Precision, engines: dict[str, Engine]) -> Choice:
    reference = next(iter(engines))
    noise = _noise(engines[reference])
    answers = {name: engine(noise) for name, engine in engines.items()}
    agreement = {name: _cosine_min(answers[reference], answers[name]) for name in engines}
    fitting = [name for name in engines if name == reference or agreement[name] >= _AGREEMENT[precision]]
    best_s = dict.fromkeys(fitting, np.inf)
    for _ in range(_ROUNDS):
        for name in fitting:
            start = time.perf_counter()
            engines[name](noise)
            best_s[name] = min(best_s[name], time.perf_counter() - start)
    chosen = min(fitting, key=lambda name: best_s[name])
    others = [
        f"{best_s[name] / best_s[chosen]:.2f} times as fast as {engines[name].device}"
        if name in fitting
        else f"{engines[name].device} is excluded, its cosine to {engines[reference].device} is {agreement[name]:.4f}"
        for name in engines
        if name != chosen
    ]
    cosine = f"; cosine to {reference} {agreement[chosen]:.6f}" if chosen != reference else ""
    return Choice(engine=chosen, why=f"{engines[chosen].device}: {'; '.join(others)}{cosine}")


def _noise(engine: Engine) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(zeros.shape, dtype=np.float32) if zeros.dtype == np.float32 else zeros
        for name, zeros in sample(engine.inputs, _BATCH_SIZE).items()
    }


def _cosine_min(left: Arrays, right: Arrays) -> float:
    """Return the smallest cosine between items, each output of an item taken as one vector.

    It is NaN if an output is zero or not finite, and fits no engine but the reference.
    """
    items = len(next(iter(left.values())))
    cosines = [cosine_min(left[name].reshape(items, -1), right[name].reshape(items, -1)) for name in left]
    return float(np.min(cosines))


def _file_of_choice(path: Path, precision: Precision, threads: int | None, bulk: bool) -> str:
    """Return the name of a choice's file. A graph is known by its inode: a bundle is moved as its export ends."""
    status = path.stat()
    facts = [
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, precision, threads, bulk,
        platform.node(), platform.processor(), usable_cores(), *map(installed_version, _PACKAGES),
    ]  # fmt: skip
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    return f"{key}.json"
