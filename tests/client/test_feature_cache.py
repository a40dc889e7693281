"""A gallery's backbone features are computed once: new heads, moved files and added images cost what is new."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.bundle import Bundle, SpaceSpec
from cirrus_client.encoders import LocalEncoder, local
from cirrus_client.engines.onnx_runtime import OnnxRuntimeEngine
from cirrus_client.errors import BundleError, GalleryError, OutputError, SpaceMismatch
from cirrus_client.gallery import FolderSource, Gallery, embed_gallery, feature_cache, read_gallery
from cirrus_client.gallery.cached_encoder import CachedEncoder
from cirrus_client.gallery.feature_cache import FeatureCache, FileKey
from tests.tiny import write_tiny_zero_shot_bundle


@pytest.fixture
def folder(photos, tmp_path) -> Path:
    copied = tmp_path / "photos"
    copied.mkdir()
    for path in sorted(photos.iterdir())[:20]:
        shutil.copy(path, copied)
    (copied / "broken.jpg").write_bytes(b"no image")
    return copied


def embed(bundle: Bundle, folder: Path, out: Path, cache: Path) -> Gallery:
    with FeatureCache(cache, bundle) as features:
        encoder = CachedEncoder(bundle, features)
        summary = embed_gallery(folder, out, encoder, recollection=encoder, shard_size=8)
    assert [rejected.file.path for rejected in summary.rejected] == ["broken.jpg"]
    return read_gallery(out)


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """Every image that is decoded from now on."""
    images: list[bytes] = []
    original = local.preprocess

    def recording(image, spec, decoding):
        images.append(image)
        return original(image, spec, decoding)

    monkeypatch.setattr(local, "preprocess", recording)
    return images


def test_a_batch_that_is_larger_than_the_graphs_take_is_divided(bundle, photos, tmp_path, monkeypatch) -> None:
    small = Bundle(bundle.root, bundle.spec.model_copy(update={"max_batch": 4}))
    sizes: list[int] = []
    run = OnnxRuntimeEngine.run

    def recording(self, inputs):
        sizes.append(len(next(iter(inputs.values()))))
        return run(self, inputs)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", recording)
    images = [path.read_bytes() for path in sorted(photos.iterdir())[:10]]
    with FeatureCache(tmp_path / "cache", small) as cache:
        encoder = CachedEncoder(small, cache, engine="onnxruntime")
        embeddings = encoder.encode_targets(images)
    LocalEncoder(small, engine="onnxruntime").encode_targets(images)
    assert max(sizes) == 4
    expected = LocalEncoder(bundle).encode_targets(images)
    assert (embeddings * expected).sum(axis=1).min() > 0.99999


def test_a_new_head_on_a_cached_gallery_opens_no_image(bundle, folder, tmp_path, decoded, monkeypatch) -> None:
    clip_bundle = write_tiny_zero_shot_bundle(tmp_path / "clip", pad=bundle.spec.preprocess.pad)
    plain = embed(clip_bundle, folder, tmp_path / "plain", tmp_path / "cache")
    assert len(decoded) == 21
    decoded.clear()
    opened: list[str] = []
    original = FolderSource.read
    monkeypatch.setattr(FolderSource, "read", lambda self, file: opened.append(file.path) or original(self, file))
    union = embed(bundle, folder, tmp_path / "union", tmp_path / "cache")
    assert set(opened) == {"broken.jpg"}
    for gallery, direct in ((plain, clip_bundle), (union, bundle)):
        expected = LocalEncoder(direct).encode_targets([folder / path for path in gallery.paths])
        assert (gallery.embeddings * expected).sum(axis=1).min() > 0.999999


def test_moved_and_touched_files_are_read_but_not_encoded_and_only_new_ones_are(
    bundle, folder, tmp_path, decoded
) -> None:
    embed(bundle, folder, tmp_path / "first", tmp_path / "cache")
    decoded.clear()
    first, second, *_ = sorted(folder.glob("0*.jpg"))
    first.rename(folder / "moved.jpg")
    second.touch()
    new = sorted(folder.glob("0*.jpg"))[-1].read_bytes() + b"\0"
    (folder / "new.jpg").write_bytes(new)
    gallery = embed(bundle, folder, tmp_path / "second", tmp_path / "cache")
    assert sorted(decoded, key=len) == sorted([b"no image", new], key=len)
    assert {"moved.jpg", "new.jpg"} <= set(gallery.paths)


def test_a_file_is_known_by_its_folder_and_its_time_too(bundle, photos, tmp_path) -> None:
    contents = [path.read_bytes() for path in sorted(photos.iterdir())[:2]]
    contents = [content.ljust(max(map(len, contents)), b"\0") for content in contents]
    expected = LocalEncoder(bundle).encode_targets(contents)
    assert expected[0] @ expected[1] < 0.99
    for step, (folder, place, time_ns) in enumerate((("a", 0, 1), ("b", 1, 1), ("a", 1, 2))):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "1.jpg").write_bytes(contents[place])
        os.utime(tmp_path / folder / "1.jpg", ns=(time_ns, time_ns))
        with FeatureCache(tmp_path / "cache", bundle) as cache:
            encoder = CachedEncoder(bundle, cache)
            embed_gallery(tmp_path / folder, tmp_path / f"out{step}", encoder, recollection=encoder)
        assert read_gallery(tmp_path / f"out{step}").embeddings[0] @ expected[place] > 0.9999


def test_the_bytes_that_a_file_had_last_are_remembered(bundle, tmp_path) -> None:
    key = FileKey("1.jpg", 1, 1, "")
    with FeatureCache(tmp_path / "cache", bundle) as cache:
        for digest in ("aa", "bb"):
            cache.remember(key, digest)
            cache.flush()
    with FeatureCache(tmp_path / "cache", bundle) as again:
        assert again.digest_of(key) == "bb"


def test_a_cache_of_another_backbone_and_a_damaged_one_are_refused(bundle, clip_bundle, folder, tmp_path) -> None:
    embed(bundle, folder, tmp_path / "gallery", tmp_path / "cache")
    with pytest.raises(SpaceMismatch, match="differs from the bundle in preprocess"):
        FeatureCache(tmp_path / "cache", clip_bundle)
    (shard,) = (tmp_path / "cache" / "features").glob("*.npy")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 0xFF
    shard.write_bytes(bytes(content))
    with pytest.raises(GalleryError, match=r"00000\.npy is missing or corrupted"):
        embed(bundle, folder, tmp_path / "again", tmp_path / "cache")
    with pytest.raises(GalleryError, match="not a feature cache"):
        FeatureCache(folder, bundle)
    graphs = {name: graph for name, graph in bundle.spec.graphs.items() if name != "target_head"}
    headless = Bundle(bundle.root, bundle.spec.model_copy(update={"graphs": graphs}))
    with pytest.raises(BundleError, match="nothing can be cached"):
        FeatureCache(tmp_path / "other", headless)


@pytest.mark.parametrize("component", ["activation", "pooling"])
def test_features_of_the_same_weights_with_another_activation_are_refused(bundle, tmp_path, component: str) -> None:
    """A backbone's sha256 is that of its weights, which do not show how they are run."""

    def saying(word: str) -> Bundle:
        space = bundle.spec.space
        components = space.components | {component: word}
        said = SpaceSpec.of(components, dim=space.dim, vectors=space.vectors, similarity=space.similarity)
        return Bundle(bundle.root, bundle.spec.model_copy(update={"space": said}))

    FeatureCache(tmp_path / "cache", saying("one")).close()
    FeatureCache(tmp_path / "cache", saying("one")).close()
    for other in (saying("another"), bundle):
        with pytest.raises(SpaceMismatch, match=f"differs from the bundle in {component}"):
            FeatureCache(tmp_path / "cache", other)


