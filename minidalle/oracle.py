"""The oracle that marks drawings of the drawn world.

In: pictures and the captions they were asked for. Out: what each picture shows (`read`), and whether that is what was
asked (`judge`). The oracle is this project's own (O; the paper asks people, and measures FID). It has no learned part,
and NOTHING THAT TRAINS, GENERATES OR RANKS EVER IMPORTS IT: a model that had seen the examiner could please it instead
of drawing.

The rules, in order; a picture that is not 24 pixels wide is averaged down (or up) to 24 by area first:
1. ground: the median of the border, channel by channel, is within .25 of white or of black; otherwise "unclear";
2. objects: pixels whose largest channel differs from the ground by more than .25, joined where they touch, corners
   included; a piece of fewer than 5 pixels is a speck and does not count;
3. colour: for each palette colour c and pixel x on ground g, alpha = clip(⟨x − g, c − g⟩ / |c − g|², 0, 1) is the share
   of c that explains x best; the colour that leaves the least of the drawn pixels unexplained is named, unless it
   leaves more than .15 of them (a disc half red and half blue): then "unclear";
4. style, size and shape: of all templates (each style, size step, shape and place that shapes.py can draw), the one
   with the least squared distance to alpha; residual = Σ(alpha − template)² / Σ template².

An oracle that must name *some* shape flatters a blob, so every share of right pictures is reported beside the share
that is also clean: right, and a residual under .15.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from minidalle.data import shapes

CLEAN = 0.15  # a residual under this means: the object is its template
MIXED = 0.15  # an object of which no palette colour explains more than 1 − MIXED has none
CONTRAST = 0.25  # least difference to the ground, of values in [0, 1], that counts as drawn
SPECK = 5  # a connected piece of fewer pixels is dust
CHUNK = 512  # pictures read at once; their scores against all templates take tens of MB


class Reading(NamedTuple):
    """What the oracle sees in one picture. Without an object the attributes mean nothing and residual is infinite."""

    style: str
    size: str
    colour: str  # a palette colour or "unclear"
    shape: str
    ground: str  # "white", "black" or "unclear"
    objects: int
    residual: float

    @property
    def caption(self) -> str:
        """The caption that this picture deserves, or, where none fits, what is wrong with it in words."""
        if self.objects != 1 or "unclear" in self[:5]:
            return f"{self.objects} object(s), {self.colour} on {self.ground}"
        return shapes.Drawing(*self[:5]).caption


def as_float(images: torch.Tensor) -> torch.Tensor:
    """(N, 3, height, width) uint8, or float in [0, 1] -> float32 in [0, 1]. ValueError for another shape or range."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, 3, height, width)")
    if images.dtype == torch.uint8:
        return images.cpu().float() / 255
    images = images.detach().cpu().float()
    if not ((images >= -1e-3) & (images <= 1 + 1e-3)).all():  # also catches NaN
        raise ValueError("images reach outside [0, 1] or are not numbers: give uint8, or floats divided by 255")
    return images.clamp(0, 1)


