"""A gallery job that is killed, fed broken files or pointed at a changed folder loses and doubles nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import GalleryError, InvalidImage, OutputError, SpaceMismatch, StoredDataError
from cirrus_client.files import sha256_of_file
from cirrus_client.gallery import (
    FolderSource,
    GalleryWriter,
    ImageFile,
    Listing,
    PassedOver,
    embed_gallery,
    layout,
    read_gallery,
    twins,
)
from cirrus_client.gallery.twins import Twins
from tests.conftest import BAD_IMAGES
from tests.damage import flip_a_bit, rewrite_record
from tests.unprivileged import run_unprivileged


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "images"
    shutil.copytree(photos, copied / "deep" / "er")
    return copied


def by_path(gallery_root: Path) -> dict[str, np.ndarray]:
    """The embeddings of a gallery. Its digests are those of the files that are still there."""
    gallery = read_gallery(gallery_root)
    assert len(set(gallery.paths)) == len(gallery.paths)
    for shard in gallery.shards():
        for path, digest in zip(*(shard.items[name].to_pylist() for name in ("image_path", "sha256")), strict=True):
            file = Path(gallery.images) / path
            assert not file.exists() or sha256_of_file(file) == digest
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
    os.utime(next(folder.rglob("0*.jpg")), ns=(1, 1))
    again = embed_gallery(folder, tmp_path / "out", encoder, show_progress=False)
    assert (again.embedded, again.new, again.rejected) == (60, 1, summary.rejected)


@pytest.mark.slow
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
    while len(list(out.glob("shards/*.json"))) < 2:
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


def test_only_what_changed_is_embedded_again_and_what_is_gone_stays_until_it_is_pruned(
    folder, tmp_path, encoder
) -> None:
    out = tmp_path / "out"
    embed_gallery(folder, out, encoder, shard_size=10, show_progress=False)
    before = by_path(out)
    files = sorted(folder.rglob("*.jpg"))
    gone, changed = (str(path.relative_to(folder)) for path in files[:2])
    files[0].unlink()
    shutil.copyfile(files[30], files[1])
    shutil.copyfile(files[2], folder / "new.jpg")
    summary = embed_gallery(folder, out, encoder, shard_size=10, show_progress=False)
    assert (summary.embedded, summary.new, summary.missing) == (61, 2, 1)
    after = by_path(out)
    np.testing.assert_allclose(after[changed], after[str(files[30].relative_to(folder))], atol=2e-6)
    for path in before.keys() - {changed}:
        np.testing.assert_array_equal(after[path], before[path])
    summary = embed_gallery(folder, out, encoder, prune=True)
    assert (summary.embedded, summary.new, summary.missing) == (60, 0, 0)
    assert by_path(out).keys() == after.keys() - {gone}


def test_an_image_whose_etag_alone_has_changed_is_embedded_again(folder, tmp_path, encoder) -> None:
    """As a store lists it, without times; the new image may have the size of the old one."""

    class Tagged(FolderSource):
        def list(self) -> Listing:
            files = [ImageFile(file.path, -1, 0, sha256_of_file(folder / file.path)) for file in super().list().files]
            return Listing(tuple(files))

        def read(self, file: ImageFile) -> bytes:
            return (folder / file.path).read_bytes()

    embed_gallery(Tagged(folder), tmp_path / "out", encoder)
    first, second, *_ = sorted(folder.rglob("*.jpg"))
    shutil.copyfile(second, first)
    summary = embed_gallery(Tagged(folder), tmp_path / "out", encoder)
    assert (summary.embedded, summary.new, summary.copies) == (60, 1, 1)
    found = by_path(tmp_path / "out")
    np.testing.assert_array_equal(*(found[str(path.relative_to(folder))] for path in (first, second)))


def test_a_shard_does_not_count_beside_the_one_that_replaces_it(folder, tmp_path, encoder, monkeypatch) -> None:
    """A job that is killed between the record of the newer one and the removal of the older leaves both."""
    embed_gallery(folder, tmp_path / "out", encoder)
    os.utime(next(folder.rglob("*.jpg")), ns=(1, 1))
    with monkeypatch.context() as killed:
        killed.setattr(GalleryWriter, "drop", lambda self, shard: None)
        embed_gallery(folder, tmp_path / "out", encoder)
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 2
    assert len(by_path(tmp_path / "out")) == 60
    assert embed_gallery(folder, tmp_path / "out", encoder).new == 0
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 1


def test_a_folder_that_is_away_for_one_run_loses_no_embedding(folder, tmp_path, encoder) -> None:
    shutil.copytree(folder / "deep", folder / "mounted")
    embed_gallery(folder, tmp_path / "out", encoder, shard_size=17)
    whole = by_path(tmp_path / "out")
    (folder / "mounted").rename(tmp_path / "away")
    assert embed_gallery(folder, tmp_path / "out", encoder, shard_size=17).missing == 60
    (tmp_path / "away").rename(folder / "mounted")
    summary = embed_gallery(folder, tmp_path / "out", encoder, shard_size=17)
    assert (summary.embedded, summary.new, summary.missing) == (120, 0, 0)
    assert by_path(tmp_path / "out").keys() == whole.keys()


def test_a_file_is_rejected_for_its_bytes_and_only_as_long_as_it_has_them(folder, tmp_path, encoder) -> None:
    """A file was half copied when the first run read it, and has the same size and time when it is whole."""
    path = folder / "copied.jpg"
    whole = next(folder.rglob("0*.jpg")).read_bytes()
    path.write_bytes(whole[:300] + bytes(len(whole) - 300))
    status = path.stat()
    summary = embed_gallery(folder, tmp_path / "out", encoder)
    assert [item.file.path for item in summary.rejected] == ["copied.jpg"]
    again = embed_gallery(folder, tmp_path / "out", encoder)
    assert (again.new, len(again.rejected)) == (0, 1)
    faults = {path.name: [OSError(errno.EIO, "Input/output error")] * 9}
    unread = embed_gallery(Faulty(folder, faults), tmp_path / "out", encoder)
    assert (unread.rejected, unread.undone) == (again.rejected, ())
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    repaired = embed_gallery(folder, tmp_path / "out", encoder)
    assert (repaired.embedded, repaired.new, repaired.rejected) == (61, 1, ())


def test_an_image_that_a_source_rejects_stays_rejected_until_it_changes(folder, tmp_path, encoder) -> None:
    class Refusing(FolderSource):
        def read(self, file: ImageFile) -> bytes:
            if file.path == "bad.jpg":
                raise InvalidImage("its archive says that it is broken")
            return super().read(file)

    (folder / "bad.jpg").write_bytes(b"whatever")
    summary = embed_gallery(Refusing(folder), tmp_path / "out", encoder)
    assert [item.reason for item in summary.rejected] == ["its archive says that it is broken"]
    again = embed_gallery(Refusing(folder), tmp_path / "out", encoder)
    assert (again.new, len(again.rejected), again.is_whole) == (0, 1, True)
    shutil.copy(next(folder.rglob("0*.jpg")), folder / "bad.jpg")
    assert embed_gallery(folder, tmp_path / "out", encoder).embedded == 61


class Faulty(FolderSource):
    """A folder on a machine that fails at reading some files, and at some moments."""

    def __init__(self, folder: Path, faults: dict[str, list[OSError | MemoryError]]) -> None:
        super().__init__(folder)
        self.faults = faults

    def read(self, file: ImageFile) -> bytes:
        faults = self.faults.get(Path(file.path).name)
        if faults:
            raise faults.pop()
        return super().read(file)


def test_a_fault_of_the_machine_is_no_verdict_on_an_image(folder, tmp_path, encoder) -> None:
    names = sorted(path.name for path in folder.rglob("*.jpg"))
    io_error = OSError(errno.EIO, "Input/output error")
    faults: dict[str, list[OSError | MemoryError]] = {
        names[0]: [io_error],
        names[1]: [io_error] * 9,
        names[2]: [MemoryError()] * 9,
        names[3]: [MemoryError()],
    }
    summary = embed_gallery(Faulty(folder, faults), tmp_path / "out", encoder, shard_size=25)
    assert not summary.is_whole
    assert (summary.embedded, summary.new, summary.rejected) == (58, 58, ())
    assert {Path(item.file.path).name: item.reason for item in summary.undone} == {
        names[1]: "[Errno 5] Input/output error",
        names[2]: "there was not enough memory",
    }
    summary = embed_gallery(folder, tmp_path / "out", encoder, shard_size=25)
    assert summary.is_whole
    assert (summary.embedded, summary.new, summary.undone) == (60, 2, ())


def test_a_changed_image_that_cannot_be_read_keeps_its_older_embedding(folder, tmp_path, encoder) -> None:
    embed_gallery(folder, tmp_path / "out", encoder)
    changed = sorted(folder.rglob("*.jpg"))[4]
    os.utime(changed, ns=(1, 1))
    source = Faulty(folder, {changed.name: [OSError(errno.EIO, "Input/output error")] * 9})
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert (summary.embedded, summary.new, len(summary.undone)) == (60, 0, 1)
    summary = embed_gallery(folder, tmp_path / "out", encoder)
    assert (summary.embedded, summary.new, summary.undone) == (60, 1, ())


def test_a_file_that_changes_or_goes_after_it_was_listed_is_undone(folder, tmp_path, encoder) -> None:
    class Moving(FolderSource):
        def list(self) -> Listing:
            listing = super().list()
            first, second, third = (folder / file.path for file in listing.files[:3])
            first.write_bytes(first.read_bytes()[:500])
            second.unlink()
            os.utime(third, ns=(1, 1))
            return listing

    summary = embed_gallery(Moving(folder), tmp_path / "out", encoder)
    assert summary.rejected == ()
    changed, gone, touched = (item.reason for item in summary.undone)
    assert "has changed since it was listed" in changed
    assert "has changed since it was listed" in touched
    assert "No such file or directory" in gone
    summary = embed_gallery(folder, tmp_path / "out", encoder)
    assert (summary.embedded, summary.is_whole, len(summary.rejected)) == (58, True, 1)


def test_what_is_no_image_file_is_told_with_its_reason(folder, tmp_path, encoder) -> None:
    (folder / "notes.txt").write_text("no image")
    (folder / "README").write_text("no image")
    shutil.copy(next(folder.rglob("0*.jpg")), os.fsencode(folder) + b"/caf\xe9.jpg")
    (folder / "linked.jpg").symlink_to(next(folder.rglob("0*.jpg")))
    (folder / "nowhere.jpg").symlink_to("nothing.jpg")
    (folder / "circle").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    summary = embed_gallery(folder, tmp_path / "out", encoder)
    assert (summary.embedded, summary.rejected, summary.undone) == (61, (), ())
    assert {item.path: item.reason for item in summary.skipped} == {
        "notes.txt": "it does not begin as an image does, and its name ends in '.txt'",
        "README": "it does not begin as an image does, and its name has no suffix",
        os.fsdecode(b"caf\xe9.jpg"): "its name is not UTF-8; rename it",
        "nowhere.jpg": "it is a broken symbolic link",
        "circle": "it is a symbolic link to a folder, which is not followed",
        "pipe.jpg": "it is not a regular file",
    }
    assert "linked.jpg" in by_path(tmp_path / "out")


@pytest.mark.slow
def test_a_folder_that_may_not_be_read_is_told_as_unread(photos, tmp_path) -> None:
    shown = tmp_path / "shown"
    (shown / "secret").mkdir(parents=True)
    for name in ("a.jpg", "secret/b.jpg"):
        shutil.copy(photos / "000001.jpg", shown / name)
    (shown / "secret").chmod(0)
    assert listed_unprivileged(shown) == {"files": ["a.jpg"], "unread": [["secret", "Permission denied"]]}
    (shown / "secret").chmod(0o444)
    assert listed_unprivileged(shown) == {"files": ["a.jpg"], "unread": [["secret/b.jpg", "Permission denied"]]}
    (shown / "secret").chmod(0o755)


def listed_unprivileged(folder: Path) -> dict[str, Any]:
    script = (
        "import json, sys\n"
        "from cirrus_client.gallery import FolderSource\n"
        "listing = FolderSource(sys.argv[1]).list()\n"
        "files, unread = [i.path for i in listing.files], [[i.path, i.reason] for i in listing.unread]\n"
        "print(json.dumps({'files': files, 'unread': unread}))\n"
    )
    done = run_unprivileged([sys.executable, "-c", script, folder])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pruning_is_refused_where_part_of_the_folder_could_not_be_read(folder, tmp_path, encoder) -> None:
    class Hidden(FolderSource):
        def list(self) -> Listing:
            return replace(super().list(), unread=(PassedOver("deep", "Permission denied"),))

    embed_gallery(folder, tmp_path / "out", encoder)
    with pytest.raises(GalleryError, match="which images are gone is not known"):
        embed_gallery(Hidden(folder), tmp_path / "out", encoder, prune=True)
    assert not embed_gallery(Hidden(folder), tmp_path / "out", encoder).is_whole


def test_a_second_job_on_one_gallery_is_refused_with_the_first_ones_name(folder, tmp_path, encoder) -> None:
    class Slow(FolderSource):
        def read(self, file: ImageFile) -> bytes:
            started.set()
            assert go_on.wait(300)
            return super().read(file)

    started, go_on = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(embed_gallery, Slow(folder), tmp_path / "out", encoder)
        assert started.wait(300)
        with pytest.raises(OutputError, match=f"process {os.getpid()} on .* is writing it"):
            embed_gallery(folder, tmp_path / "out", encoder)
        go_on.set()
        assert first.result().embedded == 60
    assert not list((tmp_path / "out").glob(".*"))


_DAMAGES = {
    "bit": lambda path: flip_a_bit(path, path.stat().st_size // 2),
    "last bit": lambda path: flip_a_bit(path, path.stat().st_size - 2),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "another file": lambda path: shutil.copyfile(__file__, path),
}


@pytest.mark.parametrize("damage", list(_DAMAGES))
@pytest.mark.parametrize("file", ["gallery.json", "queries.npy", "queries.json", "shards", "img_emb", "metadata"])
def test_no_damage_to_a_gallery_goes_unnoticed(embedded_once, tmp_path, file: str, damage: str) -> None:
    root = tmp_path / "gallery"
    shutil.copytree(embedded_once, root)
    path = root / file
    if path.is_dir():
        path = sorted(path.iterdir())[1]
    _DAMAGES[damage](path)

    def read() -> None:
        gallery = read_gallery(root)
        assert gallery.queries() is not None, "the queries are gone"
        assert len(gallery.paths) == len(gallery.embeddings) == 60, "a shard is gone"

    if damage == "gone" and file in ("queries.json", "shards"):
        with pytest.raises(AssertionError, match="gone"):
            read()
    else:
        with pytest.raises(GalleryError):
            read()


@pytest.mark.parametrize("rows", ["zeros", "another order", "float64", "wider", "pickled"])
def test_rows_that_are_not_those_that_were_embedded_are_refused(embedded_once, tmp_path, rows: str) -> None:
    shutil.copytree(embedded_once, tmp_path / "gallery")
    path = sorted((tmp_path / "gallery" / "img_emb").iterdir())[0]
    found = np.load(path)
    changed = {
        "zeros": np.zeros_like(found),
        "another order": found[::-1],
        "float64": found.astype(np.float64),
        "wider": np.concatenate([found, found], axis=1),
        "pickled": np.array([{}] * len(found)),
    }[rows]
    np.save(path, changed, allow_pickle=True)
    with pytest.raises(GalleryError, match="is corrupted"):
        _ = read_gallery(tmp_path / "gallery").embeddings
    record = tmp_path / "gallery" / "shards" / f"{path.stem.replace('img_emb', 'shard')}.json"
    files = json.loads(record.read_text())["files"] | {f"img_emb/{path.name}": sha256_of_file(path)}
    rewrite_record(record, files=files)
    if rows != "another order":
        with pytest.raises(GalleryError, match=r"length 0, expected 1|can't be read|expected float32"):
            _ = read_gallery(tmp_path / "gallery").embeddings


@pytest.fixture(scope="module")
def embedded_once(photos: Path, encoder, tmp_path_factory) -> Path:
    """A gallery of sixty images in three shards, with queries."""
    out = tmp_path_factory.mktemp("damaged") / "gallery"
    embed_gallery(photos, out, encoder, shard_size=20, queries=encoder.encode_targets([photos / "000001.jpg"]))
    return out


@pytest.mark.slow
def test_a_shard_whose_images_are_copied_is_checked_once(folder, tmp_path, encoder, monkeypatch) -> None:
    """Its checksum is that of some megabytes: for each copy, it would take as long as to embed it."""
    embed_gallery(folder, tmp_path / "out", encoder, shard_size=1)
    checked: list[Path] = []
    monkeypatch.setattr(layout, "sha256_of_file", lambda path: checked.append(path) or sha256_of_file(path))
    monkeypatch.setattr(twins, "_OPEN", 2)
    writer = GalleryWriter.open(tmp_path / "out", images=str(folder.resolve()), space=encoder.space)
    known = Twins(tmp_path / "out", digests := list(writer.digests()))
    checked.clear()
    for _, (digest,) in [(shard, rows) for shard, rows in digests if rows] * 2:
        assert known.embedding(digest) is not None
    assert len(checked) == len(set(checked)) > 2


_READS = """
import os, resource, sys
from cirrus_client.gallery import read_gallery

