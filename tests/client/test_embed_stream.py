"""The stream keeps order, holds little, waits for no slow file, and passes errors on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cirrus_client.errors import EngineError, InvalidImage, UnreadableImage
from cirrus_client.gallery import stream as stream_module
from cirrus_client.gallery.source import ImageFile, Listing
from cirrus_client.gallery.stream import EmbedStream
from cirrus_client.image.preprocess import PreprocessSpec, preprocess


class Space:
    item_shape = (2,)


class CountingEncoder:
    """Embeds the number that a file's name says, and remembers its batches."""

    space = Space()

    def __init__(self, concurrency: int = 1, prepare: Callable[[int], int] = int) -> None:
        self.concurrency = concurrency
        self._prepare = prepare
        self.batches: list[list[int]] = []
        self.lock = threading.Lock()
        self.running = self.most_running = 0

    def prepare(self, image: bytes) -> Any:
        return self._prepare(int(image))

    def encode_prepared(self, prepared: list[int]) -> np.ndarray:
        with self.lock:
            self.batches.append(list(prepared))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(0.005)
        with self.lock:
            self.running -= 1
        if any(number == 13 for number in prepared):
            raise InvalidImage("thirteen")
        if any(number == 666 for number in prepared):
            raise EngineError("the engine broke")
        return np.array([[number, -number] for number in prepared], dtype=np.float32)


class Numbers:
    """A source whose files hold their own number."""

    root = "/photos"

    def list(self) -> Listing:
        return Listing(tuple(files(100)))

    def read(self, file: ImageFile) -> bytes:
        return file.path.encode()


def files(count: int) -> list[ImageFile]:
    return [ImageFile(str(number), 1, 1) for number in range(count)]


def number(file: ImageFile) -> int:
    return int(file.path)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_results_are_in_the_files_order_and_broken_ones_are_told(concurrency: int) -> None:
    def prepare(number: int) -> int:
        if number % 10 == 3 and number != 13:
            raise InvalidImage(f"no {number}")
        return number

    encoder = CountingEncoder(concurrency, prepare)

    done: list[int] = []
    with EmbedStream(Numbers(), encoder, batch_size=8, workers=4) as stream:
        embedded = stream.embed(files(101), done.append)
    good = [number for number in range(101) if number % 10 != 3]
    assert [file.path for file in embedded.accepted] == [str(number) for number in good]
    np.testing.assert_array_equal(embedded.embeddings[:, 0], good)
    assert {item.file.path: item.reason for item in embedded.rejected} == {
        str(number): "thirteen" if number == 13 else f"no {number}" for number in range(3, 101, 10)
    }
    assert sum(done) == 101
    assert encoder.most_running <= concurrency
    if concurrency > 1:
        assert encoder.most_running > 1


def test_a_batch_does_not_wait_for_a_slow_file() -> None:
    release = threading.Event()

    def prepare(number: int) -> int:
        if number == 0:
            assert release.wait(300)
        return number

    encoder = CountingEncoder(prepare=prepare)

    def on_done(count: int) -> None:
        if len(encoder.batches) >= 3:
            release.set()

    with EmbedStream(Numbers(), encoder, batch_size=4, workers=2) as stream:
        embeddings = stream.embed(files(41), on_done).embeddings
    np.testing.assert_array_equal(embeddings[:, 0], [number for number in range(41) if number != 13])
    assert all(0 not in batch for batch in encoder.batches[:3])


def test_what_is_in_memory_is_bounded() -> None:
    prepared = 0
    most = 0
    lock = threading.Lock()

    def prepare(number: int) -> int:
        nonlocal prepared, most
        with lock:
            prepared += 1
            most = max(most, prepared - sum(len(batch) for batch in encoder.batches[:-2]))
        return number

    encoder = CountingEncoder(prepare=prepare)

    with EmbedStream(Numbers(), encoder, batch_size=4, workers=4) as stream:
        stream.embed(files(400))
    assert most <= 4 * (1 + 3) + 8


def test_an_engine_that_breaks_stops_the_job() -> None:
    with (
        EmbedStream(Numbers(), CountingEncoder(), batch_size=4) as stream,
        pytest.raises(EngineError, match="the engine broke"),
    ):
        stream.embed([*files(20), ImageFile("666", 1, 1)])


def test_no_files_are_no_rows() -> None:
    with EmbedStream(Numbers(), CountingEncoder()) as stream:
        embedded = stream.embed([])
    assert embedded.embeddings.shape == (0, 2)
    assert embedded.accepted == embedded.rejected == embedded.undone == ()


def test_what_the_machine_could_not_do_is_tried_again_and_then_left_undone() -> None:
    """One file can be read at the second try, one never, one does not fit into memory, and batches do not either."""
    tries: dict[int, int] = {}

    class Failing(Numbers):
        def read(self, file: ImageFile) -> bytes:
            tries[number(file)] = tries.get(number(file), 0) + 1
            if number(file) == 3 and tries[3] == 1:
                raise UnreadableImage("not now")
            if number(file) == 5:
                raise OSError(5, "Input/output error")
            return super().read(file)

    def prepare(number: int) -> int:
        if number == 7:
            raise MemoryError
        return number

    class SmallEncoder(CountingEncoder):
        def encode_prepared(self, prepared: list[int]) -> np.ndarray:
            if len(prepared) > 2:
                raise MemoryError
            return super().encode_prepared(prepared)

    with EmbedStream(Failing(), SmallEncoder(prepare=prepare), batch_size=4, workers=2) as stream:
        embedded = stream.embed(files(20))
    assert [number(file) for file in embedded.accepted] == [n for n in range(20) if n not in (5, 7, 13)]
    np.testing.assert_array_equal(embedded.embeddings[:, 0], [number(file) for file in embedded.accepted])
    assert [(item.file.path, item.reason) for item in embedded.undone] == [
        ("5", "[Errno 5] Input/output error"),
        ("7", "there was not enough memory"),
    ]
    assert [item.file.path for item in embedded.rejected] == ["13"]


