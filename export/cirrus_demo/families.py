"""Families: sets of look-alike garments, one to three changes from a common base."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cirrus_demo.attributes import Garment, Kind, Split, random_garment, split_of
from cirrus_demo.edits import MAX_CHANGES, changes, edited


def family(
    split: Split, kind: Kind, size: int, rng: np.random.Generator, *, taken: Collection[Garment] = ()
) -> tuple[Garment, ...]:
    """Return `size` different garments of one kind and split, none of them taken: a base, and edits of it."""
    base = random_garment(rng, split, kind)
    while base in taken:
        base = random_garment(rng, split, kind)
    members = {base: None}
    while len(members) < size:
        candidate = edited(base, rng)
        if split_of(candidate) is split and candidate not in taken:
            members[candidate] = None
    return tuple(members)


def edit_pairs(members: tuple[Garment, ...]) -> list[tuple[int, int]]:
    """Return (reference, target) places within a family that one edit of one to three changes connects."""
    return [
        (reference, target)
        for reference, before in enumerate(members)
        for target, after in enumerate(members)
        if reference != target and len(changes(before, after)) <= MAX_CHANGES
    ]
