"""Disturb a job again and again, each time in a process of its own, and check its output after every time.

    python -m tests.torture.torturer JOB FAULT INPUTS OUT --stride N --most N --seed N

This process loads the packages and forks; it never starts a thread itself. The result is a line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet  # loaded once, here: every fork has it

from cirrus_client.errors import CirrusError
from tests.torture import faults
from tests.torture.jobs import JOBS, Job

FAULTS: dict[str, Callable[[], None]] = {
    "kill": faults.kill,
    "io error": faults.io_error,
    "disk full": faults.disk_full,
    "no memory": faults.no_memory,
}
AT_RANDOM = "kill at random"
READING = "io error at reading"
_EXPECTED, _DEFECT, _NO_SUCH_STEP = 3, 4, 5


def forked(work: Callable[[], object], *, kill_after_s: float | None = None) -> int:
    """Do work in a fork. Return 0, _EXPECTED for an error of the machine or of Cirrus, or minus the signal's number."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except (CirrusError, OSError, MemoryError):
            os._exit(_EXPECTED)
        except BaseException:
            traceback.print_exc()
            os._exit(_DEFECT)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def must(work: Callable[[], object], what: str) -> None:
    ended = forked(work)
    if ended:
        raise SystemExit(f"{what}: the process ended with {ended}")


def torture(job: Job, fault: str, *, stride: int, most: int, seed: int) -> dict[str, int]:
    """Disturb a job at every `stride`-th step, or `most` times at random moments. Return what was counted."""
    expected = job.out.parent / ".expected"
    must(job.prepare, "prepare")
    start = time.monotonic()
    must(job.run, "the undisturbed run")
    duration_s = time.monotonic() - start
    undisturbed = job.content()
    assert not expected.exists()
    generator = random.Random(seed)
    disturbed = kills = typed = unharmed = 0
    while disturbed < most:
        must(job.prepare, "prepare")
        if fault == AT_RANDOM:
            ended = forked(job.run, kill_after_s=generator.uniform(0, 1.1 * duration_s))
        else:
            ended = forked(partial(run_disturbed, job, fault, disturbed * stride))
            if ended == _NO_SUCH_STEP:
                break
        disturbed += 1
        kills += ended == -signal.SIGKILL
        typed += ended == _EXPECTED
        unharmed += ended == 0
        if ended not in (0, -signal.SIGKILL, _EXPECTED):
            raise SystemExit(f"disturbed at {disturbed}: ended with {ended}")
        must(job.check_usable, f"the output after {disturbed} ({fault}, ended with {ended})")
        must(job.run, f"the run after {disturbed} ({fault}, ended with {ended})")
        compare(undisturbed, job.content(), f"after {disturbed} ({fault}, ended with {ended})")
    return {"disturbed": disturbed, "killed": kills, "typed_errors": typed, "unharmed": unharmed}


def run_disturbed(job: Job, fault: str, step: int) -> None:
    """Run a job with a fault at one step. End the process with _NO_SUCH_STEP if the job has fewer steps."""
    if fault == READING:
        happened = faults.at_step(step, faults.io_error, faults.is_read_below(job.photos))
    else:
        happened = faults.at_step(step, FAULTS[fault])
    job.run()
    if not happened():
        os._exit(_NO_SUCH_STEP)


def compare(expected: dict[str, bytes], found: dict[str, bytes], when: str) -> None:
    if found == expected:
        return
    left = sorted(found.keys() - expected.keys())
    lost = sorted(expected.keys() - found.keys())
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    raise SystemExit(f"{when}: left behind {left}, lost {lost}, other content {other}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("fault", choices=[*FAULTS, AT_RANDOM, READING])
    parser.add_argument("inputs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    job = JOBS[given.job](given.inputs, given.out)
    print(json.dumps(torture(job, given.fault, stride=given.stride, most=given.most, seed=given.seed)))


if __name__ == "__main__":
    assert pyarrow.parquet
    sys.exit(main())
