"""Bundles and indexes in object storage: every file is the one that was pushed, or nothing is written."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from cirrus_client import transfer
from cirrus_client.bundle import Bundle
from cirrus_client.encoders import LocalEncoder
from cirrus_client.errors import BundleError, MissingPackage, OutputError, SearchIndexError, TransferError
from cirrus_client.gallery import embed_gallery, read_gallery
from cirrus_client.index import build_index
from cirrus_client.names import Writer
from cirrus_client.outputs import MARK, replaced_directory
from cirrus_client.resuming import is_resumable
from cirrus_client.retriever import open_retriever
from cirrus_client.transfer import MANIFEST, pull, push
from tests.object_store import BUCKET, ObjectStore
from tests.test_cli import cirrus

pytestmark = pytest.mark.slow


@pytest.fixture
def folders(tiny_bundle: Bundle, pictures: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle and an index, as commands write them."""
    with replaced_directory(tmp_path / "union", Writer.EXPORT) as folder:
        shutil.copytree(tiny_bundle.root, folder, dirs_exist_ok=True)
    embed_gallery(pictures, tmp_path / "gallery", LocalEncoder(tiny_bundle))
    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "index")
    return tmp_path / "union", tmp_path / "index"


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pulled_is_what_was_pushed_and_searches_where_it_is(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path, pictures: Path
) -> None:
    found = []
    for folder in folders:
        cirrus("push", folder, f"s3://{BUCKET}/models/{folder.name}")
        printed = cirrus("pull", f"s3://{BUCKET}/models/{folder.name}", tmp_path / "there" / folder.name)
        assert "as they were pushed" in printed
        pulled = content_of(tmp_path / "there" / folder.name)
        assert {name: pulled[name] for name in content_of(folder)} == content_of(folder)
    for root in (tmp_path, tmp_path / "there"):
        with open_retriever(LocalEncoder(Bundle.open(root / "union")), root / "index") as retriever:
            found.append(retriever.search(image=pictures / "000003.jpg", text="red", k=5))
    assert [match.id for match in found[0]] == [match.id for match in found[1]]


