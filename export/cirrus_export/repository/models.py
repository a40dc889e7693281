"""The configurations of the models in a repository, as Triton's protobuf messages.

Steps of an ensemble that the Python backend runs are strictly ordered: each gives a tensor `done`, which the next takes
as `after`. A Triton before 26.04 (the pip-installed one is 24.10) answers a failed ensemble while steps beside the
failed one still read its request. Later requests then fail as well, and the server dies (core#466, core#483).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.bundle import DYNAMIC, BundleSpec, DType, GraphSpec, TensorSpec
from cirrus_client.ensemble import IMAGE_PREPROCESS, TOKENIZE, EnsembleSpec, StepSpec
from cirrus_client.names import Flavour, TensorName
from cirrus_client.triton.wire import BUNDLE_PARAMETER, QUERIES_PARAMETER, SPACE_PARAMETER

_DTYPES = {DType.FLOAT32: pb.TYPE_FP32, DType.INT64: pb.TYPE_INT64}
_DONE, _AFTER = "done", "after"


@dataclass(frozen=True)
class Limits:
    """How requests queue and batch on the server.

    instances: instances per model. One is enough: a Python model uses threads inside it, which is faster than several
    (server#5969), and a graph uses the whole device.
    queue_delay_us: how long Triton waits to fill a batch with requests that left the step before at the same time.
    gather_us: how long Triton waits to fill a batch before an image encoder. Decoded images arrive one at a time, and
    2 ms are short next to one run of the encoder. There is no preferred batch size.
    queue_size: requests that may wait per model; the server rejects more of them.
    timeout_us: a request that has queued for longer is rejected: its client has timed out by then.
    inflight: requests at each step of an ensemble, so that decoded pixels do not pile up before the encoder. 128 are
    two full batches of single images, one running and one filling. Servers before 25.11 ignore it.
    """

    instances: int = 1
    queue_delay_us: int = 200
    gather_us: int = 2_000
    queue_size: int = 1_024
    timeout_us: int = 30_000_000
    inflight: int = 128


LIMITS = Limits()


def image_preprocess_config(name: str, spec: BundleSpec, warmup_file: str) -> pb.ModelConfig:
    """Return the model that turns JPEG bytes into pixels. warmup_file: a file with one image, below `warmup/`."""
    size = spec.preprocess.size_px
    config = _python_model(name, spec.max_batch)
    config.input.add(name=TensorName.IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=TensorName.PIXELS, data_type=pb.TYPE_FP32, dims=[3, size, size])
    config.parameters["preprocess"].string_value = spec.preprocess.model_dump_json()
    _add_file_warmup(config, TensorName.IMAGE, warmup_file)
    return config


def tokenize_config(name: str, spec: BundleSpec, warmup_file: str) -> pb.ModelConfig:
    """Return the model that turns texts into token ids. warmup_file: a file with one text, below `warmup/`."""
    config = _python_model(name, spec.max_batch)
    config.input.add(name=TensorName.TEXT, data_type=pb.TYPE_STRING, dims=[1], optional=True)
    length = DYNAMIC if spec.tokenizer.cut_lengths else spec.tokenizer.context_length
    config.output.add(name=TensorName.TOKEN_IDS, data_type=pb.TYPE_INT64, dims=[length])
    config.parameters["tokenizer"].string_value = spec.tokenizer.model_dump_json()
    _add_file_warmup(config, TensorName.TEXT, warmup_file)
    return config


def graph_config(name: str, spec: BundleSpec, graph: str, flavour: Flavour, file: str) -> pb.ModelConfig:
    """Return the model of one graph. file: the ONNX file or the plan in the model's version folder."""
    if flavour is Flavour.PYTHON:
        config = _python_model(name, spec.max_batch)
        config.parameters["graph_file"].string_value = file
        config.parameters["precision"].string_value = spec.precision
        config.parameters["bulk"].string_value = json.dumps(spec.is_for_bulk(graph))
    else:
        config = _model(name, spec.max_batch)
        config.default_model_filename = file
        config.instance_group.add(count=LIMITS.instances, kind=pb.ModelInstanceGroup.KIND_AUTO)
        if flavour is Flavour.TENSORRT:
            config.platform = "tensorrt_plan"
        else:
            config.platform = "onnxruntime_onnx"
            # In a container without a GPU; OpenVINO computes in the graph's own precision there.
            accelerators = config.optimization.execution_accelerators
            accelerators.cpu_execution_accelerator.add(name="openvino")
            # Without it, float32 becomes TF32 on a GPU that has it.
            accelerators.gpu_execution_accelerator.add(name="cuda", parameters={"use_tf32": "0"})
    _add_tensors(config, spec.graphs[graph])
    if any(tensor.name == TensorName.PIXELS for tensor in spec.graphs[graph].inputs):
        config.dynamic_batching.max_queue_delay_microseconds = LIMITS.gather_us
    return config


def ensemble_config(
    name: str, ensemble: EnsembleSpec, models: dict[str, str], spec: BundleSpec, flavour: Flavour
) -> pb.ModelConfig:
    """Return an ensemble, which has the repository's only response cache. models: a step's model to its served name.

    Its inputs and its result that are no files or texts have the shapes that the graphs give them.

    Were a Python model cached as well, Triton 2.51 would cache its error as an answer without tensors, and the next
    request with the same bad item would fail without saying why.
    """
    config = pb.ModelConfig(name=name, platform="ensemble", max_batch_size=spec.max_batch)
    config.response_cache.enable = True
    for tensor in ensemble.inputs:
        if tensor in (TensorName.IMAGE, TensorName.TEXT):
            config.input.add(name=tensor, data_type=pb.TYPE_STRING, dims=[1], optional=tensor in ensemble.optional)
        else:
            given = _graph_tensor(ensemble, spec, tensor)
            config.input.add(name=tensor, data_type=_DTYPES[given.dtype], dims=given.shape)
    result = _graph_tensor(ensemble, spec, ensemble.output)
    config.output.add(name=ensemble.output, data_type=_DTYPES[result.dtype], dims=result.shape)
    for step in ensemble.steps:
        written = config.ensemble_scheduling.step.add(model_name=models[step.model], model_version=-1)
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


def _graph_tensor(ensemble: EnsembleSpec, spec: BundleSpec, name: str) -> TensorSpec:
    """Return what the graphs of an ensemble say of one of its tensors."""
    return next(
        tensor
        for step in ensemble.steps
        if step.model in spec.graphs
        for ports, tensors in (
            (step.inputs, spec.graphs[step.model].inputs),
            (step.outputs, spec.graphs[step.model].outputs),
        )
        for tensor in tensors
        if ports.get(tensor.name) == name
    )


def _order(written: Sequence[pb.ModelEnsembling.Step], ensemble: EnsembleSpec, flavour: Flavour) -> None:
    """Let each step of the Python backend wait for the step before. A step whose text is absent runs for it, too."""

    def in_python(step: StepSpec) -> bool:
        return flavour is Flavour.PYTHON or step.model in (IMAGE_PREPROCESS, TOKENIZE)

    for (before, before_written), (step, step_written) in pairwise(zip(ensemble.steps, written, strict=True)):
        waits_already = set(before.outputs.values()) & set(step.inputs.values())
        if in_python(before) and in_python(step) and not waits_already:
            before_written.output_map[_DONE] = f"{before.model}.{_DONE}"
            step_written.input_map[_AFTER] = f"{before.model}.{_DONE}"


def _add_tensors(config: pb.ModelConfig, graph: GraphSpec) -> None:
    """Add a graph's inputs and outputs, and zeros to warm it up with at every length of text."""
    for tensor in graph.inputs:
        config.input.add(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=tensor.shape)
    for number, shapes in enumerate(graph.input_shapes()):
        warmup = config.model_warmup.add(name=f"zeros_{number}" if number else "zeros", batch_size=1)
        for tensor in graph.inputs:
            warmup.inputs[tensor.name].data_type = _DTYPES[tensor.dtype]
            warmup.inputs[tensor.name].dims.extend(shapes[tensor.name])
            warmup.inputs[tensor.name].zero_data = True
    for tensor in graph.outputs:
        config.output.add(name=tensor.name, data_type=_DTYPES[tensor.dtype], dims=list(tensor.shape))


def _python_model(name: str, max_batch: int) -> pb.ModelConfig:
    config = _model(name, max_batch)
    config.backend = "python"
    config.instance_group.add(count=LIMITS.instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.input.add(name=_AFTER, data_type=pb.TYPE_UINT8, dims=[1], optional=True)
    config.output.add(name=_DONE, data_type=pb.TYPE_UINT8, dims=[1])
    return config


def _model(name: str, max_batch: int) -> pb.ModelConfig:
    """Return a model with dynamic batching and a bounded queue."""
    config = pb.ModelConfig(name=name, max_batch_size=max_batch)
    config.dynamic_batching.max_queue_delay_microseconds = LIMITS.queue_delay_us
    bound_queue(config, size=LIMITS.queue_size, timeout_us=LIMITS.timeout_us)
    return config


def bound_queue(config: pb.ModelConfig, *, size: int, timeout_us: int) -> None:
    """Have a model batch the requests that wait, and refuse those that are too many or have waited too long."""
    policy = config.dynamic_batching.default_queue_policy
    policy.max_queue_size = size
    policy.default_timeout_microseconds = timeout_us
    policy.timeout_action = pb.ModelQueuePolicy.REJECT


def _add_file_warmup(config: pb.ModelConfig, tensor: str, file: str) -> None:
    warmup = config.model_warmup.add(name=file, batch_size=1)
    warmup.inputs[tensor].data_type = pb.TYPE_STRING
    warmup.inputs[tensor].dims.append(1)
    warmup.inputs[tensor].input_data_file = file
