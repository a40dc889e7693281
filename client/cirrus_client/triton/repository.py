"""The record of a Triton model repository, and the copy of a repository that is served.

`repository.json` binds every file below the repository by its sha256. `cirrus serve` runs no code from a repository: it
links the checked data into a scratch folder and takes each `model.py` from the installed client.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.machinery import all_suffixes
from importlib.resources import files
from pathlib import Path
from typing import Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from cirrus_client.errors import BundleError
from cirrus_client.files import check_files, sha256_of_file, write_model
from cirrus_client.names import Flavour, FolderRecord, ModelCode
from cirrus_client.outputs import MARK
from cirrus_client.records import Name, Record, RelativePath, read_record

RECORD = FolderRecord.REPOSITORY
REPOSITORIES = "triton"
_CODE_FILE = "model.py"
_CONFIG = "config.pbtxt"
_VERSION, _WARMUP = "1", "warmup"
_IGNORED = {RECORD, MARK}
_WAY_OUT = "write it again with `cirrus export` or `cirrus repository`, or copy it whole"
_FIELDS = {
    *("name", "platform", "backend", "max_batch_size", "input", "output", "instance_group", "dynamic_batching"),
    *("ensemble_scheduling", "parameters", "model_warmup", "response_cache"),
}
_PYTHON_PARAMETERS = {"preprocess", "tokenizer", "graph_file", "precision", "bulk"}


class RepositorySpec(Record):
    """The contents of `repository.json`.

    code: the installed code that each model of Triton's Python backend runs, by the model's name. files: sha256 of
    every other file below the repository.
    """

    format: Literal[1] = 1
    flavour: Flavour
    code: dict[Name, ModelCode]
    files: dict[RelativePath, str]


def write_record(root: Path, flavour: Flavour, code: Mapping[str, ModelCode]) -> None:
    """Copy the installed code into a repository's models, and write `repository.json` over everything in it.

    code: see `RepositorySpec`.
    """
    for model, kind in code.items():
        _write_code(kind, root / model)
    sums = {name: sha256_of_file(root / name) for name in sorted(_files_of(root))}
    write_model(root / RECORD, RepositorySpec(flavour=flavour, code=dict(code), files=sums))


def read_repository(root: Path) -> RepositorySpec:
    """Read `repository.json` and compare everything below the repository with it.

    Raises BundleError if it is missing, a file is missing, changed or not a plain file, or one is not listed.
    """
    spec = read_record(
        root / RECORD,
        RepositorySpec,
        raises=BundleError,
        way_out=_WAY_OUT,
    )
    check_files(root, spec.files, what="model repository", raises=BundleError, way_out=_WAY_OUT)
    strangers = sorted(_files_of(root) - set(spec.files))
    if strangers:
        raise BundleError(
            f"model repository {root}: {strangers[0]} is not listed in {RECORD}; {_WAY_OUT}", path=root / strangers[0]
        )
    return spec


def assemble(root: Path, destination: Path) -> None:
    """Make a repository of links to the data of another, with the installed code, in an empty folder.

    Raises what `read_repository` raises, and BundleError if the repository is for NVIDIA's container, a configuration
    asks Triton to load anything but data, or a file is where Triton or Python would run it.
    """
    spec = read_repository(root)
    if spec.flavour is not Flavour.PYTHON:
        raise BundleError(
            f"model repository {root} is of the {spec.flavour} flavour, which NVIDIA's container serves; `cirrus "
            "serve` serves the python flavour"
        )
    paths = [Path(name) for name in spec.files]
    for path in paths:
        if path.name == _CONFIG:
            _check_config(root / path, spec.code)
    for path in paths:
        if path.parts[0] in spec.code and path.parts[1:] == (_VERSION, _CODE_FILE):
            continue
        _check_data(root, path)
        linked = destination / path
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to((root / path).resolve())
    for config in root.glob(f"*/{_CONFIG}"):
        (destination / config.parent.name / _VERSION).mkdir(exist_ok=True)
    for model, kind in spec.code.items():
        _write_code(kind, destination / model)


def _check_data(root: Path, path: Path) -> None:
    """Raise BundleError unless a file is data, in a place where Cirrus writes some.

    Triton loads the highest version and a stub beside a configuration. Python finds modules in a model's folders.
    """
    _, *inner = path.parts
    is_placed = inner == [_CONFIG] or (len(inner) > 1 and inner[0] in (_VERSION, _WARMUP))
    if not is_placed or path.name.endswith(tuple(all_suffixes())):
        raise BundleError(
            f"model repository {root}: {path} is not data of Cirrus's own models; {_WAY_OUT}", path=root / path
        )


def _check_config(path: Path, code: Mapping[str, ModelCode]) -> None:
    """Raise BundleError unless a configuration is an ensemble's, or that of a model with installed code."""
    config = pb.ModelConfig()
    try:
        text_format.Parse(path.read_bytes(), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: {error}; {_WAY_OUT}", path=path) from None
    runs_code = config.backend == "python" and path.parent.name in code
    is_ensemble = config.platform == "ensemble" and not config.backend and path.parent.name not in code
    unknown = {field.name for field, _ in config.ListFields()} - _FIELDS
    if runs_code:
        unknown |= {f"parameters.{name}" for name in set(config.parameters) - _PYTHON_PARAMETERS}
    if unknown or not (runs_code or is_ensemble):
        found = ", ".join(sorted(unknown)) or f"backend '{config.backend}', platform '{config.platform}'"
        raise BundleError(f"{path}: it asks Triton for more than Cirrus's own models: {found}; {_WAY_OUT}", path=path)


def _files_of(root: Path) -> set[str]:
    """Return everything below a repository that is not a folder, without its record and its mark."""
    paths = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in paths} - _IGNORED


def _write_code(kind: ModelCode, model: Path) -> None:
    (model / _VERSION).mkdir(parents=True, exist_ok=True)
    source = files("cirrus_client.triton") / "models" / kind / _CODE_FILE
    (model / _VERSION / _CODE_FILE).write_bytes(source.read_bytes())
