"""Randomness from names: for ever the same of the same parts, and another one of any other."""

from __future__ import annotations

import hashlib

from manifests.rng import generator, seed_digest


def test_the_same_parts_draw_the_same_for_ever() -> None:
    """A build that is made again years later has the same bytes: these numbers stay."""
    assert seed_digest(0, "chair_0890") == hashlib.sha256(b"0/chair_0890").digest()
    assert generator(0, 3, "chair_0890").integers(0, 1000, 4).tolist() == [48, 678, 69, 174]
    assert generator(0, "chair_0890").random(2).round(8).tolist() == [0.84095936, 0.07302015]


def test_every_part_and_its_place_counts() -> None:
    """Recipe seed, epoch, key: whichever differs, all that is drawn differs."""
    parts = [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b"), (1, 0, "a"), ("a", 1, 0), (0, 1), (1, 23), (12, 3)]
    drawn = {generator(*each).random(4).tobytes() for each in parts}
    assert len(drawn) == len(parts)


def test_thousands_of_objects_draw_differently() -> None:
    assert len({generator(0, f"chair_{number:04d}").random() for number in range(3000)}) == 3000