def area_resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, 3, height, width) -> (N, 3, size, size): each new pixel is the mean over exactly the area it covers."""

    def weights(old):  # (size, old): how much of new pixel i lies in old pixel j
        edge = torch.arange(size + 1)[:, None] * old / size  # (size + 1, 1) edges of new pixels, in old pixels
        within = (edge - torch.arange(old)).clamp(0, 1)  # (size + 1, old) share of old pixel j left of edge i
        return within.diff(dim=0) * size / old

    height, width = images.shape[2:]
    if (height, width) == (size, size):
        return images
    return weights(height) @ images @ weights(width).T


def read_ground(images: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Rule 1: (N, 3) the nearest ground, 0 or 1 throughout, and the N names."""
    border = torch.cat(
        [images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2
    )  # (N, 3, 4 · width)
    median = border.median(dim=2).values  # (N, 3)
    ground = (median.mean(dim=1, keepdim=True) > 0.5).float().expand(-1, 3)  # (N, 3)
    clear = (median - ground).abs().amax(dim=1) <= 0.25  # (N,)
    return ground, [("white" if white else "black") if ok else "unclear" for white, ok in zip(ground[:, 0], clear)]


def count_objects(drawn: torch.Tensor) -> torch.Tensor:
    """Rule 2: (N, S, S) bool -> (N,) int64. Each drawn pixel starts with a label of its own and takes the largest of its
    3×3 neighbourhood until nothing changes; then the pixels of one piece share one label."""
    n, height, width = drawn.shape
    mask = drawn[:, None].float()  # (N, 1, S, S)
    labels = torch.arange(1.0, height * width + 1).view(1, 1, height, width) * mask
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    pixels = torch.zeros(n, height * width + 1)
    pixels.scatter_add_(
        1, labels.flatten(1).long(), mask.flatten(1)
    )  # pixels of each label; the ground is label 0, with none
    return (pixels >= SPECK).sum(dim=1)


def read_colour(images: torch.Tensor, ground: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Rule 3: (N, S · S) alpha along the line to the colour named, and the N names."""
    palette = torch.tensor(list(shapes.COLOURS.values())) / 255  # (6, 3)
    line = palette - ground[:, None]  # (N, 6, 3) c − g
    x = images.flatten(2) - ground[:, :, None]  # (N, 3, S · S) x − g
    alpha = ((line @ x) / line.square().sum(-1, keepdim=True)).clamp(0, 1)  # (N, 6, S · S)
    drawn = drawn.flatten(1)[:, None]  # (N, 1, S · S)
    missed = [((x - line[:, c, :, None] * alpha[:, c, None]) * drawn).square().sum((1, 2)) for c in range(len(palette))]
    missed = torch.stack(missed, dim=1)  # (N, 6) what each colour leaves unexplained
    best = missed.argmin(dim=1)  # (N,)
    row = torch.arange(len(x))
    clear = missed[row, best] <= MIXED * (x * drawn).square().sum((1, 2))
    names = list(shapes.COLOURS)
    return alpha[row, best], [names[c] if ok else "unclear" for c, ok in zip(best, clear)]


@lru_cache(maxsize=2)
def bank(size: int = shapes.UNITS) -> tuple[torch.Tensor, list[shapes.Drawing]]:
    """All templates: (M, size · size) float32 coverages, and what each of them shows."""
    drawings, centres, radii = [], [], []
    for style, name, shape in product(shapes.STYLES, shapes.RADII, shapes.SHAPES):
        drawing = shapes.Drawing(style, name, "red", shape)  # a coverage has no colour: any will do
        for radius in shapes.RADII[name]:
            low = shapes.clearance([drawing], np.array([radius]))[0]
            for centre in product(np.arange(low, shapes.UNITS - low + 0.25, 0.5), repeat=2):
                drawings.append(drawing)
                centres.append(centre)
                radii.append(radius)
    templates = shapes.coverage(drawings, np.array(centres), np.array(radii), size)
    return torch.from_numpy(templates).flatten(1), drawings


def read(images: torch.Tensor) -> list[Reading]:
    """What each picture shows, by the four rules above. images (N, 3, height, width) uint8 or float in [0, 1]."""
    templates, drawings = bank()
    energy = templates.square().sum(dim=1)  # (M,) Σ t²
    readings = []
    for part in as_float(images).split(CHUNK):
        part = area_resize(part, shapes.UNITS)
        ground, grounds = read_ground(part)
        drawn = (part - ground[:, :, None, None]).abs().amax(dim=1) > CONTRAST  # (chunk, S, S)
        objects = count_objects(drawn)
        alpha, colours = read_colour(part, ground, drawn)
        best = (energy - 2 * alpha @ templates.T).argmin(
            dim=1
        )  # Σ(α − t)² = Σα² − 2 Σαt + Σt², and Σα² is the same for all t
        residual = (alpha - templates[best]).square().sum(dim=1) / energy[best]
        residual[objects == 0] = float("inf")
        for i, t in enumerate(best.tolist()):
            seen = drawings[t]
            readings.append(
                Reading(seen.style, seen.size, colours[i], seen.shape, grounds[i], int(objects[i]), float(residual[i]))
            )
    return readings


def judge(images: torch.Tensor, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """right (N,) bool: one object, and every captioned attribute read back; clean (N,) bool: and residual < CLEAN.
    Raises ValueError when the numbers of images and captions differ, or a caption is not of the drawn world."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions: give one caption per image")
    wanted = [shapes.parse(caption) for caption in captions]
    readings = read(images)
    right = np.array([r.objects == 1 and shapes.Drawing(*r[:5]) == w for r, w in zip(readings, wanted)], bool)
    return right, right & np.array([r.residual < CLEAN for r in readings], bool)
