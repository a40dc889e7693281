"""Bundles as a Triton model repository, in three flavours that differ in what runs the graphs.

One bundle's repository has its graphs under their own names. Several bundles' repository has every model once, under
a name that ends in its content's hash: two bundles on one backbone share its encoder, and their galleries go through
encoder and head as two models, not through the fused graph. Ensembles are then named `<bundle>.<ensemble>`.

Steps of an ensemble that the Python backend runs are strictly ordered: each gives a tensor `done`, which the next
takes as `after`. A Triton before 26.04 (the pip-installed one is 24.10) answers a failed ensemble while steps beside
the failed one still read its request: later requests then fail with it, and the server dies (core#466, core#483).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import Bundle, BundleSpec, DType, GraphSpec, TensorSpec
from cirrus_client.ensemble import EMBEDDING, IMAGE_PREPROCESS, TOKENIZE, EnsembleSpec, StepSpec, image_step
from cirrus_client.errors import ExportError
from cirrus_client.files import replace_directory
from cirrus_client.names import EnsembleName
from cirrus_client.plans import ENGINES, graph_sha256
from cirrus_client.suggest import MODEL as SUGGEST_MODEL
from cirrus_client.triton.wire import BUNDLE_PARAMETER, QUERIES_PARAMETER, SPACE_PARAMETER, served_name

_DTYPES = {DType.FLOAT32: pb.TYPE_FP32, DType.INT64: pb.TYPE_INT64}
_WARMUP_IMAGE = "image"
_WARMUP_TEXT = "text"
_DONE = "done"
_AFTER = "after"
_PIXELS = "pixels"


class Flavour(StrEnum):
    """What runs the graphs: an engine inside the Python backend, or NGC's backends."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Limits:
    """Queueing, stated once.

    instances: of each model; the Python models use threads inside one instance, which beats several (server#5969), and
    a graph uses the whole device. queue_delay_us: how long a request waits for those that left the step before with it.
    gather_us: the same before an image encoder, where images come from decoding one by one; short against its run. No
    preferred batch: what has gathered by then is run. queue_size: requests that may wait before the server refuses
    more, instead of answering ever later. timeout_us: a request that waited this long is refused; its client has given
    up. inflight: requests at each step of an ensemble, so that decoded pixels do not pile up in front of the encoder;
    two full batches of single images, one that runs and one that gathers. Servers before 25.11 do not know it.
    """

    instances: int = 1
    queue_delay_us: int = 200
    gather_us: int = 2_000
    queue_size: int = 1_024
    timeout_us: int = 30_000_000
    inflight: int = 128


LIMITS = Limits()


@dataclass(frozen=True)
class _Names:
    """What a bundle's models are called in a repository."""

    bundle: Bundle
    shared: bool

    def model(self, name: str) -> str:
        return f"{name}_{self._content(name)[:12]}" if self.shared else name

    def ensemble(self, name: EnsembleName) -> str:
        return served_name(name, self.bundle.spec.name if self.shared else None)

    def _content(self, name: str) -> str:
        spec = self.bundle.spec
        if name == IMAGE_PREPROCESS:
            return hashlib.sha256(spec.preprocess.model_dump_json().encode()).hexdigest()
        if name == TOKENIZE:
            content = spec.tokenizer.model_dump_json() + spec.files[spec.tokenizer.file]
            return hashlib.sha256(content.encode()).hexdigest()
        return graph_sha256(spec, name)


def write_repository(bundle_root: Path, spec: BundleSpec, flavour: Flavour, destination: Path) -> None:
    """Write the model repository of a bundle; it is self-contained and can be mounted alone.

    Graph files are hard-linked where the file system can. Raises ExportError if the TENSORRT flavour lacks a plan.
    """
    bundle = Bundle(bundle_root, spec)
    with replace_directory(destination) as root:
        _write_bundle(_Names(bundle, shared=False), spec.ensembles, flavour, root)


def write_shared_repository(
    bundles: Sequence[Bundle], flavour: Flavour, destination: Path, *, suggester: Path | None = None
) -> None:
    """Write one model repository of several bundles, in which equal models are there once.

    suggester: a suggester's folder, whose model is served beside the ensembles. Raises ExportError if two bundles have
    the same name, the suggester has no model, or the TENSORRT flavour lacks a plan.
    """
    source = None if suggester is None else suggester / "triton" / "python" / SUGGEST_MODEL
    if source is not None and not source.is_dir():
        raise ExportError(f"{suggester} is no suggester that passed its gate: there is no {source}")
    names = [bundle.spec.name for bundle in bundles]
    if len(set(names)) != len(names):
        raise ExportError(f"two bundles have the same name: {', '.join(names)}; export one of them under another")
    with replace_directory(destination) as root:
        for bundle in bundles:
            ensembles = bundle.spec.ensembles | {EnsembleName.ENCODE_TARGET: _unfused_target(bundle.spec)}
            _write_bundle(_Names(bundle, shared=True), ensembles, flavour, root)
        if source is not None:
            shutil.copytree(source, root / SUGGEST_MODEL)


