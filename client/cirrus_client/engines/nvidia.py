"""Load TensorRT and CUDA when they are first needed, and turn their errors into EngineError."""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import cache
from typing import Any

from cirrus_client.errors import EngineError
from cirrus_client.plans import Gpu, Library, version_numbers

_OLDEST_TENSORRT = (10, 0)
_KEPT = 8
_INSTALL = "on a machine with an NVIDIA GPU: pip install 'cirrus-cir[gpu]'"
_first_use = threading.Lock()
log = logging.getLogger(__name__)


def load_tensorrt() -> Any:
    """Return the module `tensorrt`. Raises EngineError if it is missing, can't be loaded, or is older than 10."""
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(f"TensorRT can't be loaded ({error}); {_INSTALL}") from None
    if version_numbers(tensorrt.__version__) < _OLDEST_TENSORRT:
        raise EngineError(f"TensorRT {tensorrt.__version__} is installed; Cirrus needs 10 or newer; {_INSTALL}")
    return tensorrt


def load_tensorrt_rtx() -> Any:
    """Return the module of TensorRT for RTX, which has TensorRT 11's names. Raises EngineError if it is missing."""
    try:
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT for RTX can't be loaded ({error}); with Python 3.11 on Linux: pip install 'cirrus-cir[rtx]'"
        ) from None
    return tensorrt_rtx_bindings


def load_library(library: Library) -> Any:
    """Return the module of a TensorRT library. Raises EngineError if it is missing."""
    return load_tensorrt_rtx() if library is Library.RTX else load_tensorrt()


def load_cuda() -> Any:
    """Return CUDA's runtime, `cuda.bindings.runtime`. Raises EngineError if it is missing."""
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as error:
        raise EngineError(f"the CUDA runtime can't be loaded ({error}); {_INSTALL}") from None
    return runtime


def cuda_result(answer: tuple[Any, ...]) -> Any:
    """Return the value that a call of the CUDA runtime returned. Raises EngineError with CUDA's name of the error."""
    error, *values = answer
    if int(error) != 0:
        raise EngineError(f"CUDA answered {error.name}; `nvidia-smi` shows whether the driver sees a GPU")
    return values[0] if values else None


def this_gpu() -> Gpu:
    """Return the GPU that this process uses. Raises EngineError if there is none."""
    cuda = load_cuda()
    try:
        device = cuda_result(cuda.cudaGetDevice())
        properties = cuda_result(cuda.cudaGetDeviceProperties(device))
    except EngineError as error:
        raise EngineError(f"no NVIDIA GPU can be used here: {error}") from None
    return Gpu(name=properties.name.decode(), compute_capability=f"{properties.major}.{properties.minor}")


def tensorrt_log(tensorrt: Any) -> Any:
    """Return this process's TensorRT logger. It keeps errors and warnings, which TensorRT reports only there."""
    with _first_use:
        return _only_log(tensorrt)


@cache
def _only_log(tensorrt: Any) -> Any:
    """Return one logger for the life of the process: TensorRT keeps using the first one that it gets."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=_KEPT)
            self.warnings: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.ILogger.Severity.INTERNAL_ERROR, tensorrt.ILogger.Severity.ERROR):
                self.errors.append(message)
            elif severity == tensorrt.ILogger.Severity.WARNING:
                self.warnings.append(message)
            log.debug("TensorRT: %s", message)

    return Log()


def tensorrt_reason(tensorrt: Any) -> str:
    """Return the errors that TensorRT logged since the last call of this function, and forget them."""
    errors = tensorrt_log(tensorrt).errors
    reason = "; ".join(errors) or "it gives no reason"
    errors.clear()
    return reason


def tensorrt_warnings(tensorrt: Any) -> tuple[str, ...]:
    """Return the warnings that TensorRT logged since the last call of this function, and forget them."""
    warnings = tensorrt_log(tensorrt).warnings
    found = tuple(warnings)
    warnings.clear()
    return found