gallery = read_gallery(sys.argv[1])
os.close(lowest_free := os.dup(0))
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
assert len(gallery.embeddings) == len(gallery) > 4
"""


@pytest.mark.slow
def test_all_embeddings_are_read_with_few_files_open(folder, tmp_path, encoder) -> None:
    embed_gallery(folder, tmp_path / "out", encoder, shard_size=1)
    subprocess.run([sys.executable, "-c", _READS, str(tmp_path / "out")], check=True)


@pytest.mark.parametrize("which", ["images", "out"])
def test_a_folder_whose_name_is_not_utf8_is_told(folder, tmp_path, encoder, which: str) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    images, out = (folder, odd / "out") if which == "out" else (odd, tmp_path / "out")
    if which == "images":
        shutil.copytree(folder, odd)
    with pytest.raises(StoredDataError, match="the path is not UTF-8"):
        embed_gallery(images, out, encoder)
    assert not (out / "gallery.json").exists()


def test_a_record_that_is_a_link_to_nothing_is_told(embedded_once, tmp_path) -> None:
    """As git-annex leaves a file whose content was not fetched."""
    shutil.copytree(embedded_once, tmp_path / "gallery")
    record = next((tmp_path / "gallery" / "shards").iterdir())
    record.unlink()
    record.symlink_to("nowhere")
    with pytest.raises(GalleryError, match=f"{record.name} is gone"):
        read_gallery(tmp_path / "gallery")


def test_an_encoder_that_does_not_normalise_is_refused(folder, tmp_path, encoder) -> None:
    class Longer:
        space, concurrency, prepare = encoder.space, encoder.concurrency, encoder.prepare

        def encode_prepared(self, prepared: Sequence[Any]) -> np.ndarray:
            return 1.02 * encoder.encode_prepared(prepared)

    with pytest.raises(GalleryError, match=r"the encoder's embedding of .*jpg has length 1\.02, expected 1"):
        embed_gallery(folder, tmp_path / "out", Longer())


def test_another_space_is_refused(folder, tmp_path, encoder, clip_bundle) -> None:
    embed_gallery(folder, tmp_path / "out", encoder, show_progress=False)
    with pytest.raises(SpaceMismatch, match=f"{clip_bundle.spec.space.fingerprint}; they differ in .*target_head"):
        embed_gallery(folder, tmp_path / "out", LocalEncoder(clip_bundle), show_progress=False)


def test_a_gallery_without_an_embedding_is_begun_again(folder, tmp_path, encoder, clip_bundle) -> None:
    """A first job that found no image, or none that decodes, binds its folder to no images and no bundle."""
    wrong, out = tmp_path / "wrong", tmp_path / "out"
    wrong.mkdir()
    with pytest.raises(GalleryError, match="there is no image"):
        embed_gallery(wrong, out, encoder)
    (wrong / "broken.jpg").write_bytes(b"no image")
    queries = encoder.encode_targets([next(folder.rglob("*.jpg"))])
    assert len(embed_gallery(wrong, out, encoder, queries=queries).rejected) == 1
    late = GalleryWriter.open(out, images=str(wrong), space=encoder.space)
    with late.alone(), pytest.raises(OutputError, match="another"):
        embed_gallery(folder, out, LocalEncoder(clip_bundle))

    summary = embed_gallery(folder, out, LocalEncoder(clip_bundle), show_progress=False)
    assert (summary.embedded, summary.rejected) == (60, ())
    gallery = read_gallery(out)
    assert gallery.space == clip_bundle.spec.space
    assert gallery.queries() is None
    with pytest.raises(SpaceMismatch), late.alone():
        pass


def test_an_empty_folder_a_missing_one_and_a_foreign_target_are_refused(tmp_path, encoder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GalleryError, match="there is no image"):
        embed_gallery(tmp_path / "empty", tmp_path / "out", encoder)
    with pytest.raises(GalleryError, match="no such folder"):
        embed_gallery(tmp_path / "missing", tmp_path / "out", encoder)
    with pytest.raises(GalleryError, match="is not a gallery"):
        read_gallery(tmp_path / "empty")