_DIES_AFTER_FLUSHING = """
import os, sys
import numpy as np
from cirrus_client.bundle import Bundle
from cirrus_client.gallery.feature_cache import FeatureCache, FileKey
from tests.tiny import write_tiny_zero_shot_bundle

cache = FeatureCache(sys.argv[1], Bundle.open(sys.argv[2]))
cache.put("aa", np.arange(64, dtype=np.float16))
cache.flush()
cache.put("bb", np.arange(64, dtype=np.float16))
os._exit(1)
"""


def test_what_was_flushed_survives_and_rows_are_found_again(bundle, tmp_path) -> None:
    command = [sys.executable, "-c", _DIES_AFTER_FLUSHING, str(tmp_path / "cache"), str(bundle.root)]
    assert subprocess.run(command, check=False).returncode == 1
    with FeatureCache(tmp_path / "cache", bundle) as again:
        assert len(again) == 1
        np.testing.assert_array_equal(again.get("aa"), np.arange(64, dtype=np.float16))


def test_a_second_process_is_refused_with_the_first_ones_name(bundle, tmp_path) -> None:
    with FeatureCache(tmp_path / "cache", bundle), pytest.raises(OutputError, match=f"process {os.getpid()} on") as no:
        FeatureCache(tmp_path / "cache", bundle)
    assert no.value.holder is not None
    FeatureCache(tmp_path / "cache", bundle).close()


