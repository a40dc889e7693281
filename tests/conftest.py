"""Fixtures that many tests share. What takes long is made once per run, also by several pytest-xdist workers."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from cirrus_client.bundle import Bundle, Precision
from cirrus_client.encoders import LocalEncoder
from cirrus_client.triton.server import TritonServer, free_ports
from tests.tiny import with_repository, write_pictures, write_tiny_bundle, write_tiny_zero_shot_bundle

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes beside each other have a thread each: where torch has one for every core in all of them, its products
    # take three times as long, since threads wait for others that have no core. OpenMP reads it as torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
else:
    # The engine of a graph is measured once and kept: once a test run, and never in the user's own cache.
    _user_cache = tempfile.TemporaryDirectory(prefix="cirrus-tests-")
    os.environ["XDG_CACHE_HOME"] = _user_cache.name

# What the tests start is on this machine, and no proxy of the environment leads there.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
    filter(None, ("127.0.0.1,localhost,::1", os.environ.get("no_proxy") or os.environ.get("NO_PROXY")))
)

# A shell starts a job in the background with Ctrl-C ignored, and nohup with SIGHUP; what the tests start would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Property tests try the same examples in every run, so that what lands does not depend on luck. `make test-nightly`
# tries many more, new ones each night.
settings.register_profile("cirrus", derandomize=True, max_examples=100)
settings.register_profile("nightly", max_examples=10_000, suppress_health_check=list(HealthCheck))
settings.load_profile("cirrus")

_MARKED_FIXTURES = {
    "export": {
        "weights",
        "demo_bundle",
        "demo_bundle_in",
        "clip_bundle",
        "author_bundle",
        "reranking_bundle",
        "dpo_bundle",
        "small_clip",
    },
    "triton": {"server"},
    "slow": {"store"},
}


_MISSING = {
    "triton": None if find_spec("pytriton") else "Triton is not installed (pip install 'cirrus-cir[serve]')",
    "gpu": None if Path("/dev/nvidiactl").exists() else "this machine has no NVIDIA GPU",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--torture", metavar="FOLDER", help="disturb jobs at every step, and write a report into FOLDER")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the fixtures that they use, skip those that need what this machine does not have, and order files.

    Files that export come first: they take longest, and the others fill the processes that are done with theirs.
    """
    for item in items:
        for marker, fixtures in _MARKED_FIXTURES.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        for marker, reason in _MISSING.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    exporting = {item.path for item in items if item.get_closest_marker("export")}
    items.sort(key=lambda item: item.path not in exporting)


Make = Callable[[Path], object]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Return a function that makes a named folder or file once per run and returns its path."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    return partial(made_once, shared)


def made_once(shared: Path, name: str, make: Make) -> Path:
    """Make a folder or file unless it is there, one process at a time, and return its path."""
    path = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A hand-made bundle that composes image and text: no torch, no export."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_served(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The hand-made bundle with its model repository: it is served without an export."""
    return with_repository(write_tiny_bundle(tmp_path_factory.mktemp("served") / "tiny"))


@pytest.fixture(scope="session")
def tiny_zero_shot_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A hand-made bundle on the same backbone, in another space, that answers texts alone as well."""
    return write_tiny_zero_shot_bundle(tmp_path_factory.mktemp("bundles") / "tiny-clip")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty JPEG files with patches of colour."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 60)


@pytest.fixture(scope="session")
def conversions(request: pytest.FixtureRequest, once) -> Iterator[None]:
    """Exports of this run share graphs that are the same; with later runs, too, unless pytest's cache is off.

    What the compiler has accepted is not compiled again then.
    """
    from tests.conversions import kept_conversions, shared_conversions
    from tests.export import compiled

    cache = getattr(request.config, "cache", None)
    if cache:
        kept = kept_conversions(cache.mkdir("conversions"))
        once, compiled.passed = partial(made_once, kept), kept
    with shared_conversions(once):
        yield


@pytest.fixture(scope="session")
def weights(once, conversions):
    """The demo's committed weights as files."""
    from cirrus_demo.weights import materialise, paths_in

    return paths_in(once("weights", materialise))


@pytest.fixture(scope="session")
def probe():
    """The probe of `cirrus export`, less of it."""
    from cirrus_export.gate.probe import default_probe

    return default_probe(queries=24, gallery=64)


@pytest.fixture(scope="session")
def bundle(demo_bundle: Bundle) -> Bundle:
    """The bundle that a test uses without caring which: the demo's here, a tiny one in tests/client."""
    return demo_bundle


@pytest.fixture(scope="session")
def demo_bundle(demo_bundle_in) -> Bundle:
    """The demo's transagg-union bundle, fp32; its gate was passed."""
    return demo_bundle_in(Precision.FP32)


