"""The fidelity gate: compare an export with its torch original.

Stage by stage, each ONNX graph is compared with its torch module on the same real inputs, and one item at a time with a
batch. Then the whole pipeline is compared, from image bytes and text to a ranking. Rankings are compared as well as
cosines, because a tolerance alone rejects good exports and accepts damaged ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from cirrus_client.agreement import agreement, cosine_min, top
from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders.local import LocalEncoder
from cirrus_client.engines import Engine
from cirrus_client.ensemble import Arrays
from cirrus_client.image.preprocess import Decoding, preprocess
from cirrus_client.names import EnsembleName, TensorName
from cirrus_client.records import Record
from cirrus_client.tokenizer import Tokenizer
from cirrus_export.gate.probe import Probe
from cirrus_export.gate.rerank_fidelity import RerankFidelity, measure_reranker, rerank_failures
from cirrus_export.gate.text_cuts import CutFidelity, cut_failures, measure_cuts
from cirrus_export.gate.thresholds import THRESHOLDS, Thresholds
from cirrus_export.graph import Graph
from cirrus_export.recipes.recipe import Recipe

Vectors = NDArray[np.float32]
Progress = Callable[..., Iterable[Any]]
_STAGE_ITEMS = 8
_BATCH = 16


class StageFidelity(Record):
    """One output of one graph. cosine_min, max_abs: export and torch. batch_cosine_min: the export's batch 1 and n."""

    graph: str
    output: str
    items: int
    cosine_min: float
    max_abs: float
    batch_cosine_min: float


class RetrievalFidelity(Record):
    """The whole pipeline compared with the torch original, over the probe's queries."""

    ensemble: EnsembleName
    queries: int
    gallery: int
    query_cosine_min: float
    target_cosine_min: float
    top10_agreement: float
    recall_at_10_original: float
    recall_at_10_exported: float


class DecodingFidelity(Record):
    """Gallery images under `Decoding.FAST` compared with exact decoding, both through the export.

    changed: images whose pixels differ. top10_agreement: of the gallery's rankings, with each of its images as a query.
    It does not decide the gate, since fast decoding is never the default.
    """

    images: int
    changed: int
    target_cosine_min: float
    top10_agreement: float


class FidelityReport(Record):
    """Everything that was measured, and the failures: what missed its threshold."""

    bundle: str
    precision: Precision
    engine: str
    probe: str
    thresholds: Thresholds
    stages: tuple[StageFidelity, ...]
    retrieval: tuple[RetrievalFidelity, ...]
    cuts: tuple[CutFidelity, ...] = ()
    reranker: RerankFidelity | None = None
    decoding: DecodingFidelity | None = None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if nothing missed its threshold."""
        return not self.failures


class ProbeTensors:
    """A probe's pixels and token ids, computed once."""

    def __init__(self, probe: Probe, bundle: Bundle) -> None:
        self.probe = probe
        self.gallery_pixels = _pixels(probe.gallery, bundle)
        self.query_pixels = _pixels([query.image for query in probe.queries], bundle)
        tokenizer = Tokenizer(bundle.spec.tokenizer, bundle.root)
        self.token_ids = tokenizer([query.text for query in probe.queries])

    def stage_inputs(self, graphs: Sequence[Graph], *, items: int = _STAGE_ITEMS) -> dict[str, NDArray[np.generic]]:
        """Return real inputs of every graph, tensors by name: the probe's items sent through the torch modules.

        Of a tensor that several graphs make, like the prompts of a query and of a target, the first is kept; pixels and
        token ids stay the probe's own.
        """
        tensors: dict[str, NDArray[np.generic]] = {
            TensorName.PIXELS: self.query_pixels[:items],
            TensorName.TOKEN_IDS: self.token_ids[:items],
        }
        for graph in graphs:
            tensors = run_torch(graph, tensors) | tensors
        return tensors


@dataclass(frozen=True)
class Measurement:
    """What the gate measured, and the export's embeddings of the probe's queries, float32 [Q, D]."""

    report: FidelityReport
    queries: Vectors


