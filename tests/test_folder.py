"""A folder of one's own pictures: nothing is lost or mixed up, crops stay inside, and bad files are skipped by name.

Most pictures here are one flat colour that is also their caption, so that a mix-up shows, or have red = x and green =
y, so that a view tells where it was cut.
"""

import os
import shutil
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from minidalle.data import folder as f

SIZE = 16


def add(path: Path, picture, caption: str | bytes | None = "a caption", **how):
    """Save a picture (an Image, an array, a colour or raw bytes), and its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, tuple):
        picture = Image.new("RGB", (20, 20), picture)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path, **how)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)


def colours(folder: Path, count: int, start: int = 0) -> Path:
    for i in range(start, start + count):
        add(folder / f"{i // 7}" / f"{i:03}.png", (i, 255 - i, 7 * i % 256), f"{i} {255 - i} {7 * i % 256}")
    return folder


def positions(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: red = x, green = y; up to 256 each way."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], axis=2).astype(np.uint8)


def load(folder, pool=40, seed=0, height=SIZE, width=SIZE):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # so that a test fails where a picture is skipped or Pillow complains
        return f.load(folder, height, width, pool, seed)


def load_some(folder, pool=40, seed=0):
    """The splits, and the one warning of a folder where some pictures cannot be used."""
    with pytest.warns(UserWarning) as warned:
        splits = f.load(folder, SIZE, SIZE, pool, seed)
    (message,) = (str(w.message) for w in warned)
    assert "\n" not in message
    return splits, message


def same(a, b):
    return all(torch.equal(a[s].images, b[s].images) and a[s].captions == b[s].captions for s in ("train", "held_out"))


def only_view(tmp_path, picture, name="x.png", height=SIZE, width=SIZE, **how):
    """The canonical view (3, height, width) int of one picture."""
    add(tmp_path / name, picture, **how)
    drawn, skipped = f.draw([(name, None)], {name: (tmp_path / name, None)}, height, width, 0)
    assert not skipped
    return drawn[name, None].astype(int)


# --- what is found -------------------------------------------------------------------------------------------------


def test_every_picture_keeps_its_caption(tmp_path):
    splits = load(colours(tmp_path, 40), pool=100)
    assert list(splits) == ["train", "held_out"]
    for images, captions in splits.values():
        assert images.dtype == torch.uint8 and images.shape == (len(captions), 3, SIZE, SIZE)
        flat = torch.tensor([[int(value) for value in caption.split()] for caption in captions])
        assert torch.equal(images.long(), flat[:, :, None, None].expand_as(images))
    assert len(splits["train"].captions) == 100
    assert not set(splits["train"].captions) & set(splits["held_out"].captions)
    assert len({*splits["train"].captions, *splits["held_out"].captions}) == 40


def test_equal_names_in_different_folders_are_different_pictures(tmp_path):
    for i, place in enumerate(("", "a", "b", "a/b", "a/b/c")):
        add(tmp_path / place / "fox.png", (i, i, i), f"{i}")
    found = f.find(tmp_path)
    assert list(found) == ["a/b/c/fox.png", "a/b/fox.png", "a/fox.png", "b/fox.png", "fox.png"]
    splits = load(tmp_path)
    shown = {(c, int(i.max())) for split in splits.values() for c, i in zip(split.captions, split.images)}
    assert shown == {(str(i), i) for i in range(5)}


def test_which_files_are_pictures(tmp_path):
    for name in ("a.jpg", "b.JPEG", "c.Png", "d.webp", "my.cat.png", "my.dog.png", "v1.0/a.png"):
        add(tmp_path / name, (1, 2, 3))
    add(tmp_path / "E.PNG", (1, 2, 3), None)
    (tmp_path / "E.TXT").write_text("a caption in capital letters")
    for name in (".hidden.png", ".thumbnails/x.png", "a/.git/y.png", "movie.gif", "x.bmp"):
        add(tmp_path / name, (1, 2, 3))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    (tmp_path / "alone.txt").write_text("a caption without a picture")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = f.find(tmp_path)
    captions = {key: text and text.relative_to(tmp_path).as_posix() for key, (_, text) in found.items()}
    assert list(captions.items()) == [
        ("E.PNG", "E.TXT"),
        ("a.jpg", "a.txt"),
        ("b.JPEG", "b.txt"),
        ("c.Png", "c.txt"),
        ("d.webp", "d.txt"),
        ("my.cat.png", "my.cat.txt"),
        ("my.dog.png", "my.dog.txt"),
        ("v1.0/a.png", "v1.0/a.txt"),
    ]


def test_two_pictures_may_share_a_caption_and_then_a_split(tmp_path):
    for i in range(40):
        add(tmp_path / f"{i}.jpg", (0, 0, 0), str(i))
        add(tmp_path / f"{i}.png", (0, 0, 0), str(i))
    splits = load(tmp_path, pool=300)
    assert not set(splits["train"].captions) & set(splits["held_out"].captions)
    assert set(Counter(splits["held_out"].captions).values()) == {2}


@pytest.mark.parametrize(
    "raw, caption",
    [
        (b"a fox", "a fox"),
        (b"\xef\xbb\xbfa fox\r\n", "a fox"),
        (b"  a\tred \n\n fox\xc2\xa0asleep \n", "a red fox asleep"),
        ("ein müder Fuchs 🦊".encode(), "ein müder Fuchs 🦊"),
        (b"x" * 65536, "x" * 65536),
    ],
)
def test_captions_become_one_line(tmp_path, raw, caption):
    (tmp_path / "a.txt").write_bytes(raw)
    assert f.read_caption(tmp_path / "a.txt") == caption


# --- splits, pool and seed -----------------------------------------------------------------------------------------


def test_about_a_tenth_is_held_out_and_stays_so():
    keys = [f"pictures/{i}.jpg" for i in range(3000)]
    splits = f.split(keys)
    assert 0.08 < len(splits["held_out"]) / 3000 < 0.12
    assert sorted(splits["train"] + splits["held_out"]) == sorted(keys)
    fewer = f.split(keys[::3])
    for name in splits:
        assert set(fewer[name]) <= set(splits[name])


def test_both_splits_have_at_least_one():
    for i in range(200):
        for count in (2, 3):
            splits = f.split([f"{i}/{k}.png" for k in range(count)])
            assert splits["train"] and splits["held_out"] and sum(map(len, splits.values())) == count


def test_the_seed_decides_the_pool_and_nothing_else(tmp_path):
    for i in range(12):
        add(tmp_path / f"{i}.png", np.roll(positions(60, 50), 5 * i, axis=1), str(i))
    first, again, other = (load(tmp_path, seed=seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert first["train"].captions != other["train"].captions
    assert not {i.numpy().tobytes() for i in first["train"].images} & {
        i.numpy().tobytes() for i in other["train"].images
    }
    assert torch.equal(first["held_out"].images, other["held_out"].images)
    assert first["held_out"].captions == other["held_out"].captions


def test_the_order_of_files_on_the_disk_does_not_matter(tmp_path, monkeypatch):
    expected = load(colours(tmp_path, 20))
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: [(parent, folders, names[::-1]) for parent, folders, names in walk(*a, **k)][::-1]
    )
    assert same(load(tmp_path), expected)


def test_a_picture_that_is_added_leaves_the_others_as_they_are(tmp_path):
    picture = positions(60, 50)
    for i in range(20):
        add(tmp_path / f"{i}.png", picture, str(i))
    before = load(tmp_path, pool=100)
    keys = f.split(list(f.find(tmp_path)))
    add(tmp_path / "new.png", picture, "new")
    after = load(tmp_path, pool=130)
    for name, its in f.split(list(f.find(tmp_path))).items():
        assert set(keys[name]) == {*its} - {"new.png"}

    def views(split):  # of the pictures in the pool, whose captions are different
        return {(caption, image.numpy().tobytes()) for caption, image in zip(split.captions, split.images)}

    assert views(before["train"]) <= views(after["train"])
    assert views(before["held_out"]) <= views(after["held_out"])


def test_a_large_pool_goes_round_with_new_crops(tmp_path):
    picture = positions(200, 160)
    for i in range(10):
        add(tmp_path / f"{i}.png", picture, str(i))
    images, captions = load(tmp_path, pool=25)["train"]
    n = len(set(captions))
    assert n < 10 and set(Counter(captions).values()) == {25 // n, 25 // n + 1}
    assert len(set(captions[:n])) == len(set(captions[n : 2 * n])) == n  # a round
    assert captions[:n] != captions[n : 2 * n]  # in an order of its own
    assert len({image.numpy().tobytes() for image in images}) == 25


def test_a_small_pool_is_a_random_subset(tmp_path):
    colours(tmp_path, 60)
    one, two = (load(tmp_path, pool=8, seed=seed)["train"].captions for seed in (0, 1))
    assert len(set(one)) == len(set(two)) == 8 and set(one) != set(two)


def test_each_picture_is_decoded_once(tmp_path, monkeypatch):
    colours(tmp_path, 20)
    seen, decode = [], f.decode
    monkeypatch.setattr(f, "decode", lambda path, least: seen.append(path) or decode(path, least))
    load(tmp_path, pool=100)
    assert len(seen) == len(set(seen)) == 20


# --- crops ---------------------------------------------------------------------------------------------------------

sides = st.integers(1, 400)
targets = st.integers(1, 64)


@given(sides, sides, targets, targets, st.integers(0, 2**64 - 1))
def test_a_crop_stays_inside_and_keeps_the_shape(w, h, width, height, seed):
    largest = min(w / width, h / height)
    for rng in (None, np.random.default_rng(seed)):
        left, top, right, bottom = f.view_box((w, h), height, width, rng)
        assert 0 <= left < right <= w and 0 <= top < bottom <= h
        scale = (right - left) / width
        assert scale == pytest.approx((bottom - top) / height)
        if rng is None:
            assert scale == pytest.approx(largest)
            assert (left + right, top + bottom) == pytest.approx((w, h))
        else:
            assert scale <= largest * (1 + 1e-9)
            rounded = largest * (1 + 0.5 / max(1, largest * min(width, height)))
            assert scale >= min(largest, 1) * (1 - 1e-9) or rounded >= 1  # a large picture is never enlarged …
            assert largest > 1 or scale == pytest.approx(largest) or rounded > 1  # … a small one no more than it must
        picture = Image.new("RGB", (w, h), (9, 8, 7))
        drawn = f.cut(picture, (left, top, right, bottom), height, width)
        assert drawn.shape == (3, height, width) and drawn.dtype == np.uint8
        assert (drawn == np.array([9, 8, 7])[:, None, None]).all()


def test_views_are_two_thirds_to_eight_ninths_of_the_largest_crop():
    rng = np.random.default_rng(0)
    boxes = np.array([f.view_box((240, 180), 24, 24, rng) for _ in range(4000)])
    t = 180 * 24 / (boxes[:, 2] - boxes[:, 0])  # side of the shrunk crop of which 24 pixels are shown
    values, counts = np.unique(t.round(6), return_counts=True)
    assert values.tolist() == list(range(27, 37))  # 9/8 … 12/8 of 24
    assert counts.min() > 320 and counts.max() < 480  # uniform: 400 ± 4 standard deviations
    assert boxes[:, 0].min() < 6 and boxes[:, 2].max() > 234  # everywhere in the picture
    assert boxes[:, 1].min() < 3 and boxes[:, 3].max() > 177
    assert boxes[:, [0, 2]].mean() == pytest.approx(120, abs=2) and boxes[:, [1, 3]].mean() == pytest.approx(90, abs=2)


def test_a_small_picture_is_enlarged_no_more_than_needed():
    rng = np.random.default_rng(0)
    assert f.view_box((24, 24), 24, 24, rng) == (0, 0, 24, 24)
    assert f.view_box((12, 12), 24, 24, rng) == (0, 0, 12, 12)
    boxes = np.array([f.view_box((26, 26), 24, 24, rng) for _ in range(200)])
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 24)  # 26 < 9/8 · 24, so pixels stay as they are
    boxes = np.array([f.view_box((30, 30), 24, 24, rng) for _ in range(500)])
    t = np.unique((30 * 24 / (boxes[:, 2] - boxes[:, 0])).round(6))
    assert t.tolist() == [27, 28, 29, 30]


@pytest.mark.parametrize("height, width", [(16, 16), (32, 16), (10, 25)])
def test_pixels_come_from_where_the_box_says(height, width):
    picture, rng = Image.fromarray(positions(250, 190)), np.random.default_rng(1)
    for _ in range(50):
        box = f.view_box(picture.size, height, width, rng)
        drawn = f.cut(picture, box, height, width)
        scale = (box[2] - box[0]) / width
        x = box[0] + scale * (np.arange(width) + 0.5) - 0.5  # a pixel's colour is its left edge, its centre ½ beyond
        y = box[1] + scale * (np.arange(height) + 0.5) - 0.5
        assert abs(drawn[0] - x[None, :]).max() <= 1.01 and abs(drawn[1] - y[:, None]).max() <= 1.01


def test_the_canonical_view_averages_blocks_of_the_centre(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3)).astype(np.uint8)
    blocks = noise[16:80].reshape(16, 4, 16, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert abs(only_view(tmp_path, noise) - blocks).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (32, 60, 3)).astype(np.uint8)
    blocks = noise[:, 22:38].reshape(16, 2, 8, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert abs(only_view(tmp_path, noise, height=16, width=8) - blocks).max() <= 1


@pytest.mark.parametrize("name, side, error", [("x.png", 342, 1), ("x.jpg", 512, 8)])
def test_a_large_picture_is_averaged_in_steps(tmp_path, name, side, error):
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    large = Image.fromarray(coarse.repeat(64, 0).repeat(64, 1))  # 1024 × 1024
    large.save(tmp_path / name)
    assert f.decode(tmp_path / name, 64).size == (64, 64)
    assert f.decode(tmp_path / name, 300).size == (side, side)  # 1024 / 3; a JPEG's own 1024 / 2
    assert f.decode(tmp_path / name, 2000).size == (1024, 1024)
    assert abs(only_view(tmp_path, large, name) - coarse).max() <= error


# --- kinds of pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    upright = np.full((18, 32, 3), 255, np.uint8)
    upright[:9, :16], upright[:9, 16:], upright[9:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {  # as the camera saw it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.jpg"):
        view = only_view(tmp_path, np.ascontiguousarray(stored), name, 18, 32, exif=exif, quality=100, subsampling=0)
        assert abs(view - upright.transpose(2, 0, 1)).mean() < 4


def test_transparent_is_laid_on_white(tmp_path):
    for mode, clear, half, red in (
        ("RGBA", (0, 0, 0, 0), (0, 0, 0, 128), (255, 0, 0, 255)),
        ("LA", (0, 0), (0, 128), (255, 255)),
    ):
        picture = Image.new(mode, (SIZE, SIZE), clear)
        picture.paste(half, (0, 0, 8, 8))
        picture.paste(red, (8, 8, 16, 16))
        view = only_view(tmp_path, picture)
        assert (view[:, 0, 15] == 255).all() and (abs(view[:, 0, 0] - 127) <= 1).all()
        assert view[:, 15, 15].tolist() == ([255, 0, 0] if mode == "RGBA" else [255] * 3)


def test_transparent_colours_of_a_palette_and_of_rgb_are_laid_on_white(tmp_path):
    picture = Image.new("P", (SIZE, SIZE), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.paste(0, (0, 0, 8, 8))
    assert only_view(tmp_path, picture)[:, 0, 0].tolist() == [10, 20, 30]
    for transparency in (0, b"\0\xff"):
        view = only_view(tmp_path, picture, transparency=transparency)
        assert view[:, 0, 0].tolist() == [255] * 3 and view[:, 15, 15].tolist() == [40, 50, 60]
    view = only_view(tmp_path, picture.convert("RGB"), transparency=(10, 20, 30))
    assert view[:, 0, 0].tolist() == [255] * 3 and view[:, 15, 15].tolist() == [40, 50, 60]


def test_grey_of_1_8_and_16_bits(tmp_path):
    bits = Image.new("1", (SIZE, SIZE), 1)
    bits.paste(0, (0, 0, 8, 8))
    assert only_view(tmp_path, bits)[:, [0, 15], [0, 15]].tolist() == [[0, 255]] * 3
    grey = np.arange(256).reshape(SIZE, SIZE)
    assert (only_view(tmp_path, grey.astype(np.uint8)) == grey).all()
    assert (only_view(tmp_path, (257 * grey).astype(np.uint16)) == grey).all()  # 65535 = 257 · 255


def test_cmyk(tmp_path):
    view = only_view(tmp_path, Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0)), "x.jpg", quality=100)
    assert (abs(view - np.array([255, 0, 0])[:, None, None]) <= 4).all()


def test_the_first_frame_of_an_animation_and_of_a_phones_picture_pair(tmp_path):
    red, blue = (Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue"))
    for name, how in (("x.webp", {"lossless": True}), ("x.jpg", {"format": "MPO"}), ("x.png", {})):
        view = only_view(tmp_path, red, name, save_all=True, append_images=[blue], **how)
        assert (abs(view - np.array([255, 0, 0])[:, None, None]) <= 4).all()


def test_the_ending_may_be_wrong(tmp_path):
    view = only_view(tmp_path, Image.new("RGB", (SIZE, SIZE), "red"), "x.jpg", format="PNG")
    assert (view == np.array([255, 0, 0])[:, None, None]).all()


# --- what cannot be used -------------------------------------------------------------------------------------------


def saved(tmp_path, kind, picture=None, **how) -> bytes:
    (picture or Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))).save(
        tmp_path / f"raw.{kind}", **how
    )
    return (tmp_path / f"raw.{kind}").read_bytes()


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def chatty_png(tmp_path):
    """A PNG with so much text folded up in it that Pillow refuses to unfold it, with a ValueError."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    return saved(tmp_path, "png", pnginfo=info)


