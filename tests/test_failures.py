"""What went wrong, told from drawings that show something else than their captions on purpose."""

from collections import Counter

import numpy as np
import pytest
import torch

from minidalle import evaluate, plots
from minidalle.data import scenes, shapes
from minidalle.failures import NONE, confusions, find, typical
from minidalle.oracle import judge


def drawn(world, captions):
    return world.draw(captions, np.random.default_rng(0), 24 if world is shapes else 32).float() / 255


def reasons(world, shown, asked):
    return [finding.reason for finding in find(drawn(world, shown), asked)]


@pytest.mark.parametrize("world", [shapes, scenes])
def test_true_drawings_have_no_reason_and_no_confusion(world):
    captions = world.captions("pairs")[
        :: 17 if world is scenes else 1
    ]  # of scenes both styles, all relations, "same" too
    findings = find(drawn(world, captions), captions)
    assert [finding.reason for finding in findings] == [""] * len(captions) and typical(findings) == []
    assert all(wanted == seen for counts in confusions(findings).values() for wanted, seen in counts)


@pytest.mark.parametrize(
    "shown, asked, reason",
    [
        ("a photo of a large red circle", "a photo of a large red square", "square drawn as circle"),
        ("a photo of a large red circle", "a photo of a large blue circle", "blue drawn as red"),
        ("a sketch of a small red cross", "a photo of a small red cross on black", "photo drawn as sketch, black drawn as white"),
    ],
)  # fmt: skip
def test_reasons_of_a_shape(shown, asked, reason):
    assert reasons(shapes, [shown], [asked]) == [reason]


@pytest.mark.parametrize(
    "asked, reason",
    [
        ("a photo of a red circle above a blue square", ""),
        ("a photo of a blue square below a red circle", ""),
        ("a photo of a blue square above a red circle", "the two objects swapped"),
        ("a photo of a blue circle above a red square", "the two colours swapped"),
        ("a photo of a red square above a blue circle", "the two shapes swapped"),
        ("a photo of a red circle above a blue cross", "cross drawn as square"),
        ("a photo of a red circle left of a blue square", "left of drawn as above"),
        ("a photo of a red circle on top and the same as a sketch below",
         "sketch drawn as photo, red drawn as blue, circle drawn as square"),
    ],
)  # fmt: skip
def test_reasons_of_a_scene(asked, reason):
    assert reasons(scenes, ["a photo of a red circle above a blue square"], [asked]) == [reason]


def test_faint_and_empty_drawings():
    caption = "a photo of a large red cross"
    image = drawn(shapes, [caption])
    (faint,) = find(0.55 * image + 0.45, [caption])  # .45² = .20 of its squares is missing, over CLEAN
    assert faint.reason == "right but not clean" and faint.seen == faint.wanted
    (empty,) = find(torch.ones(1, 3, 24, 24), [caption])
    assert empty.reason == "0 objects instead of 1" and empty.seen["colour"] == NONE and empty.seen["ground"] == "white"
    (empty,) = find(torch.ones(1, 3, 32, 32), ["a photo of a red circle above a blue square"])
    assert empty.reason == "0 objects instead of 2" and empty.seen["first shape"] == NONE


@pytest.mark.parametrize("world", [shapes, scenes])
def test_a_reason_is_what_the_judge_says(world):
    true = world.captions("pairs")[:: 17 if world is scenes else 1]
    asked, images = true[1:] + true[:1] + true, drawn(world, true + true)
    right, clean = judge(images, asked)
    found = [finding.reason for finding in find(images, asked)]
    assert [reason == "" for reason in found] == clean.tolist()
    assert [reason in ("", "right but not clean") for reason in found] == right.tolist()
    assert 0 < clean.sum() < len(clean)
    with pytest.raises(ValueError, match="one caption per image"):
        find(images, asked[1:])


def test_counts_and_examples_by_hand():
    shown = ["a photo of a large red circle"] * 3 + ["a photo of a large blue square"]
    asked = ["a photo of a large red square"] * 2 + ["a photo of a large red circle", "a photo of a large green square"]
    findings = find(drawn(shapes, shown), asked)
    counts = confusions(findings)
    assert dict(counts["shape"]) == {("square", "circle"): 2, ("circle", "circle"): 1, ("square", "square"): 1}
    assert dict(counts["colour"]) == {("red", "red"): 3, ("green", "blue"): 1}
    assert typical(findings) == [(0, "square drawn as circle", 2), (3, "green drawn as blue", 1)]


@pytest.mark.parametrize("world", [shapes, scenes])
def test_the_figure_is_drawn(tmp_path, world):
    captions = world.captions("pairs")[:20]
    counts, examples = evaluate.what_failed(drawn(world, captions), captions[1:] + captions[:1])
    assert 1 <= len(examples) <= 5
    plots.save_failures(tmp_path / "failures.png", counts, examples)
    plots.save_failures(tmp_path / "none.png", *evaluate.what_failed(drawn(world, captions), captions))
    assert (tmp_path / "failures.png").stat().st_size > 10_000 and (tmp_path / "none.png").exists()


def test_the_tables_of_the_figure_are_percent_of_what_was_asked(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda path, figure: figures.append(figure))
    counts = {"shape": Counter({("circle", "circle"): 3, ("circle", "none"): 1, ("square", "circle"): 2})}
    plots.save_failures(tmp_path / "failures.png", counts, [])
    axis = figures[0].subfigs[0].axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["circle", "square", "none"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["circle", "square"]
    assert axis.images[0].get_array().tolist() == [[75, 0, 25], [100, 0, 0]]
    assert {tuple(map(int, text.get_position())): text.get_text() for text in axis.texts} == {
        (0, 0): "75",
        (2, 0): "25",
        (0, 1): "100",
    }  # (column, row)