@pytest.fixture(scope="session")
def demo_bundle_in(weights, probe, once) -> Callable[[Precision], Bundle]:
    """Return a function that exports the demo's transagg-union at a precision. It raises FidelityError."""
    from cirrus_bench.subjects import demo_request
    from cirrus_export.pipeline import export

    def exported(precision: Precision) -> Bundle:
        return Bundle.open(once(f"demo-{precision}", lambda out: export(demo_request(weights, out, precision), probe)))

    return exported


@pytest.fixture(scope="session")
def clip_bundle(weights, probe, once) -> Bundle:
    """The demo's zero-shot bundle: the same backbone without a head."""
    from cirrus_export.pipeline import ExportRequest, export

    def make(out: Path) -> None:
        export(ExportRequest("clip", "cirrus-demo", str(weights.clip), None, out), probe)

    return Bundle.open(once("clip", make))


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="session")
def small_clip(once, conversions) -> Path:
    """The CLIP of the authors' small files, alone, as OpenAI's package saves it."""
    import torch

    from tests.export.author_files import KEYS

    def make(path: Path) -> None:
        keys = json.loads((KEYS / "pic2word.json").read_text())["state_dict"]
        generator = torch.Generator().manual_seed(5)
        state = {
            key.removeprefix("module."): 0.1 * torch.randn(shape, generator=generator) for key, shape in keys.items()
        }
        torch.save(state, path)

    return once("clip.pt", make)


@pytest.fixture(scope="session")
def author_bundle(small_clip, probe, once, tmp_path_factory) -> Callable[[str], Bundle]:
    """Return a function that exports an authors' checkpoint by the name of its recipe."""
    from cirrus_export.pipeline import export
    from tests.export.author_files import request

    def exported(recipe: str) -> Bundle:
        files = tmp_path_factory.mktemp(recipe)
        return Bundle.open(once(recipe, lambda out: export(request(files, recipe, small_clip, out=out), probe)))

    return exported


@pytest.fixture(scope="session")
def reranking_bundle(small_clip, probe, once, tmp_path_factory) -> Bundle:
    """The authors' checkpoint of sprc, exported with its head for matching."""
    from cirrus_export.pipeline import export
    from tests.export.author_files import request

    files = tmp_path_factory.mktemp("reranking")

    def make(out: Path) -> None:
        export(request(files, "sprc", small_clip, out=out, options={"reranker": "true"}), probe)

    return Bundle.open(once("reranking", make))


@pytest.fixture(scope="session")
def dpo_head(small_clip, once) -> Path:
    """Weights of another text transformer for the small CLIP, as Retrieval-DPO fine-tunes it."""
    import torch

    def make(path: Path) -> None:
        state = torch.load(small_clip, weights_only=True)
        prefix = "transformer."
        torch.save({key.removeprefix(prefix): -value for key, value in state.items() if key.startswith(prefix)}, path)

    return once("dpo.pt", make)


@pytest.fixture(scope="session")
def dpo_bundle(small_clip, dpo_head, probe, once) -> Bundle:
    """A retrieval-dpo bundle, which answers texts alone."""
    from cirrus_export.pipeline import export
    from tests.export.author_files import request

    def make(out: Path) -> None:
        export(request(out.parent, "retrieval-dpo", small_clip, head=str(dpo_head), out=out), probe)

    return Bundle.open(once("dpo", make))


@pytest.fixture(scope="session")
def photos(once) -> Path:
    """Sixty rendered photos of held-out garments."""
    from cirrus_demo.catalogue import write_photos

    return once("photos", lambda folder: write_photos(folder, count=60, size_px=256, seed=5, show_progress=False))


@pytest.fixture(scope="session")
def server(bundle: Bundle) -> Iterator[TritonServer]:
    """A real Triton server with the demo bundle."""
    http, grpc, metrics = free_ports(3)
    with TritonServer(
        bundle.root / "triton" / "python", http_port=http, grpc_port=grpc, metrics_port=metrics
    ) as running:
        yield running


def record_room(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the bytes of room that a module takes from now on, in order. None of them is waited for."""
    taken: list[int] = []

    @contextmanager
    def recorded(size: int) -> Iterator[None]:
        taken.append(size)
        yield

    monkeypatch.setattr(module, "room_for", recorded)
    return taken


def jpeg(colour: str = "red", size: tuple[int, int] = (120, 160)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "JPEG")
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD_IMAGES = {
    "not an image": (b"certainly no image, but some bytes", "not an image in a known format"),
    "truncated": (jpeg()[:-200], "broken"),
    "empty": (b"", "0 bytes"),
    "huge": (png_header(50_000, 50_000), "the limit is 100,000,000"),
}
