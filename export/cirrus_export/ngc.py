"""Which TensorRT is in which release of NVIDIA's Triton container.

The table is `ngc_releases.json`, with its source. NVIDIA publishes it for the containers with TensorRT-LLM; the plain
`-py3` container of a release may have another TensorRT, which `pip list` or the server's log inside of it tells.
"""

from __future__ import annotations

from importlib.resources import files

from pydantic import BaseModel, ConfigDict

from cirrus_client.errors import ExportError

_NEAREST = 3


class Release(BaseModel):
    """What is in the container of a release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensorrt: str
    onnxruntime: str


class Releases(BaseModel):
    """The table. container: the image that it is about; read: the day it was read from its source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    read: str
    container: str
    releases: dict[str, Release]


def ngc_releases() -> Releases:
    """Return the table."""
    return Releases.model_validate_json((files("cirrus_export") / "ngc_releases.json").read_bytes())


def check_release(release: str, installed: str, *, version_compatible: bool) -> None:
    """Raise ExportError if plans of the installed TensorRT would not load in the container of a Triton release.

    A plan loads in the TensorRT that compiled it; a version-compatible one in later ones of the same major version.
    """
    table = ngc_releases()
    if release not in table.releases:
        nearest = sorted(table.releases, key=lambda known: abs(_month(known) - _month(release)))[:_NEAREST]
        raise ExportError(
            f"--for-triton {release}: the table of {table.read} does not have it; the nearest are "
            f"{', '.join(sorted(nearest))} ({table.source})"
        )
    wanted = table.releases[release].tensorrt
    there, here = (tuple(int(part) for part in version.split(".")[:3]) for version in (wanted, installed))
    if there == here or (version_compatible and there[0] == here[0] and there > here):
        return
    raise ExportError(
        f"--for-triton {release}: {table.container.replace('<release>', release)} has TensorRT {wanted}, here is "
        f"{installed}, whose plans it would not load: pip install 'tensorrt=={'.'.join(wanted.split('.')[:3])}.*', or "
        "compile inside that container"
    )


def _month(release: str) -> int:
    try:
        year, month = release.split(".")
        return 12 * int(year) + int(month)
    except ValueError:
        raise ExportError(f"--for-triton {release}: a release is a year and a month, like 26.07") from None
