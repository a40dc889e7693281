"""What threads may share answers each of them rightly; what a forked process may not use says so."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle, Precision, Similarity, SpaceSpec
from cirrus_client.encoders import LocalEncoder, local
from cirrus_client.engines import EngineName, open_engine
from cirrus_client.errors import CirrusError, EngineError, SearchIndexError
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import FeatureCache
from cirrus_client.image.preprocess import Decoding, preprocess
from cirrus_client.index import BuildOptions, QuerySample, SearchKind, build_index
from cirrus_client.index.faiss_build import index_in_memory
from cirrus_client.retriever import open_retriever

THREADS = 8
CALLS = 30
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed (pip install openvino)"
)
ENGINES = [EngineName.ONNXRUNTIME, pytest.param(EngineName.OPENVINO, marks=needs_openvino)]
Call = Callable[[int], np.ndarray]


def check_shared(call: Call) -> None:
    """Eight threads, each with its own input, get the answers that one thread gets: none wrong, no error."""
    alone = [call(thread) for thread in range(THREADS)]
    together = threading.Barrier(THREADS)

    def work(thread: int) -> list[np.ndarray]:
        together.wait()
        return [call(thread) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(work, range(THREADS)))
    for expected, of_thread in zip(alone, answers, strict=True):
        for answer in of_thread:
            np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert not np.allclose(alone[0], alone[1], atol=1e-3)


def image_of(photos: Path, thread: int) -> bytes:
    return sorted(photos.iterdir())[thread].read_bytes()


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("bulk", [False, True])
def test_threads_share_an_engine(bundle: Bundle, name: EngineName, bulk: bool) -> None:
    engine = open_engine(bundle.graph_file("gallery"), Precision.FP32, engine=name, bulk=bulk)
    batches = [
        np.random.default_rng(seed).standard_normal((1 + seed % 3, 3, 96, 96), dtype=np.float32) * (seed + 1)
        for seed in range(THREADS)
    ]
    check_shared(lambda thread: engine({"pixels": batches[thread]})["target_embedding"][0])


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.slow
def test_threads_share_an_encoder(bundle: Bundle, photos: Path, name: EngineName) -> None:
    encoder = LocalEncoder(bundle, engine=name)
    images = [image_of(photos, thread) for thread in range(THREADS)]
    check_shared(lambda thread: encoder.encode_queries([images[thread]], [f"make it number {thread}"])[0])
    check_shared(lambda thread: encoder.encode_targets([images[thread]])[0])


def test_threads_share_an_encoder_with_a_cache(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    with FeatureCache(tmp_path / "cache", bundle) as cache:
        encoder = CachedEncoder(bundle, cache)
        check_shared(lambda thread: encoder.encode_targets([image_of(photos, thread)])[0])


@pytest.mark.parametrize("decoding", [Decoding.EXACT, Decoding.FAST])
@pytest.mark.slow
def test_threads_share_preprocessing(bundle: Bundle, photos: Path, decoding: Decoding) -> None:
    check_shared(lambda thread: preprocess(image_of(photos, thread), bundle.spec.preprocess, decoding))


@pytest.mark.parametrize("kind", list(SearchKind))
@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.slow
def test_threads_share_an_index(kind: SearchKind, vectors: int) -> None:
    generator = np.random.default_rng(0)
    space = SpaceSpec.of({}, dim=32, vectors=vectors, similarity=Similarity.MAX_COSINE)
    gallery = generator.standard_normal((3000, *space.item_shape), dtype=np.float32)
    queries = generator.standard_normal((THREADS, 32), dtype=np.float32)
    options = BuildOptions(kind, queries=QuerySample(queries, "a test"))
    index, _ = index_in_memory(space, gallery, options=options)
    check_shared(lambda thread: index.search(queries[thread : thread + 1], 10).scores[0])


@pytest.fixture
def index_root(bundle: Bundle, photos: Path, tmp_path: Path) -> Path:
    embed_gallery(photos, tmp_path / "gallery", LocalEncoder(bundle))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.slow
def test_threads_share_a_retriever(bundle: Bundle, photos: Path, index_root: Path) -> None:
    retriever = open_retriever(LocalEncoder(bundle), index_root)

    def scores(thread: int) -> np.ndarray:
        matches = retriever.search(image=image_of(photos, thread), text=f"make it number {thread}", k=10)
        return np.array([match.score for match in matches])

    check_shared(scores)


def test_a_graph_is_loaded_once_whoever_asks_first(bundle: Bundle, photos: Path, monkeypatch) -> None:
    loaded: list[tuple[str, bool]] = []
    original = local.open_graph

    def recording(bundle, name, **options):
        loaded.append((name, options["bulk"]))
        return original(bundle, name, **options)

    monkeypatch.setattr(local, "open_graph", recording)
    encoder = LocalEncoder(bundle)
    image = image_of(photos, 0)
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda _: encoder.encode_queries([image], ["in blue"]), range(2 * THREADS)))
    encoder.encode_targets([image])
    assert sorted(loaded) == sorted(set(loaded))
    assert [name for name, bulk in loaded if bulk] == ["gallery"]


def _answer_in_child(call: Callable[[], object], pipe) -> None:
    try:
        call()
        pipe.send(None)
    except CirrusError as error:
        pipe.send(error)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
@pytest.mark.parametrize("name", ENGINES)
def test_a_process_forked_after_loading_is_told_to_spawn(bundle: Bundle, photos: Path, name: EngineName) -> None:
    encoder = LocalEncoder(bundle, engine=name)
    image = image_of(photos, 0)
    encoder.encode_queries([image], ["in blue"])
    answer = in_forked_process(lambda: encoder.encode_queries([image], ["in blue"]))
    assert isinstance(answer, EngineError)
    assert "spawn" in str(answer)


@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's")
def test_an_index_forked_after_it_was_made_tells_to_spawn() -> None:
    space = SpaceSpec.of({}, dim=8, vectors=1, similarity=Similarity.COSINE)
    gallery = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    index, _ = index_in_memory(space, gallery)
    answer = in_forked_process(lambda: index.search(gallery[:1], 3))
    assert isinstance(answer, SearchIndexError)
    assert "spawn" in str(answer)


def in_forked_process(call: Callable[[], object]) -> object:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer_in_child, args=(call, theirs))
    process.start()
    assert ours.poll(60), "the forked process hangs"
    answer = ours.recv()
    process.join(10)
    return answer
