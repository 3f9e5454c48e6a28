"""Two drawn objects in one picture: "a photo of a red circle above a blue square", and the same thing drawn twice.

Enters: captions and a random generator, or just a pool size and a seed. Leaves: `Pictures`, uint8 images with their
captions. Shapes, colours and edges are those of shapes.py. What is new is what one object cannot ask for: which of two
things is red (*binding*), where each of them is (*relation*), and "the same" in another style (P 3.3).

    a photo|sketch of a COLOUR SHAPE above|below|left of|right of a COLOUR SHAPE     2 · 24 · 23 · 4 = 4416 captions
    a photo of a COLOUR SHAPE on top and the same as a sketch below                  24 captions

A photo is filled, a sketch is an outline, the ground is white; the canvas has 32 units, so one unit is a pixel at the
usual size. All objects are of about one size, because two large ones would not fit (the world is O, as in shapes.py).

Four splits, as in shapes.py: "tuning" and "pairs" hold the scenes with an object of a held-out (colour, shape)
combination, "captions" a tenth of the rest. "A above B" and "B below A" show the same scene, so they are held out
together: a caption is never unseen in its words alone.
"""

import random
import re
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
import torch

from minidalle.data.pictures import Pictures
from minidalle.data.shapes import (
    COLOURS,
    GROUNDS,
    HELD_OUT_SPLITS,
    LINE,
    MARGIN,
    SHAPES,
    STYLES,
    coverage,
    held_out,
    in_rounds,
)

OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
RELATIONS = tuple(OPPOSITE)
SAME = "same"  # the relation of a thing on top to its sketch below
UNITS = 32  # the canvas is 32 × 32 units
RADII = (5.0, 5.5)  # in units
GAP = 2.0  # units between two objects, at the least
SHIFT = 2  # units that one object may be out of line with the other, at the most, before rounding
SAME_SHARE = 0.1  # of the training pictures; there are few such captions, but each is to be learned
PER_SAME_CAPTION = 16  # pictures for each such caption of a held-out split; the others have one each


class Thing(NamedTuple):
    style: str
    colour: str
    shape: str


class Scene(NamedTuple):
    """The first thing is above / below / left of / right of the second; or, "same", the second is the first's sketch."""

    first: Thing
    relation: str
    second: Thing

    @property
    def caption(self) -> str:
        first, second = (f"a {thing.colour} {thing.shape}" for thing in (self.first, self.second))
        if self.relation == SAME:
            return f"a {self.first.style} of {first} on top and the same as a {self.second.style} below"
        return f"a {self.first.style} of {first} {self.relation} {second}"

    @property
    def turned(self) -> "Scene":
        """The same picture in other words: "A above B" for "B below A"."""
        return self if self.relation == SAME else Scene(self.second, OPPOSITE[self.relation], self.first)

    @property
    def swapped(self) -> "Scene":
        """The scene that is wrongly taken for this one where only the words are compared: "B above A" for "A above B"."""
        return Scene(self.second, self.relation, self.first)


def same(colour: str, shape: str) -> Scene:
    return Scene(Thing("photo", colour, shape), SAME, Thing("sketch", colour, shape))


THING = f"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
TWO_THINGS = re.compile(f"a ({'|'.join(STYLES)}) of {THING} ({'|'.join(RELATIONS)}) {THING}")
ONE_TWICE = re.compile(f"a photo of {THING} on top and the same as a sketch below")


def parse(caption: str) -> Scene:
    """The inverse of `Scene.caption`. Raises ValueError for any text that is not one of the 4440 captions."""
    if match := ONE_TWICE.fullmatch(caption):
        return same(*match.groups())
    match = TWO_THINGS.fullmatch(caption)
    if match is None or match.groups()[1:3] == match.groups()[4:]:
        raise ValueError(
            f"{caption!r} is not a caption of the drawn scenes: write 'a photo|sketch of a COLOUR SHAPE "
            f"{'|'.join(RELATIONS)} a COLOUR SHAPE' with two different things, or 'a photo of a COLOUR SHAPE on top and "
            f"the same as a sketch below', with a colour of {', '.join(COLOURS)} and a shape of {', '.join(SHAPES)}"
        )
    style, *first, relation, colour, shape = match.groups()
    return Scene(Thing(style, *first), relation, Thing(style, colour, shape))


def extent(things: list[Thing], radii: np.ndarray) -> np.ndarray:
    """(N,) how far each thing reaches from its centre, in units; a sketch's corners reach past its radius."""
    return radii + np.array([LINE if thing.style == "sketch" else 0.0 for thing in things])


