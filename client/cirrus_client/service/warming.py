"""Encode the images of galleries ahead, so that an item is known when it is first a reference."""

from __future__ import annotations

import asyncio
import logging
import weakref
from itertools import islice

from cirrus_client.errors import CirrusError
from cirrus_client.service.collection import Version
from cirrus_client.service.encoding import LocalQueries
from cirrus_client.service.registry import WATCH_S, Registry

_ITEMS = 256
_PAUSE_S = 0.05
log = logging.getLogger(__name__)


async def keep_warm(registry: Registry) -> None:
    """Encode the items of every version that is served, first to last, until cancelled.

    It stops where the memory of the version's encoder is full, and at a version that was replaced, which it keeps in
    memory no longer. Versions on Triton are left out.
    """
    done: weakref.WeakSet[Version] = weakref.WeakSet()
    while True:
        version = next((one for _, one in registry.versions() if one not in done), None)
        if version is None:
            await asyncio.sleep(WATCH_S)
            continue
        done.add(version)
        if isinstance(version.encoder, LocalQueries):
            log.info("%s: %d images are known", version.spec.name, await _warm(registry, version, version.encoder))


async def _warm(registry: Registry, version: Version, encoder: LocalQueries) -> int:
    """Return how many images were encoded, or were known."""
    learnt = 0
    ids = version.saved.items.ids()
    while some := await asyncio.to_thread(lambda: list(islice(ids, _ITEMS))):
        for id in some:
            while not encoder.is_idle and _is_served(registry, version):
                await asyncio.sleep(_PAUSE_S)
            if not _is_served(registry, version):
                return learnt
            try:
                image = await asyncio.to_thread(version.images.read, id)
                if not await encoder.learn(image):
                    return learnt
                learnt += 1
            except CirrusError as error:
                log.warning("%s: item %r can't be encoded ahead: %s", version.spec.name, id, error)
    return learnt


def _is_served(registry: Registry, version: Version) -> bool:
    return any(version is one for _, one in registry.versions())
