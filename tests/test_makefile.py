"""The demo's targets of the Makefile, with stand-ins for `cirrus` and Python that note how they are called."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$(dirname "$0")/calls"
if [[ "$*" == *"cirrus_demo catalogue"* ]]; then
    mkdir -p "${@: -1}/sketches"
    touch "${@: -1}"/sketches/garment-{00000..00568}.jpg
fi
"""


def calls_of(target: str, demo: Path) -> list[str]:
    """Run a target in an empty folder of demo files; return the calls of its commands, in order."""
    commands, ready = demo.parent / "bin", demo.parent / "ready"
    commands.mkdir()
    for name in ("cirrus", "python"):
        (commands / name).write_text(STAND_IN)
        (commands / name).chmod(0o755)
    ready.touch()
    variables = (f"BIN={commands}", f"DEMO={demo}", f"READY={ready}")
    done = subprocess.run(
        ["make", "-C", ROOT, target, *variables], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (commands / "calls").read_text().splitlines()


def test_the_demo_ends_with_the_first_of_many_sketches(tmp_path: Path) -> None:
    last = calls_of("demo", tmp_path / "demo")[-1]
    assert last.startswith(f"cirrus search {tmp_path}/demo/catalogue/sketches/garment-00000.jpg --bundle")


def test_photos_that_were_interrupted_are_written_again(tmp_path: Path) -> None:
    (tmp_path / "demo" / "photos").mkdir(parents=True)
    (tmp_path / "demo" / "photos" / "000000.jpg").touch()
    calls = calls_of("export", tmp_path / "demo")
    assert f"python -m cirrus_demo photos {tmp_path}/demo/photos --count 600 --size-px 512" in calls
