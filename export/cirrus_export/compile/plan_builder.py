"""Parse an ONNX graph and build its plan, with TensorRT or with TensorRT for RTX.

Both have the same names here. Networks are strongly typed: the graph determines each layer's precision (TensorRT 11 has
no other kind of network, and ignores the flag that 10 needs). TF32 is off, so that float32 stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from cirrus_client.bundle import GraphSpec
from cirrus_client.engines.nvidia import tensorrt_log, tensorrt_reason, tensorrt_warnings
from cirrus_client.errors import ExportError
from cirrus_client.plans import BatchProfile, Library
from cirrus_export.compile.half_attention import model_to_compile

# What the parser says of every graph that takes tokens: its inputs are int64, and they are given as int64.
_EXPECTED_WARNING = "has Int64 binding"


@dataclass(frozen=True)
class ParsedGraph:
    """A graph that is ready to be built. The parser owns the weights, so it lives as long as the network."""

    library: Library
    tensorrt: Any
    file: Path
    builder: Any
    parser: Any
    network: Any
    config: Any

    def build(self) -> Any:
        """Return the plan, a bytes-like object. Raises ExportError with the compiler's reason."""
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            reason = tensorrt_reason(self.tensorrt)
            raise ExportError(f"{_version(self.library, self.tensorrt)} can't compile {self.file}: {reason}")
        return plan

    def warnings(self) -> tuple[str, ...]:
        """Return what the compiler warned about since the last call, without what it says of every graph."""
        return tuple(text for text in tensorrt_warnings(self.tensorrt) if _EXPECTED_WARNING not in text)


def batch_profiles(library: Library, max_batch: int) -> tuple[BatchProfile, ...]:
    """Return a plan's optimization profiles, the smallest batches first.

    All batches: from 1 to the bundle's limit, tuned for half of the limit. TensorRT for RTX has a profile for one query
    before it. Triton's TensorRT backend uses the first profile of a plan unless it is told otherwise, so TensorRT's has
    no other.
    """
    every = BatchProfile(smallest=1, tuned=max(1, max_batch // 2), largest=max_batch)
    one = BatchProfile(smallest=1, tuned=1, largest=1)
    return (one, every) if library is Library.RTX and max_batch > 1 else (every,)


def parse_graph(
    library: Library, tensorrt: Any, file: Path, graph: GraphSpec, profiles: Sequence[BatchProfile]
) -> ParsedGraph:
    """Read an ONNX file. tensorrt: the library's module. Raises ExportError, which names each node that is refused."""
    tensorrt_reason(tensorrt)  # what an earlier graph or a missing driver left there is no reason of this one
    builder = tensorrt.Builder(tensorrt_log(tensorrt))
    network = builder.create_network(flags=1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, tensorrt_log(tensorrt))
    try:
        content = model_to_compile(file).SerializeToString()
    except DecodeError as error:
        raise ExportError(f"{_version(library, tensorrt)} can't read {file}: it is no ONNX file ({error})") from None
    if not parser.parse(content, path=str(file)):
        reasons = "; ".join(_described(parser.get_error(position)) for position in range(parser.num_errors))
        raise ExportError(f"{_version(library, tensorrt)} can't read {file}: {reasons}")
    config = builder.create_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    for batch in profiles:
        config.add_optimization_profile(_profile(builder, graph, batch))
    return ParsedGraph(library, tensorrt, file, builder, parser, network, config)


def _described(refusal: Any) -> str:
    return f"node {refusal.node_name()} ({refusal.node_operator()}): {refusal.desc()}"


def _version(library: Library, tensorrt: Any) -> str:
    return f"{library.label} {tensorrt.__version__}"


def _profile(builder: Any, graph: GraphSpec, batch: BatchProfile) -> Any:
    """Return the shapes that a plan takes. It is tuned for the shortest texts, which most are."""
    profile = builder.create_optimization_profile()
    shortest, *_, longest = (*graph.input_shapes(), graph.input_shapes()[-1])
    for spec in graph.inputs:
        profile.set_shape(
            spec.name,
            (batch.smallest, *shortest[spec.name]),
            (batch.tuned, *shortest[spec.name]),
            (batch.largest, *longest[spec.name]),
        )
    return profile
