"""In this folder bundles are tiny and hand-made, and so are photos: no torch, no export, no demo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from tests.object_store import ObjectStore


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Bundle) -> Bundle:
    return tiny_bundle


@pytest.fixture(scope="session")
def clip_bundle(tiny_zero_shot_bundle: Bundle) -> Bundle:
    return tiny_zero_shot_bundle


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="session")
def photos(pictures: Path) -> Path:
    return pictures


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    with ObjectStore.started() as running:
        yield running
