"""Page-locked and device memory of a tensor, on a CUDA runtime whose device is the host."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cirrus_client.engines.cuda_memory import TensorMemory
from cirrus_client.errors import EngineError


class HostCuda:
    """The six functions of CUDA's runtime that TensorMemory calls, with host memory for the device."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self, limit: int = 1 << 20) -> None:
        self.blocks: dict[int, Any] = {}
        self.limit = limit

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.limit:
            return (CudaError.MEMORY, 0)
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return (CudaError.NONE, ctypes.addressof(block))

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.blocks[address]
        return (CudaError.NONE,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        assert size <= min(len(self.blocks[to]), len(self.blocks[source]))
        ctypes.memmove(to, source, size)
        return (CudaError.NONE,)


class CudaError(int):
    NONE: CudaError
    MEMORY: CudaError
    name = "cudaErrorMemoryAllocation"


CudaError.NONE, CudaError.MEMORY = CudaError(0), CudaError(2)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_what_was_sent_is_received_and_later_batches_may_be_smaller(dtype: str) -> None:
    memory = TensorMemory(HostCuda(), 8 * 3 * np.dtype(dtype).itemsize)
    for rows in (8, 1, 5):
        sent = np.arange(rows * 3, dtype=dtype).reshape(rows, 3)
        kept = sent.copy()
        memory.send(sent, stream=0)
        sent[:] = 0
        memory.fetch(sent.nbytes, stream=0)
        received = memory.received((rows, 3), dtype)
        np.testing.assert_array_equal(received, kept)
        memory.send(np.zeros_like(kept), stream=0)
        np.testing.assert_array_equal(received, kept)


def test_memory_is_given_back() -> None:
    cuda = HostCuda()
    memory = TensorMemory(cuda, 12)
    assert len(cuda.blocks) == 2
    del memory
    assert cuda.blocks == {}


def test_a_device_without_memory_left_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="cudaErrorMemoryAllocation"):
        TensorMemory(HostCuda(limit=8), 12)
