"""Captions of photos and sketches, worded in many ways and not always complete."""

from __future__ import annotations

import numpy as np

from cirrus_demo.attributes import Garment, Pattern, pick
from cirrus_demo.wording import (
    NECKLINE_PHRASES,
    PATTERN_ADJECTIVES,
    PLAIN_WORDS,
    SLEEVE_ADJECTIVES,
    SLEEVE_PHRASES,
    cloth,
    coloured_pattern,
    kind_noun,
    length_adjective,
    other_colour,
    with_article,
)

MENTION = 0.9
"""How often a caption mentions each attribute other than kind and cloth."""


def caption(garment: Garment, rng: np.random.Generator) -> str:
    """Return a caption of a photo: its colours and most of its other attributes.

    Some name a colour that it has not ("..., not red"), so that the text encoder meets the words of comparisons.
    """
    if garment.pattern is not Pattern.PLAIN and rng.random() < 0.5:
        text = _describe(garment, str(garment.colour), [coloured_pattern(garment, rng)], rng)
    else:
        text = _describe(garment, cloth(garment, rng), [], rng)
    if rng.random() < 0.1:
        absent = other_colour(garment.colour, rng)
        text += pick(rng, (f", not {absent}", f" instead of {absent}", f" rather than {absent}"))
    return _frame(text, ("{}", "a photo of {}", "{} on a plain background", "this is {}", "it is {}"), rng)


def sketch_caption(garment: Garment, rng: np.random.Generator) -> str:
    """Return a caption of a sketch, which has no colour."""
    plain = garment.pattern is Pattern.PLAIN
    adjective = pick(rng, PLAIN_WORDS if plain else PATTERN_ADJECTIVES[garment.pattern])
    return _frame(_describe(garment, adjective, [], rng), ("a sketch of {}", "a drawing of {}", "{}"), rng)


def _describe(garment: Garment, adjective: str, trimmings: list[str], rng: np.random.Generator) -> str:
    """Return article, adjectives, noun and "with" phrases."""
    words = [adjective]
    if rng.random() < MENTION:
        words.insert(int(rng.integers(2)), length_adjective(garment, rng))
    if rng.random() < MENTION:
        if rng.random() < 0.4:
            words.append(pick(rng, SLEEVE_ADJECTIVES[garment.sleeve]))
        else:
            trimmings = [*trimmings, pick(rng, SLEEVE_PHRASES[garment.sleeve])]
    if rng.random() < MENTION:
        trimmings = [*trimmings, pick(rng, NECKLINE_PHRASES[garment.neckline])]
    text = with_article(" ".join([*words, kind_noun(garment, rng)]))
    if trimmings:
        shuffled = [trimmings[place] for place in rng.permutation(len(trimmings))]
        text += " with " + " and ".join(shuffled)
    return text


def _frame(text: str, frames: tuple[str, ...], rng: np.random.Generator) -> str:
    return pick(rng, frames).format(text)
