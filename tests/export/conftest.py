"""Exports of these tests share the conversions of their run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _shared(conversions) -> None:
    """Every export here takes a graph that was converted before in this run."""


@pytest.fixture(scope="module", autouse=True)
def _own_models() -> Iterator[None]:
    """What a file of tests adds to open_clip's models is gone behind it."""
    import cirrus_export.backbones.torchvision_cpu  # noqa: F401  isort: skip
    from open_clip import factory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
        yield
