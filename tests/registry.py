"""Whether this machine reaches a package registry: tests that download packages are skipped where it does not."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest


def need_registry() -> None:
    """Skip the running test if pip reaches no package registry."""
    if not _reachable():
        pytest.skip("pip reaches no package registry from this machine")


@cache
def _reachable() -> bool:
    command = [sys.executable, "-m", "pip", "--retries", "0", "--timeout", "20", "index", "versions", "pip"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