def test_a_source_that_is_gone_is_not_waited_for_once_per_image() -> None:
    reads: list[str] = []

    class Gone(Numbers):
        def read(self, file: ImageFile) -> bytes:
            reads.append(file.path)
            if number(file) >= 4:
                raise UnreadableImage("the store has gone")
            return super().read(file)

    with EmbedStream(Gone(), CountingEncoder(), batch_size=4) as stream:
        embedded = stream.embed(files(500))
    assert (len(embedded.accepted), len(embedded.undone)) == (4, 496)
    assert len(reads) <= 500 + 2 * 40


def test_images_that_fail_among_others_that_do_not_are_no_store_that_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(stream_module, "_PAUSES_S", (0.0, 0.0))
    tries: dict[int, int] = {}

    class Failing(Numbers):
        def read(self, file: ImageFile) -> bytes:
            tries[number(file)] = tries.get(number(file), 0) + 1
            if number(file) % 2 == 0 or tries[number(file)] == 1:
                raise UnreadableImage("not now")
            return super().read(file)

    with EmbedStream(Failing(), CountingEncoder(), batch_size=4) as stream:
        embedded = stream.embed(files(90)[20:])
    assert [number(file) for file in embedded.accepted] == [n for n in range(20, 90) if n % 2]


class Counted(bytes):
    """Bytes that count how many of their kind are held."""

    held = 0

    def __new__(cls, content: bytes) -> Counted:
        cls.held += 1
        return super().__new__(cls, content)

    def __del__(self) -> None:
        type(self).held -= 1


def test_broken_images_are_let_go_of_when_they_are_known_to_be_broken() -> None:
    class Broken(Numbers):
        def read(self, file: ImageFile) -> bytes:
            return Counted(b"no image")

    class Decoding(CountingEncoder):
        def prepare(self, image: bytes) -> np.ndarray:
            return preprocess(image, PreprocessSpec(size_px=8))

    held: list[int] = []
    with EmbedStream(Broken(), Decoding(), batch_size=4, workers=2) as stream:
        assert len(stream.embed(files(200), lambda _: held.append(Counted.held)).rejected) == 200
    assert max(held) <= 4 * (1 + 3) + 2


class Halves(Numbers):
    """A source in which two files each have the same bytes."""

    def read(self, file: ImageFile) -> bytes:
        return str(number(file) // 2).encode()


def test_images_with_the_same_bytes_are_encoded_once_and_all_have_a_row() -> None:
    encoder = CountingEncoder()
    with EmbedStream(Halves(), encoder, batch_size=8, workers=4) as stream:
        embedded = stream.embed(files(100))
    good = [number // 2 for number in range(100) if number // 2 != 13]
    np.testing.assert_array_equal(embedded.embeddings[:, 0], good)
    assert sorted({number for batch in encoder.batches for number in batch}) == list(range(50))
    assert sum(map(len, encoder.batches)) <= 50 + 8 + 8 * 8  # the last batch is filled up, and one with 13 is divided
    assert [(item.file.path, item.reason) for item in embedded.rejected] == [("26", "thirteen"), ("27", "thirteen")]
    assert embedded.copies == 49
    assert len(embedded.digests) == 98


@pytest.mark.parametrize("content", [b"7", b"13"])
def test_more_copies_of_an_image_than_wait_in_line_all_have_a_result(content: bytes) -> None:
    """As a shop has them: one picture that says that there is none."""

    class Placeholders(Numbers):
        def read(self, file: ImageFile) -> bytes:
            return str(number(file)).encode() if number(file) < 3 else content

    with EmbedStream(Placeholders(), CountingEncoder(), batch_size=4, workers=2) as stream:
        embedded = stream.embed(files(1000))
    assert len(embedded.accepted) + len(embedded.rejected) == 1000
    assert len(embedded.rejected) == (997 if content == b"13" else 0)


def test_what_a_gallery_has_already_is_not_encoded_again() -> None:
    encoder = CountingEncoder()
    known = {hashlib.sha256(b"7").hexdigest(): np.array([70, -70], np.float32)}
    with EmbedStream(Numbers(), encoder, embedded=known.get, batch_size=4) as stream:
        embedded = stream.embed(files(9))
    np.testing.assert_array_equal(embedded.embeddings[:, 0], [0, 1, 2, 3, 4, 5, 6, 70, 8])
    assert embedded.copies == 1
    assert all(7 not in batch for batch in encoder.batches)


def test_all_batches_have_one_shape() -> None:
    encoder = CountingEncoder()
    with EmbedStream(Numbers(), encoder, batch_size=8) as stream:
        assert len(stream.embed(files(11)).accepted) == 11
    assert {len(batch) for batch in encoder.batches} == {8}


def test_the_bytes_that_are_read_ahead_are_bounded() -> None:
    read: list[int] = []
    waiting: list[int] = []

    class Large(Numbers):
        def read(self, file: ImageFile) -> bytes:
            read.append(number(file))
            waiting.append(len(read) - len(done))
            return super().read(file)

    done: list[int] = []
    large = [ImageFile(str(number), 100 * 2**20, 1) for number in range(20, 60)]
    with EmbedStream(Large(), CountingEncoder(), batch_size=1) as stream:
        stream.embed(large, lambda count: done.extend([0] * count))
    assert len(read) == 40
    assert max(waiting) <= 4
