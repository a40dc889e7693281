"""A fault that may pass says that the same command goes on, where a part of the job is kept."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import typer

from cirrus_client.bundle import Bundle
from cirrus_client.cli.failures import as_messages
from cirrus_client.encoders import LocalEncoder
from cirrus_client.encoders.local import Pixels
from cirrus_client.errors import EngineError, ServerUnavailable
from cirrus_client.gallery import embed_gallery


class Failing(LocalEncoder):
    """Ends in an error at one of its batches."""

    def __init__(self, bundle: Bundle, error: Exception, *, at: int) -> None:
        super().__init__(bundle)
        self._error, self._left = error, at

    def encode_prepared(self, prepared: Sequence[Pixels]) -> np.ndarray:
        if not self._left:
            raise self._error
        self._left -= 1
        return super().encode_prepared(prepared)


@pytest.mark.parametrize(
    ("error", "message", "may_pass"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data"), "/data: No space left on device", True),
        (ServerUnavailable("the server has gone"), "ServerUnavailable: the server has gone", True),
        (EngineError("the graph is wrong"), "EngineError: the graph is wrong", False),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_a_fault_says_that_the_same_command_resumes_where_it_does(
    bundle: Bundle, photos: Path, tmp_path: Path, capsys, error: Exception, message: str, may_pass: bool, at: int
) -> None:
    with pytest.raises(typer.Exit), as_messages(lambda: "embed"):
        embed_gallery(photos, tmp_path / "out", Failing(bundle, error, at=at), batch_size=32, shard_size=32)
    added = "; the same command resumes where this one stopped" if may_pass and at else ""
    assert capsys.readouterr().err.splitlines()[-1] == f"cirrus: {message}{added}"


def test_too_little_memory_is_a_message(capsys) -> None:
    with pytest.raises(typer.Exit) as ended, as_messages(lambda: "index"):
        np.empty(2**50)
    assert ended.value.exit_code == 1
    assert "cirrus: there is not enough memory (Unable to allocate" in capsys.readouterr().err