def test_what_is_there_is_sent_and_fetched_no_second_time(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    counted: list[str] = []
    for name in ("_put_file", "_pipe_file"):
        original = getattr(s3fs.S3FileSystem, name)

        async def count(self: Any, *arguments: Any, original: Any = original, name: str = name, **options: Any) -> Any:
            counted.append(name)
            return await original(self, *arguments, **options)

        monkeypatch.setattr(s3fs.S3FileSystem, name, count)
    url, (bundle, _) = f"s3://{BUCKET}/again", folders
    push(bundle, url)
    assert "_put_file" in counted
    counted.clear()
    push(bundle, url)
    assert "_put_file" not in counted

    pull(url, tmp_path / "out")
    fetched: list[str] = []
    monkeypatch.setattr(transfer, "_get", lambda there, source, target: fetched.append(source))
    pull(url, tmp_path / "out")
    assert fetched == []


def test_an_interrupted_pull_goes_on_and_leaves_the_older_version_until_it_is_whole(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    url, (bundle, _) = f"s3://{BUCKET}/interrupted", folders
    manifest = push(bundle, url)
    pull(url, tmp_path / "out")
    before = content_of(tmp_path / "out")
    victim = max(manifest.files, key=lambda name: manifest.files[name].size)
    content = (bundle / victim).read_bytes()
    store.put(f"interrupted/{victim}", content[:-1] + bytes([content[-1] ^ 1]))
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    with pytest.raises(TransferError, match=rf"{victim} is not the file of {MANIFEST}"):
        pull(url, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    assert content_of(tmp_path / "out") == before
    store.put(f"interrupted/{victim}", content)
    pull(url, tmp_path / "fresh")
    assert content_of(tmp_path / "fresh").items() >= content_of(bundle).items()
    assert not list(tmp_path.glob(".*pulled"))


def test_a_disk_that_is_full_here_is_not_taken_for_the_stores(folders: tuple[Path, Path], tmp_path: Path) -> None:
    url, (bundle, _) = "memory://bucket/bundle", folders
    manifest = push(bundle, url)
    largest = max(file.size for file in manifest.files.values())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
    try:
        with pytest.raises(TransferError, match=r"File too large: '.*\.out\.pulled/") as ended:
            pull(url, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_resumable(ended.value)
    pull(url, tmp_path / "out")


def test_a_push_that_was_interrupted_can_not_be_pulled_and_goes_on(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, (bundle, _) = f"s3://{BUCKET}/half", folders
    names = sorted(name for name in content_of(bundle) if name != MARK)
    sent: list[str] = []
    put = transfer._put

    def interrupted(there: Any, source: Path, target: str) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(source.relative_to(bundle).as_posix())
        put(there, source, target)

    for _ in range(2):
        monkeypatch.setattr(transfer, "_put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(bundle, url)
        with pytest.raises(TransferError, match="nothing was pushed there"):
            pull(url, tmp_path / "out")
        assert sent == names[:2]
        names = names[2:]
        sent.clear()
    monkeypatch.setattr(transfer, "_put", put)
    push(bundle, url)
    pull(url, tmp_path / "out")


def test_a_push_whose_last_answer_is_lost_is_done(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = LocalFileSystem.rm_file

    def answer_lost(store: LocalFileSystem, path: str) -> None:
        remove(store, path)
        raise ConnectionResetError

    monkeypatch.setattr(LocalFileSystem, "rm_file", answer_lost)
    push(folders[0], f"file://{tmp_path}/pushed")
    assert pull(f"file://{tmp_path}/pushed", tmp_path / "pulled").files


def test_an_index_that_is_replaced_while_it_is_pushed_is_not_taken_for_whole(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, (_, index) = "memory://bucket/replaced", folders
    put = transfer._put

    def replacing(there: Any, source: Path, target: str) -> None:
        put(there, source, target)
        monkeypatch.setattr(transfer, "_put", put)
        build_index(read_gallery(tmp_path / "gallery"), index, images="elsewhere")

    monkeypatch.setattr(transfer, "_put", replacing)
    with pytest.raises(TransferError, match="was replaced while it was pushed"):
        push(index, url)
    with pytest.raises(TransferError, match="nothing was pushed there"):
        pull(url, tmp_path / "out")
    push(index, url)
    pull(url, tmp_path / "out")


def test_what_is_no_folder_of_ours_or_no_store_is_named(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(TransferError, match="is no bundle, index, suggester or model repository"):
        push(tmp_path / "mine", f"s3://{BUCKET}/mine")
    with pytest.raises((TransferError, MissingPackage), match="nowhere"):
        pull("nowhere://bucket/x", tmp_path / "out")
    with pytest.raises(TransferError, match="nothing was pushed there"):
        pull(f"s3://{BUCKET}/nothing", tmp_path / "out")
    push(folders[1], f"s3://{BUCKET}/index")
    with pytest.raises(OutputError):
        pull(f"s3://{BUCKET}/index", tmp_path / "mine")
    assert (tmp_path / "mine" / "file").read_text() == "mine"
    (folders[0] / "graphs" / "query_head.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"query_head\.onnx"):
        push(folders[0], f"s3://{BUCKET}/damaged")


def test_a_manifest_that_leads_out_of_the_folder_or_leaves_a_file_out_is_refused(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/evil"
    manifest = push(folders[1], url)
    text = manifest.model_dump_json().replace('"index.json"', '"../../evil.json"')
    assert "evil.json" in text
    store.put(f"evil/{MANIFEST}", text.encode())
    with pytest.raises(TransferError):
        pull(url, tmp_path / "deep" / "out")
    assert not (tmp_path / "evil.json").exists()
    fewer = {name: file for name, file in manifest.files.items() if name != "items.parquet"}
    store.put(f"evil/{MANIFEST}", manifest.model_copy(update={"files": fewer}).model_dump_json().encode())
    with pytest.raises(SearchIndexError, match=r"items\.parquet is missing"):
        pull(url, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists()


def test_what_is_gone_in_the_store_or_was_torn_by_another_push_is_sent_again(
    store: ObjectStore, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, (_, index) = f"s3://{BUCKET}/torn", folders
    push(index, url)
    store.delete("torn/items.parquet")
    store.put("torn/index.json", b"short")
    push(index, url)
    pull(url, tmp_path / "mended")

    def torn(there: Any, source: Path, target: str) -> None:
        store.put(target.removeprefix(f"{BUCKET}/"), bytes((index / source.name).stat().st_size))
        raise KeyboardInterrupt

    build_index(read_gallery(tmp_path / "gallery"), tmp_path / "newer", images="elsewhere")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(transfer, "_put", torn)
        with pytest.raises(KeyboardInterrupt):
            push(tmp_path / "newer", url)
    push(index, url)
    pull(url, tmp_path / "older")
    for name in ("mended", "older"):
        assert content_of(tmp_path / name).items() >= content_of(index).items()


@pytest.mark.parametrize("damaged", [MANIFEST, "cirrus-files.part.json"])
def test_a_push_takes_the_place_of_a_manifest_that_cannot_be_read(
    store: ObjectStore, folders: tuple[Path, Path], damaged: str, tmp_path: Path
) -> None:
    """What it said of files that may be torn is not known, so all are sent again."""
    url, (_, index) = f"s3://{BUCKET}/half-written", folders
    push(index, url)
    store.put(f"half-written/{damaged}", b'{"format": 1, "fi')
    store.put("half-written/items.parquet", bytes((index / "items.parquet").stat().st_size))
    with pytest.raises(TransferError, match=r"push it again|is not the file of"):
        pull(url, tmp_path / "out")
    push(index, url)
    pull(url, tmp_path / "out")
    assert content_of(tmp_path / "out").items() >= content_of(index).items()


@pytest.mark.parametrize("damage", ["corrupted", "missing", "not listed"])
def test_an_index_that_is_not_whole_is_not_pushed(
    store: ObjectStore, folders: tuple[Path, Path], damage: str, tmp_path: Path
) -> None:
    _, index = folders
    if damage == "corrupted":
        (index / "items.parquet").write_bytes(b"another")
    else:
        (index / ("items.parquet" if damage == "missing" else "index.json")).unlink()
    with pytest.raises((SearchIndexError, TransferError), match=r"items\.parquet|lacks index\.json"):
        push(index, f"s3://{BUCKET}/not-whole")
    with pytest.raises(TransferError, match="nothing was pushed there"):
        pull(f"s3://{BUCKET}/not-whole", tmp_path / "out")


def test_one_process_pulls_into_a_folder_at_a_time(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, get, refused = f"file://{tmp_path}/a/new/folder", transfer._get, []

    def meanwhile(there: Any, source: str, target: Path) -> None:
        monkeypatch.setattr(transfer, "_get", get)
        with pytest.raises(OutputError, match="is writing it; wait for it") as error:
            pull(url, tmp_path / "out")
        refused.append(error.value)
        get(there, source, target)

    push(folders[1], url)
    monkeypatch.setattr(transfer, "_get", meanwhile)
    pull(url, tmp_path / "out")
    assert refused
    assert sorted(path.name for path in tmp_path.glob(".out*")) == []
