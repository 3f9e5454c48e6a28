"""The drawn scenes: captions and their inverse, the promises of the splits, and where the two objects stand."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from minidalle.data import scenes, shapes
from minidalle.data.scenes import GAP, MARGIN, RADII, RELATIONS, SAME, SHIFT, Scene, Thing, everything, parse, same

SPLITS = ("train", "captions", "pairs", "tuning")
EVERY = everything()
SIDEWAYS = ("left of", "right of")


def pairs_of(scene):
    """The (colour, shape) combinations in a scene."""
    return {scene.first[1:], scene.second[1:]}


# ── captions ──


def test_captions_and_parse_are_inverse():
    assert len({scene.caption for scene in EVERY}) == len(EVERY) == 2 * 4 * 24 * 23 + 24
    assert [parse(scene.caption) for scene in EVERY] == EVERY
    circle, square = Thing("sketch", "red", "circle"), Thing("sketch", "blue", "square")
    assert Scene(circle, "left of", square).caption == "a sketch of a red circle left of a blue square"
    assert same("red", "cross").caption == "a photo of a red cross on top and the same as a sketch below"
    assert parse("a photo of a cyan cross below a cyan square") == Scene(
        Thing("photo", "cyan", "cross"), "below", Thing("photo", "cyan", "square")
    )


def test_a_scene_can_be_told_from_its_other_end():
    turns = {"above": "below", "below": "above", "left of": "right of", "right of": "left of", SAME: SAME}
    for scene in EVERY:
        turned = scene.turned
        assert turned.relation == turns[scene.relation] and turned.turned == scene
        assert (turned == scene) == (scene.relation == SAME)
        if scene.relation != SAME:
            assert (turned.first, turned.second) == (scene.second, scene.first)
    assert {scene.turned for scene in EVERY} == set(EVERY)
    scene = parse("a photo of a red circle above a blue square")
    assert scene.turned.caption == "a photo of a blue square below a red circle"
    assert scene.swapped.caption == "a photo of a blue square above a red circle"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of a red circle",
        "a photo of a small red circle above a blue square",
        "a photo of a red circle above a red circle",  # nothing could tell which is which
        "a photo of a red circle over a blue square",
        "a photo of a red circle above a pink square",
        "a photo of a red circle above a sketch of a blue square",
        "a photo of a red circle above a blue square on black",
        "a photo of a red circle above a blue square\n",
        "A photo of a red circle above a blue square",
        "a sketch of a red circle on top and the same as a photo below",
        "a photo of a red circle on top and the same as a sketch below ",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="not a caption of the drawn scenes"):
        parse(text)


# ── splits ──


def test_splits_are_disjoint_and_cover_the_world():
    splits = {split: scenes.captions(split) for split in SPLITS}
    assert sorted(sum(splits.values(), [])) == sorted(scene.caption for scene in EVERY)  # all of them, none twice
    # ordered pairs of 24 things with one of the 4 held out; of the other 20, with one of the 2 for tuning; of the 18 left
    assert len(splits["pairs"]) == 8 * (24 * 23 - 20 * 19) + 4
    assert len(splits["tuning"]) == 8 * (20 * 19 - 18 * 17) + 2
    held_out = 4 * 18 * 17 // 10  # of scenes, each in two wordings; a tenth of the 18 things drawn twice is 2
    assert len(splits["captions"]) == 2 * held_out + 2
    assert len(splits["train"]) == 8 * 18 * 17 + 18 - len(splits["captions"])
    assert splits == {split: scenes.captions(split) for split in SPLITS}


@pytest.mark.parametrize("fold", [0, 1])
def test_no_split_leaks_into_another(fold):
    found = {split: [parse(caption) for caption in scenes.captions(split, fold)] for split in SPLITS}
    held_out, tuning = shapes.held_out(fold)["pairs"], shapes.held_out(fold)["tuning"]
    assert len({*sum(found.values(), [])}) == sum(map(len, found.values())) == 4440
    assert not any(pairs_of(scene) & (held_out | tuning) for scene in found["train"] + found["captions"])
    assert all(pairs_of(scene) & tuning and not pairs_of(scene) & held_out for scene in found["tuning"])
    assert all(pairs_of(scene) & held_out for scene in found["pairs"])
    for split in SPLITS:
        assert {scene.turned for scene in found[split]} == set(found[split])  # both wordings on one side


def test_what_is_held_out_is_made_of_what_is_trained_on():
    train = [parse(caption) for caption in scenes.captions("train")]
    trained = Counter((s.first.style, s.relation) for s in train)
    assert set(trained) == {*product(shapes.STYLES, RELATIONS), ("photo", SAME)}
    for place in (lambda s: s.first[1:], lambda s: s.second[1:]):  # each thing is seen at each end
        assert len({place(s) for s in train if s.relation != SAME}) == 18
    unseen = [parse(caption) for caption in scenes.captions("captions")]
    assert {s.relation for s in unseen} == {*RELATIONS, SAME} and {s.first.style for s in unseen} == {*shapes.STYLES}
    drawn_twice = {s.first[1:] for s in train if s.relation == SAME}
    assert len(drawn_twice) == 16 and {s.first[1:] for s in unseen if s.relation == SAME}.isdisjoint(drawn_twice)


def test_load_is_even_and_seeded():
    first, again, other = (scenes.load(32, 32, 3000, seed) for seed in (0, 0, 1))
    assert set(first) == set(SPLITS)
    assert first["train"].images.shape == (3000, 3, 32, 32) and first["train"].images.dtype == torch.uint8
    assert first["train"].captions == again["train"].captions != other["train"].captions
    assert torch.equal(first["train"].images, again["train"].images)
    assert not torch.equal(first["train"].images, other["train"].images)
    for split in SPLITS[1:]:
        assert torch.equal(first[split].images, other[split].images) and first[split].captions == other[split].captions
        expected = {c: 16 if parse(c).relation == SAME else 1 for c in scenes.captions(split)}
        assert Counter(first[split].captions) == expected and len(first[split].images) == len(first[split].captions)


def test_a_tenth_of_the_pool_is_one_thing_drawn_twice():
    captions = scenes.load(32, 32, 5000, 0)["train"].captions
    count = Counter(captions)
    assert set(count) == set(scenes.captions("train"))
    twice = [n for caption, n in count.items() if parse(caption).relation == SAME]
    assert sum(twice) == 500 and max(twice) - min(twice) <= 1
    rest = [n for caption, n in count.items() if parse(caption).relation != SAME]
    assert sum(rest) == 4500 and max(rest) - min(rest) <= 1
    where = [i for i, caption in enumerate(captions) if parse(caption).relation == SAME]
    assert 0.4 < np.mean(where) / 5000 < 0.6 and np.diff(where).max() < 150  # mixed in, not at one end
    small = scenes.load(32, 32, 3, 0)["train"]
    assert small.images.shape == (3, 3, 32, 32) and len(small.captions) == 3


# ── places ──


def test_objects_keep_their_distances():
    assert (GAP, SHIFT, MARGIN, RADII) == (2, 2, 1, (5, 5.5))  # in units: what the oracle's figures are about
    generator = np.random.default_rng(0)
    for style, relation in product(shapes.STYLES, RELATIONS):
        line = shapes.LINE if style == "sketch" else 0
        first, second = Thing(style, "red", "circle"), Thing(style, "blue", "square")
        centres, radii = scenes.place([Scene(first, relation, second)] * 3000, generator)
        assert centres.shape == (3000, 2, 2) and radii.shape == (3000, 2)
        assert {*map(tuple, radii)} == {*product(RADII, repeat=2)}
        reach = (radii + line)[..., None]  # (3000, 2, 1)
        border = np.minimum(centres, 32 - centres) - reach  # between each object's box and the nearest border
        assert border.min() == MARGIN
        np.testing.assert_array_equal(border % 1, 0)  # whole steps
        along, across = (0, 1) if relation in SIDEWAYS else (1, 0)
        ahead = centres[:, 1, along] - centres[:, 0, along]
        ahead = ahead if relation in ("above", "left of") else -ahead
        gaps = ahead - reach.sum((1, 2))
        assert gaps.min() == GAP and gaps.max() == 32 - 2 * MARGIN - 4 * (
            RADII[0] + line
        )  # from as near as allowed to border to border
        aside = centres[:, 1, across] - centres[:, 0, across]
        assert abs(aside).max() <= SHIFT + 0.5 and aside.min() <= -SHIFT and aside.max() >= SHIFT
        assert abs(aside.mean()) < 0.3
        for k in (0, 1):  # the whole width is used
            assert np.ptp(centres[:, k, across]) == 32 - 2 * (MARGIN + RADII[0] + line)


def test_the_same_stands_at_the_same_place_below():
    """All places there are, counted by hand: an outline of radius 5 reaches 6.5, of radius 5.5 it reaches 7."""
    scene = same("red", "circle")
    centres, radii = scenes.place([scene] * 4000, np.random.default_rng(0))
    np.testing.assert_array_equal(centres[:, 1], centres[:, 0] + [0, 16])
    np.testing.assert_array_equal(radii[:, 0], radii[:, 1])
    expected = {(5.0, x, y) for x in np.arange(7.5, 25) for y in (7.5, 8.5)} | {(5.5, x, 8.0) for x in np.arange(8, 25)}
    assert {(r, *at) for r, at in zip(radii[:, 0], centres[:, 0])} == expected


def test_places_in_a_mixed_list_follow_each_scene():
    mixed = [EVERY[i] for i in np.random.default_rng(0).integers(len(EVERY), size=500)] + EVERY[-24:]
    centres, radii = scenes.place(mixed, np.random.default_rng(1))
    for scene, (first, second), (r1, r2) in zip(mixed, centres, radii):
        right, down = second - first
        ahead = {"above": down, "below": -down, "left of": right, "right of": -right, SAME: down}[scene.relation]
        assert ahead >= r1 + r2 + GAP


# ── pictures ──


def test_relations_hold_in_the_pixels():
    """By exact colour, so for two colours only; also that gap and margin are there to see."""
    two = [s for s in EVERY if s.first.colour != s.second.colour]
    some = [two[i] for i in np.random.default_rng(0).permutation(len(two))[:300]]
    size = 160  # 5 pixels to a unit
    images = scenes.draw([s.caption for s in some], np.random.default_rng(2), size).numpy()
    for image, scene in zip(images, some):
        first, second = (
            np.argwhere((image == np.array(shapes.COLOURS[thing.colour]).reshape(3, 1, 1)).all(0))
            for thing in (scene.first, scene.second)
        )
        axis = 1 if scene.relation in SIDEWAYS else 0
        before, after = (first, second) if scene.relation in ("above", "left of") else (second, first)
        assert after[:, axis].min() - before[:, axis].max() > 5 * GAP
        drawn = np.argwhere((image < 255).any(0))
        assert drawn.min() >= 5 * MARGIN - 1 and drawn.max() <= size - 5 * MARGIN


def test_pictures_are_their_two_objects_on_white():
    captions = [EVERY[i].caption for i in (0, 900, 2000, 2300, 4000)] + [same("green", "triangle").caption]
    images = scenes.draw(captions, np.random.default_rng(3), 48).numpy()
    described = [parse(caption) for caption in captions]
    centres, radii = scenes.place(described, np.random.default_rng(3))  # the same places again
    for image, scene, at, r in zip(images, described, centres, radii):
        exact = np.full((3, 48, 48), 255.0)
        for k, thing in enumerate((scene.first, scene.second)):
            drawing = shapes.Drawing(thing.style, "large", thing.colour, thing.shape)
            alpha = shapes.coverage([drawing], at[k : k + 1], r[k : k + 1], 48, 32)
            exact = exact * (1 - alpha) + alpha * np.array(shapes.COLOURS[thing.colour]).reshape(3, 1, 1)
        assert abs(image - exact).max() <= 0.501  # rounded to the nearest


def test_many_pictures_are_drawn_as_few_are(monkeypatch):
    captions = [EVERY[i].caption for i in np.random.default_rng(0).integers(len(EVERY), size=700)]  # chunks are of 512
    images = scenes.draw(captions, np.random.default_rng(4))
    centres, radii = scenes.place([parse(caption) for caption in captions], np.random.default_rng(4))
    monkeypatch.setattr(scenes, "place", lambda *_: (centres[505:520], radii[505:520]))
    assert torch.equal(images[505:520], scenes.draw(captions[505:520], np.random.default_rng(4)))


def test_the_sketch_below_is_the_outline_of_the_photo_above():
    caption = same("blue", "square").caption
    upper, lower = scenes.draw([caption] * 20, np.random.default_rng(0), 64).float().div(255).split(32, dim=2)
    filled, outline = (half[:, 0] < 0.99 for half in (upper, lower))  # (20, 32, 64) blue leaves red below 1
    assert (filled.sum((1, 2)) > outline.sum((1, 2))).all()
    for photo, sketch in zip(filled, outline):
        ys, xs = photo.nonzero().unbind(dim=1)
        inner = photo[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert (
            inner.float().mean() > 0.95 and not sketch[ys.min() + 4 : ys.max() - 3, xs.min() + 4 : xs.max() - 3].any()
        )
        assert sketch[ys.min(), xs.min() : xs.max() + 1].all()  # the outline runs along the edge


def test_bad_input():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="31 pixels"):
        scenes.draw([EVERY[0].caption], generator, 31)
    with pytest.raises(ValueError, match="not a caption of the drawn scenes"):
        scenes.draw(["a fox"], generator)
    with pytest.raises(ValueError, match="no split 'test'"):
        scenes.captions("test")
    with pytest.raises(ValueError, match="32 × 64"):
        scenes.load(32, 64, 10, 0)
    with pytest.raises(ValueError, match="24 pixels"):
        scenes.load(24, 24, 10, 0)
    with pytest.raises(ValueError, match="pool of 0"):
        scenes.load(32, 32, 0, 0)
    assert scenes.draw([], generator).shape == (0, 3, 32, 32)
