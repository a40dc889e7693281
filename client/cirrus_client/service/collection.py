"""What is served under a name at one moment: a bundle, an index of its space, and what encodes its queries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cirrus_client.bundle import CONTRACT, Bundle, BundleSpec
from cirrus_client.errors import CirrusError, SpaceMismatch
from cirrus_client.index.manifest import MANIFEST
from cirrus_client.index.saved import SavedIndex, open_index
from cirrus_client.names import EnsembleName
from cirrus_client.service.encoding import QueryEncoder
from cirrus_client.service.images import GalleryImages
from cirrus_client.service.models import BundleInfo, Column, Fidelity, VersionInfo
from cirrus_client.service.searcher import Searcher
from cirrus_client.tokenizer import Tokenizer

_REPORT = "report.json"


class Facts(NamedTuple):
    """What tells a file from the one that replaces it."""

    inode: int
    mtime_ns: int
    size: int


State = tuple[Facts | None, Facts | None]
"""The facts of a bundle's contract and of an index's; None for what is not there."""


@dataclass(frozen=True)
class Source:
    """Where a version of a collection is on disk. images: the root of its images; None takes the index's own."""

    bundle: Path
    index: Path
    images: str | None = None

    def state(self) -> State:
        """Return the facts of the bundle's and the index's contract, which differ after one of them was replaced."""
        return _facts(self.bundle / CONTRACT), _facts(self.index / MANIFEST)


@dataclass(frozen=True, eq=False)
class Version:
    """An opened bundle and index. A request uses one version from its beginning to its end. Threads may share it."""

    source: Source
    state: State
    bundle: Bundle
    saved: SavedIndex
    encoder: QueryEncoder
    searcher: Searcher
    images: GalleryImages
    max_pixels: int
    opened: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def spec(self) -> BundleSpec:
        """The bundle's contract."""
        return self.bundle.spec

    @property
    def space(self) -> str:
        """The fingerprint of the vector space."""
        return self.spec.space.fingerprint

    @property
    def weighted(self) -> bool:
        """Whether embeddings of queries may be added: what is nearest to a sum needs one vector per image."""
        return self.spec.space.vectors == 1

    @property
    def reranks(self) -> bool:
        """Whether the bundle has a reranker."""
        return EnsembleName.SCORE_CANDIDATE in self.spec.ensembles

    @property
    def built(self) -> float:
        """When the index was built, in seconds since 1970."""
        facts = self.state[1]
        return 0.0 if facts is None else facts.mtime_ns / 1e9

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer."""
        return Tokenizer(self.spec.tokenizer, self.bundle.root)

    def count(self) -> int | None:
        """Return the number of images; None if the server that has the index can't be asked."""
        try:
            return len(self.saved.items)
        except CirrusError:
            return None

    def bundle_info(self) -> BundleInfo:
        """Return what an answer says about the bundle."""
        spec = self.spec
        return BundleInfo(name=spec.name, recipe=spec.recipe, backbone=spec.backbone, precision=spec.precision)

    def info(self, *, active: bool) -> VersionInfo:
        """Return what the list of collections says about this version."""
        return VersionInfo(
            space=self.space,
            bundle=self.bundle_info(),
            images=self.count(),
            opened=self.opened.isoformat(timespec="seconds"),
            active=active,
        )

    def accepts(self) -> list[str]:
        """Return the kinds of queries that the recipe answers."""
        ensembles = self.spec.ensembles
        with_image = ["image", "image+text"] if EnsembleName.ENCODE_QUERY in ensembles else []
        return with_image + (["text"] if EnsembleName.ENCODE_TEXT_QUERY in ensembles else [])

    @cached_property
    def columns(self) -> list[Column]:
        """What the columns of the metadata hold."""
        return [Column(**vars(summary)) for summary in self.saved.items.columns()]

    def fidelity(self) -> Fidelity:
        """Return the gate's verdict, the figures of the bundle's report, and the agreement of the index."""
        agreement = self.saved.manifest.agreement
        return Fidelity(
            passed=self.spec.fidelity.passed,
            figures=_figures(self.bundle.root / _REPORT),
            agreement=None if agreement is None else agreement.share,
        )


def open_version(source: Source, state: State, bundle: Bundle, encoder: QueryEncoder, *, max_pixels: int) -> Version:
    """Open the index of a version. state: the source's before its bundle was opened. max_pixels: of one image.

    Raises SearchIndexError if the index is damaged, SpaceMismatch if it was built in another space than the bundle's.
    """
    saved = open_index(source.index, images=source.images)
    space, other = bundle.spec.space, saved.index.space
    if other.fingerprint != space.fingerprint:
        raise SpaceMismatch(
            f"bundle {source.bundle} has space {space.fingerprint}, index {source.index} has space "
            f"{other.fingerprint}; they differ in {space.differences_in_words(other)}: embed the gallery with this "
            "bundle",
            components=space.differences(other),
        )
    return Version(source, state, bundle, saved, encoder, Searcher(saved), GalleryImages(saved.items), max_pixels)


def _facts(path: Path) -> Facts | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return Facts(status.st_ino, status.st_mtime_ns, status.st_size)


def _figures(report: Path) -> dict[str, dict[str, float]]:
    """Return what the gate measured on each ensemble. A report is for people: one that can't be read says nothing."""
    try:
        content: Any = json.loads(report.read_bytes())
        return {
            measured["ensemble"]: {name: value for name, value in measured.items() if isinstance(value, int | float)}
            for measured in content["retrieval"]
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