BROKEN = {
    "zero bytes": lambda tmp: b"",
    "text": lambda tmp: b"I am no picture",
    "half a png": lambda tmp: saved(tmp, "png")[:5000],
    "half a jpeg": lambda tmp: saved(tmp, "jpg", quality=95)[:2000],
    "half a webp": lambda tmp: saved(tmp, "webp")[:500],
    "only a header": lambda tmp: png_header(64, 64),
    "a flipped bit": lambda tmp: (raw := saved(tmp, "png"))[:200] + bytes([raw[200] ^ 255]) + raw[201:],
    "another format": lambda tmp: saved(tmp, "gif"),
    "a program for a printer": lambda tmp: saved(tmp, "eps"),
    "folded-up text": chatty_png,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_skipped_and_changes_nothing_else(tmp_path, kind):
    raw = BROKEN[kind](tmp_path)
    folder = colours(tmp_path / "pictures", 12)
    for pool in (5, 40):
        shutil.rmtree(folder / "broken", ignore_errors=True)
        expected = load(folder, pool=pool)
        for i in range(6):  # some of them held out
            add(folder / f"broken/{i}.png", raw)
        splits, message = load_some(folder, pool=pool)
        assert same(splits, expected)
        if pool == 40:
            assert message.startswith("skipped 6 of 18 pictures: 6 × does not decode ('broken/0.png', ")


def test_too_large_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(f, "decode", lambda *a: pytest.fail("decoded"))
    for i, (width, height) in enumerate([(10_001, 10_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)]):
        add(tmp_path / f"{i}.png", png_header(width, height))
        with warnings.catch_warnings(), pytest.raises(ValueError, match="over 100 megapixels"):
            warnings.simplefilter("ignore")
            f.check_header(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="3 × over 100 megapixels "):
        load(tmp_path)
    add(tmp_path / "just.png", png_header(9_999, 9_999))  # Pillow warns of it; we do not pass that on
    with pytest.raises(ValueError, match="3 of 4 pictures"):
        load(tmp_path)


@pytest.mark.parametrize(
    "width, height, usable",
    [(40, 20, True), (20, 40, True), (41, 20, False), (20, 41, False), (400, 1, False), (1, 1, True), (1, 2, True)],
)
def test_aspect_ratio_within_1_to_2(tmp_path, width, height, usable):
    colours(tmp_path, 5)
    add(tmp_path / "x.png", Image.new("RGB", (width, height)))
    if usable:
        load(tmp_path)
    else:
        assert load_some(tmp_path)[1] == "skipped 1 of 6 pictures: 1 × aspect ratio beyond 1:2 ('x.png')"


@pytest.mark.parametrize(
    "caption, reason",
    [
        (None, "no caption file"),
        (b"", "empty caption"),
        (b"\xef\xbb\xbf \n\t", "empty caption"),
        ("a fox".encode("utf-16"), "caption not readable as UTF-8"),
        ("müde".encode("latin-1"), "caption not readable as UTF-8"),
        (b"x" * 65537, "caption over 64 KB"),
    ],
)
def test_a_caption_that_cannot_be_used(tmp_path, caption, reason):
    expected = load(colours(tmp_path, 5))
    add(tmp_path / "x.png", (0, 0, 0), caption)
    splits, message = load_some(tmp_path)
    assert message == f"skipped 1 of 6 pictures: 1 × {reason} ('x.png')" and same(splits, expected)


def test_four_of_twenty_are_counted_and_named(tmp_path):
    colours(tmp_path, 16)
    add(tmp_path / "b.png", (0, 0, 0), None)
    add(tmp_path / "a.png", (0, 0, 0), None)
    add(tmp_path / "2" / "c.jpg", b"nothing")
    add(tmp_path / "d.webp", Image.new("RGB", (30, 10)))
    splits, message = load_some(tmp_path)
    assert message == (
        "skipped 4 of 20 pictures: 1 × does not decode ('2/c.jpg'), 2 × no caption file ('a.png', 'b.png'), "
        "1 × aspect ratio beyond 1:2 ('d.webp')"
    )
    assert len(splits["train"].captions) == 40
    assert len({*splits["train"].captions, *splits["held_out"].captions}) == 16


def test_at_most_ten_are_named(tmp_path):
    colours(tmp_path, 30)
    for i in range(14):
        add(tmp_path / f"x{i:02}.png", (0, 0, 0), None)
    message = load_some(tmp_path)[1]
    assert message.startswith("skipped 14 of 44 pictures: 14 × no caption file ('x00.png', 'x01.png', ")
    assert message.endswith(" 'x09.png', …)")


def test_half_may_be_broken_but_not_more(tmp_path):
    colours(tmp_path, 5)
    for i in range(5):
        add(tmp_path / f"x{i}.png", b"nothing" if i else png_header(64, 64))
    assert "skipped 5 of 10" in load_some(tmp_path)[1]
    add(tmp_path / "y.png", png_header(64, 64))  # is found to be broken only when it is decoded
    with pytest.raises(
        ValueError, match=r"more than half.*6 of 11 pictures: 6 × does not decode \('x0.png', .*'y.png'\)"
    ):
        load(tmp_path, pool=100)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    colours(tmp_path, 10)
    add(tmp_path / "locked" / "x.png", (0, 0, 0))
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert "locked" in load_some(tmp_path)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_not_valid_text(tmp_path):
    colours(tmp_path, 5)
    odd = tmp_path / os.fsdecode(b"\xff\n.png")
    add(odd, (200, 200, 200), "odd")
    splits = load(tmp_path)
    assert "odd" in splits["train"].captions + splits["held_out"].captions
    odd.with_suffix(".txt").unlink()
    assert load_some(tmp_path)[1] == r"skipped 1 of 6 pictures: 1 × no caption file ('\udcff\n.png')"


def test_bad_input_is_answered_in_one_sentence(tmp_path):
    def refused(folder, match, **arguments):
        with pytest.raises(ValueError, match=match) as error:
            load(folder, **arguments)
        assert "\n" not in str(error.value)
        assert "expected" in str(error.value) or "mend" in str(error.value)

    refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "file is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no pictures in")
    add(tmp_path / "bare" / "a.png", (0, 0, 0), None)
    add(tmp_path / "bare" / "b.png", (0, 0, 0), None)
    refused(tmp_path / "bare", "no captions in .* for its 2 pictures")
    add(tmp_path / "one" / "a.png", (0, 0, 0))
    refused(tmp_path / "one", "only 1 usable picture")
    add(tmp_path / "one" / "b.png", b"nothing")
    refused(tmp_path / "one", "only 1 usable picture")
    add(tmp_path / "none" / "b.png", b"nothing")
    refused(tmp_path / "none", "1 of 1 pictures: 1 × does not decode")


