"""Edits: one to three attributes changed, and the words with which a person asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

import numpy as np

from cirrus_demo.attributes import Colour, Garment, Length, Pattern, Sleeve, necklines, pick
from cirrus_demo.wording import (
    NECKLINE_PHRASES,
    PATTERN_ADJECTIVES,
    PLAIN_WORDS,
    SLEEVE_PHRASES,
    coloured_pattern,
    length_adjective,
    pattern_noun,
)

MAX_CHANGES = 3


class Change(StrEnum):
    """What one clause of an edit asks for."""

    COLOUR = "colour"
    SWAP = "the two colours swapped"
    SECOND_COLOUR = "the pattern's colour"
    PATTERN = "pattern"
    SLEEVE = "sleeve"
    NECKLINE = "neckline"
    LENGTH = "length"


def changes(reference: Garment, target: Garment) -> tuple[Change, ...]:
    """Return what differs, in reading order. Garments of different kinds are never an edit of each other."""
    found: list[Change] = []
    second = reference.second_colour
    if second is not None and (target.colour, target.second_colour) == (second, reference.colour):
        found.append(Change.SWAP)
    elif target.colour is not reference.colour:
        found.append(Change.COLOUR)
    if target.pattern is not reference.pattern:
        found.append(Change.PATTERN)
    elif target.second_colour is not second and Change.SWAP not in found:
        found.append(Change.SECOND_COLOUR)
    found += [
        change
        for change, before, after in (
            (Change.SLEEVE, reference.sleeve, target.sleeve),
            (Change.NECKLINE, reference.neckline, target.neckline),
            (Change.LENGTH, reference.length, target.length),
        )
        if before is not after
    ]
    return tuple(found)


def edited(reference: Garment, rng: np.random.Generator) -> Garment:
    """Return another garment of the same kind with one, two or three changes, each number as often."""
    number = int(rng.integers(1, MAX_CHANGES + 1))
    while True:
        target = reference
        for _ in range(number):
            target = _change_one(target, rng)
        if len(changes(reference, target)) == number:
            return target


def edit_captions(reference: Garment, target: Garment, rng: np.random.Generator) -> tuple[str, str]:
    """Return two captions of an edit in the manner of FashionIQ; together they name every change.

    Either they share the clauses between them, or each says the same in other words, or the first is a request in
    free form ("make it blue, with shorter sleeves") and the second repeats a part of it.
    """
    found = changes(reference, target)
    order = [found[place] for place in rng.permutation(len(found))]
    style = rng.random()
    if style < 0.3:
        return free_edit(reference, target, rng), _statement(reference, target, [pick(rng, found)], rng)
    if style < 0.65 and len(order) > 1:
        middle = int(rng.integers(1, len(order)))
        return (
            _statement(reference, target, order[:middle], rng),
            _statement(reference, target, order[middle:], rng),
        )
    return _statement(reference, target, order, rng), _statement(reference, target, order[::-1], rng)


def free_edit(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    """Return one request that names every change: "the same but in red with white dots and no sleeves"."""
    clauses = [_clause(change, reference, target, rng) for change in changes(reference, target)]
    opening = pick(rng, ("make it {}", "the same but {}", "i want it {}", "change it to be {}", "{} please", "{}"))
    return opening.format(" and ".join(clauses))


def _statement(reference: Garment, target: Garment, found: list[Change], rng: np.random.Generator) -> str:
    clauses = [_clause(change, reference, target, rng) for change in found]
    return pick(rng, ("is {}", "{}", "it is {}", "the one i want is {}")).format(" and ".join(clauses))


def _clause(change: Change, reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    return _CLAUSES[change](reference, target, rng)


def _say_colour(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    new, old = target.colour, reference.colour
    return pick(rng, (f"in {new}", f"{new}", f"{new} instead of {old}", f"more {new}", f"{new} and not {old}"))


def _say_swap(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    del reference, target
    return pick(rng, ("with the two colours swapped", "with its colours the other way round", "with inverted colours"))


def _say_second_colour(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    noun = pattern_noun(reference, rng).removeprefix("a ")
    return pick(rng, (f"with {coloured_pattern(target, rng)}", f"with the {noun} in {target.second_colour}"))


def _say_pattern(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    if target.pattern is Pattern.PLAIN:
        old = pattern_noun(reference, rng).removeprefix("a ")
        return pick(rng, (*PLAIN_WORDS, f"without the {old}", "without a pattern"))
    if target.second_colour is not reference.second_colour:
        return f"with {coloured_pattern(target, rng)}"
    new, old = pattern_noun(target, rng), pattern_noun(reference, rng)
    return pick(rng, (f"with {new} instead of {old}", f"with {new}", pick(rng, PATTERN_ADJECTIVES[target.pattern])))


def _say_sleeve(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    steps = list(Sleeve).index(target.sleeve) - list(Sleeve).index(reference.sleeve)
    if steps == 1 and rng.random() < 0.4:
        return "with longer sleeves"
    if steps == -1 and rng.random() < 0.4:
        return "with shorter sleeves"
    return f"with {pick(rng, SLEEVE_PHRASES[target.sleeve])}"


def _say_neckline(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    new, old = pick(rng, NECKLINE_PHRASES[target.neckline]), pick(rng, NECKLINE_PHRASES[reference.neckline])
    return pick(rng, (f"with {new}", f"with {new}", f"with {new} instead of {old}"))


def _say_length(reference: Garment, target: Garment, rng: np.random.Generator) -> str:
    steps = list(Length).index(target.length) - list(Length).index(reference.length)
    if steps == 1 and rng.random() < 0.4:
        return pick(rng, ("longer", "a bit longer"))
    if steps == -1 and rng.random() < 0.4:
        return pick(rng, ("shorter", "a bit shorter"))
    return length_adjective(target, rng)


_CLAUSES: dict[Change, Callable[[Garment, Garment, np.random.Generator], str]] = {
    Change.COLOUR: _say_colour,
    Change.SWAP: _say_swap,
    Change.SECOND_COLOUR: _say_second_colour,
    Change.PATTERN: _say_pattern,
    Change.SLEEVE: _say_sleeve,
    Change.NECKLINE: _say_neckline,
    Change.LENGTH: _say_length,
}


def _change_one(garment: Garment, rng: np.random.Generator) -> Garment:
    patterned = garment.second_colour is not None
    options = [Change.COLOUR, Change.PATTERN, Change.SLEEVE, Change.NECKLINE, Change.LENGTH]
    change = pick(rng, tuple([*options, Change.SECOND_COLOUR, Change.SWAP] if patterned else options))
    free_colours = tuple(c for c in Colour if c not in (garment.colour, garment.second_colour))
    if change is Change.COLOUR:
        return replace(garment, colour=pick(rng, free_colours))
    if change is Change.SECOND_COLOUR:
        return replace(garment, second_colour=pick(rng, free_colours))
    if change is Change.SWAP and garment.second_colour is not None:
        return replace(garment, colour=garment.second_colour, second_colour=garment.colour)
    if change is Change.PATTERN:
        pattern = pick(rng, tuple(p for p in Pattern if p is not garment.pattern))
        if pattern is Pattern.PLAIN:
            return replace(garment, pattern=pattern, second_colour=None)
        return replace(garment, pattern=pattern, second_colour=garment.second_colour or pick(rng, free_colours))
    if change is Change.SLEEVE:
        return replace(garment, sleeve=pick(rng, tuple(s for s in Sleeve if s is not garment.sleeve)))
    if change is Change.NECKLINE:
        others = tuple(n for n in necklines(garment.kind) if n is not garment.neckline)
        return replace(garment, neckline=pick(rng, others))
    return replace(garment, length=pick(rng, tuple(n for n in Length if n is not garment.length)))
