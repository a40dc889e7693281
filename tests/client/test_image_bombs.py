"""A decompression bomb of any format costs seconds and megabytes, not minutes and gigabytes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cirrus_client.errors import InvalidImage
from cirrus_client.image import limits
from cirrus_client.image import preprocess as preprocess_module
from cirrus_client.image.decode import FORMATS, check_header
from cirrus_client.image.preprocess import Decoding, Pad, PreprocessSpec, preprocess
from cirrus_client.image.request import split_images
from cirrus_client.image.room import LARGE_BYTES, ROOM_BYTES, room_for
from tests.bombs import BOMBS, jpeg_of_scans, png, png_of_zeros, tiff_of_one_tile, tiff_of_strips, webp_of_one_colour
from tests.conftest import jpeg, png_header, record_room

ROOT = Path(__file__).parents[2]
LONGEST_S, LARGEST_MIB = 20.0, 2048
"""Generous: the largest accepted images take two to four seconds; a WebP of 100 million pixels takes 1.6 GB."""

MEASURE = """
import json, sys, time
from pathlib import Path
from tests.bombs import BOMBS
from cirrus_client.errors import InvalidImage
from cirrus_client.image.preprocess import PreprocessSpec, preprocess
from cirrus_client.memory import keep_freed_memory

def mebibytes(kind):
    return int(Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) // 1024

