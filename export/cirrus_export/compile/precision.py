"""Lower a graph's precision inside its ONNX file: to half precision, or to Q/DQ nodes around its linear layers.

NVIDIA ModelOpt's AutoCast makes half precision, ONNX Runtime's static quantiser int8, and ModelOpt's quantiser fp8.
Inputs and outputs stay float32, and every engine compiles the same file.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from cirrus_client.bundle import Precision
from cirrus_client.engines import candidates
from cirrus_client.ensemble import Arrays, in_batches
from cirrus_client.errors import EngineError
from cirrus_export.compile.rounding import measure_rounding
from cirrus_export.restored import restored

_LINEAR = ("MatMul", "Gemm")
_LARGEST_ERROR, _FEWEST_ROWS = 0.03, 8
_CALIBRATION_BATCH = 16


def check_precision(precision: Precision) -> None:
    """Raise EngineError if no engine here can run graphs of this precision, so that none could verify one."""
    if not candidates(precision):
        raise EngineError(
            f"--precision {precision}: no engine here runs it, so the export could not be verified. bf16 takes an "
            "NVIDIA GPU, or OpenVINO (pip install openvino) on a CPU with bfloat16 (avx512_bf16 or amx_bf16 in "
            "/proc/cpuinfo); use --precision fp32, or export on such a machine"
        )


def lower_precision(path: Path, precision: Precision, calibration: Arrays) -> None:
    """Rewrite an ONNX file in place in a lower precision. Its inputs and outputs stay float32.

    calibration: real inputs of the graph, [B, ...] each. Half precision keeps nodes in float32 whose values exceed its
    range. Eight bits take their scales from the largest values seen. A graph without a linear layer to quantise stays
    as it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if precision is Precision.INT8:
            model = _int8(path, calibration, Path(scratch))
        elif precision is Precision.FP8:
            model = _fp8(path, calibration, Path(scratch))
        else:
            model = _half(path, precision, calibration, Path(scratch))
    # Shapes that were inferred for the calibration batch alone.
    del model.graph.value_info[:]
    external = path.with_name(path.name + ".data")
    if external.exists():
        external.unlink()
        onnx.save(model, path, save_as_external_data=True, location=external.name)
    else:
        onnx.save(model, path)
    onnx.checker.check_model(str(path))


def _half(path: Path, precision: Precision, calibration: Arrays, scratch: Path) -> onnx.ModelProto:
    """Convert matrix products and convolutions, which are nearly all of the work.

    Sums, normalisations and activation functions stay in float32, and so do their constants. Biases and position
    embeddings in half precision would change an embedding four times as much as the products do.
    """
    from modelopt.onnx.autocast import convert_to_mixed_precision  # heavy, and only needed below fp32

    logging.getLogger("modelopt").setLevel(logging.ERROR)
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    inputs = scratch / "calibration.npz"
    np.savez(inputs, **calibration)
    return convert_to_mixed_precision(
        str(path),
        low_precision_type=precision.value,
        op_types_to_exclude=sorted(kinds - {*_LINEAR, "Conv"}),
        keep_io_types=True,
        calibration_data=str(inputs),
    )


def _int8(path: Path, calibration: Arrays, scratch: Path) -> onnx.ModelProto:
    """Symmetric in activations and weights, as TensorRT wants it; weights per channel.

    Biases stay float32: NVIDIA's parser refuses INT32 ones (onnx-tensorrt#850). A product's output is not quantised
    before its bias is added, which would cost precision and gain nothing.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    layers = quantised_layers(path, Precision.INT8, calibration)
    if not layers:
        return onnx.load(path)
    quantised = scratch / "int8.onnx"
    quantize_static(
        path,
        quantised,
        _Batches(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=layers,
        calibrate_method=CalibrationMethod.MinMax,
        use_external_data_format=path.with_name(path.name + ".data").exists(),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(_LINEAR),
        },
    )
    return onnx.load(quantised)


def _fp8(path: Path, calibration: Arrays, scratch: Path) -> onnx.ModelProto:
    from modelopt.onnx.quantization import quantize  # heavy, and only needed for fp8
    from onnxruntime.quantization import base_quantizer, calibrate, qdq_quantizer

    layers = quantised_layers(path, Precision.FP8, calibration)
    if not layers:
        return onnx.load(path)
    # ModelOpt rewrites the file that it reads.
    copy, quantised = scratch / path.name, scratch / "fp8.onnx"
    onnx.save(onnx.load(path), copy, save_as_external_data=True, location=f"{path.name}.data")
    # It also replaces parts of ONNX Runtime's quantiser, for the life of the process and of every later int8 export.
    with restored(
        calibrate,
        calibrate.CalibraterBase,
        calibrate.MinMaxCalibrater,
        calibrate.HistogramCalibrater,
        calibrate.HistogramCollector,
        qdq_quantizer.QDQQuantizer,
        base_quantizer.BaseQuantizer,
    ):
        quantize(
            str(copy),
            quantize_mode="fp8",
            calibration_data=dict(calibration),
            output_path=str(quantised),
            # ModelOpt takes them for patterns of how names begin: node_linear_1 would quantise node_linear_10 too.
            nodes_to_quantize=[f"{re.escape(layer)}$" for layer in layers],
            high_precision_dtype="fp32",
            log_level="ERROR",
        )
    return onnx.load(quantised)


def quantised_layers(path: Path, precision: Precision, calibration: Arrays) -> list[str]:
    """Return the names of the linear layers that are quantised: products with a constant, with three exceptions.

    - Layers that make an output: rounding would go straight into the embedding.
    - Layers with fewer than 8 rows per item (heads): they are next to the embedding, and quantising them saves nothing.
    - Layers whose input eight bits change by over 3%: a few outliers, as behind some activation functions, would take
      the range that all other values share.

    The patch embedding, a convolution, is not quantised either. It is 4% of a ViT-B/32's time, and the demo's worst
    cosine would fall from 0.9995 to 0.998.
    """
    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    finals = {node.name for output in model.graph.output for node in _last_linear(output.name, makers)}
    layers = [
        node
        for node in model.graph.node
        if node.op_type in _LINEAR and any(name in constants for name in node.input) and node.name not in finals
    ]
    found = measure_rounding(path, sorted({node.input[0] for node in layers}), precision, calibration)
    kept = {
        name for name, rounding in found.items() if rounding.rows >= _FEWEST_ROWS and rounding.error <= _LARGEST_ERROR
    }
    return [node.name for node in layers if node.input[0] in kept]


def _last_linear(output: str, makers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the linear layer that makes an output, looking through nodes that reshape or normalise it."""
    node = makers.get(output)
    while node is not None:
        if node.op_type in _LINEAR:
            yield node
            return
        node = makers.get(node.input[0]) if node.input else None


class _Batches:
    """Calibration inputs in batches, as ONNX Runtime's quantiser reads them."""

    def __init__(self, inputs: Arrays) -> None:
        self._batches = in_batches(inputs, _CALIBRATION_BATCH)

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
        return next(self._batches, None)
