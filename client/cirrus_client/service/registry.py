"""The collections of a service: what is served now, and how a newer version takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cirrus_client.errors import CirrusError, InvalidRequest, ServerError, StoredDataError, UnknownCollection
from cirrus_client.service.collection import Source, State, Version
from cirrus_client.service.models import CollectionInfo

WATCH_S = 1.0
_AWAY = "the server that has its index can't be asked; GET /readyz says why"
log = logging.getLogger(__name__)
OpenVersion = Callable[[Source], Version]
"""Opens a source. It takes its time: newer versions are opened in a thread."""


@dataclass
class Served:
    """A collection. versions: one per source; the active one answers requests that name no space.

    tried: what the folders were when they were last opened again, also if that failed.
    """

    name: str
    versions: list[Version]
    active: int = 0
    problem: str | None = None
    tried: Sequence[State] | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Registry:
    """Names of collections and their versions. Tasks of one event loop may share it.

    A request takes a version once and uses it to its end, so that no answer mixes two. A version that was replaced
    lives until the last request that uses it has ended.
    """

    def __init__(self, open_: OpenVersion) -> None:
        """Keep the function that opens versions. Nothing is served yet."""
        self._open = open_
        self._served: dict[str, Served] = {}
        self._opening = ThreadPoolExecutor(1, "open")

    def add(self, name: str, sources: Sequence[Source]) -> None:
        """Open and serve a collection; its first source is active.

        Raises what opening raises, and ServerError if two versions have one space, by which requests ask for them.
        """
        self._served[name] = Served(name, self._opened(name, sources))

    def names(self) -> tuple[str, ...]:
        """Return the names of the collections; the first is the one of requests that name none."""
        return tuple(self._served)

    def find(self, name: str | None) -> tuple[str, Version]:
        """Return a collection's name and the version to use. name: see `SearchRequest`.

        Raises UnknownCollection if there is no such collection, or none of its versions has that space.
        """
        wanted, _, space = (name or next(iter(self._served), "")).partition("@")
        if wanted not in self._served:
            raise UnknownCollection(
                f"there is no collection {wanted!r}; there are: {', '.join(self._served)}",
                name=wanted,
                known=self.names(),
            )
        served = self._served[wanted]
        if not space:
            return wanted, served.versions[served.active]
        for version in served.versions:
            if version.space.startswith(space):
                return wanted, version
        raise UnknownCollection(
            f"collection {wanted!r} has no version of space {space}", name=f"{wanted}@{space}", known=self.names()
        )

    def info(self, name: str, *, suggest: bool) -> CollectionInfo:
        """Describe a collection, which takes its time: call it in a thread.

        suggest: whether a suggester is served. Raises UnknownCollection.
        """
        name, _ = self.find(name)
        served = self._served[name]
        versions, active = served.versions, served.active  # another thread may replace them
        version = versions[active]
        infos = [one.info(active=place == active) for place, one in enumerate(versions)]
        return CollectionInfo(
            name=name,
            space=version.space,
            bundle=version.bundle_info(),
            accepts=version.accepts(),
            weighted=version.weighted,
            rerank=version.reranks,
            suggest=suggest,
            images=infos[active].images,
            dim=version.spec.space.dim,
            vectors=version.spec.space.vectors,
            columns=version.columns,
            fidelity=version.fidelity(),
            versions=infos,
            problem=served.problem or (_AWAY if infos[active].images is None else None),
        )

    def versions(self) -> list[tuple[str, Version]]:
        """Return all versions with the names of their collections."""
        return [(served.name, version) for served in self._served.values() for version in served.versions]

    async def reload(self, name: str) -> None:
        """Open the folders of a collection again, and serve what is in them now.

        Raises what opening raises, and StoredDataError for a fault of the machine, like too little memory: the old
        version is served on. Raises UnknownCollection.
        """
        name, _ = self.find(name)
        served = self._served[name]
        async with served.changing:
            try:
                fresh = await asyncio.get_running_loop().run_in_executor(self._opening, self._reopened, served)
            except (CirrusError, OSError, MemoryError) as error:
                served.problem = f"the newer version is not served ({type(error).__name__}); the log says why"
                reason = str(error) or "there is not enough memory"
                log.error("collection %s: the newer version is not served: %s", name, reason)
                if isinstance(error, CirrusError):
                    raise
                raise StoredDataError(f"collection {name}: {reason}") from None
            served.versions, served.problem = fresh, None
            log.info("collection %s: its folders were opened again", name)

    async def watch(self, interval_s: float) -> None:
        """Reload collections whose folders are replaced, until cancelled. What can't be opened is tried once.

        A collection whose folders are again those that are served, as after a mount was away, has no problem left.
        """
        while True:
            await asyncio.sleep(interval_s)
            for name, served in list(self._served.items()):
                states = await asyncio.to_thread(_states, served)
                if states == [version.state for version in served.versions]:
                    if served.tried != states:
                        served.tried, served.problem = states, None
                elif states != served.tried:
                    with contextlib.suppress(CirrusError):  # it is logged, and shown as the collection's problem
                        await self.reload(name)

    async def look_after(self, revive: Callable[[], bool], revived: Callable[[], None], interval_s: float) -> None:
        """Call `revive` in the thread that opens versions, and `revived` if it did, until cancelled.

        What it raises is logged.
        """
        while True:
            await asyncio.sleep(interval_s)
            try:
                if await asyncio.get_running_loop().run_in_executor(self._opening, revive):
                    revived()
            except (CirrusError, OSError) as error:
                log.error("%s", error)

    def _reopened(self, served: Served) -> list[Version]:
        served.tried = _states(served)
        return self._opened(served.name, [version.source for version in served.versions])

    def _opened(self, name: str, sources: Sequence[Source]) -> list[Version]:
        versions = [self._open(source) for source in sources]
        spaces = [version.space for version in versions]
        for space in spaces:
            if spaces.count(space) > 1:
                raise ServerError(
                    f"collection {name}: two of its versions have space {space[:16]}, by which requests ask for a "
                    "version; give one of them as a collection of another name"
                )
        return versions

    async def close(self) -> None:
        """Close the connections of all versions. One that is being opened is not waited for: it may take minutes."""
        for _, version in self.versions():
            await version.encoder.close()
        self._opening.shutdown(wait=False, cancel_futures=True)

    def switch(self, name: str, space: str) -> None:
        """Make the version of a space the active one. Raises UnknownCollection, InvalidRequest if no version has it."""
        name, _ = self.find(name)
        served = self._served[name]
        places = [place for place, version in enumerate(served.versions) if version.space.startswith(space)]
        if len(places) != 1:
            raise InvalidRequest(f"{len(places)} versions of {name!r} have a space {space}...", field="space")
        served.active = places[0]


def _states(served: Served) -> list[State]:
    return [version.source.state() for version in served.versions]