def test_a_cache_whose_first_job_was_killed_before_its_first_write_is_taken_up(bundle, tmp_path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".cache.json.0123456789ab.cirrus-tmp").touch()
    (tmp_path / "cache" / ".lock").write_text("process 1 on elsewhere")
    FeatureCache(tmp_path / "cache", bundle).close()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cache.json"]


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("cache.json", b"{", "it is not JSON"),
        ("cache.json", b'{"backbone": "b"}', "it has no checksum"),
        ("features/00000.json", b"{", "it is not JSON"),
        ("features/00000.json", b'{"sha256": 7, "digests": [], "checksum": "0"}', "it is corrupted"),
        ("files/00000.json", b"[]", "Input should be an object"),
        ("files/00000.parquet", b"no parquet", "is missing or corrupted"),
    ],
)
def test_a_damaged_file_of_a_cache_is_named_with_the_way_out(
    bundle, folder, tmp_path, file: str, content: bytes, reason: str
) -> None:
    embed(bundle, folder, tmp_path / "gallery", tmp_path / "cache")
    (tmp_path / "cache" / file).write_bytes(content)
    with pytest.raises(GalleryError, match=f"{re.escape(file)}.*{reason}") as refused:
        FeatureCache(tmp_path / "cache", bundle)
    assert refused.value.path == tmp_path / "cache" / file
    assert "pydantic" not in str(refused.value)


def test_wide_features_are_written_before_they_fill_the_memory(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_BYTES", 2 * 64 * 10)
    with FeatureCache(tmp_path / "cache", bundle) as cache:
        for number in range(25):
            cache.put(f"{number:064x}", np.full(64, number, dtype=np.float16))
        assert cache.get(f"{3:064x}")[0] == 3
    shards = sorted((tmp_path / "cache" / "features").glob("*.npy"))
    assert [len(np.load(path)) for path in shards] == [10, 10, 5]


def test_a_killed_job_keeps_which_files_it_has_read(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_ROWS", 2)
    cache = FeatureCache(tmp_path / "cache", bundle)
    for number in range(3):
        cache.remember(FileKey(f"{number}.jpg", 1, 1, ""), f"{number:064x}")
        cache.put(f"{number:064x}", np.full(64, number, dtype=np.float16))
    cache._held.close()  # as the end of the process does
    with FeatureCache(tmp_path / "cache", bundle) as again:
        found = [again.digest_of(FileKey(f"{number}.jpg", 1, 1, "")) for number in range(3)]
    assert found == [f"{0:064x}", f"{1:064x}", None]


def test_a_cache_of_many_files_opens_few_at_a_time(bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "_SHARD_ROWS", 1)
    monkeypatch.setattr(feature_cache, "_OPEN", 3)
    with FeatureCache(tmp_path / "cache", bundle) as cache:
        for number in range(12):
            cache.put(f"{number:064x}", np.full(64, number, dtype=np.float16))
        before = len(os.listdir("/proc/self/fd"))
        for number in (*range(12), *range(12)):
            assert cache.get(f"{number:064x}")[0] == number
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_threads_that_share_a_cache_lose_nothing(bundle, tmp_path) -> None:
    digests = [f"{number:064x}" for number in range(5000)]

    def work(part: list[str], cache: FeatureCache) -> None:
        for digest in part:
            cache.put(digest, np.full(64, int(digest, 16) % 1000, dtype=np.float16))
            cache.remember(FileKey(digest, 1, 1, ""), digest)
            if int(digest, 16) % 500 == 0:
                cache.flush()

    with FeatureCache(tmp_path / "cache", bundle) as cache, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda start: work(digests[start::8], cache), range(8)))
    with FeatureCache(tmp_path / "cache", bundle) as again:
        assert len(again) == 5000
        for digest in digests[::97]:
            assert again.digest_of(FileKey(digest, 1, 1, "")) == digest
            found = again.get(digest)
            assert found is not None
            assert (found == int(digest, 16) % 1000).all()
