"""The contact sheet: all that one command drew, on one page, under its captions.

    [("a red circle", pictures, ["seed 0: 0.31", …]), …]  ->  one picture (height, width, 3) uint8

Pillow draws it, because importing matplotlib takes longer than drawing nine pictures; only its font is used, for Greek,
Cyrillic, Hebrew and Arabic.
"""

import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ACROSS = 9  # pictures in a row
SIDE = 96  # pixels, about, of a picture's longer side: a smaller one is enlarged, by a whole factor
GAP = 8  # pixels between things
MOST = 400  # pictures on a sheet; more would not be looked at


def contact_sheet(rows: Sequence[tuple[str, list[np.ndarray], list[str]]], note: str = "") -> np.ndarray:
    """rows: for each caption its pictures, (height, width, 3) uint8 all alike, and what to write under each. note: below
    everything. Of more than 400 pictures the first are shown."""
    font = load_font(12)
    height, width = enlarged(rows[0][1][0]).shape[:2]
    cell = max(width, max(round(font.getlength(label)) for _, _, labels in rows for label in labels)) + GAP
    across = GAP + max(480, cell * min(ACROSS, max(len(pictures) for _, pictures, _ in rows)))
    parts, left = [], MOST
    for caption, pictures, labels in rows:
        shown = [*zip(pictures, labels)][:left]
        left -= len(shown)
        if shown:
            parts.append(written(caption, across, font))
        for k in range(0, len(shown), ACROSS):
            parts.append(row_of(shown[k : k + ACROSS], across, cell, font))
    parts.append(written(note, across, font))
    return np.concatenate(parts)


def load_font(size: int) -> ImageFont.FreeTypeFont:
    folder = Path(find_spec("matplotlib").origin).parent  # which imports nothing
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def enlarged(picture: np.ndarray) -> np.ndarray:
    factor = max(1, SIDE // max(picture.shape))
    return picture.repeat(factor, 0).repeat(factor, 1)


def row_of(shown: list[tuple[np.ndarray, str]], across: int, cell: int, font) -> np.ndarray:
    """Pictures side by side, each with its label below."""
    height = enlarged(shown[0][0]).shape[0]
    page = Image.new("RGB", (across, height + 3 * GAP), "white")
    for k, (picture, label) in enumerate(shown):
        page.paste(Image.fromarray(enlarged(picture)), (GAP + k * cell, 0))
        ImageDraw.Draw(page).text((GAP + k * cell, height + 2), label, "black", font)
    return np.asarray(page)


def written(text: str, across: int, font) -> np.ndarray:
    """The first 200 characters of a text, on as many lines as they need; what cannot be shown is a question mark."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    lines = textwrap.wrap(text if len(text) <= 200 else f"{text[:200]} …", (across - 2 * GAP) // 8)
    page = Image.new("RGB", (across, 2 * GAP + 16 * max(1, len(lines))), "white")
    for k, line in enumerate(lines):
        ImageDraw.Draw(page).text((GAP, GAP + 16 * k), line, "black", font)
    return np.asarray(page)