def _write_bundle(names: _Names, ensembles: Mapping[EnsembleName, EnsembleSpec], flavour: Flavour, root: Path) -> None:
    for name in sorted({step.model for ensemble in ensembles.values() for step in ensemble.steps}):
        if not (root / names.model(name)).exists():
            _write_step(names, name, flavour, root)
    for ensemble_name, ensemble in ensembles.items():
        _write_model(root, _ensemble_config(ensemble_name, ensemble, names, flavour))


def _write_step(names: _Names, name: str, flavour: Flavour, root: Path) -> None:
    if name == IMAGE_PREPROCESS:
        _write_image_preprocess(names, root)
    elif name == TOKENIZE:
        _write_tokenize(names, root)
    else:
        _write_graph(names, name, flavour, root)


def _unfused_target(spec: BundleSpec) -> EnsembleSpec:
    """Encoder and target head as two steps, so that the encoder can be shared."""
    encoder, head = spec.graphs["vision_encoder"], spec.graphs["target_head"]
    taken = {tensor.name for tensor in head.inputs}
    return EnsembleSpec(
        inputs=("image",),
        steps=(
            image_step(),
            StepSpec(
                model="vision_encoder",
                inputs={_PIXELS: _PIXELS},
                outputs={tensor.name: tensor.name for tensor in encoder.outputs if tensor.name in taken},
            ),
            StepSpec(
                model="target_head",
                inputs={name: name for name in sorted(taken)},
                outputs={head.outputs[0].name: EMBEDDING},
            ),
        ),
    )


def _write_image_preprocess(names: _Names, root: Path) -> None:
    spec = names.bundle.spec
    size = spec.preprocess.size_px
    config = _python_model(names.model(IMAGE_PREPROCESS), spec.max_batch)
    config.input.add(name="image", data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=_PIXELS, data_type=pb.TYPE_FP32, dims=[3, size, size])
    config.parameters["preprocess"].string_value = spec.preprocess.model_dump_json()
    _add_file_warmup(config, "image", _WARMUP_IMAGE)
    folder = _write_model(root, config)
    _copy_code(IMAGE_PREPROCESS, folder)
    picture = io.BytesIO()
    Image.new("RGB", (size, size)).save(picture, "JPEG")
    _write_warmup(folder, _WARMUP_IMAGE, picture.getvalue())


def _write_tokenize(names: _Names, root: Path) -> None:
    spec = names.bundle.spec
    config = _python_model(names.model(TOKENIZE), spec.max_batch)
    config.input.add(name="text", data_type=pb.TYPE_STRING, dims=[1], optional=True)
    config.output.add(name="token_ids", data_type=pb.TYPE_INT64, dims=[spec.tokenizer.context_length])
    config.parameters["tokenizer"].string_value = spec.tokenizer.model_dump_json()
    _add_file_warmup(config, "text", _WARMUP_TEXT)
    folder = _write_model(root, config)
    _copy_code(TOKENIZE, folder)
    _link(names.bundle.root / spec.tokenizer.file, folder / "1" / spec.tokenizer.file)
    _write_warmup(folder, _WARMUP_TEXT, b"warm up")


def _write_graph(names: _Names, name: str, flavour: Flavour, root: Path) -> None:
    spec = names.bundle.spec
    graph = spec.graphs[name]
    source = names.bundle.root / graph.file
    sources = [source, *source.parent.glob(f"{source.name}.data")]
    if flavour is Flavour.PYTHON:
        config = _python_model(names.model(name), spec.max_batch)
        config.parameters["graph_file"].string_value = source.name
        config.parameters["precision"].string_value = spec.precision
        config.parameters["bulk"].string_value = json.dumps(spec.is_for_bulk(name))
    else:
        config = _model(names.model(name), spec.max_batch)
        if flavour is Flavour.TENSORRT:
            config.platform = "tensorrt_plan"
            sources = [_plan(names.bundle.root, name)]
        else:
            config.platform = "onnxruntime_onnx"
            # In a container without a GPU; OpenVINO computes in the graph's own precision there.
            config.optimization.execution_accelerators.cpu_execution_accelerator.add(name="openvino")
        config.default_model_filename = sources[0].name
        config.instance_group.add(count=LIMITS.instances, kind=pb.ModelInstanceGroup.KIND_AUTO)
    _add_tensors(config, graph)
    if any(tensor.name == _PIXELS for tensor in graph.inputs):
        config.dynamic_batching.max_queue_delay_microseconds = LIMITS.gather_us
    folder = _write_model(root, config)
    if flavour is Flavour.PYTHON:
        _copy_code("graph_runner", folder)
    for source in sources:
        _link(source, folder / "1" / source.name)


def _add_tensors(config: pb.ModelConfig, graph: GraphSpec) -> None:
    warmup = config.model_warmup.add(name="zeros", batch_size=1)
    for tensor in graph.inputs:
        config.input.add(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=_dims(tensor))
        warmup.inputs[tensor.name].data_type = _DTYPES[tensor.dtype]
        warmup.inputs[tensor.name].dims.extend(_dims(tensor))
        warmup.inputs[tensor.name].zero_data = True
    for tensor in graph.outputs:
        config.output.add(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=_dims(tensor))


