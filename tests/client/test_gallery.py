"""A gallery job that is killed, fed broken files or pointed at a changed folder loses and doubles nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import GalleryError, SpaceMismatch
from cirrus_client.gallery import embed_gallery, read_gallery
from tests.conftest import BAD_IMAGES


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "images"
    shutil.copytree(photos, copied / "deep" / "er")
    return copied


def by_path(gallery_root: Path) -> dict[str, np.ndarray]:
    gallery = read_gallery(gallery_root)
    assert len(set(gallery.paths)) == len(gallery.paths)
    return dict(zip(gallery.paths, gallery.embeddings, strict=True))


def test_embeddings_are_the_encoders_whatever_the_batch_and_shard(folder, tmp_path, encoder) -> None:
    summary = embed_gallery(folder, tmp_path / "out", encoder, batch_size=7, shard_size=25, show_progress=False)
    assert (summary.embedded, summary.new, summary.rejected) == (60, 60, ())
    embedded = by_path(tmp_path / "out")
    for path in list(embedded)[::13]:
        np.testing.assert_allclose(embedded[path], encoder.encode_targets([folder / path])[0], atol=2e-6)


def test_broken_files_are_listed_with_their_reason_and_skipped(folder, tmp_path, encoder) -> None:
    for name, (content, _) in BAD_IMAGES.items():
        (folder / f"{name}.jpg").write_bytes(content)
    summary = embed_gallery(folder, tmp_path / "out", encoder, show_progress=False)
    assert summary.embedded == 60
    reasons = {item.file.path: item.reason for item in summary.rejected}
    assert set(reasons) == {f"{name}.jpg" for name in BAD_IMAGES}
    for name, (_, reason) in BAD_IMAGES.items():
        assert reason in reasons[f"{name}.jpg"]


def test_a_job_killed_in_the_middle_resumes_with_nothing_lost_or_doubled(folder, tmp_path, encoder) -> None:
    out = tmp_path / "out"
    script = (
        "from pathlib import Path\n"
        "from cirrus_client.bundle import Bundle\n"
        "from cirrus_client.encoders import LocalEncoder\n"
        "from cirrus_client.gallery import embed_gallery\n"
        f"embed_gallery(Path({str(folder)!r}), Path({str(out)!r}), "
        f"LocalEncoder(Bundle.open({str(encoder.bundle.root)!r})), batch_size=2, shard_size=4)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(out.glob("metadata/*.parquet"))) < 2:
        assert time.monotonic() < deadline
        assert job.poll() is None, "the job ended before it could be killed"
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    summary = embed_gallery(folder, out, encoder, batch_size=2, shard_size=4, show_progress=False)
    assert 0 < summary.new < 60
    assert summary.embedded == 60
    embed_gallery(folder, tmp_path / "uninterrupted", encoder, batch_size=2, shard_size=4, show_progress=False)
    resumed, uninterrupted = by_path(out), by_path(tmp_path / "uninterrupted")
    assert set(resumed) == set(uninterrupted)
    for path, embedding in resumed.items():
        np.testing.assert_allclose(embedding, uninterrupted[path], atol=2e-6)


def test_only_what_changed_is_embedded_again(folder, tmp_path, encoder) -> None:
    out = tmp_path / "out"
    embed_gallery(folder, out, encoder, shard_size=10, show_progress=False)
    files = sorted(folder.rglob("*.jpg"))
    files[0].unlink()
    shutil.copyfile(files[30], files[1])
    shutil.copyfile(files[2], folder / "new.jpg")
    summary = embed_gallery(folder, out, encoder, shard_size=10, show_progress=False)
    assert summary.embedded == 60
    assert summary.new == 10
    embedded = by_path(out)
    np.testing.assert_allclose(
        embedded[str(files[1].relative_to(folder))], embedded[str(files[30].relative_to(folder))], atol=2e-6
    )


def test_another_space_is_refused(folder, tmp_path, encoder, clip_bundle) -> None:
    embed_gallery(folder, tmp_path / "out", encoder, show_progress=False)
    with pytest.raises(SpaceMismatch, match=clip_bundle.spec.space.fingerprint):
        embed_gallery(folder, tmp_path / "out", LocalEncoder(clip_bundle), show_progress=False)


def test_an_empty_folder_a_missing_one_and_a_foreign_target_are_refused(tmp_path, encoder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError, match="no file ends in"):
        embed_gallery(tmp_path / "empty", tmp_path / "out", encoder)
    with pytest.raises(GalleryError, match="no such folder"):
        embed_gallery(tmp_path / "missing", tmp_path / "out", encoder)
    with pytest.raises(GalleryError, match="is not a gallery"):
        read_gallery(tmp_path / "empty")
