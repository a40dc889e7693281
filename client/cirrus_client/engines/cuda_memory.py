"""Memory of one tensor on the GPU and on its way there, without torch."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.engines.nvidia import cuda_result


class TensorMemory:
    """Device memory for a tensor's largest batch, and page-locked host memory of the same size.

    Both are allocated once. A copy from page-locked memory is one transfer; the driver copies any other memory twice.
    """

    def __init__(self, cuda: Any, size: int) -> None:
        """Allocate `size` bytes twice. cuda: `cuda.bindings.runtime`. Raises EngineError if there is no memory left."""
        self._cuda = cuda
        self.device = int(cuda_result(cuda.cudaMalloc(size)))
        weakref.finalize(self, cuda.cudaFree, self.device)
        self._host = int(cuda_result(cuda.cudaMallocHost(size)))
        weakref.finalize(self, cuda.cudaFreeHost, self._host)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._host))

    def send(self, array: NDArray[Any], stream: Any) -> None:
        """Start to copy a contiguous array to the device. It may change as soon as this returns."""
        self._bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)
        to_device = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda_result(self._cuda.cudaMemcpyAsync(self.device, self._host, array.nbytes, to_device, stream))

    def fetch(self, size: int, stream: Any) -> None:
        """Start to copy `size` bytes from the device. `received` has them once the stream was synchronised."""
        to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        cuda_result(self._cuda.cudaMemcpyAsync(self._host, self.device, size, to_host, stream))

    def received(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """Return a copy of what was fetched."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = self._bytes[: array.nbytes]
        return array