keep_freed_memory()
errors = []
spec = PreprocessSpec(size_px=224, pad="target", convert_rgb="after_crop")
for name, make in BOMBS[sys.argv[1]].items():
    bomb, before, started = make(), mebibytes("VmRSS"), time.process_time()
    try:
        outcome = list(preprocess(bomb, spec).shape)
    except InvalidImage as error:
        outcome = str(error)
        errors.append(error)  # as a job does: it may not hold the memory of the image
    cpu_s = time.process_time() - started
    kept = mebibytes("VmRSS") - before
    print(json.dumps({"name": name, "outcome": outcome, "cpu_s": cpu_s, "kept": kept, "peak": mebibytes("VmHWM")}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("kind", FORMATS)
def test_bombs_of_every_format_cost_little_and_leave_nothing_behind(kind: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert [bomb["name"] for bomb in measured] == list(BOMBS[kind])
    for bomb in measured:
        assert bomb["cpu_s"] < LONGEST_S, bomb
        assert bomb["peak"] < LARGEST_MIB, bomb
        assert bomb["kept"] < 64 + limits.MAX_IMAGE_BYTES // 2**20, bomb


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (jpeg_of_scans(1000, 1000, 101), "more scans than the limit of 100 for 1,000,000 pixels"),
        (jpeg_of_scans(8000, 8000, 40), "more scans than the limit of 31 for 64,000,000 pixels"),
        (webp_of_one_colour(16_000, 6000), "96,000,000 pixels in 34 bytes: it is a decompression bomb"),
        (png_header(50_000, 50_000), "2,500,000,000 pixels, the limit is 100,000,000"),
        (tiff_of_one_tile(2**17, 2**14), "tiles of 131072 x 16384"),
        (tiff_of_strips(100_001), "more TIFF strips or tiles than the limit of 100,000"),
        (png(0, 8), "0 x 8 = 0 pixels"),
    ],
)
def test_a_header_says_enough_to_refuse_a_bomb(bomb: bytes, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        check_header(bomb)


def test_what_encoders_write_is_within_the_limits() -> None:
    assert check_header(jpeg_of_scans(1000, 1000, 97)).size == (1000, 1000)
    assert check_header(webp_of_one_colour(4000, 3000)).size == (4000, 3000)
    assert check_header(png_of_zeros(3000, 2000)).size == (3000, 2000)


def test_a_request_is_split_by_its_images_pixels_and_bytes(monkeypatch) -> None:
    images = dict(enumerate([webp_of_one_colour(4000, 5000), jpeg(), png_of_zeros(4000, 1000), jpeg(), jpeg()]))
    assert split_images(images, 64, "image") == [[0, 1, 2, 3, 4]]
    assert split_images(images, 2, "image") == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr("cirrus_client.image.request.MAX_REQUEST_PIXELS", 5_000_000)
    assert split_images(images, 64, "image") == [[0], [1, 2, 3, 4]]
    monkeypatch.setattr("cirrus_client.image.request.MAX_REQUEST_BYTES", len(images[2]) + 100)
    assert split_images(images, 64, "image") == [[0], [1], [2], [3, 4]]
    assert split_images({}, 64, "image") == []
    with pytest.raises(InvalidImage, match="query 7: the bytes are not an image") as caught:
        split_images({3: jpeg(), 7: b"no image"}, 64, "query")
    assert caught.value.position == 7


def test_the_page_has_the_limits_of_the_code() -> None:
    table = (ROOT / "docs" / "images.md").read_text().split("## Limits")[1]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [^|]*\|$", table, re.MULTILINE))
    millions = {name: f"{value // 10**6:,} million" for name, value in vars(limits).items() if name.endswith("PIXELS")}
    assert list(rows.values())[1:] == [
        f"{limits.MAX_IMAGE_BYTES // 2**20} MiB",
        millions["MAX_IMAGE_PIXELS"],
        f"{limits.BOMB_PIXELS_PER_BYTE:,}",
        f"{limits.MAX_PARTS:,}",
        f"{limits.MAX_SCANS}, and {millions['MAX_SCANNED_PIXELS']} pixels in all scans",
        millions["MAX_RLE_PIXELS"],
        millions["MAX_REQUEST_PIXELS"],
        f"{limits.MAX_REQUEST_BYTES // 2**20} MiB",
    ]
    assert f"pixels per byte, from {millions['BOMB_PIXELS']} pixels on" in rows
    large, room = f"{LARGE_BYTES // 2**20} MiB", f"{ROOM_BYTES // 2**30} GiB"
    assert f"more than {large} each wait until they fit into {room}" in " ".join(table.split())


def test_large_images_of_many_threads_fit_into_the_room_together() -> None:
    size = ROOM_BYTES // 3
    inside = most_inside = 0
    counting = threading.Lock()

    def decode(_: int) -> None:
        nonlocal inside, most_inside
        with room_for(size):
            with counting:
                inside += 1
                most_inside = max(most_inside, inside)
            time.sleep(0.02)
            with counting:
                inside -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(decode, range(24)))
    assert most_inside == 3
    with room_for(10 * ROOM_BYTES), pytest.raises(InvalidImage), room_for(1):
        raise InvalidImage("it is given back after an error too")
    with room_for(ROOM_BYTES):
        pass


@pytest.mark.parametrize(
    ("image", "pad", "pixels"),
    [(png_of_zeros(1, 11_000), Pad.TARGET, 8_801 * 11_000), (png_of_zeros(1, 1_900), Pad.NONE, 224 * 425_600)],
    ids=["padded", "resized"],
)
@pytest.mark.slow
def test_a_line_of_pixels_takes_the_room_of_what_it_is_fitted_to(image, pad, pixels, monkeypatch) -> None:
    taken = record_room(preprocess_module, monkeypatch)
    for decoding in (Decoding.EXACT, Decoding.FAST):
        preprocess(image, PreprocessSpec(size_px=224, pad=pad), decoding)
    preprocess(jpeg("teal", (4_000, 3_000)), PreprocessSpec(size_px=224, pad=pad))
    *of_lines, of_photo = taken
    assert min(of_lines) >= 4 * pixels > LARGE_BYTES > of_photo


def test_a_fork_while_a_large_image_is_decoded_leaves_the_child_its_room() -> None:
    with room_for(ROOM_BYTES):
        child = os.fork()
        if child == 0:
            with room_for(ROOM_BYTES):
                os._exit(0)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)