@pytest.mark.parametrize("bad", [{"pool": 0}, {"pool": -3}, {"height": 0}, {"width": 0}])
def test_a_size_or_pool_of_nothing(tmp_path, bad):
    with pytest.raises(ValueError, match="got a pool of .* set each of the three to 1 or more"):
        load(colours(tmp_path, 3), **bad)


# --- one picture by itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, height", [(32, 64), (500, 1005), (500, 990)])  # 1:2, and up to 2 % off on either side
def test_read_resizes_the_whole_picture(tmp_path, width, height):
    halves = np.zeros((height, width, 3), np.uint8)
    halves[height // 2 :] = 255
    add(tmp_path / "a.png", halves)
    image = f.read(tmp_path / "a.png", (32, 32), (64, 32))
    assert image.shape == (3, 64, 32) and image.dtype == np.uint8
    assert (image[:, :31] == 0).all() and (image[:, 33:] == 255).all()


@pytest.mark.parametrize(
    "picture, sentence",
    [
        (None, "is no file: give the path of a picture"),
        (Image.new("RGB", (1000, 500)), "is 1000 wide and 500 high, expected"),  # not the size it is decoded at
        (b"text", "does not decode; expected a JPEG, PNG or WebP picture"),
        (Image.new("RGB", (40, 40)), "is 40 wide and 40 high, expected width to height as 32:64: crop or pad"),
        (Image.new("RGB", (10, 40)), "is 10 wide and 40 high, expected width to height as 32:64: crop or pad"),
    ],
)
def test_read_refuses_in_one_sentence(tmp_path, picture, sentence):
    if picture is not None:
        add(tmp_path / "a.png", picture)
    with pytest.raises(ValueError, match=f"a.png.*{sentence}"):
        f.read(tmp_path / "a.png", (64, 32))
