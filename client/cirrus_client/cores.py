"""How many cores this process may use: those of the machine, of its affinity, and of its container's quota.

ONNX Runtime, OpenVINO and OpenMP know the affinity but not the quota (`docker run --cpus`, a CPU limit in Kubernetes).
With a thread for each core of the node they use up a period's quota in a part of it, and then all of them wait.
"""

from __future__ import annotations

import os

_OPENMP = "OMP_NUM_THREADS"


def usable_cores() -> int:
    """Return the number of cores, at least 1. A part of a core counts as one."""
    from loky.backend.context import cpu_count

    return int(cpu_count())


def quota() -> int | None:
    """Return the number of cores if a quota allows fewer than the affinity, else None."""
    cores = usable_cores()
    return cores if cores < len(os.sched_getaffinity(0)) else None


def keep_openmp_to_quota() -> None:
    """Let FAISS, NumPy and torch use as many threads as the quota has cores, unless the user has said how many.

    They read the environment when they are first imported, so this comes before.
    """
    cores = quota()
    if cores is not None:
        os.environ.setdefault(_OPENMP, str(cores))
