"""The oracle that marks drawings of the drawn worlds: shapes (one object) and scenes (two).

In: pictures and the captions they were asked for. Out: what each picture shows (`read`, `read_scenes`), and whether
that is what was asked (`judge`). The oracle is this project's own (O; the paper asks people, and measures FID). It has
no learned part, and NOTHING THAT TRAINS, GENERATES OR RANKS EVER IMPORTS IT: a model that had seen the examiner could
please it instead of drawing. (`race.py` asks it when to stop, about the tuning pairs alone.)

The rules, in order; a picture of another size is first averaged by area to the world's own, 24 pixels or 32:
1. ground: the median of the border, channel by channel, is within .25 of white or of black; otherwise "unclear";
2. objects: pixels whose largest channel differs from the ground by more than .25, joined where they touch, corners
   included; a piece of fewer than 5 pixels is a speck and does not count;
3. colour: for each palette colour c and pixel x on ground g, alpha = clip(⟨x − g, c − g⟩ / |c − g|², 0, 1) is the share
   of c that explains x best; the colour that leaves the least of the drawn pixels unexplained is named, unless it
   leaves more than .15 of them (a disc half red and half blue): then "unclear";
4. style, size and shape: of all templates (each style, size step, shape and place that the world can draw), the one
   with the least squared distance to alpha; residual = Σ(alpha − template)² / Σ template².
Of a scene, rules 3 and 4 read each of two objects by itself: every other pixel goes with the object whose centre is
nearer, so that smudges count, and the object is moved to the middle before it meets the templates. The last rule is
5. relation: along one axis the centres lie more than twice as far apart as along the other; otherwise "diagonal to".

An oracle that must name *some* shape flatters a blob, so every share of right pictures is reported beside the share
that is also clean: right, and a residual under .15 (the larger one, of two objects).
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from minidalle.data import scenes, shapes
from minidalle.data.scenes import SAME, Scene, Thing

CLEAN = 0.15  # a residual under this means: the object is its template
MIXED = 0.15  # an object of which no palette colour explains more than 1 − MIXED has none
CONTRAST = 0.25  # least difference to the ground, of values in [0, 1], that counts as drawn
IN_LINE = 2  # how much further apart along one axis than along the other: 1 is a diagonal, drawn scenes have over 3.5
SPECK = 5  # a connected piece of fewer pixels is dust
CHUNK = 256  # pictures read at once; their scores against all templates take tens of MB


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


class SceneReading(NamedTuple):
    """What the oracle sees in one picture of two objects; of any other number only the ground is told."""

    things: tuple[Thing, ...]  # the upper or left one first; a colour may be "unclear"
    relation: str  # "above", "left of" or "diagonal to"
    ground: str  # "white", "black" or "unclear"
    objects: int
    residual: float  # the larger of the two; infinite without two objects

    @property
    def scene(self) -> Scene | None:
        """The scene, if there is such a caption: of one style and two different things, or of one thing and its sketch."""
        if self.objects != 2 or self.ground != "white":
            return None
        first, second = self.things
        relation = SAME if self.relation == "above" and first.style != second.style else self.relation
        scene = Scene(first, relation, second)
        return scene if scene in all_scenes() else None

    @property
    def caption(self) -> str:
        """A caption that this picture deserves, or, where none fits, what is there in words."""
        if self.scene:
            return self.scene.caption
        seen = f" {self.relation} ".join(f"a {thing.style} of a {thing.colour} {thing.shape}" for thing in self.things)
        return f"{seen or f'{self.objects} object(s)'} on {self.ground}"


@lru_cache(maxsize=1)
def all_scenes() -> frozenset[Scene]:
    return frozenset(scenes.everything())


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


def label_pieces(drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rule 2: (N, S, S) bool -> a label for each pixel (N, S, S) int64, 0 where nothing is drawn, and how many pixels
    bear each label (N, S · S + 1), none for label 0. Each drawn pixel starts with a label of its own and takes the
    largest of its 3×3 neighbourhood until nothing changes; then the pixels of one piece share one label."""
    n, height, width = drawn.shape
    mask = drawn[:, None].float()  # (N, 1, S, S)
    labels = torch.arange(1.0, height * width + 1).view(1, 1, height, width) * mask
    while True:
        spread = F.max_pool2d(labels, 3, stride=1, padding=1) * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    labels = labels[:, 0].long()  # (N, S, S)
    pixels = torch.zeros(n, height * width + 1)
    return labels, pixels.scatter_add_(1, labels.flatten(1), mask.flatten(1))


def count_objects(drawn: torch.Tensor) -> torch.Tensor:
    """Rule 2: (N, S, S) bool -> (N,) int64."""
    return (label_pieces(drawn)[1] >= SPECK).sum(dim=1)


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


@lru_cache(maxsize=1)
def scene_bank() -> tuple[torch.Tensor, list[Thing]]:
    """The same for one object of a scene, moved to the middle of the canvas, give or take a unit."""
    around = np.arange(-1, 1.25, 0.5) + scenes.UNITS / 2
    found = list(product(shapes.STYLES, shapes.SHAPES, scenes.RADII, around, around))
    things = [Thing(style, "red", shape) for style, shape, *_ in found]
    places = np.array([place for _, _, *place in found])  # (M, 3) radius, x, y
    templates = shapes.coverage(things, places[:, 1:], places[:, 0], scenes.UNITS, scenes.UNITS)
    return torch.from_numpy(templates).flatten(1), things


