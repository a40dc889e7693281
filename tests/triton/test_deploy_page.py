"""docs/deploy-on-triton.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from cirrus_client.image.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_REQUEST_BYTES, MAX_REQUEST_PIXELS
from cirrus_client.tokenizer import MAX_TEXT_CHARACTERS
from cirrus_export.draft import MAX_BATCH
from cirrus_export.repository import LIMITS

PAGE = (Path(__file__).parents[2] / "docs" / "deploy-on-triton.md").read_text()


def test_the_table_of_limits_has_the_codes_numbers() -> None:
    table = PAGE.split("## Limits")[1]
    rows = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|", table, re.MULTILINE))
    assert rows["batch"] == str(MAX_BATCH)
    assert rows["wait to fill a batch of images"] == f"{LIMITS.gather_us // 1000} ms"
    assert rows["queue"] == f"{LIMITS.queue_size:,} requests, {LIMITS.timeout_us // 1_000_000} s"
    assert rows["requests in flight at each step of an ensemble"] == str(LIMITS.inflight)
    assert rows["image"] == f"{MAX_IMAGE_BYTES // 2**20} MiB, {MAX_IMAGE_PIXELS // 10**6} million pixels"
    request = f"{MAX_REQUEST_BYTES // 2**20} MiB, {MAX_REQUEST_PIXELS // 10**6:,} million pixels"
    assert rows["images of a request"] == request
    assert rows["text"] == f"{MAX_TEXT_CHARACTERS:,} characters"
