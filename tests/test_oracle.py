"""The oracle on scenes: it must pass every real drawing of two objects and nothing else. (Shapes: test_evaluate.py.)"""

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minidalle.data import scenes, shapes
from minidalle.data.scenes import OPPOSITE, RELATIONS, SAME, Scene, Thing, parse, same
from minidalle.oracle import CLEAN, SPECK, judge, label_pieces, read_relation, read_scenes, scene_bank

SPLITS = ("train", "captions", "pairs", "tuning")


@cache
def splits():
    return scenes.load(32, 32, 3000, 0)


def real(n=600):
    """n real drawings of all kinds, as float images (n, 3, 32, 32), with their captions."""
    train = splits()["train"]
    return train.images[:n].float() / 255, train.captions[:n]


def paint(*objects, ground=1.0, size=32):
    """(1, 3, size, size): objects (style, colour, shape, x, y[, radius]) painted one over the other on one grey."""
    image = torch.full((3, size, size), ground)
    for style, colour, shape, x, y, *radius in objects:
        thing, radius = Thing(style, colour, shape), radius[0] if radius else 5.0
        alpha = torch.from_numpy(shapes.coverage([thing], np.array([[x, y]]), np.array([radius]), size, 32))
        image = image + alpha * (torch.tensor(shapes.COLOURS[colour]).view(3, 1, 1) / 255 - image)
    return image[None]


def blurred(images, sigma):
    """images (N, 3, S, S) under a Gaussian of `sigma` pixels."""
    kernel = torch.exp(-torch.arange(-6, 7).square() / (2 * sigma**2))
    kernel = kernel[:, None] * kernel / kernel.sum() ** 2  # (13, 13)
    return F.conv2d(F.pad(images, (6,) * 4, "replicate"), kernel.expand(3, 1, 13, 13), groups=3).clamp(0, 1)


CIRCLE = ("photo", "red", "circle", 10.0, 8.0)
SQUARE = ("photo", "blue", "square", 11.0, 24.0)
ABOVE = "a photo of a red circle above a blue square"


def right(image, caption=ABOVE):
    return bool(judge(image, [caption])[0][0])


def clean(image, caption=ABOVE):
    return bool(judge(image, [caption])[1][0])


# ── real drawings ──


@pytest.mark.parametrize("split", SPLITS)
def test_real_drawings_are_right_and_clean(split):
    for verdict in judge(*splits()[split]):
        assert verdict.mean() >= 0.995


@pytest.mark.parametrize("size", [40, 48, 256])
def test_other_sizes(size):
    texts = splits()["pairs"].captions[::8]
    for verdict in judge(scenes.draw(texts, np.random.default_rng(1), size), texts):
        assert verdict.mean() >= 0.995


