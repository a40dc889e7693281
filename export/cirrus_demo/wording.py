"""How people name the attributes: several words for each, and how a garment's parts are put into phrases."""

from __future__ import annotations

import numpy as np

from cirrus_demo.attributes import Colour, Garment, Kind, Length, Neckline, Pattern, Sleeve, pick

KIND_NOUNS: dict[Kind, tuple[str, ...]] = {
    Kind.DRESS: ("dress", "dress", "gown"),
    Kind.SHIRT: ("shirt", "shirt", "button shirt"),
    Kind.TOPTEE: ("top", "tee", "t-shirt"),
}

PLAIN_WORDS = ("plain", "solid", "unpatterned")

PATTERN_ADJECTIVES: dict[Pattern, tuple[str, ...]] = {
    Pattern.STRIPED: ("striped", "horizontally striped"),
    Pattern.PINSTRIPED: ("pinstriped", "vertically striped"),
    Pattern.DOTTED: ("dotted", "polka dot", "spotted"),
    Pattern.CHECKED: ("checked", "plaid", "checkered"),
    Pattern.FLORAL: ("floral", "flowered", "flower print"),
}

PATTERN_NOUNS: dict[Pattern, tuple[str, ...]] = {
    Pattern.STRIPED: ("stripes", "horizontal stripes"),
    Pattern.PINSTRIPED: ("pinstripes", "vertical stripes"),
    Pattern.DOTTED: ("dots", "polka dots", "spots"),
    Pattern.CHECKED: ("checks", "a plaid pattern"),
    Pattern.FLORAL: ("flowers", "a floral print"),
}

SLEEVE_PHRASES: dict[Sleeve, tuple[str, ...]] = {
    Sleeve.NONE: ("no sleeves", "bare arms"),
    Sleeve.SHORT: ("short sleeves",),
    Sleeve.ELBOW: ("elbow length sleeves", "half sleeves"),
    Sleeve.LONG: ("long sleeves", "full sleeves"),
}

SLEEVE_ADJECTIVES: dict[Sleeve, tuple[str, ...]] = {
    Sleeve.NONE: ("sleeveless",),
    Sleeve.SHORT: ("short sleeved",),
    Sleeve.ELBOW: ("half sleeved",),
    Sleeve.LONG: ("long sleeved",),
}

NECKLINE_PHRASES: dict[Neckline, tuple[str, ...]] = {
    Neckline.ROUND: ("a round neck", "a crew neck"),
    Neckline.V: ("a v neck", "a v-neckline"),
    Neckline.SQUARE: ("a square neck", "a square neckline"),
    Neckline.TURTLE: ("a turtleneck", "a high roll neck"),
    Neckline.POINTED_COLLAR: ("a pointed collar", "a classic collar"),
    Neckline.BAND_COLLAR: ("a band collar", "a stand-up collar"),
    Neckline.OPEN_COLLAR: ("an open collar", "a camp collar"),
}

LENGTH_ADJECTIVES: dict[bool, dict[Length, tuple[str, ...]]] = {
    True: {
        Length.SHORT: ("mini", "short"),
        Length.MEDIUM: ("knee length", "midi"),
        Length.LONG: ("floor length", "maxi"),
    },
    False: {
        Length.SHORT: ("cropped", "waist length"),
        Length.MEDIUM: ("hip length", "regular length"),
        Length.LONG: ("long", "thigh length"),
    },
}
"""By whether the garment is a dress."""


def kind_noun(garment: Garment, rng: np.random.Generator) -> str:
    """Return a word for the kind."""
    return pick(rng, KIND_NOUNS[garment.kind])


def length_adjective(garment: Garment, rng: np.random.Generator) -> str:
    """Return a word for the length, which depends on the kind."""
    return pick(rng, LENGTH_ADJECTIVES[garment.kind is Kind.DRESS][garment.length])


def pattern_noun(garment: Garment, rng: np.random.Generator) -> str:
    """Return what is printed on a patterned garment, in the plural or with its article."""
    return pick(rng, PATTERN_NOUNS[garment.pattern])


def coloured_pattern(garment: Garment, rng: np.random.Generator) -> str:
    """Return the print with its colour: "white dots", "a white floral print"."""
    noun = pattern_noun(garment, rng)
    if noun.startswith("a "):
        return with_article(f"{garment.second_colour} {noun.removeprefix('a ')}")
    return f"{garment.second_colour} {noun}"


def cloth(garment: Garment, rng: np.random.Generator) -> str:
    """Return colour and pattern as an adjective: "plain red", "red and white striped"."""
    if garment.pattern is Pattern.PLAIN:
        return f"{pick(rng, PLAIN_WORDS)} {garment.colour}" if rng.random() < 0.6 else str(garment.colour)
    adjective = pick(rng, PATTERN_ADJECTIVES[garment.pattern])
    return f"{garment.colour} and {garment.second_colour} {adjective}"


def with_article(phrase: str) -> str:
    """Return the phrase with "a" or "an" in front."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def other_colour(colour: Colour, rng: np.random.Generator) -> Colour:
    """Return a colour that is not this one."""
    return pick(rng, tuple(other for other in Colour if other is not colour))
