"""The closed vocabulary that describes a garment, and which descriptions are held out of training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Kind(StrEnum):
    """FashionIQ's three categories. A shirt has a collar and buttons, a toptee has neither."""

    DRESS = "dress"
    SHIRT = "shirt"
    TOPTEE = "toptee"


class Colour(StrEnum):
    """Colours that a person names alike under any light that the scenes have."""

    BLACK = "black"
    WHITE = "white"
    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    PINK = "pink"
    BROWN = "brown"


class Pattern(StrEnum):
    """What is printed on the cloth, in the second colour."""

    PLAIN = "plain"
    STRIPED = "striped"
    PINSTRIPED = "pinstriped"
    DOTTED = "dotted"
    CHECKED = "checked"
    FLORAL = "floral"


class Sleeve(StrEnum):
    """Sleeve lengths, shortest first."""

    NONE = "none"
    SHORT = "short"
    ELBOW = "elbow"
    LONG = "long"


class Neckline(StrEnum):
    """Necklines of dresses and toptees, then the collars of shirts."""

    ROUND = "round"
    V = "v"
    SQUARE = "square"
    TURTLE = "turtle"
    POINTED_COLLAR = "pointed collar"
    BAND_COLLAR = "band collar"
    OPEN_COLLAR = "open collar"


class Length(StrEnum):
    """Where the hem is, highest first: mini, knee and floor for a dress; waist, hip and thigh for a top."""

    SHORT = "short"
    MEDIUM = "medium"
    LONG = "long"


COLLARS = (Neckline.POINTED_COLLAR, Neckline.BAND_COLLAR, Neckline.OPEN_COLLAR)
COLLARLESS = (Neckline.ROUND, Neckline.V, Neckline.SQUARE, Neckline.TURTLE)


@dataclass(frozen=True)
class Garment:
    """A complete description. `second_colour` is the pattern's, and None exactly when the cloth is plain."""

    kind: Kind
    colour: Colour
    pattern: Pattern
    second_colour: Colour | None
    sleeve: Sleeve
    neckline: Neckline
    length: Length

    def __post_init__(self) -> None:
        if (self.second_colour is None) != (self.pattern is Pattern.PLAIN) or self.second_colour is self.colour:
            raise ValueError(f"a {self.pattern} {self.colour} garment can't have {self.second_colour} as second colour")
        if self.neckline not in necklines(self.kind):
            raise ValueError(f"a {self.kind} can't have the neckline {self.neckline}")

    @property
    def name(self) -> str:
        """The description as a file name without spaces; equal names are equal descriptions."""
        return "-".join(str(value or "only") for value in vars(self).values()).replace(" ", "_")


class Split(StrEnum):
    """Disjoint sets of descriptions: TRAIN for training, VAL for choices made on the way, TEST for the figures."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


def necklines(kind: Kind) -> tuple[Neckline, ...]:
    """Return the necklines that this kind of garment can have."""
    return COLLARS if kind is Kind.SHIRT else COLLARLESS


def split_of(garment: Garment) -> Split:
    """Return the split a description belongs to: four fifths TRAIN, a tenth each VAL and TEST, by hash."""
    tenth = hashlib.sha256(garment.name.encode()).digest()[0] % 10
    return {0: Split.VAL, 1: Split.TEST}.get(tenth, Split.TRAIN)


def all_garments() -> Iterator[Garment]:
    """Yield every description there is, of every split: 60,720 of them."""
    for kind in Kind:
        for colour in Colour:
            for pattern in Pattern:
                seconds = [None] if pattern is Pattern.PLAIN else [other for other in Colour if other is not colour]
                for second_colour in seconds:
                    for sleeve in Sleeve:
                        for neckline in necklines(kind):
                            for length in Length:
                                yield Garment(kind, colour, pattern, second_colour, sleeve, neckline, length)


def random_garment(rng: np.random.Generator, split: Split, kind: Kind | None = None) -> Garment:
    """Return a description of the split, each attribute drawn evenly (so plain cloth is as frequent as stripes)."""
    while True:
        colour = pick(rng, tuple(Colour))
        pattern = pick(rng, tuple(Pattern))
        others = tuple(other for other in Colour if other is not colour)
        drawn_kind = kind or pick(rng, tuple(Kind))
        garment = Garment(
            kind=drawn_kind,
            colour=colour,
            pattern=pattern,
            second_colour=None if pattern is Pattern.PLAIN else pick(rng, others),
            sleeve=pick(rng, tuple(Sleeve)),
            neckline=pick(rng, necklines(drawn_kind)),
            length=pick(rng, tuple(Length)),
        )
        if split_of(garment) is split:
            return garment


def pick(rng: np.random.Generator, choices: tuple[T, ...]) -> T:
    """Return one of the choices, evenly."""
    return choices[int(rng.integers(len(choices)))]
