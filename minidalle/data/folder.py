"""A folder of your own pictures, each with its caption in a text file beside it.

    pets/fox.jpg     pets/fox.txt      "a fox asleep in the snow"
    birds/owl.png    birds/owl.txt     any depth; a second fox.jpg elsewhere is another picture

Enters: the folder, a picture size, the size of the training pool, a seed. Leaves: two splits of `Pictures`, "train" to
learn from and "held_out" to report on. A picture is known by its *key*, its path below the folder with forward slashes:
keyed by the bare name, one of two equal names would be lost (SPEC 8).

The file follows a run of `load`: find the files, sort out what cannot be used, hold some out, plan the *views* that fill
the pool, draw them. A view is (key, round): the picture's random crop of that round, or its centre if round is None.
All chance is a hash of names and numbers, so the order of files on a disk changes nothing, and a picture added later
leaves the splits and the crops of the others as they are.

Crops are those of SPEC 2 ("augmentation"), and pictures with one side over twice as long as the other are left out
(SPEC 7). Captions can be filtered (`data/filter.py`); that is for pictures from the web, and off unless asked for, as
who captions pictures by hand means what is written, be it "fox" alone. Nothing is mirrored here, because a caption may
say "left" and a picture may hold letters; the stage that trains the dVAE sees no captions, and may. The rest is our own
choice (O). What is not noticed: one picture under two names, which may then be both learned and held out.
"""

import hashlib
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from minidalle.data.filter import REASONS, CaptionRules, check
from minidalle.data.pictures import Pictures

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")  # in small or capital letters
FORMATS = ("JPEG", "PNG", "WEBP")  # what a file may hold, whatever its ending
HELD_OUT = 0.1  # share of the pictures
LONGEST = 2.0  # times its shorter side (SPEC 7); a longer picture would lose too much to the crop
MAX_CAPTION = 64 * 1024  # bytes; a longer text is no caption
MAX_PIXELS = 100_000_000  # a small file can unfold to a picture that fills the memory
NAMED = 10  # so many of the pictures that are skipped are named

Found = dict[str, tuple[Path, Path | None]]  # key → the picture, and its caption's file
View = tuple[str, int | None]  # (key, round)


def stem(key: str) -> str:
    """ "pets/fox.jpg" → "pets/fox": what a picture and its caption share."""
    return key.rpartition(".")[0]


