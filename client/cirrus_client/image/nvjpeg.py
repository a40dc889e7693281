"""Decode JPEGs on an NVIDIA GPU with nvImageCodec, whose JPEG decoder is nvJPEG.

https://docs.nvidia.com/cuda/nvimagecodec/py_api.html
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cirrus_client.errors import EngineError

_INSTALL = "pip install nvidia-nvimgcodec-cu13 nvidia-nvjpeg-cu13, or -cu12 for CUDA 12"
_of_thread = threading.local()


class NvJpegDecoder:
    """Decodes one image at a time into host memory. Threads must not share one: each makes its own."""

    def __init__(self, *, gpu: bool = True) -> None:
        """gpu: False chooses nvImageCodec's CPU decoder.

        Raises EngineError if nvImageCodec is not installed or finds no GPU.
        """
        try:
            import nvidia.nvimgcodec as nvimgcodec
        except ImportError as error:
            raise EngineError(f"nvImageCodec can't be loaded ({error}); {_INSTALL}") from None
        kinds = nvimgcodec.BackendKind
        chosen = (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU) if gpu else (kinds.CPU_ONLY,)
        device = nvimgcodec.NVIMGCODEC_DEVICE_CURRENT if gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
        backends = [nvimgcodec.Backend(kind) for kind in chosen]
        try:
            self._decoder = nvimgcodec.Decoder(device_id=device, max_num_cpu_threads=1, backends=backends)
        except RuntimeError as error:
            raise EngineError(f"nvImageCodec finds no GPU ({error}); leave out `--decode nvjpeg`") from None
        self._parameters: Any = nvimgcodec.DecodeParams(
            apply_exif_orientation=True, color_spec=nvimgcodec.ColorSpec.SRGB
        )

    def __call__(self, image: bytes) -> NDArray[np.uint8] | None:
        """Return the upright image, uint8 RGB [height, width, 3], or None if this decoder can't decode it."""
        decoded = self._decoder.decode(image, params=self._parameters)
        return None if decoded is None else np.asarray(decoded.cpu())


def decode_on_gpu(image: bytes) -> NDArray[np.uint8] | None:
    """Decode with this thread's decoder; see `NvJpegDecoder`."""
    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = NvJpegDecoder()
    decoder: NvJpegDecoder = _of_thread.decoder
    return decoder(image)
