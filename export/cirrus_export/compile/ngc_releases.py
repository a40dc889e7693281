"""The TensorRT version in each of NGC's Triton containers, from one table with its sources (`ngc_releases.json`)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from cirrus_client.errors import ExportError
from cirrus_client.plans import runs_on, version_numbers
from cirrus_client.records import Record

_NEIGHBOURS = 4


class NgcRelease(Record):
    """The versions in one container, where its source gives them. source: a key of the table's `sources`."""

    tensorrt: str
    cuda: str | None = None
    onnxruntime: str | None = None
    source: str


class NgcReleases(Record):
    """The whole table."""

    container: str
    read_on: str
    sources: dict[str, str]
    left_out: str
    releases: dict[str, NgcRelease]


@cache
def ngc_releases() -> NgcReleases:
    """Return the table."""
    return NgcReleases.model_validate_json((files("cirrus_export.compile") / "ngc_releases.json").read_bytes())


def release_named(name: str) -> NgcRelease:
    """Return a release by its tag, like 26.07. Raises ExportError, which lists the nearest known ones."""
    releases = ngc_releases().releases
    if name in releases:
        return releases[name]
    month = _month(name)
    nearest = sorted(sorted(releases, key=lambda known: abs(_month(known) - month))[:_NEIGHBOURS])
    raise ExportError(
        f"--for-triton {name}: the table of NGC's Triton releases does not have it; the nearest it has are "
        f"{', '.join(nearest)}. Compile inside that container instead, without --for-triton"
    )


def check_release(name: str, tensorrt: str, *, version_compatible: bool) -> None:
    """Raise ExportError if plans of this TensorRT can't run in a Triton release."""
    release = release_named(name)
    if runs_on(tensorrt, release.tensorrt, version_compatible=version_compatible):
        return
    rule = "that version or an older one of its major" if version_compatible else "exactly that version"
    raise ExportError(
        f"--for-triton {name}: its container has TensorRT {release.tensorrt}, whose plans must be built with {rule}; "
        f"here is TensorRT {tensorrt}. Mend it: pip install '{_requirement(release)}'"
    )


def _requirement(release: NgcRelease) -> str:
    """Return the requirement for pip. On PyPI a version may lack the build number, or have a post release instead."""
    package = "tensorrt" if release.cuda is None else f"tensorrt-cu{release.cuda.split('.')[0]}"
    return f"{package}=={'.'.join(release.tensorrt.split('.')[:3])}.*"


def _month(name: str) -> int:
    numbers = version_numbers(name)
    if len(numbers) != 2:
        raise ExportError(f"--for-triton {name}: a release is named by year and month, like 26.07")
    return 12 * numbers[0] + numbers[1]
