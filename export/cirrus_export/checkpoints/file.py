"""Read a checkpoint's file as what its first bytes say that it is, whatever its name says."""

from __future__ import annotations

import zipfile
from pathlib import Path

from safetensors.torch import load_file

from cirrus_client.errors import CheckpointError
from cirrus_export.checkpoints.shards import is_index, read_shards, refuse_one_of_several
from cirrus_export.checkpoints.torch_file import read_torch
from cirrus_export.checkpoints.torchscript import is_torchscript, read_torchscript

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LONGEST_HEADER = 100_000_000  # of safetensors
_CHUNK_BYTES = 2**20
_MISTAKEN = {
    b"version https://git-lfs": "a Git LFS pointer in place of the file: fetch it with `git lfs pull`",
    b"<": "a web page, probably an error or a login saved under the file's name: download it again",
    b"{": "JSON, not weights: name the file with the weights",
    b"[": "JSON, not weights: name the file with the weights",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\x89HDF": "an HDF5 file, as Keras saves weights: save them with safetensors",
    b"GGUF": "a GGUF file, whose weights are quantised: name the original weights",
}
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read_file(path: Path) -> object:
    """Return what a safetensors file, a file of `torch.save` or a TorchScript archive holds; no code in it runs.

    An index of shards holds what all of them do. Raises CheckpointError if there is no such file, it is another kind of
    file, or it is broken.
    """
    if is_index(path):
        return read_shards(path, _read_one)
    refuse_one_of_several(path)
    return _read_one(path)


def _read_one(path: Path) -> object:
    begin = _first_bytes(path)
    try:
        if _is_safetensors(begin):
            return load_file(path)
        if begin.startswith(_ZIP):
            return _read_zip(path)
        if begin.startswith(_PICKLE):
            return read_torch(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that anybody wrote can raise anything in three parsers
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise CheckpointError(f"checkpoint {path}: is cut or broken ({reason}); copy it again") from error
    raise CheckpointError(f"checkpoint {path}: {_no_checkpoint(begin)}")


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.suffix in _SUFFIXES)
        found = f": {', '.join(inside[:8])}" if inside else ", of which this one has none"
        raise CheckpointError(f"checkpoint {path}: is a folder; name the file in it that holds the weights{found}")
    if not path.exists():
        raise CheckpointError(f"checkpoint {path}: there is no such file")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: is no regular file")
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: can't be read: {error.strerror}") from error
    if not begin:
        raise CheckpointError(f"checkpoint {path}: is empty (0 bytes); copy it again")
    return begin


def _is_safetensors(begin: bytes) -> bool:
    return begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= _LONGEST_HEADER


def _read_zip(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise zipfile.BadZipFile("its end is missing")
    if is_torchscript(path):
        return read_torchscript(path)
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("data.pkl") for name in archive.namelist()):
            raise CheckpointError(f"checkpoint {path}: is a zip file, and none of torch.save: unpack it")
        _check_zip(path, archive)
    return read_torch(path)


def _check_zip(path: Path, archive: zipfile.ZipFile) -> None:
    """Compare every entry with its checksum, which torch does not do; those that torch.save left out are 0."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"checkpoint {path}: {entry.filename} is compressed, which torch.save never does")
        if entry.CRC:
            with archive.open(entry) as content:
                while content.read(_CHUNK_BYTES):
                    pass


def _no_checkpoint(begin: bytes) -> str:
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    for start, what in _MISTAKEN.items():
        if text.startswith(start):
            return f"is {what}"
    return f"is no checkpoint: expected a file of safetensors or torch.save, found one that begins with {begin[:16]!r}"
