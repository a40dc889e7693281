"""Skip what needs the compiler of TensorRT for RTX, which is a wheel for Python 3.11 on Linux."""

from importlib.util import find_spec

import pytest

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed (pip install 'cirrus-cir[rtx]')",
)