def test_mild_corruption_is_forgiven_and_heavy_is_not_clean():
    images, captions = real()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for mild in ((images + 0.05 * noise).clamp(0, 1), blurred(images, 0.5), 0.05 + 0.9 * images):
        for verdict in judge(mild, captions):
            assert verdict.mean() >= 0.995
    blocks = F.avg_pool2d(images, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for heavy in (blurred(images, 2.0), blurred(images, 3.0), blocks):
        assert judge(heavy, captions)[1].mean() < 0.05


def test_a_reading_bears_the_caption_or_its_other_wording():
    images, captions = real()
    for reading, scene in zip(read_scenes(images), map(parse, captions)):
        assert reading.objects == 2 and reading.ground == "white" and reading.residual < CLEAN
        assert reading.scene in (scene, scene.turned) and reading.caption == reading.scene.caption
        assert reading.scene.relation in ("above", "left of", SAME)  # the upper or left object is told first
    (reading,) = read_scenes(paint(CIRCLE, SQUARE))
    assert reading.caption == ABOVE and reading.things == (CIRCLE[:3], SQUARE[:3])


def test_readings_do_not_depend_on_the_batch_or_the_kind_of_number():
    images, captions = real(600)  # more than two chunks
    images[::3] = 1  # and between them pictures of nothing
    together = read_scenes((images * 255).round().to(torch.uint8))
    assert [r[:4] for r in together] == [r[:4] for r in read_scenes(images)]
    assert [r[:4] for r in together[:30]] == [read_scenes(image[None])[0][:4] for image in images[:30]]
    assert [r.objects for r in together] == [0 if i % 3 == 0 else 2 for i in range(600)]
    assert read_scenes(images[:0]) == [] and [len(v) for v in judge(images[:0], [])] == [0, 0]
    assert judge(images[1:2], captions[1:2])[0].dtype == bool


# ── another caption ──

OTHERS = {
    "style": lambda s: s._replace(first=other(s.first, style=1), second=other(s.second, style=1)),
    "first colour": lambda s: s._replace(first=other(s.first, colour=1)),
    "second colour": lambda s: s._replace(second=other(s.second, colour=2)),
    "first shape": lambda s: s._replace(first=other(s.first, shape=1)),
    "second shape": lambda s: s._replace(second=other(s.second, shape=2)),
    "relation, the wrong way round": lambda s: s._replace(relation=OPPOSITE[s.relation]),
    "relation, the wrong axis": lambda s: s._replace(relation=RELATIONS[(RELATIONS.index(s.relation) + 2) % 4]),
    "objects swapped": lambda s: s.swapped,
    "colours swapped": lambda s: Scene(
        s.first._replace(colour=s.second.colour), s.relation, s.second._replace(colour=s.first.colour)
    ),
    "shapes swapped": lambda s: Scene(
        s.first._replace(shape=s.second.shape), s.relation, s.second._replace(shape=s.first.shape)
    ),
    "one of them the same again": lambda s: same(*s.first[1:]),
}


def other(thing, style=0, colour=0, shape=0):
    """The thing with an attribute moved on in its list."""

    def moved(value, values, by):
        return list(values)[(list(values).index(value) + by) % len(values)]

    return Thing(
        moved(thing.style, shapes.STYLES, style),
        moved(thing.colour, shapes.COLOURS, colour),
        moved(thing.shape, shapes.SHAPES, shape),
    )


@pytest.mark.parametrize("change", OTHERS)
def test_a_wrong_attribute_is_not_right(change):
    images, captions = real()
    kept, wrong = [], []
    for i, scene in enumerate(map(parse, captions)):
        if scene.relation == SAME:
            continue
        changed = OTHERS[change](scene)
        if changed.first[1:] != changed.second[1:] or changed.relation == SAME:
            if changed in (scene, scene.turned):  # colours of two red things swapped
                continue
            kept.append(i)
            wrong.append(changed.caption)
    assert len(kept) > 350
    assert not judge(images[kept], wrong)[0].any() and judge(images[kept], [captions[i] for i in kept])[0].all()


def test_the_same_in_another_colour_or_shape_is_not_right():
    texts = [same(colour, shape).caption for colour in shapes.COLOURS for shape in shapes.SHAPES]
    images = scenes.draw(texts, np.random.default_rng(0))
    assert judge(images, texts)[1].all()
    for step in range(1, 24):
        assert not judge(images, texts[step:] + texts[:step])[0].any()


def test_both_wordings_are_right():
    images, captions = real()
    assert judge(images, [parse(caption).turned.caption for caption in captions])[1].all()


# ── another picture ──


def test_a_turned_picture_shows_another_relation():
    symmetric = [i for i, caption in enumerate(real()[1]) if "triangle" not in caption]
    images, captions = real()[0][symmetric], [real()[1][i] for i in symmetric]
    sideways = np.array(
        [" of a " in caption and ("left of" in caption or "right of" in caption) for caption in captions]
    )
    for dim, kept in ((2, sideways), (3, ~sideways)):  # upside down; mirrored
        verdict = judge(images.flip(dim), captions)[1]
        assert (verdict == kept).all() and 0.3 < kept.mean() < 0.7
    assert not judge(images.transpose(2, 3), captions)[0].any()


def test_exactly_two_objects():
    third = ("photo", "green", "cross", 25.0, 16.0)
    assert clean(paint(CIRCLE, SQUARE))
    for image, objects in ((paint(), 0), (paint(CIRCLE), 1), (paint(SQUARE), 1), (paint(CIRCLE, SQUARE, third), 3)):
        (reading,) = read_scenes(image)
        assert reading.objects == objects and not right(image)
        assert reading.things == () and reading.scene is None and reading.residual == math.inf
        assert reading.caption == f"{objects} object(s) on white"
    images, captions = real()
    stacked = [i for i, caption in enumerate(captions) if "left" not in caption and "right" not in caption]
    images[:, :, :16] = 1  # one object is gone, but for a rest of some
    assert not judge(images[stacked], [captions[i] for i in stacked])[1].any() and len(stacked) > 250


def test_specks_do_not_count_and_larger_pieces_do():
    image = paint(CIRCLE, SQUARE)
    image[0, :, 15:17, 28:30] = 0
    assert right(image)
    image[0, :, 17, 28] = 0
    assert read_scenes(image)[0].objects == 3 and not right(image)


def test_touching_and_overlapping_objects_are_one():
    for y in (14.0, 17.0, 18.0):
        image = paint(CIRCLE, ("photo", "blue", "square", 11.0, y))
        assert read_scenes(image)[0].objects == 1 and not right(image)
    image = paint(CIRCLE, SQUARE)
    image[0, :, 13:20, 10] = torch.tensor(shapes.COLOURS["red"])[:, None] / 255  # a bridge
    assert read_scenes(image)[0].objects == 1 and not right(image)


def test_the_wrong_style_of_one_of_them_has_no_caption():
    image = paint(CIRCLE, ("sketch", *SQUARE[1:]))
    (reading,) = read_scenes(image)
    assert reading.scene is None and reading.residual < CLEAN
    assert reading.caption == "a photo of a red circle above a sketch of a blue square on white"
    assert not right(image) and not right(image, ABOVE.replace("photo", "sketch"))
    images, captions = real()
    for style, flipped in (("photo", "sketch"), ("sketch", "photo")):
        chosen = [s for s in map(parse, captions) if s.first.style == style and s.relation == "above"][:50]
        painted = [paint((*s.first, 10.0, 8.0), (flipped, *s.second[1:], 11.0, 24.0)) for s in chosen]
        assert not judge(torch.cat(painted), [s.caption for s in chosen])[0].any()


def test_the_same_is_a_photo_above_its_own_sketch():
    caption = same("red", "circle").caption
    sketch = ("sketch", "red", "circle", 10.0, 24.0)
    assert clean(paint(CIRCLE, sketch), caption)
    for image in (
        paint(CIRCLE, ("photo", *sketch[1:])),
        paint(("sketch", *CIRCLE[1:]), sketch),
        paint(("sketch", *CIRCLE[1:]), ("photo", *sketch[1:])),
        paint(CIRCLE, ("sketch", "green", *sketch[2:])),
        paint(CIRCLE, ("sketch", "red", "square", 10.0, 24.0)),
        paint(("photo", "red", "circle", 8.0, 16.0), ("sketch", "red", "circle", 24.0, 16.0)),
    ):
        (reading,) = read_scenes(image)
        assert reading.scene is None and reading.residual < CLEAN and not right(image, caption)


def test_half_red_half_blue_is_no_colour():
    halves = paint(CIRCLE, SQUARE)
    halves[0, :, :16, :10] = paint(("photo", "blue", *CIRCLE[2:]))[0, :, :16, :10]
    (reading,) = read_scenes(halves)
    assert reading.things == (("photo", "unclear", "circle"), SQUARE[:3]) and reading.scene is None
    assert reading.caption == "a photo of a unclear circle above a photo of a blue square on white"
    assert not right(halves) and not right(halves, "a photo of a blue circle above a blue square")


def test_each_object_has_its_own_colour_and_its_own_pixels():
    """The nearer half of the other object must not leak into a reading, whatever the two colours."""
    for first in shapes.COLOURS:
        for second in shapes.COLOURS:
            image = paint(("photo", first, "circle", 8.0, 9.0), ("photo", second, "square", 8.0, 21.5, 5.5))
            (reading,) = read_scenes(image)
            assert [thing.colour for thing in reading.things] == [first, second] and reading.residual < 0.01


def test_only_a_white_ground_is_right():
    for ground, name in ((0.0, "black"), (0.5, "unclear")):
        image = paint(CIRCLE, SQUARE, ground=ground)
        assert read_scenes(image)[0].ground == name and not right(image)
    assert read_scenes(paint(CIRCLE, SQUARE, ground=0.0))[0].caption == (
        "a photo of a red circle above a photo of a blue square on black"
    )
    assert not right(paint(CIRCLE, SQUARE, ground=0.5))


def test_a_diagonal_is_no_relation():
    image = paint(("photo", "red", "circle", 8.0, 8.0), ("photo", "blue", "square", 22.0, 24.0))
    (reading,) = read_scenes(image)
    assert reading.relation == "diagonal to" and reading.scene is None
    assert reading.caption == "a photo of a red circle diagonal to a photo of a blue square on white"
    for relation in RELATIONS:
        assert not right(image, ABOVE.replace("above", relation))
    assert read_relation(8.5, 4) == "above" and read_relation(8, 4) == read_relation(8, -4) == "diagonal to"
    assert read_relation(4, 8.5) == "left of" and read_relation(-4, 8.5) == "left of"
    assert read_relation(0, 0) == "diagonal to"


def test_smudges_and_missing_parts_count():
    image = paint(CIRCLE, SQUARE)
    assert read_scenes(image)[0].residual < 0.001
    for shape, *place in (("square", 24.0, 9.0), ("square", 24.0, 24.0), ("circle", 10.0, 8.0, 7.0)):
        faint = 1 - 0.2 * (
            1 - paint(("photo", "red", shape, *place))
        )  # a ghost or a halo: no object, but no clean ground
        (reading,) = read_scenes(torch.minimum(image, faint))
        assert reading.objects == 2 and reading.residual > 0.01
    for dim, start in ((2, 8), (2, 3), (3, 10), (3, 5)):
        half = image.clone()
        half[:, :, :15].narrow(dim, start, 5).fill_(1)
        assert not clean(half)


def test_the_bank_takes_a_quarter_unit_more_or_less_and_no_other_size():
    """How much of a wrong radius is forgiven: the drawings have 5 and 5.5. (A gap of 4, so that no two touch.)"""
    for radius, verdict in ((4.75, True), (5.25, True), (5.75, True), (4.0, False), (6.5, False)):
        for style in shapes.STYLES:
            for shape in shapes.SHAPES:
                image = paint((style, "red", shape, 8.0, 8.0, radius), (style, "blue", shape, 8.0, 23.5, radius))
                caption = f"a {style} of a red {shape} above a blue {shape}"
                assert clean(image, caption) == verdict, (radius, caption)


def test_random_blobs_are_not_clean():
    noise = torch.randn(400, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = F.avg_pool2d(F.pad(noise, (4, 4, 4, 4)), 9, stride=1)
    inside = F.pad(torch.ones(24, 24), (4, 4, 4, 4))
    blobs = (noise > noise.flatten(1).quantile(0.75, dim=1).view(-1, 1, 1, 1)) * inside  # (400, 1, 32, 32)
    images = 1 + blobs * (torch.tensor(shapes.COLOURS["red"]).view(1, 3, 1, 1) / 255 - 1)
    readings = read_scenes(images)
    assert sum(r.objects == 2 for r in readings) > 60
    assert sum(r.objects == 2 and r.residual < CLEAN for r in readings) == 0
    assert not judge(torch.rand(50, 3, 32, 32), splits()["train"].captions[:50])[0].any()


# ── its parts ──


def test_labels_against_a_flood_fill():
    masks = np.random.default_rng(0).random((40, 20, 20)) < np.linspace(0.05, 0.6, 40)[:, None, None]
    labels, pixels = label_pieces(torch.from_numpy(masks))
    assert labels.shape == (40, 20, 20) and pixels.shape == (40, 401)
    assert torch.equal(labels > 0, torch.from_numpy(masks)) and (pixels[:, 0] == 0).all()
    for mask, label, count in zip(masks, labels.numpy(), pixels):
        todo = {tuple(p) for p in np.argwhere(mask)}
        seen = set()
        while todo:
            stack, piece = [todo.pop()], []
            while stack:
                y, x = stack.pop()
                piece.append((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & todo
                todo -= near
                stack += near
            (name,) = {label[at] for at in piece}  # one label for the whole piece
            assert name not in seen and count[name] == len(piece)
            seen.add(name)
    assert SPECK == 5


def test_the_scene_bank_holds_every_template_once():
    templates, things = scene_bank()
    assert templates.shape == (len(things), 1024) == (2 * 4 * 2 * 25, 1024)
    assert {(t.style, t.shape) for t in things} == {
        (style, shape) for style in shapes.STYLES for shape in shapes.SHAPES
    }
    assert len(templates.unique(dim=0)) == len(templates)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: read_scenes(torch.zeros(3, 32, 32)), "expected"),
        (lambda: read_scenes(torch.full((1, 3, 32, 32), 255.0)), "outside"),
        (lambda: read_scenes(torch.full((1, 3, 32, 32), math.nan)), "not numbers"),
        (lambda: judge(torch.zeros(2, 3, 32, 32), [ABOVE]), "2 images but 1 captions"),
        (lambda: judge(torch.zeros(1, 3, 32, 32), ["a fox"]), "not a caption"),
        (lambda: judge(torch.zeros(2, 3, 32, 32), [ABOVE, "a photo of a small red circle"]), "of the drawn scenes"),
        (lambda: judge(torch.zeros(2, 3, 32, 32), ["a photo of a small red circle", ABOVE]), "of the drawn world"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
