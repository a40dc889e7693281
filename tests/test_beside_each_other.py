"""What processes of tests that run beside each other share, and what they keep to themselves."""

from __future__ import annotations

import os

import pytest

beside_others = pytest.mark.skipif(
    os.environ.get("PYTEST_XDIST_WORKER") is None, reason="these tests run in one process"
)


@beside_others
def test_torch_and_faiss_have_as_many_threads_as_openmp_is_given() -> None:
    import faiss
    import torch

    wanted = int(os.environ["OMP_NUM_THREADS"])
    assert torch.get_num_threads() == wanted
    assert faiss.omp_get_max_threads() == wanted
