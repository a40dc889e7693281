"""Encode the images of galleries ahead, so that an item is known when it is first a reference."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice

from cirrus_client.errors import CirrusError
from cirrus_client.service.collection import Version
from cirrus_client.service.encoding import LocalQueries
from cirrus_client.service.registry import WATCH_S, Registry

_ITEMS = 256
log = logging.getLogger(__name__)


async def keep_warm(registry: Registry) -> None:
    """Encode the items of every version that is served, first to last, until cancelled.

    It stops where the memory of the version's encoder is full. Versions on Triton are left out.
    """
    done: list[Version] = []
    while True:
        served = [version for _, version in registry.versions()]
        for version in served:
            if not any(version is one for one in done) and isinstance(version.encoder, LocalQueries):
                log.info("%s: %d images are known", version.spec.name, await _warm(version, version.encoder))
        done = served
        await asyncio.sleep(WATCH_S)


async def _warm(version: Version, encoder: LocalQueries) -> int:
    """Return how many images were encoded, or were known."""
    learnt = 0
    ids = version.saved.items.ids()
    while some := await asyncio.to_thread(lambda: list(islice(ids, _ITEMS))):
        for id in some:
            try:
                image = await asyncio.to_thread(version.images.read, id)
                if not await encoder.learn(image):
                    return learnt
                learnt += 1
            except CirrusError as error:
                log.warning("%s: item %r can't be encoded ahead: %s", version.spec.name, id, error)
    return learnt
