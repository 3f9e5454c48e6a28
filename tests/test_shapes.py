"""The drawn world against formulas for areas, symmetries, and the promises of its splits."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from minidalle import data
from minidalle.config import load_preset
from minidalle.data import scenes, shapes
from minidalle.data.shapes import LINE, Drawing, coverage

SPLITS = ("train", "captions", "pairs", "tuning")
EVERY = [Drawing(*a) for a in product(shapes.STYLES, shapes.RADII, shapes.COLOURS, shapes.SHAPES, shapes.GROUNDS)]


def one(style, shape, radius, size, centre=(12.0, 12.0)):
    """(size, size) coverage of one object."""
    return coverage([Drawing(style, "large", "red", shape)], np.array([centre]), np.array([radius]), size)[0]


# In square units. A mitred outline is the polygon with its edges moved out by LINE / 2 less the one with its edges moved in.
FILLED = {
    "circle": lambda r: math.pi * r**2,
    "square": lambda r: (2 * 0.87 * r) ** 2,
    "triangle": lambda r: 3 * math.sqrt(3) / 4 * (1.15 * r) ** 2,
    "cross": lambda r: 2 * (2 * r * 0.9 * r) - (0.9 * r) ** 2,
}
OUTLINED = {
    "circle": lambda r: 2 * math.pi * r * LINE,
    "square": lambda r: 8 * 0.87 * r * LINE,
    "triangle": lambda r: 3 * math.sqrt(3) * 1.15 * r * LINE,
    "cross": lambda r: 8 * r * LINE,
}


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("style, areas", [("photo", FILLED), ("sketch", OUTLINED)])
def test_area(shape, style, areas):
    for radius in (4.5, 9.0):
        for centre in ((12.0, 12.0), (11.5, 12.5)):
            area = one(style, shape, radius, 256, centre).sum() * (24 / 256) ** 2
            assert area == pytest.approx(areas[shape](radius), rel=0.005)


def test_an_outline_is_hollow_and_a_photo_is_not():
    for shape in shapes.SHAPES:
        assert one("photo", shape, 4.5, 24, (12.5, 12.5))[12, 12] == 1
        assert one("sketch", shape, 4.5, 24, (12.5, 12.5))[12, 12] == 0


@pytest.mark.parametrize("style", shapes.STYLES)
def test_symmetry(style):
    for shape in shapes.SHAPES:
        picture = one(style, shape, 8.5, 48)
        np.testing.assert_allclose(picture, picture[:, ::-1], atol=1e-4)
        if shape == "triangle":  # its apex is above
            assert picture[:24].sum() < picture[24:].sum()
        else:
            np.testing.assert_allclose(picture, picture.T, atol=1e-4)
            np.testing.assert_allclose(picture, picture[::-1], atol=1e-4)


def test_x_is_to_the_right_and_y_downwards():
    moved = one("photo", "triangle", 5.0, 24, (15.0, 10.0))
    np.testing.assert_allclose(moved, np.roll(one("photo", "triangle", 5.0, 24), (-2, 3), (0, 1)), atol=1e-4)


def test_a_larger_picture_shows_the_same():
    for style, shape in product(shapes.STYLES, shapes.SHAPES):
        large = one(style, shape, 8.0, 240).reshape(24, 10, 24, 10).mean((1, 3))
        assert abs(large - one(style, shape, 8.0, 24)).mean() < 0.01
    wide = coverage([EVERY[0]], np.array([[12.0, 12.0]]), np.array([5.0]), 32, units=32)[
        0
    ]  # the same pixels on a wider canvas
    np.testing.assert_allclose(
        wide[:24, :24], coverage([EVERY[0]], np.array([[12.0, 12.0]]), np.array([5.0]), 24)[0], atol=1e-4
    )


def test_objects_stay_inside_the_margin_and_use_the_room_up_to_it():
    generator = np.random.default_rng(0)
    for style, shape, size in product(shapes.STYLES, shapes.SHAPES, shapes.RADII):
        drawings = [Drawing(style, size, "red", shape)] * 800
        centres, radii = shapes.place(drawings, generator)
        assert set(radii) == set(shapes.RADII[size])
        np.testing.assert_array_equal(centres * 2, np.round(centres * 2))
        room = 24 - 2 * shapes.clearance(drawings, radii).max()
        assert (np.ptp(centres, axis=0) >= room).all()
        drawn = coverage(drawings[:80], centres[:80], radii[:80], 240)  # 10 pixels to a unit; one is soft
        assert drawn[:, :9].max() == drawn[:, -9:].max() == drawn[:, :, :9].max() == drawn[:, :, -9:].max() == 0


def test_colours_are_exact():
    captions = [
        "a photo of a large red square",
        "a photo of a large red square on black",
        "a sketch of a small cyan cross on black",
    ]
    images = shapes.draw(captions, np.random.default_rng(0))
    assert images.shape == (3, 3, 24, 24) and images.dtype == torch.uint8
    assert images[:, :, 0, 0].tolist() == [[255, 255, 255], [0, 0, 0], [0, 0, 0]]
    assert images[0, :, 12, 12].tolist() == images[1, :, 12, 12].tolist() == list(shapes.COLOURS["red"])
    drawings = [shapes.parse(caption) for caption in captions]
    alpha = coverage(drawings, *shapes.place(drawings, np.random.default_rng(0)), 24)  # the same places again
    for image, a, drawing in zip(images.numpy(), alpha, drawings):
        ground, colour = np.array(shapes.GROUNDS[drawing.ground]), np.array(shapes.COLOURS[drawing.colour])
        exact = (1 - a) * ground[:, None, None] + a * colour[:, None, None]
        assert abs(image - exact).max() <= 0.5001  # rounded to the nearest


def test_captions_and_parse_are_inverse():
    assert len({d.caption for d in EVERY}) == 192
    assert [shapes.parse(d.caption) for d in EVERY] == EVERY
    assert Drawing("sketch", "small", "red", "cross", "black").caption == "a sketch of a small red cross on black"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a red circle",
        "a photo of a small red circle on white",
        "a photo of a small pink circle",
        "A photo of a small red circle",
        "a photo of a small red circle ",
        "a photo of a small red circle\n",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not a caption of the drawn world"):
        shapes.parse(text)


def test_splits_are_disjoint_and_cover_the_world():
    splits = {split: shapes.captions(split) for split in SPLITS}
    assert {split: len(texts) for split, texts in splits.items()} == {
        "train": 130,
        "captions": 14,
        "pairs": 32,
        "tuning": 16,
    }
    assert sorted(sum(splits.values(), [])) == sorted(d.caption for d in EVERY)  # 192 in all, none twice
    seen = {(d.colour, d.shape) for d in map(shapes.parse, splits["train"])}
    assert len(seen) == 18 and not seen & {*shapes.HELD_OUT_PAIRS, *shapes.TUNING_PAIRS}
    assert min(Counter(colour for colour, _ in seen).values()) >= 2 and len({colour for colour, _ in seen}) == 6
    assert min(Counter(shape for _, shape in seen).values()) >= 2 and len({shape for _, shape in seen}) == 4
    assert {(d.colour, d.shape) for d in map(shapes.parse, splits["captions"])} <= seen


def test_every_combination_is_held_out_in_one_of_four_folds():
    combinations = []
    for fold in range(4):
        splits = {split: shapes.captions(split, fold) for split in SPLITS}
        assert [len(texts) for texts in splits.values()] == [130, 14, 32, 16]
        assert sorted(sum(splits.values(), [])) == sorted(d.caption for d in EVERY)
        for split, pairs in shapes.held_out(fold).items():
            assert {(d.colour, d.shape) for d in map(shapes.parse, splits[split])} == pairs
            combinations += pairs
    assert sorted(combinations) == sorted(product(shapes.COLOURS, shapes.SHAPES))  # 24, none twice
    assert shapes.held_out() == {"pairs": {*shapes.HELD_OUT_PAIRS}, "tuning": {*shapes.TUNING_PAIRS}}
    assert ("red", "cross") in shapes.held_out(1)["pairs"]  # after the red triangle


@pytest.mark.parametrize("world", [shapes, scenes])
def test_what_is_loaded_is_of_the_fold_asked_for(world):
    config = load_preset("tiny", "shapes" if world is shapes else "scenes", {"data.fold": 1, "data.pool": 300}).data
    for split, pictures in data.load(config, 0).items():
        assert {*pictures.captions} <= {*world.captions(split, 1)} and not {*pictures.captions} <= {
            *world.captions(split)
        }


def test_load_is_even_and_seeded():
    first, again, other = shapes.load(24, 24, 200, 0), shapes.load(24, 24, 200, 0), shapes.load(24, 24, 200, 1)
    assert set(first) == set(SPLITS)
    count = Counter(first["train"].captions)
    assert set(count) == set(shapes.captions("train")) and set(count.values()) == {1, 2} and sum(count.values()) == 200
    assert (
        torch.equal(first["train"].images, again["train"].images) and first["train"].captions == again["train"].captions
    )
    assert (
        not torch.equal(first["train"].images, other["train"].images)
        and first["train"].captions != other["train"].captions
    )
    for split in SPLITS[1:]:
        assert torch.equal(first[split].images, other[split].images) and first[split].captions == other[split].captions
        assert Counter(first[split].captions) == {caption: 16 for caption in shapes.captions(split)}
        assert len(first[split].images) == len(first[split].captions)
    assert shapes.load(32, 32, 3, 0)["train"].images.shape == (3, 3, 32, 32)


def test_bad_input():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="23 pixels"):
        shapes.draw([EVERY[0].caption], generator, 23)
    with pytest.raises(ValueError, match="not a caption"):
        shapes.draw(["a fox"], generator)
    with pytest.raises(ValueError, match="no split 'test'"):
        shapes.captions("test")
    with pytest.raises(ValueError, match="24 × 32"):
        shapes.load(24, 32, 10, 0)
    with pytest.raises(ValueError, match="16 pixels"):
        shapes.load(16, 16, 10, 0)
    with pytest.raises(ValueError, match="pool of 0"):
        shapes.load(24, 24, 0, 0)
    with pytest.raises(ValueError, match="no fold 4.*0 … 3"):
        shapes.load(24, 24, 10, 0, 4)
    assert shapes.draw([], generator).shape == (0, 3, 24, 24)
