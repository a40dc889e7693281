"""Choose a suggester's golden pairs, of those that its gate compared."""

from __future__ import annotations

from collections.abc import Sequence

from cirrus_client.suggest_canary import GoldenPair, SuggestCanary
from cirrus_export.suggester.gate import PairFidelity
from cirrus_export.suggester.original import Written

_PAIRS = 2
"""Each costs a text whenever it is replayed, which is seconds with a language model of seven billion weights."""


def make_canary(
    pairs: Sequence[tuple[bytes, bytes]], originals: Sequence[Written], found: Sequence[PairFidelity]
) -> SuggestCanary:
    """Return the canary of an export: pairs on which it writes what the original does, if there are any.

    The text is always the exported suggester's own. Where a lower precision writes another text than the original, no
    server of this suggester could write the original's. Of several, those come first whose closest decision between two
    tokens is the least close, because another processor rounds otherwise.
    """

    def preference(place: int) -> tuple[bool, bool, float]:
        return not found[place].agrees, not found[place].text, -originals[place].margin

    chosen = sorted(range(len(pairs)), key=preference)[:_PAIRS]
    return SuggestCanary(
        pairs=tuple(
            GoldenPair(
                reference=pairs[place][0],
                target=pairs[place][1],
                text=found[place].text,
                original=found[place].agrees,
            )
            for place in chosen
        )
    )