def match(alpha: torch.Tensor, templates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rule 4: alpha (N, S · S), templates (M, S · S) -> (N,) the number of the nearest one, and (N,) residuals."""
    energy = templates.square().sum(dim=1)  # (M,) Σ t²
    best = (energy - 2 * alpha @ templates.T).argmin(dim=1)  # Σ(α − t)² = Σα² − 2 Σαt + Σt²; Σα² is the same for all t
    return best, (alpha - templates[best]).square().sum(dim=1) / energy[best]


def in_chunks(images: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor]]:
    """Some pictures at a time, (N, 3, size, size) float, with their grounds (N, 3), the names of these, and which pixels
    are drawn (N, size, size) bool."""
    for part in images.split(CHUNK):
        part = area_resize(as_float(part), size)
        ground, names = read_ground(part)
        yield part, ground, names, (part - ground[:, :, None, None]).abs().amax(dim=1) > CONTRAST


def read(images: torch.Tensor) -> list[Reading]:
    """What each picture of a shape shows. images (N, 3, height, width) uint8 or float in [0, 1]."""
    templates, drawings = bank()
    readings = []
    for part, ground, grounds, drawn in in_chunks(images, shapes.UNITS):
        objects = count_objects(drawn)
        alpha, colours = read_colour(part, ground, drawn)
        best, residual = match(alpha, templates)
        residual[objects == 0] = float("inf")
        for t, colour, *rest in zip(best.tolist(), colours, grounds, objects.tolist(), residual.tolist()):
            seen = drawings[t]
            readings.append(Reading(seen.style, seen.size, colour, seen.shape, *rest))
    return readings


def middle(covered: torch.Tensor) -> torch.Tensor:
    """covered (N, 2, S) bool, the rows or columns that each object reaches -> (N, 2) half way from first to last."""
    covered = covered.int()
    return (covered.argmax(dim=2) + covered.shape[2] - covered.flip(2).argmax(dim=2)) / 2


def read_relation(down: float, right: float) -> str:
    """Rule 5: where the first object is, when the second lies so far down and to the right of it."""
    if down > IN_LINE * abs(right):
        return "above"
    return "left of" if right > IN_LINE * abs(down) else "diagonal to"


def read_pair(images: torch.Tensor, ground: torch.Tensor, pieces: torch.Tensor) -> list[tuple]:
    """Rules 3 to 5: images (N, 3, S, S), grounds (N, 3), the two pieces of each (N, 2, S, S) bool in any order ->
    things, relation and residual of each, as in SceneReading."""
    templates, kinds = scene_bank()
    size = images.shape[-1]
    centres = torch.stack([middle(pieces.any(dim=3)), middle(pieces.any(dim=2))], dim=2)  # (N, 2, 2) down, right
    order = torch.arange(len(pieces))[:, None], centres.sum(dim=2).argsort(dim=1)
    pieces, centres = pieces[order].flatten(2), centres[order]  # (N, 2, S · S), the upper or left one first
    at = torch.arange(size) + 0.5
    distance = torch.cdist(centres, torch.cartesian_prod(at, at))  # (N, 2, S · S) from each centre to each pixel
    own = pieces | (distance <= distance.flip(1)) & ~pieces.flip(1)
    images, ground = (each.repeat_interleave(2, dim=0) for each in (images, ground))  # (2 N, …) once for each object
    alpha, colours = read_colour(images, ground, pieces.flatten(0, 1))
    shift = (centres - size / 2).round().long().flatten(0, 1) @ torch.tensor([size, 1])  # (2 N,) in the order of pixels
    source = (torch.arange(size**2) + shift[:, None]) % size**2  # (2 N, S · S) where each pixel comes from
    best, residual = match((alpha * own.flatten(0, 1)).gather(1, source), templates)
    things = [kinds[t]._replace(colour=colour) for t, colour in zip(best.tolist(), colours)]
    relations = [read_relation(*apart) for apart in (centres[:, 1] - centres[:, 0]).tolist()]
    return list(zip(zip(things[::2], things[1::2]), relations, residual.view(-1, 2).amax(dim=1).tolist()))


def read_scenes(images: torch.Tensor) -> list[SceneReading]:
    """What each picture of a scene shows. images (N, 3, height, width) uint8 or float in [0, 1]."""
    readings = []
    for part, ground, grounds, drawn in in_chunks(images, scenes.UNITS):
        labels, pixels = label_pieces(drawn)
        objects = (pixels >= SPECK).sum(dim=1)
        two = objects == 2
        largest = pixels[two].topk(2, dim=1).indices  # (N, 2) labels of the two pieces
        pieces = labels[two][:, None] == largest[..., None, None]  # (N, 2, S, S)
        pairs = iter(read_pair(part[two], ground[two], pieces))
        for number, name in zip(objects.tolist(), grounds):
            things, relation, residual = next(pairs) if number == 2 else ((), "diagonal to", float("inf"))
            readings.append(SceneReading(things, relation, name, number, residual))
    return readings


def is_of_shapes(caption: str) -> bool:
    """Whether a caption is of the world of shapes, which alone names a size, and not of scenes."""
    return any(f" {size} " in caption for size in shapes.RADII)


def judge(images: torch.Tensor, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """right (N,) bool: as many objects as captioned, and every captioned attribute read back; clean (N,) bool: and
    residual < CLEAN. The first caption tells of which world they all are: of shapes, if it names a size.

    Raises ValueError when the numbers of images and captions differ, or a caption is not of that world."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images but {len(captions)} captions: give one caption per image")
    if not captions or is_of_shapes(captions[0]):
        wanted = [(shapes.parse(caption).caption,) for caption in captions]
        readings = read(images)
    else:  # a scene can be told from either object
        wanted = [(scene.caption, scene.turned.caption) for scene in map(scenes.parse, captions)]
        readings = read_scenes(images)
    right = np.array([reading.caption in texts for reading, texts in zip(readings, wanted)], bool)
    return right, right & np.array([reading.residual < CLEAN for reading in readings], bool)
