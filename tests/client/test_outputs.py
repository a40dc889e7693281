"""A command replaces only what it wrote itself, alone, and in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cirrus_client import outputs
from cirrus_client.errors import OutputError
from cirrus_client.files import remove_abandoned, write_atomically
from cirrus_client.names import Writer
from cirrus_client.outputs import MARK, only_writer, replaced_directory


def write(path: Path, content: str = "new", writer: Writer = Writer.INDEX) -> None:
    with replaced_directory(path, writer) as root:
        (root / "deep").mkdir()
        (root / "deep" / "file").write_text(content)


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_what_a_command_wrote_it_replaces(tmp_path: Path) -> None:
    for content in ("first", "second"):
        write(tmp_path / "out", content)
        assert (tmp_path / "out" / "deep" / "file").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_and_a_link_to_what_was_written_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "first")
    (tmp_path / "link").symlink_to("empty")
    write(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "deep" / "file").read_text() == "second"


def foreign(root: Path, case: str) -> None:
    """Make a folder that has something of somebody else."""
    if case == "a file":
        root.write_text("theirs")
        return
    if case in ("a stranger", "a deep stranger", "a link", "of another command", "a stranger below a nested mark"):
        write(root, writer=Writer.EXPORT if case == "of another command" else Writer.INDEX)
    root.mkdir(exist_ok=True)
    if case == "a website":
        (root / "index.json").write_text("{}")
        (root / "index.html").write_text("theirs")
    elif case == "a damaged mark":
        (root / MARK).write_text("{")
    elif case == "a stranger":
        (root / "notes.txt").write_text("theirs")
    elif case == "a deep stranger":
        (root / "deep" / "deeper").mkdir()
        (root / "deep" / "deeper" / "notes.txt").write_text("theirs")
    elif case == "a link":
        (root / "link").symlink_to("/etc")
    elif case == "a stranger below a nested mark":
        write(root / "engines", writer=Writer.COMPILE)
        (root / "engines" / "notes.txt").write_text("theirs")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("a file", "was not written by `cirrus index`"),
        ("a website", "was not written by `cirrus index`"),
        ("a damaged mark", "was not written by `cirrus index`"),
        ("of another command", r"\(cirrus export wrote it\)"),
        ("a stranger", r"did not write notes\.txt"),
        ("a deep stranger", r"did not write deep/deeper/notes\.txt"),
        ("a stranger below a nested mark", r"did not write engines/notes\.txt"),
        ("a link", "did not write link"),
    ],
)
def test_what_is_not_ours_is_refused_and_untouched(tmp_path: Path, case: str, reason: str) -> None:
    foreign(tmp_path / "out", case)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=reason) as refused:
        write(tmp_path / "out")
    assert refused.value.path == tmp_path / "out"
    assert tree(tmp_path) == before


def test_what_another_command_added_with_its_own_mark_is_replaced_with_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "out", writer=Writer.EXPORT)
    write(tmp_path / "out" / "engines", writer=Writer.COMPILE)
    (tmp_path / "out" / "deep" / "__pycache__").mkdir()
    (tmp_path / "out" / "deep" / "__pycache__" / "model.pyc").touch()
    write(tmp_path / "out", writer=Writer.EXPORT)
    assert not (tmp_path / "out" / "engines").exists()


@pytest.mark.parametrize("name", [".", "..", "../.."])
def test_the_current_folder_and_what_contains_it_are_refused(tmp_path: Path, monkeypatch, name: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(OutputError, match="is the current folder or contains it"):
        write(Path(name))
    assert tree(tmp_path) == {}


def test_a_failure_leaves_the_old_output_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(FileNotFoundError), replaced_directory(tmp_path / "out", Writer.INDEX) as root:
        shutil.copy("no such file", root)
    assert (tmp_path / "out" / "deep" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_one_writes_and_the_other_is_told_who(tmp_path: Path) -> None:
    with replaced_directory(tmp_path / "out", Writer.INDEX) as root:
        (root / "file").touch()
        with pytest.raises(OutputError, match=f"process {os.getpid()} on .* is writing it") as refused:
            write(tmp_path / "out")
        assert refused.value.holder is not None
    assert (tmp_path / "out" / "file").exists()


def test_a_disk_without_room_for_a_lock_is_told_with_the_outputs_path(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large") as full, only_writer(tmp_path / "lock", tmp_path / "out"):
            pytest.fail("the lock can't be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.value.filename == str(tmp_path / "out")
    assert not (tmp_path / "lock").exists()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from cirrus_client.outputs import only_writer\n"
        "with only_writer(Path(sys.argv[1]), Path('out')): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "lock")], check=False)
    assert (tmp_path / "lock").exists()
    with only_writer(tmp_path / "lock", tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


def test_what_killed_processes_left_is_removed_and_what_is_held_is_not(tmp_path: Path) -> None:
    (tmp_path / ".out.0.cirrus-tmp").touch()
    (tmp_path / ".out.1.cirrus-tmp").mkdir()
    (tmp_path / ".out.1.cirrus-tmp" / "file").touch()
    (tmp_path / ".theirs.tmp").touch()
    with replaced_directory(tmp_path / "other", Writer.INDEX) as held:
        remove_abandoned(tmp_path)
        assert held.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".theirs.tmp", "other"]
    write_atomically(tmp_path / "file", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".theirs.tmp", "file", "other"]


def test_files_are_locked_as_nfs_allows_it(tmp_path: Path, monkeypatch) -> None:
    """NFS 4 locks a file exclusively only where it is open for writing, see flock(2). Its folders have no such rule."""
    flock = fcntl.flock

    def as_on_nfs(descriptor: int, operation: int) -> None:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if is_file and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    (tmp_path / ".file.0.cirrus-tmp").touch()
    write_atomically(tmp_path / "file", b"1")
    write(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize("machine", ["this", "another"])
def test_a_lock_whose_file_its_last_holder_has_removed_is_none(tmp_path: Path, monkeypatch, machine: str) -> None:
    """On NFS, a file that this machine removes while it is open has a hidden name until it is closed, and so a link."""
    flock = fcntl.flock

    def after_a_removal(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        if machine == "another":
            raise OSError(errno.ESTALE, "Stale file handle")
        (tmp_path / "lock").rename(tmp_path / ".nfs0001")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_a_removal)
    with (
        only_writer(tmp_path / "lock", tmp_path),
        pytest.raises(OutputError, match="is writing it"),
        only_writer(tmp_path / "lock", tmp_path),
    ):
        pytest.fail("two hold one lock")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_of_the_process_is_kept(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "out")
        write_atomically(tmp_path / "file", b"1")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "out/deep/file", "file")]
    assert modes == [0o777 & ~umask, 0o666 & ~umask, 0o666 & ~umask]


def test_a_file_system_that_cannot_exchange_names_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    def refuse(first: Path, second: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(outputs, "_exchange", refuse)
    write(tmp_path / "out", "first")
    write(tmp_path / "out", "second")
    assert (tmp_path / "out" / "deep" / "file").read_text() == "second"
    (tmp_path / "out").rename(tmp_path / ".out.previous")  # a kill between the two steps
    with replaced_directory(tmp_path / "out", Writer.INDEX):
        assert (tmp_path / "out" / "deep" / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_is_replaced_though_a_file_of_the_older_one_is_open_on_nfs(tmp_path: Path, monkeypatch) -> None:
    """NFS exchanges no names, and keeps a removed file that is open under another name, and so its folder."""

    def refuse(first: Path, second: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    rmtree, is_open = shutil.rmtree, [True]

    def as_on_nfs(path: Path, *, ignore_errors: bool = False) -> None:
        if not is_open:
            rmtree(path)
        elif not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(outputs, "_exchange", refuse)
    monkeypatch.setattr(shutil, "rmtree", as_on_nfs)
    for content in ("first", "second", "third"):
        write(tmp_path / "out", content)
        assert (tmp_path / "out" / "deep" / "file").read_text() == content
    shutil.copytree(tmp_path / "out", tmp_path / ".out.previous")  # a kill before it had another name
    write(tmp_path / "out", "fourth")
    is_open.clear()
    write(tmp_path / "out", "last")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_REPLACES = """
