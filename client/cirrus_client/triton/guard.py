"""Clean up after a `tritonserver` whose owner was killed. Run as a script, and needs nothing but Python.

Usage: python -I guard.py GROUP FOLDER. Standard input is a pipe from the owner. When it ends without a byte, the owner
did not stop the server: the process group, its shared memory and the folder are removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PATIENCE_S = 10


def main() -> None:
    """Wait for the end of the pipe."""
    group, folder = int(sys.argv[1]), Path(sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read(1):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
    for path in Path("/dev/shm").glob(f"{folder.name}-*"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