def measure(
    bundle: Bundle, recipe: Recipe, graphs: Sequence[Graph], probe: ProbeTensors, *, show_progress: bool = False
) -> Measurement:
    """Compare a bundle, as `LocalEncoder` runs it, with the torch original."""
    progress = partial(tqdm, disable=not show_progress)
    thresholds = THRESHOLDS[bundle.spec.precision]
    inputs = probe.stage_inputs(graphs)
    encoder = LocalEncoder(bundle)
    stages: list[StageFidelity] = []
    for graph in progress(graphs, desc="fidelity: graphs", unit="graph"):
        stages += _stage(graph, encoder.graph(graph.name), inputs)
    gallery = probe.probe.gallery
    starts = progress(range(0, len(gallery), _BATCH), desc="fidelity: exported gallery", unit="batch")
    targets = np.concatenate([encoder.encode_targets(gallery[start : start + _BATCH]) for start in starts])
    queries = _exported_queries(encoder, probe.probe)
    retrieval = _retrieval(queries, recipe, probe, targets, progress)
    cuts = measure_cuts(encoder, recipe, probe.query_pixels, probe.token_ids)
    reranker = measure_reranker(
        encoder,
        recipe,
        probe.probe,
        gallery=probe.gallery_pixels,
        queries=probe.query_pixels,
        token_ids=probe.token_ids,
    )
    failures = [
        *_stage_failures(stages, thresholds),
        *_retrieval_failures(retrieval, thresholds),
        *cut_failures(cuts, thresholds),
        *rerank_failures(reranker, thresholds),
    ]
    report = FidelityReport(
        bundle=bundle.spec.name,
        precision=bundle.spec.precision,
        engine="; ".join(sorted({encoder.graph(graph.name).device for graph in graphs})),
        probe=probe.probe.name,
        thresholds=thresholds,
        stages=tuple(stages),
        retrieval=tuple(retrieval),
        cuts=cuts,
        reranker=reranker,
        decoding=_decoding(encoder, probe, targets),
        failures=tuple(failures),
    )
    return Measurement(report, next(iter(queries.values())))


def run_torch(graph: Graph, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
    """Run a graph's torch module on named arrays."""
    arguments = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in graph.inputs]
    with torch.no_grad():
        results = graph.module(*arguments)
    if isinstance(results, torch.Tensor):
        results = (results,)
    return {spec.name: result.numpy() for spec, result in zip(graph.outputs, results, strict=True)}


def _stage(graph: Graph, engine: Engine, inputs: Arrays) -> list[StageFidelity]:
    own = {spec.name: inputs[spec.name] for spec in graph.inputs}
    items = len(next(iter(own.values())))
    original = run_torch(graph, own)
    exported = engine(own)
    singly = [engine({name: value[row : row + 1] for name, value in own.items()}) for row in range(items)]
    return [
        StageFidelity(
            graph=graph.name,
            output=spec.name,
            items=items,
            cosine_min=cosine_min(original[spec.name], exported[spec.name]),
            max_abs=float(np.abs(original[spec.name] - exported[spec.name]).max()),
            batch_cosine_min=cosine_min(np.concatenate([single[spec.name] for single in singly]), exported[spec.name]),
        )
        for spec in graph.outputs
    ]


def _decoding(encoder: LocalEncoder, probe: ProbeTensors, targets: Vectors) -> DecodingFidelity | None:
    """Measure fast decoding, or return None if it changes no image of the probe."""
    spec = encoder.bundle.spec.preprocess
    pixels = [preprocess(image, spec, Decoding.FAST) for image in probe.probe.gallery]
    changed = [row for row, fast in enumerate(pixels) if not np.array_equal(fast, probe.gallery_pixels[row])]
    if not changed:
        return None
    fast_targets = targets.copy()
    for start in range(0, len(changed), _BATCH):
        rows = changed[start : start + _BATCH]
        fast_targets[rows] = encoder.encode_prepared([pixels[row] for row in rows])
    asked = targets.reshape(len(targets), -1, targets.shape[-1])[:, 0]
    return DecodingFidelity(
        images=len(targets),
        changed=len(changed),
        target_cosine_min=cosine_min(targets, fast_targets),
        top10_agreement=agreement(top(asked, targets), top(asked, fast_targets)),
    )


def _exported_queries(encoder: LocalEncoder, probe: Probe) -> dict[EnsembleName, Vectors]:
    """The probe's queries through each query ensemble that the bundle has, that of image and text first."""
    images = [query.image for query in probe.queries]
    texts = [query.text for query in probe.queries]
    found: dict[EnsembleName, Vectors] = {}
    if EnsembleName.ENCODE_QUERY in encoder.bundle.spec.ensembles:
        found[EnsembleName.ENCODE_QUERY] = encoder.encode_queries(images, texts)
    if EnsembleName.ENCODE_TEXT_QUERY in encoder.bundle.spec.ensembles:
        found[EnsembleName.ENCODE_TEXT_QUERY] = encoder.encode_queries([None] * len(texts), texts)
    return found


