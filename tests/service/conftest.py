"""Services over the hand-made bundle and its sixty pictures, with metadata, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("fastapi", reason="the service is not installed (pip install 'cirrus-cir[service]')")
pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'cirrus-cir[search]')")

from starlette.testclient import TestClient

from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index, read_metadata
from cirrus_client.service.collection import Source
from tests.service.in_process import in_process


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Bundle) -> Bundle:
    return tiny_bundle


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> LocalEncoder:
    return LocalEncoder(bundle)


@pytest.fixture(scope="session")
def products(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Metadata of the pictures: a Parquet file with every type of column, and empty places."""
    names = sorted(path.name for path in pictures.iterdir())
    numbers = np.arange(len(names))
    table = pa.table(
        {
            "image_path": names,
            "price": pa.array([None if n % 7 == 0 else n * 1.5 for n in numbers.tolist()], pa.float32()),
            "stock": pa.array([None if n % 11 == 0 else int(n) - 20 for n in numbers], pa.int64()),
            "brand": [None if n % 13 == 0 else "abc"[n % 3] for n in numbers],
            "sold": pa.array([bool(n % 2) for n in numbers]),
            "since": pa.array([date(2026, 1 + n % 12, 1 + n % 28) for n in numbers.tolist()]),
            "product": [f"product {n // 4}" for n in numbers],
            "tags": pa.array([[str(n)] for n in numbers]),
        }
    )
    path = tmp_path_factory.mktemp("metadata") / "products.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="session")
def gallery_root(pictures: Path, encoder: LocalEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("service") / "gallery"
    embed_gallery(pictures, root, encoder)
    return root


@pytest.fixture(scope="session")
def index_root(gallery_root: Path, products: Path) -> Path:
    build_index(read_gallery(gallery_root), gallery_root.parent / "index", metadata=read_metadata(products))
    return gallery_root.parent / "index"


@pytest.fixture(scope="session")
def text_source(tiny_zero_shot_bundle: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A collection of another space, whose recipe answers texts alone as well."""
    root = tmp_path_factory.mktemp("texts")
    embed_gallery(pictures, root / "gallery", LocalEncoder(tiny_zero_shot_bundle))
    build_index(read_gallery(root / "gallery"), root / "index")
    return Source(tiny_zero_shot_bundle.root, root / "index")


Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def serve(bundle: Bundle, index_root: Path, text_source: Source) -> Iterator[Serve]:
    """Return a function that starts a service with options and returns a client of it."""
    with contextlib.ExitStack() as stack:

        def started(*, index: Path = index_root, **options: object) -> TestClient:
            collections = {"pictures": Source(bundle.root, index), "texts": text_source}
            return stack.enter_context(in_process(collections, **options))

        yield started


@pytest.fixture(scope="session")
def client(serve: Serve) -> TestClient:
    """A client of a service with the limits and the access of the default."""
    return serve()


@pytest.fixture(scope="session")
def photo(pictures: Path) -> bytes:
    return (pictures / "000007.jpg").read_bytes()