def place(scenes: list[Scene], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 2, 2), for each of the two things (x, y), and radii (N, 2), in units.

    Along the line of the relation the two keep at least `GAP` between them and `MARGIN` to the border; across it they
    are at most `SHIFT` steps out of line, and half a step where they differ in size. All steps are whole units, as in
    shapes.py. "The same" has the same radius and the same place in the lower half as in the upper.
    """
    n = len(scenes)
    twice = np.array([scene.relation == SAME for scene in scenes], bool)
    radii = rng.choice(RADII, (n, 2))
    radii[twice, 1] = radii[twice, 0]
    reach = np.stack([extent([scene[i] for scene in scenes], radii[:, k]) for k, i in enumerate((0, 2))], axis=1)
    reach[twice, 0] = reach[twice, 1]  # the photo leaves the room that its sketch needs
    low, high = MARGIN + reach, UNITS - MARGIN - reach  # (N, 2) where a centre may be

    def steps(most):  # (N,) whole numbers from 0 to most, uniform
        return np.floor(rng.random(n) * (np.maximum(most, 0) + 1))

    # Along: whichever comes first starts near the border at 0, the other near the border at UNITS.
    starts = np.array([scene.relation in ("above", "left of", SAME) for scene in scenes], bool)
    one, two = np.where(starts, 0, 1), np.where(starts, 1, 0)
    row = np.arange(n)
    slack = (high[row, two] - low[row, one]) - reach.sum(axis=1) - GAP
    before = steps(slack)
    after = steps(slack - before)
    along = np.empty((n, 2))
    along[row, one], along[row, two] = low[row, one] + before, high[row, two] - after
    along[twice, 0] = (low[:, 0] + steps(UNITS / 2 - MARGIN - reach[:, 0] - low[:, 0]))[twice]
    along[twice, 1] = along[twice, 0] + UNITS / 2

    across = np.empty((n, 2))
    across[:, 0] = low[:, 0] + steps(high[:, 0] - low[:, 0])
    beside = np.round(across[:, 0] - low[:, 1]) + steps(np.full(n, 2 * SHIFT)) - SHIFT
    across[:, 1] = low[:, 1] + beside.clip(0, high[:, 1] - low[:, 1])
    across[twice, 1] = across[twice, 0]

    vertical = np.array([scene.relation in ("above", "below", SAME) for scene in scenes], bool)[:, None]
    return np.stack([np.where(vertical, across, along), np.where(vertical, along, across)], axis=2), radii


def draw(captions: list[str], rng: np.random.Generator, size: int = 32) -> torch.Tensor:
    """A picture of each caption at random places: (N, 3, size, size) uint8. Raises ValueError for a size under 32."""
    if size < UNITS:
        raise ValueError(f"scenes drawn at {size} pixels would not be recognisable: use {UNITS} or more")
    scenes = [parse(caption) for caption in captions]
    centres, radii = place(scenes, rng)
    ground = np.array(GROUNDS["white"], np.float32)[:, None, None]
    images = np.empty((len(captions), 3, size, size), np.uint8)
    chunk = max(1, 2**19 // size**2)  # as in shapes.py
    for start in range(0, len(captions), chunk):
        part = slice(start, start + chunk)
        picture = np.broadcast_to(ground, images[part].shape)
        for k, i in enumerate((0, 2)):
            things = [scene[i] for scene in scenes[part]]
            alpha = coverage(things, centres[part, k], radii[part, k], size, UNITS)[:, None]  # (chunk, 1, size, size)
            colour = np.array([COLOURS[thing.colour] for thing in things], np.float32)[:, :, None, None]
            picture = picture + alpha * (colour - ground)  # nothing overlaps, so the order does not matter
        images[part] = picture + 0.5  # the cast to uint8 truncates: + 0.5 rounds
    return torch.from_numpy(images)


def everything() -> list[Scene]:
    """All 4440 scenes."""
    things = list(product(COLOURS, SHAPES))
    two = [
        Scene(Thing(style, *first), relation, Thing(style, *second))
        for style, relation, (first, second) in product(STYLES, RELATIONS, permutations(things, 2))
    ]
    return two + [same(*thing) for thing in things]


def captions(split: str, fold: int = 0) -> list[str]:
    """The captions of "train", "captions", "pairs" or "tuning": disjoint, 4440 together, the same for every seed."""
    if split not in ("train", *HELD_OUT_SPLITS):
        raise ValueError(f"no split {split!r} in the drawn scenes: choose train, {', '.join(HELD_OUT_SPLITS)}")
    pairs, found = held_out(fold), {"pairs": [], "tuning": [], "rest": []}
    for scene in everything():
        objects = {scene.first[1:], scene.second[1:]}
        where = "pairs" if objects & pairs["pairs"] else "tuning" if objects & pairs["tuning"] else "rest"
        found[where].append(scene)
    if split in found:
        return [scene.caption for scene in found[split]]
    unseen = set()
    for group in (  # a tenth of the scenes in either form of words, and of the things drawn twice
        [scene for scene in found["rest"] if scene.relation in ("above", "left of")],
        [scene for scene in found["rest"] if scene.relation == SAME],
    ):
        for scene in random.Random(0).sample(group, round(len(group) / 10)):
            unseen |= {scene.caption, scene.turned.caption}
    return [scene.caption for scene in found["rest"] if (scene.caption in unseen) == (split == "captions")]


def load(height: int, width: int, pool: int, seed: int, fold: int = 0) -> dict[str, Pictures]:
    """All four splits of a fold. "train" holds `pool` pictures of the training captions, a tenth of them of one thing drawn
    twice; a held-out split is the same whatever the seed.

    Raises ValueError when height and width differ, are under 32, or the pool is empty.
    """
    if height != width:
        raise ValueError(f"the drawn scenes are square, but {height} × {width} was asked for: give height = width")
    if pool < 1:
        raise ValueError(f"a pool of {pool} pictures trains nothing: give 1 or more")
    rng = np.random.default_rng(seed)
    twice, two = [], []
    for caption in captions("train", fold):
        (twice if ONE_TWICE.fullmatch(caption) else two).append(caption)
    n_twice = round(SAME_SHARE * pool)
    chosen = rng.permutation(in_rounds(two, pool - n_twice, rng) + in_rounds(twice, n_twice, rng)).tolist()
    splits = {"train": Pictures(draw(chosen, rng, width), chosen)}
    for number, split in enumerate(HELD_OUT_SPLITS):
        texts = [c for c in captions(split, fold) for _ in range(PER_SAME_CAPTION if ONE_TWICE.fullmatch(c) else 1)]
        splits[split] = Pictures(draw(texts, np.random.default_rng(number), width), texts)
    return splits