def _retrieval(
    exported_queries: Mapping[EnsembleName, Vectors],
    recipe: Recipe,
    probe: ProbeTensors,
    exported_targets: Vectors,
    progress: Progress,
) -> list[RetrievalFidelity]:
    queries = probe.probe.queries
    in_batches = partial(_in_batches, progress)
    original_targets = in_batches("fidelity: original gallery", recipe.target, probe.gallery_pixels)
    original_queries = {
        EnsembleName.ENCODE_QUERY: lambda: in_batches(
            "fidelity: original queries", recipe.query, probe.query_pixels, probe.token_ids
        ),
        EnsembleName.ENCODE_TEXT_QUERY: lambda: in_batches(
            "fidelity: original text queries", recipe.text_query, probe.token_ids
        ),
    }
    labels = np.array([query.target for query in queries])
    return [
        _compare_rankings(name, original_queries[name](), exported, original_targets, exported_targets, labels)
        for name, exported in exported_queries.items()
    ]


def _compare_rankings(
    ensemble: EnsembleName,
    original_queries: Vectors,
    exported_queries: Vectors,
    original_targets: Vectors,
    exported_targets: Vectors,
    labels: NDArray[np.int64],
) -> RetrievalFidelity:
    original_top = top(original_queries, original_targets)
    exported_top = top(exported_queries, exported_targets)
    return RetrievalFidelity(
        ensemble=ensemble,
        queries=len(labels),
        gallery=len(original_targets),
        query_cosine_min=cosine_min(original_queries, exported_queries),
        target_cosine_min=cosine_min(original_targets, exported_targets),
        top10_agreement=agreement(original_top, exported_top),
        recall_at_10_original=float((original_top == labels[:, None]).any(axis=1).mean()),
        recall_at_10_exported=float((exported_top == labels[:, None]).any(axis=1).mean()),
    )


def _stage_failures(stages: Sequence[StageFidelity], thresholds: Thresholds) -> list[str]:
    failures = []
    for stage in stages:
        where = f"graph {stage.graph}, output {stage.output}"
        for label, value in (
            ("cosine to the original", stage.cosine_min),
            ("cosine of batch 1 to batch n", stage.batch_cosine_min),
        ):
            if not value >= thresholds.cosine_min:  # a NaN fails
                failures.append(f"{where}: {label} {value:.6f} is under {thresholds.cosine_min}")
    return failures


def _retrieval_failures(retrieval: Sequence[RetrievalFidelity], thresholds: Thresholds) -> list[str]:
    failures = []
    for result in retrieval:
        for label, value in (("queries", result.query_cosine_min), ("targets", result.target_cosine_min)):
            if not value >= thresholds.cosine_min:
                failures.append(
                    f"pipeline {result.ensemble}: cosine of {label} {value:.6f} is under {thresholds.cosine_min}"
                )
        if not result.top10_agreement >= thresholds.top10_agreement:
            failures.append(
                f"pipeline {result.ensemble}: top-10 agreement {result.top10_agreement:.4f} is under "
                f"{thresholds.top10_agreement}"
            )
        delta = abs(result.recall_at_10_exported - result.recall_at_10_original)
        if not delta <= thresholds.recall_at_10_delta:
            failures.append(
                f"pipeline {result.ensemble}: Recall@10 moved by {delta:.4f}, more than {thresholds.recall_at_10_delta}"
            )
    return failures


def _pixels(images: Sequence[bytes], bundle: Bundle) -> Vectors:
    return np.stack([preprocess(image, bundle.spec.preprocess) for image in images])


def _in_batches(
    progress: Progress, label: str, function: Callable[..., torch.Tensor], *arrays: NDArray[np.generic]
) -> Vectors:
    rows = []
    with torch.no_grad():
        for start in progress(range(0, len(arrays[0]), _BATCH), desc=label, unit="batch"):
            batch = [torch.from_numpy(array[start : start + _BATCH]) for array in arrays]
            rows.append(function(*batch).numpy())
    return np.concatenate(rows)
