"""The same images from a folder, a list, tars, Parquet files and an object store: one embedding, each image once."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import shutil
import socket
import tarfile
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import EngineError, GalleryError, UnreadableImage
from cirrus_client.gallery import Columns, ImageFile, Source, embed_gallery, open_source, read_gallery
from cirrus_client.gallery.sources.container import Container
from cirrus_client.gallery.sources.store import described, expanded, filesystem, in_threads, patiently, read_remote
from cirrus_client.gallery.sources.tars import TarSource
from cirrus_client.index import build_index, open_index
from tests.conftest import BAD_IMAGES

COUNT = 40


@pytest.fixture(scope="module")
def folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos, the last a copy of the first, and a broken one."""
    root = tmp_path_factory.mktemp("folder") / "photos"
    root.mkdir()
    for path in sorted(pictures.iterdir())[: COUNT - 1]:
        shutil.copy(path, root / path.name)
    shutil.copy(sorted(pictures.iterdir())[0], root / f"{COUNT - 1:06d}.jpg")
    (root / "broken.jpg").write_bytes(BAD_IMAGES["truncated"][0])
    return root


@pytest.fixture(scope="module")
def from_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory, bundle: Any) -> dict[str, bytes]:
    """The embedding of every image of the folder, by its name."""
    return embedded(folder, tmp_path_factory.mktemp("out"), LocalEncoder(bundle))


def embedded(source: Any, out: Path, encoder: LocalEncoder, **options: Any) -> dict[str, bytes]:
    embed_gallery(source, out, encoder, **{"shard_size": 15, "batch_size": 8} | options)
    return by_name(out)


def by_name(out: Path) -> dict[str, bytes]:
    gallery = read_gallery(out)
    assert len(set(gallery.paths)) == len(gallery.paths)
    return {Path(path).name: row.tobytes() for path, row in zip(gallery.paths, gallery.embeddings, strict=True)}


def write_tars(photos: Path, to: Path, *, tars: int = 3) -> str:
    """Write webdataset tars, a caption and a JSON file to each photo, and return their pattern."""
    to.mkdir(parents=True, exist_ok=True)
    paths = sorted(photos.iterdir())
    for number in range(tars):
        with tarfile.open(to / f"{number:05d}.tar", "w") as tar:
            for path in paths[number::tars]:
                add(tar, path.name, path.read_bytes())
                add(tar, f"{path.stem}.txt", f"photo {path.stem}".encode())
                add(tar, f"{path.stem}.json", json.dumps({"price": len(path.stem), "size": "L"}).encode())
    return str(to / f"{{00000..{tars - 1:05d}}}.tar")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def hugging_face_table(photos: Path) -> pa.Table:
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(photos.iterdir())]
    return pa.table({"image": rows, "label": [row["path"][:3] for row in rows], "size": range(len(rows))})


def img2dataset_table(photos: Path) -> pa.Table:
    paths = sorted(photos.iterdir())
    columns = {"jpg": [path.read_bytes() for path in paths], "key": [path.name for path in paths]}
    return pa.table(columns | {"caption": [f"photo {path.stem}" for path in paths]})


def write_table(table: pa.Table, path: Path, *, group: int = 16) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return str(path)


LOCAL: dict[str, Callable[[Path, Path], str]] = {
    "list": lambda photos, to: write_list(to / "photos.txt", [str(path) for path in sorted(photos.iterdir())]),
    "tars": lambda photos, to: write_tars(photos, to / "tars"),
    "parquet of structs": lambda photos, to: write_table(hugging_face_table(photos), to / "train-00.parquet"),
    "parquet of bytes": lambda photos, to: write_table(img2dataset_table(photos), to / "00000.parquet"),
    "parquet of paths": lambda photos, to: write_table(
        pa.table({"image_path": [str(path) for path in sorted(photos.iterdir())]}), to / "paths.parquet"
    ),
}


