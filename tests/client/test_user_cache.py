"""What is kept between starts: in the user's own cache, or nowhere; and nothing for anybody else."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cirrus_client.bundle import Bundle
from cirrus_client.user_cache import user_cache


def test_a_cache_of_the_user_alone_is_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = user_cache("engines")
    assert found == tmp_path / "cirrus" / "engines"
    assert found.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("shared", ["cirrus", "cirrus/engines"])
def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch, caplog, shared: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("engines") is not None
    (tmp_path / shared).chmod(0o777)
    assert user_cache("engines") is None
    assert "others may write to it" in caplog.text


def test_a_cache_that_is_in_the_way_or_nowhere_costs_a_warning_alone(tmp_path: Path, monkeypatch, caplog) -> None:
    (tmp_path / "cirrus").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("engines") is None
    assert caplog.records[-1].levelno == logging.WARNING
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert user_cache("engines") is None


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


_ENCODES = """
import os, sys
from cirrus_client import Bundle, LocalEncoder

def encode():
    for engine in sys.argv[3:]:
        LocalEncoder(Bundle.open(sys.argv[1]), engine=engine or None).encode_queries([None], ["in blue"])

encode()
if sys.argv[2] == "nobody":  # who could not import what root has installed
    os.setgroups([]), os.setgid(31337), os.setuid(31337)
    encode()
"""


def encode(bundle: Bundle, who: str, *engines: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", _ENCODES, str(bundle.root), who, *engines]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_engine_leaves_an_id_of_the_machine_at_home(tiny_zero_shot_bundle: Bundle, tmp_path: Path) -> None:
    engines = [name for name in ("onnxruntime", "openvino") if find_spec(name)]
    done = encode(tiny_zero_shot_bundle, "me", *engines, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_user_without_home_and_passwd_entry_encodes(tiny_zero_shot_bundle: Bundle, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can become a user who does not exist")
    import shutil

    copied = tmp_path / "bundle"
    shutil.copytree(tiny_zero_shot_bundle.root, copied)
    for path in (tmp_path, *list(tmp_path.parents)[:-2], *copied.rglob("*"), copied):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    done = encode(Bundle.open(copied), "nobody", "")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
