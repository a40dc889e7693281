"""Jobs that are killed, or whose machine fails, at any moment: nothing is lost, doubled, mixed or left behind."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.gallery import read_gallery
from cirrus_client.index import open_index
from cirrus_client.outputs import MARK
from tests.torture.jobs import JOBS
from tests.torture.report import Tortured
from tests.torture.torturer import AT_RANDOM, FAULTS, READING
from tests.unprivileged import run_unprivileged

ROOT = Path(__file__).parents[2]
_SAMPLE = {"kill": 5, AT_RANDOM: 2, READING: 2}
"""Disturbed runs of each fault in a run that is not thorough; other faults are left to thorough ones."""

CASES = [
    (job, fault)
    for job in JOBS
    for fault in (*FAULTS, AT_RANDOM, READING)
    if fault != READING or job.startswith(("embed", "update"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("job", "fault"), CASES)
def test_a_disturbed_job_leaves_its_output_usable_and_the_next_run_makes_it_whole(
    inputs: Path, tmp_path: Path, thorough: bool, tally: list[Tortured], job: str, fault: str
) -> None:
    if not thorough and fault not in _SAMPLE:
        pytest.skip("make torture does it")
    if thorough:
        stride, most = 1 if fault == "kill" else 3, 20 if fault == AT_RANDOM else 1000
    else:
        stride, most = 2 if fault == READING else 7, _SAMPLE[fault]
    command = [sys.executable, "-m", "tests.torture.torturer", job, fault, inputs, tmp_path / "work" / "out"]
    done = subprocess.run(
        [*map(str, command), "--stride", str(stride), "--most", str(most)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted["disturbed"] > 1
    if fault == "kill":
        assert counted["killed"] == counted["disturbed"]
    if fault == READING:
        assert counted["unharmed"] == counted["disturbed"]
    tally.append(Tortured(job=job, fault=fault, **counted))


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True])
def test_of_two_jobs_at_once_one_does_it_and_the_other_is_told_who(
    inputs: Path, tmp_path: Path, thorough: bool, cache: bool
) -> None:
    for turn in range(5 if thorough else 1):
        out = tmp_path / f"gallery{turn}"
        command = [sys.executable, "-m", "cirrus_client.cli", "embed", inputs / "photos", "--bundle", inputs / "bundle"]
        command += ["--out", out, "--engine", "onnxruntime", "--batch-size", "2"]
        command += ["--cache", tmp_path / f"cache{turn}"] if cache else []
        jobs = [subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) for _ in range(2)]
        messages = {job.pid: job.communicate()[1] for job in jobs}
        ended = {job.pid: job.returncode for job in jobs}
        assert sorted(ended.values()) in ([0, 0], [0, 1]), messages  # one may have ended before the other began
        for loser in (pid for pid, code in ended.items() if code):
            winner = next(pid for pid in ended if pid != loser)
            assert f"process {winner} on" in messages[loser]
            assert "Traceback" not in messages[loser]
        assert len(set(read_gallery(out).paths)) == len(read_gallery(out)) == 24
        assert not list(out.rglob(".*"))


_ON_A_FULL_DISK = """
import subprocess, sys
from pathlib import Path
from tests.torture.jobs import JOBS
from tests.torture.torturer import forked, must

name, inputs, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
resize = lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
job = JOBS[name](inputs, folder / "work" / "out")
full = 0
for spare_kib in (4, 12, 24, 40, 64):
    resize("64m")
    must(job.prepare, "prepare")
    used = sum(path.stat().st_blocks for path in folder.rglob("*")) // 2
    resize(f"{used + spare_kib}k")
    ended = forked(job.run)
    assert ended in (0, 3), ended
    full += ended == 3
    resize("64m")
    must(job.check_usable, "usable")
    must(job.run, "again")
assert full > 1, full
"""


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_disk_that_is_really_full_loses_nothing(inputs: Path, tmp_path: Path, thorough: bool, job: str) -> None:
    if not thorough:
        pytest.skip("make torture does it")
    mount = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small file system can't be mounted here")
    command = [*mount, sys.executable, "-c", _ON_A_FULL_DISK, job, str(inputs), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_output_without_permission_is_a_message_and_costs_nothing(inputs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cirrus_client.cli", "index", inputs / "new", "--out", tmp_path / "deep" / "index"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep").chmod(0o555)
    refused = run_unprivileged(command)
    assert refused.returncode == 1
    assert "Permission denied" in refused.stderr
    assert "Traceback" not in refused.stderr
    (tmp_path / "deep").chmod(0o755)
    assert run_unprivileged(command).returncode == 0
    assert len(open_index(tmp_path / "deep" / "index").index) == 14


def _killed_at_random(command: list[str], duration_s: float, generator: random.Random) -> None:
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(generator.uniform(0, duration_s))
    job.kill()
    job.wait()


def _done(command: list[str]) -> float:
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.export
def test_an_export_that_is_killed_leaves_the_older_bundle(
    weights, tmp_path: Path, thorough: bool, tally: list[Tortured]
) -> None:
    if not thorough:
        pytest.skip("make torture does it")
    out = tmp_path / "work" / "bundle"
    command = [sys.executable, "-m", "cirrus_client.cli", "export", "--recipe", "clip", "--backbone", "cirrus-demo"]
    command += ["--pretrained", str(weights.clip), "--queries", "8", "--gallery", "16", "--out", str(out)]
    duration_s = _done([*command, "--option", "text_weight=0.25"])
    generator = random.Random(0)
    for _ in range(6):
        _killed_at_random([*command, "--option", "text_weight=0.75"], duration_s, generator)
        assert Bundle.open(out).spec.options["text_weight"] in (0.25, 0.75)
    _done([*command, "--option", "text_weight=0.5"])
    assert Bundle.open(out).spec.options["text_weight"] == 0.5
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    tally.append(Tortured(job="export", fault=AT_RANDOM, disturbed=6, killed=6, typed_errors=0, unharmed=0))


@pytest.mark.slow
@pytest.mark.export
def test_a_new_head_that_is_killed_leaves_no_copies_of_a_bundle(
    demo_bundle: Bundle, weights, photos: Path, tmp_path: Path, thorough: bool, tally: list[Tortured]
) -> None:
    if not thorough:
        pytest.skip("make torture does it")
    out = tmp_path / "work" / "gallery"
    command = [sys.executable, "-m", "cirrus_client.cli", "embed", str(photos), "--bundle", str(demo_bundle.root)]
    command += ["--head", str(weights.head), "--out", str(out), "--shard-size", "8"]
    duration_s = _done([*command[:-3], str(tmp_path / "undisturbed"), "--shard-size", "8"])
    generator = random.Random(0)
    for _ in range(6):
        _killed_at_random(command, duration_s, generator)
    _done(command)
    assert not [path for path in out.rglob(".*") if path.name != MARK]
    found, expected = read_gallery(out), read_gallery(tmp_path / "undisturbed")
    assert (len(found), found.paths) == (60, expected.paths)
    np.testing.assert_array_equal(found.embeddings, expected.embeddings)
    tally.append(Tortured(job="embed --head", fault=AT_RANDOM, disturbed=6, killed=6, typed_errors=0, unharmed=0))