def write_list(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize("kind", list(LOCAL))
@pytest.mark.slow
def test_every_source_gives_an_image_the_same_bytes(kind, folder, from_folder, tmp_path, encoder) -> None:
    source = LOCAL[kind](folder, tmp_path)
    out = tmp_path / "out"
    summary = embed_gallery(source, out, encoder, shard_size=15, batch_size=8)
    assert by_name(out) == from_folder
    assert (summary.embedded, summary.new, summary.copies, summary.is_whole) == (COUNT, COUNT + 1, 1, True)
    assert [(Path(item.file.path).name, item.reason) for item in summary.rejected] == [
        ("broken.jpg", next(item.reason for item in summary.rejected))
    ]
    assert "broken" in summary.rejected[0].reason
    again = embed_gallery(source, out, encoder, shard_size=15, batch_size=8)
    assert (again.embedded, again.new, len(again.rejected), again.is_whole) == (COUNT, 0, 1, True)


def test_an_object_store_gives_an_image_the_same_bytes(folder, from_folder, store, tmp_path, encoder) -> None:
    url = store.upload(folder, "photos/2026")
    assert embedded(url, tmp_path / "out", encoder) == from_folder
    assert embed_gallery(url, tmp_path / "out", encoder).new == 0
    assert pickle.loads(pickle.dumps(open_source(url))).root == url
    assert embedded(url.replace("s3://", "S3://"), tmp_path / "capitals", encoder) == from_folder


@pytest.mark.parametrize("kind", ["tars", "parquet of structs", "list"])
def test_containers_and_lists_may_lie_in_an_object_store(
    kind, folder, from_folder, store, tmp_path, encoder, tmp_path_factory
) -> None:
    local = LOCAL[kind](folder, tmp_path_factory.mktemp("uploaded"))
    url = store.upload(Path(local).parent, kind.replace(" ", "-"))
    assert embedded(f"{url}/{Path(local).name}", tmp_path / "out", encoder) == from_folder


def test_keys_that_no_folder_could_have_lose_no_image_and_leave_nothing_undone(
    folder, from_folder, store, tmp_path, encoder
) -> None:
    """The consoles of stores write an empty object for every folder that is made there."""
    for key in ("odd/", "odd/sub/", "odd/sub.jpg/"):
        store.put(key, b"")
    for key, name in {"a.jpg": "000001.jpg", "/a.jpg": "000002.jpg", "sub//a.jpg": "000003.jpg"}.items():
        store.put(f"odd/{key}", (folder / name).read_bytes())
    summary = embed_gallery("s3://photos/odd", tmp_path / "out", encoder)
    assert summary.is_whole
    assert sorted(item.path for item in summary.skipped) == ["/", "sub.jpg/", "sub/"]
    gallery = read_gallery(tmp_path / "out")
    assert {path: row.tobytes() for path, row in zip(gallery.paths, gallery.embeddings, strict=True)} == {
        "a.jpg": from_folder["000001.jpg"],
        "/a.jpg": from_folder["000002.jpg"],
        "sub//a.jpg": from_folder["000003.jpg"],
    }


@pytest.mark.parametrize("at", ["file://", ""])
def test_an_archive_that_a_chain_of_urls_names_is_a_store(at, folder, from_folder, tmp_path, encoder) -> None:
    write_tars(folder, tmp_path / "tars", tars=1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"photos/{path.name}")
        archive.write(tmp_path / "tars" / "00000.tar", "00000.tar")
        archive.writestr("photos.txt", "".join(f"photos/{name}\n" for name in from_folder))
    chain = f"::{at}{tmp_path / 'x.zip'}"
    for source in ("zip://photos", "zip://*.tar", "zip://photos.txt"):
        assert embedded(source + chain, tmp_path / source.replace("/", "-"), encoder) == from_folder
    build_index(read_gallery(tmp_path / "zip:--photos"), tmp_path / "index")
    (item,) = open_index(tmp_path / "index").items.rows([0])
    assert item is not None
    with fsspec.open(item.image) as file:
        assert file.read() == (folder / item.id).read_bytes()
    with pytest.raises(UnreadableImage, match="No such file"):
        embed_gallery(f"zip://photos::{at}{tmp_path / 'none.zip'}", tmp_path / "none", encoder)


def test_images_lie_at_the_root_of_a_store_and_below_names_with_letters_of_urls(folder, tmp_path, encoder) -> None:
    store = filesystem("memory://")[0]
    for path in ("/a.jpg", "/b::c/d.jpg", "/e?f#.jpg"):
        store.pipe_file(f"/letters{path}", (folder / "000001.jpg").read_bytes())
    embed_gallery("memory://letters", tmp_path / "out", encoder)
    assert sorted(read_gallery(tmp_path / "out").paths) == ["a.jpg", "b::c/d.jpg", "e?f#.jpg"]
    embed_gallery("memory://", tmp_path / "root", encoder)
    assert {"letters/a.jpg", "letters/b::c/d.jpg"} <= set(read_gallery(tmp_path / "root").paths)


class WebServer(ThreadingHTTPServer):
    """A web server that takes as many connections at once as come."""

    request_queue_size = 128


@pytest.mark.parametrize("at", ["photos/", "photos", "list"])
@pytest.mark.slow
def test_a_web_server_gives_an_image_the_same_bytes(at, folder, from_folder, tmp_path, encoder) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    shutil.copytree(folder, tmp_path / "served" / "photos")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with WebServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            urls = [f"{url}/photos/{path.name}" for path in sorted(folder.iterdir())]
            source = write_list(tmp_path / "urls.txt", urls) if at == "list" else f"{url}/{at}"
            assert embedded(source, tmp_path / "out", encoder) == from_folder
            assert embed_gallery(source, tmp_path / "out", encoder).new == 0
        finally:
            server.shutdown()
            thread.join()


def test_an_image_of_an_object_store_that_has_changed_is_embedded_again(folder, store, tmp_path, encoder) -> None:
    url = store.upload(folder, "changing")
    before = embedded(url, tmp_path / "out", encoder)
    content = (folder / "000007.jpg").read_bytes()
    store.put("changing/000003.jpg", content)
    store.put("changing/sub/new.jfif", content)
    store.put("changing/notes.json", b"{}")
    store.put("changing/no-suffix", content)
    store.delete("changing/000005.jpg")
    summary = embed_gallery(url, tmp_path / "out", encoder)
    assert (summary.new, summary.missing, summary.copies) == (3, 1, 3)
    assert [(item.path, item.reason) for item in summary.skipped] == [
        ("notes.json", "its name ends in '.json', which is no image's")
    ]
    after = by_name(tmp_path / "out")
    assert after["000003.jpg"] == after["new.jfif"] == after["no-suffix"] == before["000007.jpg"]
    assert {name for name in before if before[name] != after[name]} == {"000003.jpg"}
    assert embed_gallery(url, tmp_path / "out", encoder, prune=True).embedded == COUNT + 1


def test_reads_of_a_store_are_tried_again_and_what_stays_unreadable_is_undone(
    folder, from_folder, store, tmp_path, encoder
) -> None:
    url = store.upload(folder, "flaky")
    with store.failing("000004.jpg", times=2):
        assert embedded(url, tmp_path / "out", encoder) == from_folder
    with store.failing("000004.jpg", times=10_000):
        summary = embed_gallery(url, tmp_path / "other", encoder)
    assert [item.file.path for item in summary.undone] == ["000004.jpg"]
    assert (summary.embedded, summary.is_whole) == (COUNT - 1, False)
    assert embed_gallery(url, tmp_path / "other", encoder).new == 1
    assert by_name(tmp_path / "other") == from_folder


@pytest.mark.parametrize(
    "location", ["s3://photos", "s3://photos/*.tar", "s3://photos/{0..1}.tar", "s3://photos/x.txt"]
)
def test_a_store_that_cannot_be_asked_ends_in_a_message(location, store, tmp_path, encoder, monkeypatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        with pytest.raises((GalleryError, UnreadableImage), match=r"127\.0\.0\.1:1"):
            embed_gallery(location, tmp_path / "out", encoder)
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()


class _Broken(SimpleHTTPRequestHandler):
    """Closes the connection where the path has `broken` in it, once a folder's page was shown."""

    def do_GET(self) -> None:
        if "broken" in self.path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Write no log."""


class _Busy(SimpleHTTPRequestHandler):
    """Answers the first two requests of each kind for a path with 503, and never allows `secret`."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        if self._answers():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._answers():
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Write no log."""

    def _answers(self) -> bool:
        self.asked[f"{self.command} {self.path}"] += 1
        status = 403 if "secret" in self.path else 503 if self.asked[f"{self.command} {self.path}"] < 3 else 200
        if status != 200:
            self.send_error(status)
        return status == 200


def test_what_a_web_server_could_not_tell_is_asked_again_and_what_it_refuses_is_told(
    folder, tmp_path, encoder, monkeypatch
) -> None:
    monkeypatch.setattr("cirrus_client.gallery.sources.store._PAUSES_S", (0, 0))
    write_tars(folder, tmp_path / "served", tars=1)
    shutil.copy(folder / "000001.jpg", tmp_path / "served" / "busy.jpg")
    with WebServer(("127.0.0.1", 0), partial(_Busy, directory=tmp_path / "served")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            lines = [f"{url}/{name}" for name in ("busy.jpg", "gone.jpg", "secret.jpg")]
            summary = embed_gallery(write_list(tmp_path / "urls.txt", lines), tmp_path / "out", encoder)
            tars = embed_gallery(f"{url}/{{00000..00000}}.tar?signed=[a/b]*", tmp_path / "tars", encoder)
            with pytest.raises(GalleryError, match="the server answers 403"):
                embed_gallery(f"{url}/00000.tar?signed=secret", tmp_path / "refused", encoder)
        finally:
            server.shutdown()
    assert list(read_gallery(tmp_path / "out").paths) == [f"{url}/busy.jpg"]
    assert [item.reason.partition(".jpg: ")[2] for item in summary.unread] == [
        "the server answers 404 File not found",
        "the server answers 403 Forbidden",
    ]
    assert (tars.embedded, tars.unread) == (COUNT, ())
    assert _Busy.asked["GET /secret.jpg"] == 1, "what is refused is not asked for again"


def test_a_web_server_that_does_not_answer_is_no_empty_folder(pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cirrus_client.gallery.sources.store._PAUSES_S", (0, 0))
    with pytest.raises(UnreadableImage, match=r"can't read http://127\.0\.0\.1:1/photos"):
        open_source("http://127.0.0.1:1/photos/").list()
    for folder in ("whole", "broken"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(pictures / "000001.jpg", tmp_path / "photos" / folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Broken, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            listing = open_source(f"http://127.0.0.1:{server.server_port}/photos/").list()
        finally:
            server.shutdown()
    assert [file.path for file in listing.files] == ["whole/000001.jpg"]
    assert [one.path for one in listing.unread] == ["broken"], "a folder that can't be listed is told"


def test_a_file_is_no_pattern_whatever_the_letters_of_its_path(pictures, tmp_path, encoder) -> None:
    odd = tmp_path / "photos [1] {a,b}*?"
    write_tars(pictures, odd, tars=1)
    (odd / "00000.tar").rename(odd / "{x}.tar")
    shutil.copy(pictures / "000001.jpg", odd)
    write_list(odd / "photos.txt", ["000001.jpg"])
    assert len(open_source(odd / "{x}.tar").parts().files) == 1
    write_tars(pictures, tmp_path, tars=3)
    assert len(open_source(tmp_path / "0000?.tar").parts().files) == 3, "a wildcard where there is no such file"
    assert [file.path for file in open_source(odd / "photos.txt").list().files] == ["000001.jpg"]


def test_a_tar_that_was_written_anew_costs_only_the_images_that_have_changed(folder, tmp_path, encoder) -> None:
    source = write_tars(folder, tmp_path / "tars")
    before = embedded(source, tmp_path / "out", encoder)
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    shutil.copy(folder / "000030.jpg", changed / "000003.jpg")
    shutil.copy(folder / "000030.jpg", changed / "000999.jpg")
    (changed / "000006.jpg").unlink()
    write_tars(changed, tmp_path / "tars")
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert summary.embedded == COUNT + 1 + summary.missing - 1
    assert embed_gallery(source, tmp_path / "out", encoder).missing == summary.missing > 0
    for tar in (tmp_path / "tars").iterdir():
        os.utime(tar, ns=(1, 1))
    assert embed_gallery(source, tmp_path / "out", encoder).missing == summary.missing
    after = by_name_alone(tmp_path / "out")
    assert after["000003.jpg"] == after["000999.jpg"] == {before["000030.jpg"]}
    embed_gallery(source, tmp_path / "out", encoder, prune=True)
    assert set(by_name(tmp_path / "out")) == {path.name for path in changed.iterdir()} - {"broken.jpg"}


def by_name_alone(out: Path) -> dict[str, set[bytes]]:
    gallery = read_gallery(out)
    found: dict[str, set[bytes]] = {}
    for path, row in zip(gallery.paths, gallery.embeddings, strict=True):
        found.setdefault(Path(path).name, set()).add(row.tobytes())
    return found


def test_a_part_that_is_done_is_not_opened_and_a_part_that_is_gone_is_counted(folder, tmp_path, encoder) -> None:
    source = write_tars(folder, tmp_path / "tars")
    embedded(source, tmp_path / "out", encoder)
    opened: list[str] = []

    class Noting:
        def __init__(self) -> None:
            self.source: Any = open_source(source.replace("{00000..00002}", "*"))
            self.root = self.source.root
            self.parts = self.source.parts

        def open(self, part: Any) -> Any:
            opened.append(part.path)
            return self.source.open(part)

    assert embed_gallery(Noting(), tmp_path / "out", encoder).new == 0
    assert opened == []
    path = next((tmp_path / "out" / "shards").iterdir())
    path.unlink()
    assert embed_gallery(Noting(), tmp_path / "out", encoder).new > 0
    assert len(opened) == 1
    (tmp_path / "tars" / "00002.tar").unlink()
    gone = embed_gallery(Noting(), tmp_path / "out", encoder).missing
    assert 0 < gone < COUNT
    assert embed_gallery(Noting(), tmp_path / "out", encoder, prune=True).embedded == COUNT - gone


def test_columns_of_a_table_of_paths_that_have_changed_are_taken_along(pictures, tmp_path, encoder) -> None:
    """The bytes are as they were, so nothing is encoded again."""
    paths = [str(path) for path in sorted(pictures.iterdir())[:3]]
    for prices, new in (([1, 2, 3], 3), ([1, 2, 3], 0), ([1, 5, 3], 1)):
        table = write_table(pa.table({"image_path": paths, "price": prices}), tmp_path / "paths.parquet")
        summary = embed_gallery(table, tmp_path / "out", encoder)
        assert (summary.new, summary.copies) == (new, new if new < 3 else 0)
        (shard,) = read_gallery(tmp_path / "out").shards()
        found = dict(zip(shard.items["image_path"].to_pylist(), shard.items["price"].to_pylist(), strict=True))
        assert found == dict(zip(paths, prices, strict=True))


def struct_of(paths: list[str], kind: pa.DataType) -> pa.StructArray:
    contents = pa.nulls(len(paths), kind)
    return pa.StructArray.from_arrays([contents, pa.array(paths)], names=["bytes", "path"])


@pytest.mark.parametrize("kind", [pa.binary(), pa.null()], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_structs_of_paths_alone_are_read_where_the_files_are(kind, relative, pictures, tmp_path, encoder) -> None:
    """As `datasets` writes images that it was not told to take along: a change of a file is a change of an image."""
    (tmp_path / "shown").mkdir()
    for path in sorted(pictures.iterdir())[:20]:
        shutil.copy(path, tmp_path / "shown")
    paths = [str(path) for path in sorted((tmp_path / "shown").iterdir())]
    named = [str(Path(path).relative_to(tmp_path)) for path in paths] if relative else paths
    table = pa.table({"image": struct_of(named, kind), "label": [Path(path).stem for path in paths]})
    source = write_table(table, tmp_path / "train.parquet", group=8)
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert (summary.new, summary.skipped, summary.undone) == (20, (), ())
    assert set(read_gallery(tmp_path / "out").paths) == set(named)
    assert by_name(tmp_path / "out") == embedded(tmp_path / "shown", tmp_path / "of the folder", encoder)
    shutil.copy(sorted(pictures.iterdir())[30], paths[3])
    assert embed_gallery(source, tmp_path / "out", encoder).new == 1


def test_a_table_of_bytes_behind_one_of_paths_alone_is_refused(pictures, tmp_path, encoder) -> None:
    paths = [str(path) for path in sorted(pictures.iterdir())[:3]]
    write_table(pa.table({"image": struct_of(paths, pa.binary())}), tmp_path / "a.parquet")
    write_table(hugging_face_table(pictures), tmp_path / "b.parquet")
    with pytest.raises(GalleryError, match=r"images b.parquet: has bytes in column 'image', and the first file has"):
        embed_gallery(str(tmp_path / "*.parquet"), tmp_path / "out", encoder)


def test_a_row_without_bytes_among_others_is_counted(pictures, tmp_path, encoder) -> None:
    rows = hugging_face_table(pictures).column("image").to_pylist()[:4]
    rows[1] = rows[1] | {"bytes": None}
    source = write_table(pa.table({"image": rows}), tmp_path / "train.parquet")
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert (summary.new, [item.reason for item in summary.skipped]) == (3, ["row 1 has no bytes of an image"])


def test_columns_come_along_to_the_gallery(folder, tmp_path, encoder) -> None:
    embedded(write_tars(folder, tmp_path / "tars"), tmp_path / "of tars", encoder)
    embedded(write_table(hugging_face_table(folder), tmp_path / "x.parquet"), tmp_path / "of table", encoder)
    for shard in read_gallery(tmp_path / "of tars").shards():
        for row in shard.items.to_pylist():
            key = Path(row["image_path"]).stem
            assert (row["key"], row["txt"], row["price"], row["source_size"]) == (key, f"photo {key}", len(key), "L")
    for shard in read_gallery(tmp_path / "of table").shards():
        for row in shard.items.to_pylist():
            assert row["label"] == Path(row["image_path"]).name[:3]
            assert row["source_size"] is not None
    table = hugging_face_table(folder)
    changed = table.set_column(table.column_names.index("label"), "label", pa.array(["new"] * len(table)))
    embedded(write_table(changed, tmp_path / "x.parquet"), tmp_path / "of table", encoder)
    shards = read_gallery(tmp_path / "of table").shards()
    assert {label for shard in shards for label in shard.items["label"].to_pylist()} == {"new"}


def test_columns_of_shards_that_differ_come_to_the_index_together(pictures, tmp_path, encoder) -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed")
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:6]]
    for name, prices in {"a": [1, 2], "b": [None, None], "c": [2.5, 3.5]}.items():
        columns = {"jpg": [contents.pop(), contents.pop()], "price": prices, f"only_{name}": [name, name]}
        write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    embedded(tmp_path / "*.parquet", tmp_path / "out", encoder)
    build_index(read_gallery(tmp_path / "out"), tmp_path / "index")
    items = open_index(tmp_path / "index").items
    rows = {item.id: item.metadata for item in items.rows(range(6))}
    assert {id: row["price"] for id, row in rows.items()} == {
        "a.parquet/00000000": 1.0,
        "a.parquet/00000001": 2.0,
        "b.parquet/00000000": None,
        "b.parquet/00000001": None,
        "c.parquet/00000000": 2.5,
        "c.parquet/00000001": 3.5,
    }
    assert rows["a.parquet/00000000"] == {"price": 1.0, "only_a": "a", "only_b": None, "only_c": None}


def test_the_items_of_an_index_are_a_list_of_images(pictures, tmp_path, encoder) -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed")
    for name in ("first", "again"):
        folder = tmp_path / name
        shutil.copytree(pictures, folder)
        if name == "again":
            shutil.copy(tmp_path / "first.index" / "items.parquet", folder)
        embed_gallery(folder / "items.parquet" if name == "again" else folder, tmp_path / f"{name}.out", encoder)
        build_index(read_gallery(tmp_path / f"{name}.out"), tmp_path / f"{name}.index")
    first, again = (open_index(tmp_path / f"{name}.index").items for name in ("first", "again"))
    assert sorted(again.ids()) == sorted(first.ids())
    content = (pictures / "000001.jpg").read_bytes()
    assert [again.rows([row])[0].id for row in again.same_bytes(content)] == ["000001.jpg"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (2**53 + 1, 0.5, ["9007199254740993", "0.5"]),
        (3, 0.5, [3.0, 0.5]),
        ([2**60 + 1], [0.5], ["[1152921504606846977]", "[0.5]"]),
        ({"a": 2**60 + 1}, {"a": 0.5}, ["{'a': 1152921504606846977}", "{'a': 0.5}"]),
    ],
)
def test_no_number_is_rounded_because_another_shard_has_fractions(
    first: Any, second: Any, expected: list[Any], pictures, tmp_path, encoder
) -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed")
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:2]]
    for name, content, value in zip("ab", contents, (first, second), strict=True):
        write_table(pa.table({"jpg": [content], "number": [value]}), tmp_path / f"{name}.parquet")
    embedded(tmp_path / "*.parquet", tmp_path / "out", encoder)
    build_index(read_gallery(tmp_path / "out"), tmp_path / "index")
    rows = open_index(tmp_path / "index").items.rows(range(2))
    assert [item.metadata["number"] for item in sorted(rows, key=lambda item: item.id)] == expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (b'{"meta": {}, "price": 1}', {"meta": None, "price": 1}),
        (b'{"meta": [{}], "price": 1}', {"meta": "[{}]", "price": 1}),
        (b'{"title": "half \\ud83d of a pair", "price": 1}', {"title": "half ? of a pair", "price": 1}),
        (b'\xef\xbb\xbf{"price": 1}', {"price": 1}),
        (b"[" * 100_000, {"json": "[" * 100_000}),
        (b'{"deep": ' + b"[" * 200 + b"]" * 200 + b', "price": 1}', {"deep": "[" * 200 + "]" * 200, "price": 1}),
    ],
    ids=["empty object", "list of an empty object", "half a pair", "byte order mark", "too deep", "deep"],
)
def test_no_json_of_a_sample_ends_the_job(entries, expected, pictures, tmp_path, encoder) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in (("a.jpg", (pictures / "000001.jpg").read_bytes()), ("a.json", entries)):
            add(tar, name, content)
    embed_gallery(open_source(tmp_path / "x.tar"), tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    assert open_index(tmp_path / "index").items.rows([0])[0].metadata == {"key": "a"} | expected


def test_columns_are_kept_whatever_their_names_when_a_neighbour_changes(pictures, tmp_path, encoder) -> None:
    names = ("reason", "size", "sha256")

    def write(first: str) -> None:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, picture in (("a", first), ("b", "000002.jpg")):
                add(tar, f"{name}.jpg", (pictures / picture).read_bytes())
                add(tar, f"{name}.json", json.dumps({column: f"{column} of {name}" for column in names}).encode())

    def columns() -> list[dict[str, Any]]:
        embed_gallery(open_source(tmp_path / "x.tar"), tmp_path / "gallery", encoder)
        build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
        items = open_index(tmp_path / "index").items.rows([0, 1])
        return [item.metadata for item in sorted(items, key=lambda item: item.id)]

    write("000001.jpg")
    before = columns()
    assert [row["reason"] for row in before] == ["reason of a", "reason of b"]
    write("000003.jpg")
    assert columns() == before


def test_a_table_with_a_time_that_python_cannot_say_is_embedded(pictures, tmp_path, encoder) -> None:
    until = pa.array([4_000_000, 1, None], pa.date32())
    images = [path.read_bytes() for path in sorted(pictures.iterdir())[:3]]
    write_table(pa.table({"image": images, "id": list("abc"), "until": until}), tmp_path / "x.parquet")
    embed_gallery(open_source(tmp_path / "x.parquet"), tmp_path / "gallery", encoder)
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    found = [item.metadata["until"] for item in open_index(tmp_path / "index").items.rows(range(3))]
    assert found == ["12921-08-18", "1970-01-02", None]


@pytest.mark.parametrize("type_", [pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_column_of_paths_may_be_stored_in_any_way(type_, pictures, tmp_path, encoder) -> None:
    paths = pa.array([str(path) for path in sorted(pictures.iterdir())[:3]])
    write_table(pa.table({"image_path": paths.cast(type_)}), tmp_path / "x.parquet")
    embed_gallery(open_source(tmp_path / "x.parquet"), tmp_path / "gallery", encoder)
    assert list(read_gallery(tmp_path / "gallery").paths) == paths.to_pylist()


def test_a_list_of_windows_loses_no_image(pictures, tmp_path, encoder) -> None:
    paths = [str(path) for path in sorted(pictures.iterdir())[:3]]
    (tmp_path / "photos.txt").write_bytes("\ufeff".encode() + "\r\n".join(paths).encode())
    embed_gallery(open_source(tmp_path / "photos.txt"), tmp_path / "gallery", encoder)
    assert list(read_gallery(tmp_path / "gallery").paths) == paths


def test_what_follows_the_end_of_a_tar_is_told(folder, tmp_path, encoder) -> None:
    """tarfile stops at the end of the first of two tars that were joined by `cat`. A long end is none."""
    write_tars(folder, tmp_path / "tars", tars=2)
    first, second = (path.read_bytes() for path in sorted((tmp_path / "tars").iterdir()))
    joined, padded = tmp_path / "joined.tar", tmp_path / "padded.tar"
    joined.write_bytes(first + bytes(2**21) + second)
    padded.write_bytes(first + bytes(2**21))
    summary = embed_gallery(joined, tmp_path / "out", encoder)
    assert (summary.new, summary.is_whole) == ((COUNT + 2) // 2, False)
    assert [(item.path, item.reason.partition(",")[0]) for item in summary.unread] == [
        ("joined.tar", "it ends after 63 members")
    ]
    assert embed_gallery(padded, tmp_path / "padded", encoder).is_whole


@pytest.mark.parametrize(
    ("method", "compress"),
    [
        ("gzip", gzip.compress),
        ("bzip2", bz2.compress),
        ("xz", lzma.compress),
        ("Zstandard", lambda content: pa.compress(content, codec="zstd", asbytes=True)),
    ],
)
def test_a_tar_that_is_compressed_is_told_as_one(method, compress, pictures, tmp_path) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        add(tar, "a.jpg", (pictures / "000001.jpg").read_bytes())
    (tmp_path / "x.tar").write_bytes(compress(plain.getvalue()))
    source = open_source(tmp_path / "x.tar")
    with source.open(source.parts().files[0]) as opened:
        assert [one.reason.partition(";")[0] for one in opened.list().unread] == [f"it is compressed with {method}"]
    with pytest.raises(GalleryError, match="is a file, and no list"):
        open_source((tmp_path / "x.tar").rename(tmp_path / "x.tar.gz")).list()


def test_a_later_file_with_two_columns_of_one_name_is_told_and_the_others_are_embedded(
    pictures, tmp_path, encoder
) -> None:
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:2]]
    write_table(pa.table({"jpg": contents}), tmp_path / "0.parquet")
    write_table(pa.table([contents, ["a", "b"], ["c", "d"]], names=["jpg", "sku", "sku"]), tmp_path / "1.parquet")
    summary = embed_gallery(f"{tmp_path}/*.parquet", tmp_path / "out", encoder)
    assert (summary.embedded, summary.is_whole) == (2, False)
    assert [(part.path, part.reason) for part in summary.unread] == [("1.parquet", "two of its columns have one name")]


def test_names_that_are_taken_twice_and_rows_without_bytes_lose_no_image(pictures, tmp_path, encoder) -> None:
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:3]]
    table = pa.table({"photo": [*contents, None], "sku": ["a", "a", "b", "c"]})
    source = open_source(write_table(table, tmp_path / "x.parquet"), Columns(image="photo", id="sku"))
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert sorted(read_gallery(tmp_path / "out").paths) == ["x.parquet/a", "x.parquet/a#2", "x.parquet/b"]
    assert [(item.path, item.reason) for item in summary.skipped] == [("x.parquet/c", "row 3 has no bytes of an image")]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for content in contents[:2]:
            add(tar, "same.jpg", content)
        add(tar, "notes.md", b"# no image")
        add(tar, "photo", contents[2])
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "same.jpg"
        tar.addfile(link)
    summary = embed_gallery(tmp_path / "x.tar", tmp_path / "tar", encoder)
    assert sorted(read_gallery(tmp_path / "tar").paths) == ["x.tar/photo", "x.tar/same.jpg", "x.tar/same.jpg#2"]
    assert {item.path for item in summary.skipped} == {"x.tar/notes.md", "x.tar/link.jpg"}


def test_a_name_that_many_images_have_is_looked_for_once_each() -> None:
    class Looked(dict[str, ImageFile]):
        times = 0

        def __contains__(self, path: object) -> bool:
            self.times += 1
            return super().__contains__(path)

    container = Container("/data", ImageFile("x.parquet", 1, 1), io.BytesIO())
    container._files = looked = Looked()
    for place in range(100):
        container.add("image.jpg", place, 1, b"0", {})
    assert len(looked) == 100
    assert looked.times <= 2 * 100


@pytest.mark.parametrize("at", ["here", "in a store"])
def test_a_full_folder_of_temporary_files_is_named(at: str, pictures, tmp_path, encoder) -> None:
    contents = [path.read_bytes() for path in sorted(pictures.iterdir())[:8]]
    write_table(pa.table({"jpg": contents}), tmp_path / "x.parquet")
    if at == "in a store":
        fsspec.filesystem("memory").pipe_file("/full/x.parquet", (tmp_path / "x.parquet").read_bytes())
    source = open_source(tmp_path / "x.parquet" if at == "here" else "memory://full/x.parquet")
    encoder.encode_targets(contents)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(map(len, contents)) // 2, hard))
    try:
        summary = embed_gallery(source, tmp_path / "out", encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [part.path for part in summary.unread] == ["x.parquet"]
    assert f"can be written in {tempfile.gettempdir()}: File too large" in summary.unread[0].reason


def test_an_error_does_not_wait_for_a_part_that_is_being_fetched(folder, tmp_path, encoder) -> None:
    waited: list[bool] = []
    over = threading.Event()

    class Slow(TarSource):
        @contextmanager
        def open(self, part: ImageFile) -> Iterator[Source]:
            if part.path == "b.tar":
                waited.append(not over.wait(20))
            with super().open(part) as source:
                yield source

    class Broken:
        space, concurrency, prepare = encoder.space, encoder.concurrency, encoder.prepare

        def encode_prepared(self, prepared: Sequence[Any]) -> np.ndarray:
            raise EngineError("the engine broke")

    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            tar.add(sorted(folder.rglob("*.jpg"))[0], "image.jpg")
    with pytest.raises(EngineError):
        embed_gallery(Slow(str(tmp_path / "*.tar")), tmp_path / "out", Broken())
    over.set()
    assert waited != [True]


def test_what_has_changed_since_a_store_was_listed_in_this_process_is_seen(store, tmp_path) -> None:
    (tmp_path / "urls.txt").write_text("s3://photos/kept/a.tar")
    sources = (open_source(tmp_path / "urls.txt").list, open_source("s3://photos/kept/{a,a}.tar").parts)
    for number, listed in enumerate(sources):
        store.put("kept/a.tar", b"older")
        filesystem("s3://photos")[0].find("photos/kept", detail=True)
        store.put("kept/a.tar", bytes([number]))
        (file,) = listed().files
        assert file.size == 1


def test_a_store_is_asked_three_times_unless_its_answer_is_final(monkeypatch) -> None:
    monkeypatch.setattr("cirrus_client.gallery.sources.store._PAUSES_S", (0, 0))

    def asked(*errors: Exception) -> int:
        left = list(errors)

        def job() -> int:
            if left:
                raise left.pop(0)
            return len(errors) + 1

        return patiently(job)

    reset = RuntimeError("connection reset")
    assert asked(reset, TimeoutError()) == 3
    with pytest.raises(OSError, match="RuntimeError: connection reset"):
        asked(reset, reset, reset)
    with pytest.raises(FileNotFoundError):
        asked(FileNotFoundError(), reset)


def test_an_image_of_another_length_than_the_store_listed_is_unreadable() -> None:
    filesystem("memory://cut/")[0].pipe_file("/cut/a.jpg", b"abc")
    assert read_remote("memory://cut/a.jpg", ImageFile("a.jpg", 3, 0)) == b"abc"
    with pytest.raises(UnreadableImage, match="has 3 bytes and was listed with 4"):
        read_remote("memory://cut/a.jpg", ImageFile("a.jpg", 4, 0))


def test_a_list_is_looked_up_a_part_at_a_time() -> None:
    assert list(islice(in_threads(str, count()), 5000)) == [str(number) for number in range(5000)]


@pytest.mark.parametrize("told", ["ETag", "LastModified", "blob_id", "sha", "modify", "modificationTime"])
def test_what_a_store_tells_of_a_change_is_the_etag(told: str) -> None:
    """blob_id is a Hugging Face repository's, sha GitHub's, modify FTP's and modificationTime WebHDFS's."""
    first, second = (described({"size": 7, told: state}, "a.jpg") for state in ("one", "two"))
    assert first != second


@pytest.mark.parametrize("damage", ["cut", "overwritten header"])
def test_of_a_broken_tar_what_can_be_read_is_embedded_and_the_rest_is_told(damage, folder, tmp_path, encoder) -> None:
    source = write_tars(folder, tmp_path / "tars", tars=1)
    path = tmp_path / "tars" / "00000.tar"
    content = bytearray(path.read_bytes())
    half = len(content) // 2 // 512 * 512
    if damage == "cut":
        path.write_bytes(content[: half + 100])
    else:
        with tarfile.open(path) as tar:
            place = next(member.offset for member in tar if member.offset > half)
        content[place : place + 512] = b"x" * 512
        path.write_bytes(content)
    summary = embed_gallery(source, tmp_path / "out", encoder)
    assert 0 < summary.embedded < COUNT
    assert [item.path for item in summary.unread] == ["00000.tar"]
    assert "it is broken after" in summary.unread[0].reason
    assert embed_gallery(source, tmp_path / "out", encoder).unread == summary.unread, "it is never taken for done"
    broken = path.read_bytes()
    write_tars(folder, tmp_path / "tars", tars=1)
    assert embed_gallery(source, tmp_path / "out", encoder).is_whole
    path.write_bytes(broken)
    assert embed_gallery(source, tmp_path / "out", encoder, prune=True).embedded == COUNT


def test_what_a_list_names_and_is_not_there_is_told(pictures, tmp_path, encoder) -> None:
    shutil.copy(pictures / "000001.jpg", tmp_path / "beside")
    lines = ["beside", str(pictures / "000002.jpg"), "nowhere.jpg", "", "beside", os.fspath(tmp_path)]
    summary = embed_gallery(write_list(tmp_path / "list.txt", lines), tmp_path / "out", encoder)
    assert sorted(read_gallery(tmp_path / "out").paths) == [str(pictures / "000002.jpg"), "beside"]
    assert [(item.path, item.reason) for item in summary.unread] == [
        ("nowhere.jpg", f"can't read {tmp_path / 'nowhere.jpg'}: No such file or directory")
    ]
    assert {item.path: item.reason for item in summary.skipped} == {
        "beside": f"{tmp_path / 'list.txt'} names it twice; it counts once",
        str(tmp_path): "it is not a regular file",
    }


def test_a_line_that_no_machine_could_read_costs_that_line_alone(pictures, tmp_path, encoder) -> None:
    photo = str(pictures / "000001.jpg")
    lines = [photo, "nosuch://bucket/a.jpg", "http://[bad/a.jpg", "a\0.jpg"]
    summary = embed_gallery(write_list(tmp_path / "list.txt", lines), tmp_path / "out", encoder)
    assert list(read_gallery(tmp_path / "out").paths) == [photo]
    assert sorted(item.path for item in summary.unread) == ["http://[bad/a.jpg", "nosuch://bucket/a.jpg"]
    assert "Protocol not known: nosuch" in {item.path: item.reason for item in summary.unread}["nosuch://bucket/a.jpg"]
    assert [item.path for item in summary.skipped] == ["a\0.jpg"]
    assert "list.txt must be UTF-8" in summary.skipped[0].reason


def test_names_that_are_not_utf8_are_told_wherever_they_are(pictures, tmp_path, encoder) -> None:
    photo = pictures / "000001.jpg"
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg\n" + os.fsencode(photo) + b"\r\n")
    shutil.copy(photo, tmp_path / name)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, name, photo.read_bytes())
        add(tar, "good.jpg", photo.read_bytes())
    for source, path in (("list.txt", name), ("x.tar", f"x.tar/{name}")):
        summary = embed_gallery(tmp_path / source, tmp_path / f"out-{source}", encoder)
        assert summary.embedded == 1
        assert [(item.path, item.reason) for item in summary.skipped] == [(path, "its name is not UTF-8; rename it")]


def test_files_of_a_folder_are_looked_at_whatever_their_suffix(pictures, tmp_path, encoder) -> None:
    photo = pictures / "000001.jpg"
    names = ["a.jfif", "b.jpe", "c", "d.backup", "e.JPG"]
    (tmp_path / "photos").mkdir()
    for name in names:
        shutil.copy(photo, tmp_path / "photos" / name)
    (tmp_path / "photos" / "f.tar").write_bytes(b"")
    summary = embed_gallery(tmp_path / "photos", tmp_path / "out", encoder)
    assert sorted(read_gallery(tmp_path / "out").paths) == names
    assert summary.copies == len(names) - 1
    assert [(item.path, item.reason) for item in summary.skipped] == [
        ("f.tar", "its images are embedded if it is the source itself; give it, or '*.tar'")
    ]


def test_braces_name_files_one_by_one() -> None:
    assert expanded("a/{008..010}-{x,y}.tar") == [
        f"a/{number}-{name}.tar" for number in ("008", "009", "010") for name in "xy"
    ]
    assert expanded("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize(
    ("location", "columns", "message"),
    [
        ("{root}/none/{{000..002}}.tar", Columns(), "none/000.tar"),
        ("{root}/none*.tar", Columns(), "there is no such file"),
        ("{root}/x*.parquet", Columns(image="nothing"), "no column 'nothing' of bytes or paths; its columns: number"),
        ("{root}/x*.parquet", Columns(), "name the column of images with --image-column; its columns: number"),
        ("{root}", Columns(image="jpg"), "has no columns"),
        ("nosuch://bucket/x", Columns(), "Protocol not known: nosuch"),
        ("", Columns(), "the location is empty"),
        ("{root}/images.parquet", Columns(id="jpg"), "column 'jpg' has the images, and can't name them"),
        ("{root}/twice.parquet", Columns(), "two columns are called 'sku'; rename one"),
        ("{root}/nothing.tar", Columns(), "there is no image; 1 skipped, like nothing.tar/notes.md"),
        ("{root}/nothing.parquet", Columns(), "there is no image"),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_with_the_way_out(
    location, columns, message, tmp_path, encoder
) -> None:
    write_table(pa.table({"number": [1]}), tmp_path / "x.parquet")
    write_table(pa.table({"jpg": [b"x"]}), tmp_path / "images.parquet")
    write_table(pa.table([[b"x"], ["a"], ["b"]], names=["jpg", "sku", "sku"]), tmp_path / "twice.parquet")
    write_table(pa.table({"jpg": pa.array([], pa.binary())}), tmp_path / "nothing.parquet")
    with tarfile.open(tmp_path / "nothing.tar", "w") as tar:
        add(tar, "notes.md", b"# no image")
    with pytest.raises(GalleryError, match=message):
        embed_gallery(open_source(location.format(root=tmp_path), columns), tmp_path / "out", encoder)


def test_embeddings_of_one_image_are_equal_to_the_bit_whatever_the_order_and_the_shard(
    folder, from_folder, tmp_path, encoder
) -> None:
    assert embedded(folder, tmp_path / "a", encoder, shard_size=7, workers=1) == from_folder
    shuffled = np.random.default_rng(3).permutation(sorted(path.name for path in folder.iterdir()))
    for place, name in enumerate(shuffled):
        (tmp_path / f"b{place:02d}").mkdir()
        shutil.copy(folder / name, tmp_path / f"b{place:02d}" / name)
    source = write_list(tmp_path / "list.txt", [f"b{place:02d}/{name}" for place, name in enumerate(shuffled)])
    assert embedded(source, tmp_path / "b", encoder, shard_size=11) == from_folder