def _ensemble_config(name: EnsembleName, ensemble: EnsembleSpec, names: _Names, flavour: Flavour) -> pb.ModelConfig:
    """The ensemble, with the only response cache.

    Were a Python model cached as well, Triton 2.51 would cache its error as an answer without tensors, and the next
    request with the same bad item would fail without saying why.
    """
    spec = names.bundle.spec
    config = pb.ModelConfig(name=names.ensemble(name), platform="ensemble", max_batch_size=spec.max_batch)
    shape = spec.space.item_shape if name is EnsembleName.ENCODE_TARGET else (spec.space.dim,)
    config.response_cache.enable = True
    for tensor in ensemble.inputs:
        config.input.add(name=tensor, data_type=pb.TYPE_STRING, dims=[1], optional=tensor in ensemble.optional)
    config.output.add(name=EMBEDDING, data_type=pb.TYPE_FP32, dims=shape)
    for step in ensemble.steps:
        written = config.ensemble_scheduling.step.add(model_name=names.model(step.model), model_version=-1)
        for port, tensor in step.inputs.items():
            written.input_map[port] = tensor
        for port, tensor in step.outputs.items():
            written.output_map[port] = tensor
    _order(config.ensemble_scheduling.step, ensemble, flavour)
    if flavour is not Flavour.PYTHON:
        config.ensemble_scheduling.max_inflight_requests = LIMITS.inflight
    config.parameters[SPACE_PARAMETER].string_value = spec.space.model_dump_json()
    config.parameters[BUNDLE_PARAMETER].string_value = spec.name
    config.parameters[QUERIES_PARAMETER].string_value = json.dumps(sorted(spec.ensembles))
    return config


def _order(written: Sequence[pb.ModelEnsembling.Step], ensemble: EnsembleSpec, flavour: Flavour) -> None:
    """Let each step of the Python backend wait for the one before. It also lets a step run whose text is absent."""

    def in_python(step: StepSpec) -> bool:
        return flavour is Flavour.PYTHON or step.model in (IMAGE_PREPROCESS, TOKENIZE)

    for (before, before_written), (step, step_written) in pairwise(zip(ensemble.steps, written, strict=True)):
        waits_already = set(before.outputs.values()) & set(step.inputs.values())
        if in_python(before) and in_python(step) and not waits_already:
            before_written.output_map[_DONE] = f"{before.model}.{_DONE}"
            step_written.input_map[_AFTER] = f"{before.model}.{_DONE}"


def _python_model(name: str, max_batch: int) -> pb.ModelConfig:
    config = _model(name, max_batch)
    config.backend = "python"
    config.instance_group.add(count=LIMITS.instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.input.add(name=_AFTER, data_type=pb.TYPE_UINT8, dims=[1], optional=True)
    config.output.add(name=_DONE, data_type=pb.TYPE_UINT8, dims=[1])
    return config


def _model(name: str, max_batch: int) -> pb.ModelConfig:
    """A model with dynamic batching and bounded queues."""
    config = pb.ModelConfig(name=name, max_batch_size=max_batch)
    batching = config.dynamic_batching
    batching.max_queue_delay_microseconds = LIMITS.queue_delay_us
    batching.default_queue_policy.max_queue_size = LIMITS.queue_size
    batching.default_queue_policy.default_timeout_microseconds = LIMITS.timeout_us
    batching.default_queue_policy.timeout_action = pb.ModelQueuePolicy.REJECT
    return config


def _add_file_warmup(config: pb.ModelConfig, tensor: str, file: str) -> None:
    warmup = config.model_warmup.add(name=file, batch_size=1)
    warmup.inputs[tensor].data_type = pb.TYPE_STRING
    warmup.inputs[tensor].dims.append(1)
    warmup.inputs[tensor].input_data_file = file


def _write_warmup(folder: Path, file: str, item: bytes) -> None:
    """One element of a BYTES tensor in Triton's form: its length, then its bytes."""
    (folder / "warmup").mkdir()
    (folder / "warmup" / file).write_bytes(struct.pack("<I", len(item)) + item)


def _dims(tensor: TensorSpec) -> list[int]:
    return list(tensor.shape)


def _write_model(root: Path, config: pb.ModelConfig) -> Path:
    folder = root / config.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder


def _copy_code(model: str, folder: Path) -> None:
    source = files("cirrus_export") / "triton_models" / model / "model.py"
    (folder / "1" / "model.py").write_text(source.read_text())


def _plan(bundle_root: Path, graph: str) -> Path:
    plan = bundle_root / ENGINES / f"{graph}.plan"
    if not plan.is_file():
        raise ExportError(
            f"the tensorrt flavour needs {plan}, which is not there; on the machine that serves the bundle: "
            f"cirrus compile {bundle_root}"
        )
    return plan


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination)
    except OSError:  # another file system
        shutil.copyfile(source, destination)
