"""`make torture` disturbs every step and reports; a plain test run takes a sample of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cirrus_bench.measure import this_machine
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery
from tests.tiny import write_pictures, write_tiny_bundle, write_tiny_zero_shot_bundle
from tests.torture.report import Served, Tortured, TortureReport


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether every step is disturbed."""
    return pytestconfig.getoption("--torture") is not None


@pytest.fixture(scope="session")
def tally() -> list[Tortured]:
    """The report's rows about jobs."""
    return []


@pytest.fixture(scope="session")
def served() -> list[Served]:
    """The report's rows about the server."""
    return []


@pytest.fixture(scope="session", autouse=True)
def report(pytestconfig: pytest.Config, tally: list[Tortured], served: list[Served]) -> Iterator[None]:
    """Write the report at the end of a thorough run."""
    yield
    if (out := pytestconfig.getoption("--torture")) is not None:
        TortureReport(machine=this_machine(), rows=tuple(tally), served=tuple(served)).write(Path(out))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the jobs read: 24 photos, two bundles, and two galleries for two indexes."""
    root = tmp_path_factory.mktemp("torture")
    encoder = LocalEncoder(write_tiny_bundle(root / "bundle"), engine="onnxruntime")
    write_tiny_zero_shot_bundle(root / "other-bundle")
    write_pictures(root / "photos", 24)
    for name, count in (("old", 10), ("new", 14)):
        embed_gallery(write_pictures(root / f"{name}-photos", count), root / name, encoder)
    return root
