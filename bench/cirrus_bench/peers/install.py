"""The list of peers, and their installation from the package registry."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cirrus_bench.errors import PeerError

_TORCH = ("torch==2.13.0",)
_NO_DEPENDENCIES = ("torchvision==0.28.0", "timm==1.0.31")
_DRIVERS = Path(__file__).parent / "drivers"
_STAMP = "requirements.sha256"
_LIMIT_S = 900


@dataclass(frozen=True)
class Peer:
    """A tool to compare with. requirements: what pip installs for it; none if it runs in this environment."""

    name: str
    requirements: tuple[str, ...] = ()

    @property
    def driver(self) -> Path:
        """The script in `drivers/` that embeds a folder of photos with the tool."""
        return _DRIVERS / f"{self.name.replace('-', '_')}_driver.py"

    @property
    def server(self) -> Path:
        """The script in `drivers/` that serves the tool over HTTP, if it has one."""
        return _DRIVERS / f"{self.name.replace('-', '_')}_server.py"


CLIP_RETRIEVAL = Peer("clip-retrieval", ("clip-retrieval==2.45.0", "setuptools<81"))
INFINITY = Peer("infinity", ("infinity-emb[server,torch,vision]==0.0.78", "aiohttp"))
PEERS = (
    Peer("open_clip"),
    CLIP_RETRIEVAL,
    INFINITY,
    Peer("clip-as-service", ("clip-server==0.8.3", "jina<3.24", "setuptools<81")),
)


def install(peer: Peer, folder: Path) -> Path:
    """Install a peer into a virtual environment below `folder`, unless it is there, and return its Python.

    torch is installed first and torchvision without its dependencies, so that a CPU machine gets no CUDA packages.
    Raises PeerError with pip's own reason.
    """
    if not peer.requirements:
        return Path(sys.executable)
    return environment(folder / peer.name, [_TORCH, ("--no-deps", *_NO_DEPENDENCIES), (*_TORCH, *peer.requirements)])


def environment(path: Path, steps: Sequence[Sequence[str]]) -> Path:
    """Create a virtual environment at `path` and return its Python.

    steps: arguments of `pip install`, one list per call. The environment is created again if they change. Raises
    PeerError with pip's own reason.
    """
    python = path / "bin" / "python"
    stamp = path / _STAMP
    wanted = hashlib.sha256(repr(steps).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(path)], path.name)
    for arguments in steps:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], path.name)
    stamp.write_text(wanted)
    return python


def installed_version(python: Path, package: str) -> str:
    """Return the version of a package in the environment of a Python."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{name} does not install: pip found no set of versions in {_LIMIT_S} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        reason = errors[-1] if errors else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PeerError(f"{name} does not install: {reason}")
