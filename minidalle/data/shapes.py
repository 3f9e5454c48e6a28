"""A drawn world: captions such as "a sketch of a small red circle on black", and a picture for each.

Enters: captions and a random generator, or just a pool size and a seed. Leaves: `Pictures`, uint8 images with their
captions. The world is this project's own (mark O of SPEC.md; the paper trains on 250 million pictures of the web). It
exists because a caption here says everything there is to see, so oracle.py can read each attribute back from the
pixels by rules, and because whole (colour, shape) combinations can be kept from training, so that a right drawing of
one shows that the model composes what it knows instead of recalling it.

    a photo|sketch of a small|large COLOUR SHAPE [on black]      2 · 2 · 6 · 4 · 2 = 192 captions

A photo is filled, a sketch is an outline; the ground is white unless the caption ends in "on black"; position and exact
radius are random. Everything is laid out on a canvas of 24 units, whatever the size of the picture in pixels.

Four splits: "train", and three that no stage trains on: "tuning" and "pairs" (whole (colour, shape) combinations;
choices are made on the first, results reported on the second) and "captions" (a tenth of the remaining captions). Which
combinations these are depends on the fold: `held_out` says how.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from minidalle.data.pictures import Pictures

STYLES = ("photo", "sketch")
COLOURS = {
    "red": (225, 30, 40),
    "green": (20, 170, 60),
    "blue": (40, 70, 230),
    "yellow": (245, 200, 10),
    "purple": (150, 40, 180),
    "cyan": (20, 190, 215),
}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
RADII = {"small": (5.0, 5.5, 6.0), "large": (8.0, 8.5, 9.0)}  # in units; these names are also the sizes of captions
UNITS = 24  # the canvas is 24 × 24 units
LINE = 1.5  # width of an outline, in units
MARGIN = 1.0  # of ground around every object, in units

TUNING_PAIRS = (("purple", "cross"), ("cyan", "circle"))
HELD_OUT_PAIRS = (("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square"))
HELD_OUT_SPLITS = ("captions", "pairs", "tuning")
PER_CAPTION = 16  # pictures for each caption of a held-out split


@dataclass(frozen=True)
class Drawing:
    """All that a caption says about its one object."""

    style: str
    size: str
    colour: str
    shape: str
    ground: str = "white"

    @property
    def caption(self) -> str:
        ending = " on black" if self.ground == "black" else ""
        return f"a {self.style} of a {self.size} {self.colour} {self.shape}{ending}"


PATTERN = re.compile(
    f"a ({'|'.join(STYLES)}) of a ({'|'.join(RADII)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})( on black)?"
)


def parse(caption: str) -> Drawing:
    """The inverse of `Drawing.caption`. Raises ValueError for any text that is not one of the 192 captions."""
    match = PATTERN.fullmatch(caption)
    if match is None:
        raise ValueError(
            f"{caption!r} is not a caption of the drawn world: write 'a photo|sketch of a small|large COLOUR SHAPE"
            f" [on black]' with a colour of {', '.join(COLOURS)} and a shape of {', '.join(SHAPES)}"
        )
    *attributes, on_black = match.groups()
    return Drawing(*attributes, ground="black" if on_black else "white")


# Signed distances to an edge in units, negative inside: x (N, 1, S) to the right, y (N, S, 1) downwards, from the
# object's centre; r (N, 1, 1). Each shape fits a box of half side r. Beyond a corner the distance is to the two edges
# prolonged, not to the corner itself: so the outline of a polygon has sharp corners instead of round ones.


def circle(x, y, r):
    return np.hypot(x, y) - r


def square(x, y, r):
    return np.maximum(abs(x), abs(y)) - 0.87 * r


def triangle(x, y, r):
    half_height = 0.75 * 1.15 * r  # equilateral: its corners lie 1.15 r from its centroid
    sides = math.sqrt(3) / 2 * abs(x) - (y + half_height) / 2
    return np.maximum(y - half_height, sides)


def cross(x, y, r):
    x, y, arm = abs(x), abs(y), 0.45 * r  # two bars, each 2 r long and 2 · arm wide
    return np.minimum(np.maximum(x - r, y - arm), np.maximum(x - arm, y - r))


DISTANCES = dict(zip(SHAPES, (circle, square, triangle, cross)))


def coverage(
    drawings: Sequence[Drawing], centres: np.ndarray, radii: np.ndarray, size: int, units: int = UNITS
) -> np.ndarray:
    """How much of each pixel each object covers: (N, size, size) float32 in [0, 1].

    centres (N, 2) are (x, y), like radii (N,) in units of a canvas `units` wide. An edge is one pixel soft: coverage
    falls from 1 to 0 as the pixel's centre moves from half a pixel inside to half a pixel outside.
    """
    pixel = units / size
    at = ((np.arange(size) + 0.5) * pixel).astype(np.float32)
    x = at[None, None, :] - centres[:, 0, None, None].astype(np.float32)  # (N, 1, size)
    y = at[None, :, None] - centres[:, 1, None, None].astype(np.float32)  # (N, size, 1)
    r = radii[:, None, None].astype(np.float32)
    distance = np.empty((len(drawings), size, size), np.float32)
    for shape, signed_distance in DISTANCES.items():
        rows = np.array([i for i, drawing in enumerate(drawings) if drawing.shape == shape], int)
        distance[rows] = signed_distance(x[rows], y[rows], r[rows])
    outlined = np.array([drawing.style == "sketch" for drawing in drawings], bool)
    distance[outlined] = abs(distance[outlined]) - LINE / 2
    return np.clip(0.5 - distance / pixel, 0, 1)


def clearance(drawings: Sequence[Drawing], radii: np.ndarray) -> np.ndarray:
    """(N,) how far from every border an object's centre stays, in units. A sketch reaches past its radius, at the tip
    of a triangle by nearly a line width."""
    return MARGIN + radii + np.array([LINE if drawing.style == "sketch" else 0.0 for drawing in drawings])


def place(drawings: Sequence[Drawing], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 2), whole units apart, with the object inside the margin, and radii (N,), all uniform."""
    steps = rng.integers(3, size=len(drawings))
    radii = np.array([RADII[drawing.size][step] for drawing, step in zip(drawings, steps)])
    low = clearance(drawings, radii)[:, None]  # (N, 1)
    places = UNITS - 2 * low + 1  # whole steps from low to UNITS − low
    return low + np.floor(rng.random((len(drawings), 2)) * places), radii


