"""Many callers of one server at once, with good and damaged inputs, and what each of them got."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cirrus_client import LocalEncoder, TritonEncoder
from cirrus_client.errors import InvalidImage, ItemError, ServerOverloaded, ServerUnavailable

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_CLOSE = 1e-5
_PAUSE_S = 0.02
_MACHINES_FAULTS = (ServerUnavailable, ServerOverloaded)


@dataclass(frozen=True)
class Query:
    """An image, perhaps a damaged one, with an edit text. expected: its embedding, or the type of its error."""

    image: bytes
    text: str | None
    expected: NDArray[np.float32] | type[ItemError]


@dataclass
class Outcomes:
    """How many calls ended how. wrong: descriptions of those that ended as they must not."""

    counted: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def ask(self, encoder: TritonEncoder, query: Query) -> None:
        """Send a query and count its outcome."""
        try:
            answer = encoder.encode_queries([query.image], [query.text])
        except ItemError as error:
            self._count("refused", type(error) is query.expected, repr(error))
        except _MACHINES_FAULTS as error:
            self._count(type(error).__name__, True, repr(error))
            time.sleep(_PAUSE_S)
        except BaseException as error:
            self._count("crashed", False, repr(error))
        else:
            right = not isinstance(query.expected, type) and np.allclose(answer[0], query.expected, atol=_CLOSE)
            self._count("answered", right, f"an answer to {query.image[:24]!r} that is not the local one")

    def _count(self, kind: str, right: bool, what: str) -> None:
        self.counted[kind] += 1
        if not right:
            self.wrong.append(what)


def queries(local: LocalEncoder, *, good: int, damaged: int, seed: int) -> list[Query]:
    """Return queries in random order, each with what the encoder of this process makes of it."""
    generator = random.Random(seed)
    images = [_image(generator) for _ in range(good)]
    images += [_damaged(_image(generator), generator) for _ in range(damaged)]
    generator.shuffle(images)
    return [_query(local, image, generator.choice([None, "in blue", "with stripes"])) for image in images]


def ask_all(encoder: TritonEncoder, asked: Sequence[Query], *, threads: int) -> Outcomes:
    """Send every query once, from several threads."""
    outcomes = Outcomes()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda query: outcomes.ask(encoder, query), asked))
    return outcomes


@contextmanager
def asked_all_the_time(encoder: TritonEncoder, asked: Sequence[Query], *, threads: int) -> Iterator[Outcomes]:
    """Send the queries over and over from several threads while the block runs."""
    outcomes, over = Outcomes(), threading.Event()

    def ask(first: int) -> None:
        place = first
        while not over.is_set():
            outcomes.ask(encoder, asked[place % len(asked)])
            place += threads

    callers = [threading.Thread(target=ask, args=(place,)) for place in range(threads)]
    for caller in callers:
        caller.start()
    try:
        yield outcomes
    finally:
        over.set()
        for caller in callers:
            caller.join()


def wait_until(condition: Callable[[], bool], *, within_s: float) -> bool:
    """Return whether a condition came true in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_gone(group: int) -> bool:
    """Return whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def _query(local: LocalEncoder, image: bytes, text: str | None) -> Query:
    try:
        return Query(image, text, local.encode_queries([image], [text])[0])
    except InvalidImage as error:
        return Query(image, text, type(error))


def _image(generator: random.Random) -> bytes:
    size = (generator.randint(30, 300), generator.randint(30, 300))
    content = io.BytesIO()
    pixels = generator.randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, pixels).save(content, generator.choice(_FORMATS))
    return content.getvalue()


def _damaged(image: bytes, generator: random.Random) -> bytes:
    """Cut an image, flip bits of its head or anywhere, overwrite a part, or put another's head on it."""
    content, length = bytearray(image), len(image)
    kind = generator.randrange(5)
    if kind == 0:
        return image[: generator.randrange(length)]
    if kind in (1, 2):
        for _ in range(generator.randint(1, 40)):
            content[generator.randrange(min(length, 400) if kind == 1 else length)] ^= 1 << generator.randrange(8)
    elif kind == 3:
        start = generator.randrange(length)
        content[start : start + 200] = generator.randbytes(len(content[start : start + 200]))
    else:
        head = generator.randrange(4, 40)
        content[:head] = _image(generator)[:head]
    return bytes(content)
