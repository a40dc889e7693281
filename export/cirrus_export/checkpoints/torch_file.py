"""Read files that `torch.save` wrote, without running what is in them."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.pickled_module import read_pickled_modules

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
    *(
        (builder, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, builder in (("scalar", np.float64().__reduce__()[0]), ("_reconstruct", np.empty(0).__reduce__()[0]))
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdU"},  # of numbers and text, and none of objects
]
_DATA: list[Any] = [*_PATHS, *_NUMBERS, argparse.Namespace]
"""What trainers save beside tensors and torch does not read by itself: pure paths, NumPy's data and arguments."""
_NAME_OF_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>")
_REASON = re.compile(r"WeightsUnpickler error: (.+)")


def read_torch(path: Path) -> object:
    """Read a file of `torch.save` with `weights_only=True`, or the state dict of a module that was pickled in it.

    Raises CheckpointError if it holds anything else but tensors and plain data, which opening it would have to build by
    running code; whatever torch raises if it is broken.
    """
    try:
        with torch.serialization.safe_globals(_DATA), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named, reason = _NAME_OF_GLOBAL.search(str(error)), _REASON.search(str(error))
        if named is None:
            raise pickle.UnpicklingError(reason[1] if reason else "no file of torch.save") from None
        modules = read_pickled_modules(path) if zipfile.is_zipfile(path) else None
        if modules is not None:
            return modules
        raise CheckpointError(
            f"checkpoint {path}: refused, because opening it would run code stored in it: it holds a "
            f"{named[1] or named[2]}; save `model.state_dict()` in its author's environment and use that file"
        ) from None
