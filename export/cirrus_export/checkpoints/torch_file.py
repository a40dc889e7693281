"""Read files that `torch.save` wrote, without running what is in them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirrus_client.errors import CheckpointError

_PATHS: list[tuple[Any, str]] = [
    (kind, f"{module}.{name}")
    for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
    for kind, names in (
        (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
        (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
    )
    for name in names
]
_NUMBERS: list[Any] = [
    *((np.float64().__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
]
_DATA: list[Any] = [*_PATHS, *_NUMBERS, argparse.Namespace]
"""What trainers save beside tensors and torch does not read by itself: paths (pure ones), numbers and arguments."""
_NAME_OF_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_REASON = re.compile(r"WeightsUnpickler error: (.+)")


def read_torch(path: Path) -> object:
    """Read a file of `torch.save` with `weights_only=True`.

    Raises CheckpointError if it holds anything but tensors and plain data, which opening it would have to build by
    running code; whatever torch raises if it is broken.
    """
    try:
        with torch.serialization.safe_globals(_DATA), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named, reason = _NAME_OF_GLOBAL.search(str(error)), _REASON.search(str(error))
        if named is None:
            raise pickle.UnpicklingError(reason[1] if reason else "no file of torch.save") from None
        raise CheckpointError(
            f"checkpoint {path}: refused, because opening it would run code stored in it: it holds a {named[1]}; save "
            "`model.state_dict()` in its author's environment and use that file"
        ) from None
