"""Whether every part of the service answers as the original did: canaries, at the start and on a schedule."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass

from cirrus_client.canary import read_canary
from cirrus_client.errors import CirrusError, NotReady
from cirrus_client.replay import CanaryResult, replay
from cirrus_client.service.collection import Version
from cirrus_client.service.encoding import QueryEncoder
from cirrus_client.service.models import Readiness, ReadyPart
from cirrus_client.service.registry import Registry
from cirrus_client.suggest import LocalSuggester
from cirrus_client.suggest_canary import check_texts, read_suggest_canary

_AGAIN_S = 10
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Verdict:
    """What the last replay found. cosine: None if the bundle has no canary."""

    cosine: float | None
    error: NotReady | None


class Canaries:
    """Replays the canaries of all encoders, and the suggester's. Tasks of one event loop may share it.

    A verdict is on an encoder: it stands for every version that the encoder is of, also after an index was replaced.
    """

    def __init__(self, registry: Registry, suggester: LocalSuggester | None = None) -> None:
        """Keep the registry and the suggester. Nothing is replayed yet."""
        self._registry = registry
        self._suggester = suggester
        self._texts: _Verdict | None = None
        self._verdicts: dict[int, tuple[QueryEncoder, _Verdict]] = {}

    async def replay(self) -> None:
        """Replay the canary of every encoder of a version that is served now, and the suggester's."""
        verdicts: dict[int, tuple[QueryEncoder, _Verdict]] = {}
        for name, version in self._registry.versions():
            if id(version.encoder) not in verdicts:
                verdicts[id(version.encoder)] = version.encoder, await asyncio.to_thread(_verdict, name, version)
        self._verdicts = verdicts
        if self._suggester is not None:
            self._texts = await asyncio.to_thread(_verdict_on_texts, self._suggester)

    async def keep_on(self, interval_s: float) -> None:
        """Replay on a schedule, new encoders at once and those that failed soon, until cancelled."""
        while True:
            passed_s = 0
            while not (passed_s >= interval_s or self._has_new() or (passed_s > _AGAIN_S and self._has_failed())):
                await asyncio.sleep(1)
                passed_s += 1
            await self.replay()

    def _has_new(self) -> bool:
        return any(self._of(version) is None for _, version in self._registry.versions())

    def _has_failed(self) -> bool:
        verdicts = [verdict for _, verdict in self._verdicts.values()]
        return any(verdict.error is not None for verdict in (*verdicts, self._texts) if verdict is not None)

    def forget(self) -> None:
        """Replay all canaries soon: what encodes was started again."""
        self._verdicts = {}

    async def readiness(self) -> Readiness:
        """Return the state of every part. Raises NotReady, with the stage, if one does not answer rightly."""
        parts = []
        for name, version in self._registry.versions():
            verdict = self._of(version)
            if verdict is None:
                raise NotReady(f"collection {name}: its canary was not replayed yet", part=name)
            if verdict.error is not None:
                raise verdict.error
            await version.encoder.check()
            await asyncio.to_thread(len, version.saved.items)  # a server that has the index must answer
            parts.append(ReadyPart(part=name, space=version.space, cosine=verdict.cosine))
        if self._suggester is not None:
            name = self._suggester.spec.name
            if self._texts is None:
                raise NotReady(f"suggester {name}: its canary was not replayed yet", part=name)
            if self._texts.error is not None:
                raise self._texts.error
            parts.append(ReadyPart(part=name, space=None, cosine=None))
        return Readiness(parts=parts)

    def cosines(self) -> dict[tuple[str, str], float]:
        """Return the smallest cosine of each version, by collection and space; NaN where a stage did not answer."""
        return {
            (name, version.space): verdict.cosine
            for name, version in self._registry.versions()
            if (verdict := self._of(version)) is not None and verdict.cosine is not None
        }

    def passed(self) -> dict[str, bool]:
        """Return whether every canary of a collection passed, and the suggester's, by their names."""
        found: dict[str, bool] = {}
        for name, version in self._registry.versions():
            if (verdict := self._of(version)) is not None:
                found[name] = found.get(name, True) and verdict.error is None
        if self._suggester is not None and self._texts is not None:
            found[self._suggester.spec.name] = self._texts.error is None
        return found

    def _of(self, version: Version) -> _Verdict | None:
        found = self._verdicts.get(id(version.encoder))
        return None if found is None else found[1]


def _verdict(name: str, version: Version) -> _Verdict:
    where = f"collection {name}, bundle {version.spec.name}"
    result: CanaryResult | None = None
    try:
        canary = read_canary(version.bundle)
        if canary is None:
            log.warning("%s has no canary, so that what encodes is not verified; export it again", where)
            return _Verdict(None, None)
        result = replay(canary, version.spec, version.encoder.runner())
        result.check(where)
    except NotReady as error:
        log.error("%s", error)
        return _Verdict(math.nan if result is None else result.lowest, _told(error, where, result))
    except CirrusError as error:
        log.error("%s: its canary can't be replayed: %s", where, error)
        return _Verdict(math.nan, NotReady(f"{where}: its canary can't be replayed", part=name))
    return _Verdict(result.lowest, None)


def _told(error: NotReady, where: str, result: CanaryResult | None) -> NotReady:
    """Return an error as everybody may read it: why a stage does not answer names files and machines."""
    problems = {} if result is None else {check.stage: check.problem for check in result.stages}
    if problems.get(error.part) is None:
        return error
    return NotReady(f"{where}: stage {error.part} does not answer; the log says why", part=error.part)


def _verdict_on_texts(suggester: LocalSuggester) -> _Verdict:
    where = f"suggester {suggester.spec.name}"
    try:
        canary = read_suggest_canary(suggester.root, suggester.spec)
        if canary is None:
            log.warning("%s has no canary, so that what it writes is not verified; export it again", where)
        else:
            check_texts(canary, suggester, where)
    except NotReady as error:
        log.error("%s", error)
        return _Verdict(None, error)
    except CirrusError as error:
        log.error("%s: its canary can't be replayed: %s", where, error)
        return _Verdict(None, NotReady(f"{where}: its canary can't be replayed", part=suggester.spec.name))
    return _Verdict(None, None)
