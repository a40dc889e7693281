"""Golden pairs in a suggester, with their edit texts, to hold whatever runs the suggester to.

`canary.json` has the images and the texts. A text is compared letter by letter, since nothing else of a suggester is
seen through a server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from cirrus_client.errors import BundleError, NotReady
from cirrus_client.records import Record, read_record
from cirrus_client.suggest import MODEL, WAY_OUT, Suggester, SuggestSpec

CANARY = "canary.json"


class _WithImages(Record):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


class GoldenPair(_WithImages):
    """Two image files, and the text that the exported suggester writes. original: whether the torch original does."""

    reference: bytes
    target: bytes
    text: str
    original: bool


class SuggestCanary(_WithImages):
    """`canary.json` of a suggester."""

    format: Literal[1] = 1
    pairs: tuple[GoldenPair, ...] = Field(min_length=1)


def read_suggest_canary(root: Path, spec: SuggestSpec) -> SuggestCanary | None:
    """Return the canary of a suggester, or None if it has none, as those of older exports. Raises BundleError."""
    if CANARY not in spec.files:
        return None
    path = root / CANARY
    return read_record(
        path, SuggestCanary, raises=BundleError, missing=f"{path} is missing; {WAY_OUT}", way_out=WAY_OUT
    )


def check_texts(canary: SuggestCanary, suggester: Suggester, where: str) -> None:
    """Let a suggester write the text of each golden pair. where: what is held to the canary, for the message.

    Raises NotReady, with every pair whose text differs and both texts, and what the suggester raises.
    """
    differing = []
    for number, pair in enumerate(canary.pairs, start=1):
        found = suggester.suggest(pair.reference, pair.target)
        if found != pair.text:
            differing.append(f"golden pair {number} gets the text {found!r}, expected {pair.text!r}")
    if differing:
        raise NotReady(f"{where} does not write as its export did: {'; '.join(differing)}", part=MODEL)