def find(folder: Path) -> Found:
    """All pictures, sorted by key. Names that start with "." and links to folders are passed over."""
    files = {}
    for parent, folders, names in os.walk(folder, onerror=lambda error: warnings.warn(f"{error}", stacklevel=2)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        files |= {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    keys = sorted(files)
    captions = {stem(key): files[key] for key in keys if files[key].suffix.lower() == ".txt"}
    return {key: (files[key], captions.get(stem(key))) for key in keys if files[key].suffix.lower() in ENDINGS}


def read_caption(path: Path | None) -> str:
    """The caption on one line. Raises ValueError with the reason where there is none to use."""
    if path is None:
        raise ValueError("no caption file")
    try:
        with path.open("rb") as file:
            return clean_caption(file.read(MAX_CAPTION + 1))
    except OSError:
        raise ValueError("caption not readable as UTF-8") from None


def clean_caption(data: bytes) -> str:
    """The caption on one line, from a file's bytes. Raises ValueError with the reason where there is none to use."""
    if len(data) > MAX_CAPTION:
        raise ValueError(f"caption over {MAX_CAPTION // 1024} KB")
    try:
        words = data.decode("utf-8-sig").split()  # -sig: Windows may put a mark before the text
    except UnicodeDecodeError:
        raise ValueError("caption not readable as UTF-8") from None
    if not words:
        raise ValueError("empty caption")
    return " ".join(words)


def check_header(path: Path | BinaryIO, aspect: float = LONGEST) -> tuple[int, int]:
    """(width, height) from a picture's header. Raises ValueError with the reason where that rules the picture out."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            size, pixels, (shorter, longer) = picture.size, math.prod(picture.size), sorted(picture.size)
    except Image.DecompressionBombError:
        pixels = math.inf
    except Exception:  # a decoder may raise nearly anything on broken bytes
        raise ValueError("does not decode") from None
    if pixels > MAX_PIXELS:
        raise ValueError(f"over {MAX_PIXELS // 10**6} megapixels")
    if longer > aspect * shorter:
        raise ValueError(f"aspect ratio beyond 1:{aspect:g}")
    return size


def decode(path: Path | BinaryIO, least: int) -> Image.Image:
    """The picture upright, in RGB, on white where it is transparent; of an animation the first frame.

    A large picture is averaged down by a whole factor, as far as each side keeps `least` pixels, so that its views are
    cut fast. Raises ValueError with the reason.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            picture.draft(None, (least, least))  # a JPEG can do part of that while it decodes; others ignore this
            picture = ImageOps.exif_transpose(picture)  # cameras note how they were held
        if picture.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        return picture.convert("RGB").reduce(max(1, min(picture.size) // least))
    except Exception:
        raise ValueError("does not decode") from None


def read(path: Path, *sizes: tuple[int, int], prepare: Callable = lambda picture: picture) -> np.ndarray:
    """One picture by itself, resized to the first of the sizes (height, width) whose shape it has, to 2 %: (3, height,
    width) uint8. prepare(picture) -> the picture that is meant, such as without a strip below it. Raises ValueError, naming it, where it is missing, does not decode, or has none of these shapes."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the path of a picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, as in `load`
        try:
            check_header(path, aspect=math.inf)
            picture = prepare(decode(path, least=MAX_PIXELS))  # as large as it is
        except ValueError as reason:
            raise ValueError(f"{path}: {reason}; expected a JPEG, PNG or WebP picture") from None
    across, down = picture.size
    for height, width in sizes:
        if 0.98 < across * height / (down * width) < 1.02:
            return cut(picture, (0, 0, across, down), height, width)
    shapes = " or ".join(f"{width}:{height}" for height, width in sizes)
    raise ValueError(f"{path} is {across} wide and {down} high, expected width to height as {shapes}: crop or pad it")


def sort_out(found: Found, rules: CaptionRules | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """(the captions of pictures that look usable before they are decoded, the reasons against the others).

    rules: those of the captions filter, which then judges the aspect ratio as well."""
    captions, skipped = {}, {}
    for key, (picture, text) in tqdm(found.items(), desc="look through", unit="picture", leave=False):
        try:
            caption = read_caption(text)
            size = check_header(picture, LONGEST if rules is None else math.inf)
            check(caption, size, rules)
            captions[key] = caption
        except ValueError as reason:
            skipped[key] = str(reason)
    return captions, skipped


def tally(found: Found, skipped: dict[str, str]) -> dict[str, int]:
    """What the captions filter did: {"kept": …, each of its reasons: …, "unusable": what it was not asked about}."""
    counts = Counter(reason if reason in REASONS else "unusable" for reason in skipped.values())
    return {"kept": len(found) - len(skipped), **{name: counts[name] for name in (*REASONS, "unusable")}}


def summary(found: Found, skipped: dict[str, str]) -> str:
    """ "3 of 20 pictures: 2 × no caption file ('a.png', 'b/c.png'), 1 × does not decode ('d.jpg')"."""
    names = defaultdict(list)
    for key, reason in sorted(skipped.items()):
        names[reason].append(repr(key))
    most = max(1, NAMED // max(1, len(names)))
    parts = [f"{len(n)} × {r} ({', '.join(n[:most])}{', …' if len(n) > most else ''})" for r, n in names.items()]
    return f"{len(skipped)} of {len(found)} pictures: {', '.join(parts)}"


def check_enough(folder: Path, found: Found, skipped: dict[str, str]):
    """Raise ValueError where the folder gives too little to go on."""
    usable = len(found) - len(skipped)
    if not found:
        raise ValueError(f"no pictures in {folder}: expected fox.jpg (.jpeg, .png, .webp) and its caption in fox.txt")
    if all(text is None for _, text in found.values()):
        raise ValueError(f"no captions in {folder} for its {len(found)} pictures: expected fox.txt beside fox.jpg")
    broken = sum(reason not in REASONS for reason in skipped.values())  # the filter may drop as much as it likes
    if 2 * broken > len(found):
        raise ValueError(f"{folder} cannot be used for more than half; mend or remove {summary(found, skipped)}")
    if usable < 2:
        why = f"; left out are {summary(found, skipped)}" if skipped else ""
        raise ValueError(
            f"only {usable} usable picture{'' if usable == 1 else 's'} in {folder}, expected 2, to learn from one and hold one out: "
            f"add more{why}"
        )


def hashed(*parts) -> int:
    """A number in 0 … 2⁶⁴ - 1 that is as good as random, and the same for the same parts on every machine."""
    text = "\n".join(map(str, parts)).encode(errors="surrogateescape")  # a file's name need not be valid text
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def split(keys: list[str]) -> dict[str, list[str]]:
    """About a tenth of the keys (two or more) held out, and at least one on each side.

    The hash of a key without its ending decides, so that fox.jpg and fox.png, which share fox.txt, stay together.
    """
    by_hash = sorted(keys, key=lambda key: (hashed(stem(key)), key))
    count = sum(hashed(stem(key)) < HELD_OUT * 2**64 for key in keys)
    count = min(max(count, 1), len(keys) - 1)
    return {"train": sorted(by_hash[count:]), "held_out": sorted(by_hash[:count])}


def rounds(keys: list[str], pool: int, seed: int) -> list[View]:
    """`pool` views that go round all keys, each round in an order of its own."""
    views = []
    for number in range(math.ceil(pool / len(keys))):
        ranks = {key: hashed(seed, number, "order", key) for key in keys}
        views += [(key, number) for key in sorted(keys, key=ranks.get)]
    return views[:pool]


def view_box(size: tuple[int, int], height: int, width: int, rng: np.random.Generator | None) -> tuple[float, ...]:
    """(left, top, right, bottom) of what a view shows, in pixels of a picture of size (width, height), not rounded.

    Without rng: the largest crop of the target's shape, height × width, in the middle. With rng, two steps (SPEC 2):
    such a crop anywhere, shrunk until its shorter side has t pixels, t uniform in 9/8 … 12/8 of the target's; of these
    pixels, height × width anywhere. A small picture is not enlarged for t's sake, only where it is smaller than the
    target, and to the target's size (O).
    """
    picture, target = np.array(size), np.array([width, height])
    largest = target * (picture / target).min()  # (2,) sides of the crop
    if rng is None:
        corner, sides = (picture - largest) / 2, largest
    else:
        side, shorter = target.min(), round(largest.min())
        low, high = (min(shorter, round(eighths / 8 * side)) for eighths in (9, 12))
        t = max(side, rng.integers(low, high + 1))
        sides = largest * side / t
        corner = rng.random(2) * (picture - largest) + rng.random(2) * (largest - sides)
    box = np.clip((corner, corner + sides), 0, picture)  # floats may pass the edge by a hair
    return tuple(box.ravel().tolist())


def cut(picture: Image.Image, box: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """(3, height, width) uint8: the box, shrunk by averaging (BOX) or enlarged smoothly (BICUBIC)."""
    how = Image.Resampling.BOX if box[2] - box[0] >= width else Image.Resampling.BICUBIC
    return np.array(picture.resize((width, height), how, box)).transpose(2, 0, 1)


def draw(views: list[View], found: Found, height: int, width: int, seed: int) -> tuple[dict[View, np.ndarray], dict]:
    """(each view as (3, height, width) uint8, the reasons against pictures that did not decode).

    A picture is decoded once, for all its views, and let go: one at a time is in memory at its full size.
    """
    rounds_of = defaultdict(list)
    for key, number in views:
        rounds_of[key].append(number)
    drawn, skipped = {}, {}
    for key, numbers in tqdm(rounds_of.items(), desc="read", unit="picture", leave=False):
        try:
            picture = decode(found[key][0], least=4 * max(height, width))
        except ValueError as reason:
            skipped[key] = str(reason)
            continue
        for number in numbers:
            rng = None if number is None else np.random.default_rng(hashed(seed, number, "crop", key))
            drawn[key, number] = cut(picture, view_box(picture.size, height, width, rng), height, width)
    return drawn, skipped


def load(
    folder: Path, height: int, width: int, pool: int, seed: int, rules: CaptionRules | None = None,
    counts: dict | None = None,
) -> dict[str, Pictures]:  # fmt: skip
    """Splits "train" (exactly `pool` pictures) and "held_out"; images (N, 3, height, width) uint8 in 0..255.

    "train" goes round the training pictures, with a new random crop each time; a smaller pool is a random subset, and
    the rest is not decoded. "held_out" shows the centre of each of its pictures, the same whatever the seed. What cannot
    be used is skipped, and one warning counts and names it. rules: those of the captions filter, None without it; counts:
    a dictionary to put its `tally` into. Raises ValueError for a size or a pool under 1, and for a
    folder that is missing, has under 2 usable pictures, or more that cannot be used than can.
    """
    if min(height, width, pool) < 1:
        raise ValueError(f"got a pool of {pool} pictures of {height} × {width}: set each of the three to 1 or more")
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {problem}: expected a folder of pictures such as fox.jpg and captions, fox.txt")
    found = find(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on pictures with small flaws, which it reads all the same
        captions, skipped = sort_out(found, rules)
        drawn = {}
        while True:  # once; again where views of other pictures must take the place of a broken one's
            check_enough(folder, found, skipped)
            keys = split([key for key in captions if key not in skipped])
            plan = {"train": rounds(keys["train"], pool, seed), "held_out": [(key, None) for key in keys["held_out"]]}
            missing = [view for views in plan.values() for view in views if view not in drawn]
            if not missing:
                break
            more, broken = draw(missing, found, height, width, seed)
            drawn, skipped = drawn | more, skipped | broken
    if skipped:
        warnings.warn(f"skipped {summary(found, skipped)}", stacklevel=2)
    if counts is not None and rules is not None:
        counts.update(tally(found, skipped))
    row = np.dtype((np.uint8, (3, height, width)))
    return {
        name: Pictures(
            torch.from_numpy(np.fromiter(map(drawn.pop, views), row, len(views))),  # pop: memory moves, not doubles
            [captions[key] for key, _ in views],
        )
        for name, views in plan.items()
    }
