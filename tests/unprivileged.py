"""Run a command that permissions hold for: root may read and write everything."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")


def run_unprivileged(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command as this user without what root may more than others. Skip the test where that can't be given up."""
    forgo: Sequence[str] = () if os.geteuid() else _WITHOUT_CAPABILITIES
    if forgo and not shutil.which(forgo[0]):
        pytest.skip(f"root may read and write everywhere, and there is no {forgo[0]} to give that up")
    return subprocess.run([*forgo, *map(str, command)], capture_output=True, text=True, check=False)
