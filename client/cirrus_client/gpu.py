"""The NVIDIA GPU of this machine, as the driver tells it."""

from __future__ import annotations

import shutil
import subprocess

from cirrus_client.errors import EngineError

_LIMIT_S = 20


def query_gpu(*fields: str) -> list[str]:
    """Return fields of the first GPU, as `nvidia-smi --query-gpu` names them. Raises EngineError without a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise EngineError("there is no NVIDIA GPU here: nvidia-smi is not on the path")
    answer = subprocess.run(
        [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if answer.returncode != 0:
        raise EngineError(f"the NVIDIA driver does not answer: {(answer.stderr or answer.stdout).strip()}")
    return [value.strip() for value in answer.stdout.splitlines()[0].split(",")]


def compute_capability() -> str:
    """Return the compute capability of the first GPU, like "9.0". Raises EngineError without a GPU."""
    return query_gpu("compute_cap")[0]