def draw(captions: list[str], rng: np.random.Generator, size: int = 24) -> torch.Tensor:
    """A picture of each caption at a random place: (N, 3, size, size) uint8. Raises ValueError for a size under 24."""
    if size < UNITS:
        raise ValueError(f"shapes drawn at {size} pixels would not be recognisable: use {UNITS} or more")
    drawings = [parse(caption) for caption in captions]
    centres, radii = place(drawings, rng)
    images = np.empty((len(captions), 3, size, size), np.uint8)
    chunk = max(1, 2**20 // size**2)  # about a million pixels at once: little memory, and it stays in the cache
    for start in range(0, len(captions), chunk):
        part = slice(start, start + chunk)
        alpha = coverage(drawings[part], centres[part], radii[part], size)[:, None]  # (chunk, 1, size, size)
        ground = np.array([GROUNDS[d.ground] for d in drawings[part]], np.float32)[:, :, None, None]  # (chunk, 3, 1, 1)
        colour = np.array([COLOURS[d.colour] for d in drawings[part]], np.float32)[:, :, None, None]
        images[part] = ground + alpha * (colour - ground) + 0.5  # the cast to uint8 truncates: + 0.5 rounds
    return torch.from_numpy(images)


def held_out(fold: int = 0) -> dict[str, set[tuple[str, str]]]:
    """The combinations (colour, shape) that no stage trains on: {"pairs": four, "tuning": two}.

    Fold 0 has those above; in fold n every shape is the n-th after it in SHAPES, and begins again after the last. So each of
    the 24 combinations is held out in one of the four folds, and a recipe can be chosen by the combinations of the folds 1 to
    3 before it is measured in fold 0. Raises ValueError for another fold.
    """
    if fold not in range(len(SHAPES)):
        raise ValueError(f"there is no fold {fold} of the drawn worlds: set data.fold to 0 … {len(SHAPES) - 1}")

    def moved(pairs):
        return {(colour, SHAPES[(SHAPES.index(shape) + fold) % len(SHAPES)]) for colour, shape in pairs}

    return {"pairs": moved(HELD_OUT_PAIRS), "tuning": moved(TUNING_PAIRS)}


def captions(split: str, fold: int = 0) -> list[str]:
    """The captions of "train", "captions", "pairs" or "tuning": disjoint, 192 together, the same for every seed."""
    if split not in ("train", *HELD_OUT_SPLITS):
        raise ValueError(f"no split {split!r} in the drawn world: choose train, {', '.join(HELD_OUT_SPLITS)}")
    everything = [Drawing(*attributes) for attributes in product(STYLES, RADII, COLOURS, SHAPES, GROUNDS)]
    pairs = held_out(fold)
    if split in pairs:
        return [d.caption for d in everything if (d.colour, d.shape) in pairs[split]]
    rest = [d.caption for d in everything if (d.colour, d.shape) not in pairs["pairs"] | pairs["tuning"]]
    unseen = set(random.Random(0).sample(rest, round(len(rest) / 10)))
    return [caption for caption in rest if (caption in unseen) == (split == "captions")]


def in_rounds(texts: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` of the texts, going round all of them, each round in an order of its own."""
    rounds = [rng.permutation(texts).tolist() for _ in range(math.ceil(count / len(texts)))]
    return sum(rounds, [])[:count]


def load(height: int, width: int, pool: int, seed: int, fold: int = 0) -> dict[str, Pictures]:
    """All four splits of a fold. "train" holds `pool` pictures whose captions go round the training captions, each round in an
    order of its own; a held-out split holds 16 pictures per caption, the same whatever the seed.

    Raises ValueError when height and width differ, are under 24, or the pool is empty.
    """
    if height != width:
        raise ValueError(f"the drawn world is square, but {height} × {width} was asked for: give height = width")
    if pool < 1:
        raise ValueError(f"a pool of {pool} pictures trains nothing: give 1 or more")
    rng = np.random.default_rng(seed)
    chosen = in_rounds(captions("train", fold), pool, rng)
    splits = {"train": Pictures(draw(chosen, rng, width), chosen)}
    for number, split in enumerate(HELD_OUT_SPLITS):
        texts = captions(split, fold) * PER_CAPTION
        splits[split] = Pictures(draw(texts, np.random.default_rng(number), width), texts)
    return splits
