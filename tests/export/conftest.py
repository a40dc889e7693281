"""Exports of these tests share the conversions of their run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _shared(conversions) -> None:
    """Every export here takes a graph that was converted before in this run."""