import os, sys
from pathlib import Path
from cirrus_client.names import Writer
from cirrus_client.outputs import replaced_directory

WATCHED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "ctypes.dlsym", "open"}
left = int(sys.argv[2])

def hook(event, arguments):
    global left
    if event in WATCHED:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)

with replaced_directory(Path(sys.argv[1]), Writer.INDEX) as root:
    sys.addaudithook(hook)
    for name in ("a", "b"):
        (root / name).write_text("new")
os._exit(0)
"""


@pytest.mark.slow
def test_a_kill_at_any_step_of_a_replacement_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    kills = 0
    while True:
        with replaced_directory(tmp_path / "out", Writer.INDEX) as root:
            (root / "a").write_text("old")
        command = [sys.executable, "-c", _REPLACES, str(tmp_path / "out"), str(kills)]
        ended = subprocess.run(command, check=False).returncode
        found = {name: content for name, content in tree(tmp_path / "out").items() if name != MARK}
        assert found in ({"a": b"old"}, {"a": b"new", "b": b"new"})
        if ended == 0:
            break
        kills += 1
    assert kills > 10
    write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_this_machine_exchanges_names_in_one_step(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "renameat2"):
        pytest.skip("this libc has no renameat2")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").touch()
    try:
        outputs._exchange(tmp_path / "one", tmp_path / "two")
    except OSError as error:
        pytest.skip(f"this file system can't: {error}")
    assert (tmp_path / "two").is_dir()
