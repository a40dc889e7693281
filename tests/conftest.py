"""What many tests need: the demo model, exported once a session through the real pipeline."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from tests.tiny import write_pictures, write_tiny_bundle, write_tiny_zero_shot_bundle

# The engine of a graph is measured once and kept: once a test run, and never in the user's own cache.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cirrus-tests-")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A hand-made bundle that composes image and text: no torch, no export."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_zero_shot_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A hand-made bundle on the same backbone, in another space, that answers texts alone as well."""
    return write_tiny_zero_shot_bundle(tmp_path_factory.mktemp("bundles") / "tiny-clip")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty JPEG files with patches of colour."""
    return write_pictures(tmp_path_factory.mktemp("pictures"), 60)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory):
    from cirrus_demo.weights import materialise

    return materialise(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def probe():
    from cirrus_demo.probe import rendered_probe

    return rendered_probe(queries=24, gallery=64)


@pytest.fixture(scope="session")
def bundle(demo_bundle: Bundle) -> Bundle:
    """The bundle that a test uses without caring which: the demo's here, a tiny one in tests/client."""
    return demo_bundle


@pytest.fixture(scope="session")
def demo_bundle(weights, probe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo's transagg-union bundle, fp32, exported once per session; its gate was passed."""
    from cirrus_export.pipeline import ExportRequest, export

    request = ExportRequest(
        recipe="transagg-union",
        backbone="cirrus-demo",
        pretrained=str(weights.clip),
        head=str(weights.head),
        out=tmp_path_factory.mktemp("bundles") / "demo",
    )
    return export(request, probe)


@pytest.fixture(scope="session")
def clip_bundle(weights, probe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo's zero-shot bundle: the same backbone without a head."""
    from cirrus_export.pipeline import ExportRequest, export

    request = ExportRequest(
        recipe="clip",
        backbone="cirrus-demo",
        pretrained=str(weights.clip),
        head=None,
        out=tmp_path_factory.mktemp("bundles") / "clip",
    )
    return export(request, probe)


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CLIP of the authors' small files, alone, as OpenAI's package saves it."""
    import torch

    from tests.export.author_files import KEYS

    keys = json.loads((KEYS / "pic2word.json").read_text())["state_dict"]
    generator = torch.Generator().manual_seed(5)
    state = {key.removeprefix("module."): 0.1 * torch.randn(shape, generator=generator) for key, shape in keys.items()}
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rendered photos of held-out garments."""
    from cirrus_demo.catalogue import write_photos

    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, count=60, size_px=256, seed=5, show_progress=False)
    return folder


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
