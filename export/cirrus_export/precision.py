"""Precision lives in the graph: float32 ONNX to float16 or bfloat16 with the sensitive operators left alone."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx

from cirrus_client.bundle import Precision
from cirrus_client.engines.onnx_runtime import available_providers
from cirrus_client.ensemble import Arrays
from cirrus_client.errors import EngineError

# Reductions, normalisations and softmax stay in float32: their sums overflow or lose the small differences between
# embeddings (SigLIP2 in fp16 drops to a cosine of 0.65, TensorRT#4373).
_KEPT_IN_FP32 = [
    "LayerNormalization",
    "RMSNormalization",
    "Softmax",
    "ReduceMean",
    "ReduceL2",
    "ReduceSum",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "Div",
]


def check_precision(precision: Precision) -> None:
    """Raise EngineError if no engine of this machine can run graphs of this precision, so that none could verify one.

    ONNX Runtime's CPU provider runs float16 by casting, and has no bfloat16 kernels.
    """
    if precision is Precision.BF16 and "CUDAExecutionProvider" not in available_providers():
        raise EngineError(
            "bf16 needs a GPU: ONNX Runtime's CPU provider has no bfloat16 kernels, so the export could not be "
            "verified here; use --precision fp32 or fp16, or export on the GPU machine"
        )


def lower_precision(path: Path, precision: Precision, calibration: Arrays) -> None:
    """Rewrite an ONNX file in place with NVIDIA ModelOpt's AutoCast; inputs and outputs stay float32.

    calibration: real inputs of the graph; nodes whose values leave the half-precision range stay in float32.
    """
    from modelopt.onnx.autocast import convert_to_mixed_precision  # heavy, and only needed below fp32

    logging.getLogger("modelopt").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "calibration.npz"
        np.savez(inputs, **calibration)
        model = convert_to_mixed_precision(
            str(path),
            low_precision_type=precision.value,
            op_types_to_exclude=_KEPT_IN_FP32,
            keep_io_types=True,
            calibration_data=str(inputs),
        )
    # ModelOpt leaves shapes behind that were inferred for the calibration batch alone.
    del model.graph.value_info[:]
    external = path.with_name(path.name + ".data")
    if external.exists():
        external.unlink()
        onnx.save(model, path, save_as_external_data=True, location=external.name)
    else:
        onnx.save(model, path)
    onnx.checker.check_model(str(path))
