"""The race: it stops at the first look that reaches the goal, its looks cost time, and its run can be finished later."""

import argparse
import json

import numpy as np
import pytest
import torch

import train_tiny
from minidalle import race
from minidalle.checkpoint import load_tensors
from minidalle.data import scenes, shapes
from minidalle.data.pictures import Pictures
from minidalle.race import DRAWINGS, EVERY, Race, goal


class Draws:
    """In place of evaluate.Models: draws the given share of the captions wrongly."""

    def __init__(self, updates, wrong=0.0):
        self.preset = type("P", (), {"train": type("T", (), {"transformer": type("S", (), {"updates": updates})})})
        self.updates, self.wrong = updates, wrong

    def _replace(self, dalle):
        return Draws(self.updates, dalle)

    def draw(self, captions, seeds):
        assert len(captions) == DRAWINGS and list(seeds) == list(range(DRAWINGS))
        texts = [other(caption) if k < self.wrong * DRAWINGS else caption for k, caption in zip(seeds, captions)]
        return shapes.draw(texts, np.random.default_rng(0)).float() / 255


def other(caption):
    return caption.replace("purple", "green").replace("cyan", "red")


def new_race(updates=250, share=0.9):
    tuning = Pictures(torch.zeros(32, 3, 24, 24), shapes.captions("tuning") * 2)
    return Race(share, Draws(updates), tuning, race.clock())


def test_it_looks_on_schedule_and_at_the_end_and_stops_at_the_goal():
    runner, asked = new_race(), []

    def averaged(wrong):
        return lambda: asked.append(wrong) or wrong

    assert not any(runner(step, averaged(0.5)) for step in range(1, EVERY))
    assert asked == [] and not runner(EVERY, averaged(0.5)) and runner.looks == [(EVERY, 0.5)]
    assert not runner.reached and "NOT reached" in str(runner)
    assert runner(250, averaged(0.05)) and runner.reached  # the last update, though no multiple of EVERY
    assert runner.looks[-1] == (250, 1 - 13 / 256) and runner.results()["updates"] == 250
    assert runner.results()["goal"] == 0.9


def test_the_goal_itself_is_enough():
    runner = new_race(share=0.5)
    assert runner(EVERY, lambda: 0.5) and runner.reached


@pytest.mark.parametrize("text", ["pairs=0.9", "tuning", "tuning=", "tuning=0", "tuning=1.1", "tuning=nan", "0.9", ""])
def test_another_goal_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected tuning=SHARE"):
        goal(text)


def test_a_share_is_a_goal():
    assert goal("tuning=0.85") == 0.85 and goal("tuning=1") == 1


def run(*arguments):
    try:
        parsed = train_tiny.parse([*arguments, "--data.pool=200", "--train.dvae.updates=2"])
        train_tiny.run_command(lambda: train_tiny.train_tiny(*parsed))
    except SystemExit as stop:
        return stop.code


def test_a_race_ends_early_without_a_clip_and_resume_finishes_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(race, "EVERY", 2)
    monkeypatch.setattr(race, "DRAWINGS", 4)
    monkeypatch.setattr(race, "judge", lambda images, captions: (torch.ones(len(images)), None))
    out, arguments = tmp_path / "run", ["--train.transformer.updates=5", "--train.clip.updates=2"]
    assert run("--until", "tuning=0.5", "--out", str(out), *arguments) is None
    results = json.loads((out / "results.json").read_text())
    assert results["race"]["reached"] and results["race"]["looks"] == [[2, 1.0]]
    assert results["race"]["seconds"] > 0 and results["race"]["cpu_seconds"] > 0
    assert (
        "clip" not in results["seconds"] and "pairs" in results["results"] and not (out / "clip.safetensors").exists()
    )
    assert "race: tuning=0.5 reached: 1.000 after 2 of 5 updates" in capsys.readouterr().out
    assert run("--resume", "--out", str(out), *arguments) is None
    assert json.loads((out / "results.json").read_text())["race"] == results["race"]
    assert run("--out", str(tmp_path / "whole"), *arguments) is None  # never raced: the same bits
    raced, plain = (load_tensors(folder / "transformer.safetensors")[0] for folder in (out, tmp_path / "whole"))
    assert raced.keys() == plain.keys() and all(torch.equal(raced[key], plain[key]) for key in raced)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps if r["stage"] == "transformer"] == [1, 5] and (out / "clip.safetensors").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [(["--resume"], "starts from nothing"), (["--data", "openmoji"], "that the oracle can read")],
)
def test_a_race_that_cannot_be_run_is_one_sentence(tmp_path, capsys, arguments, message):
    assert run("--until", "tuning=0.9", "--out", str(tmp_path / "run"), *arguments) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_race_takes_no_folder_that_holds_something(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run("--until", "tuning=0.9", "--out", str(tmp_path)) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert train_tiny.parse(["--until", "tuning=0.9"])[0].out != train_tiny.parse([])[0].out


def test_what_a_look_takes_is_on_the_clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(race, "clock", lambda: (now[0], 2 * now[0]))
    runner = new_race()
    draw = runner.models.draw
    monkeypatch.setattr(Draws, "draw", lambda self, *args: now.__setitem__(0, now[0] + 5) or draw(*args))
    runner(EVERY, lambda: 0.5)
    assert runner.results()["seconds"] == 5 and runner.results()["cpu_seconds"] == 10


def test_a_look_at_scenes_shows_the_whole_world():
    texts = scenes.captions("tuning")
    captions = Race(0.9, Draws(10), Pictures(torch.zeros(len(texts), 3, 32, 32), texts), race.clock()).captions
    seen = [scenes.parse(caption) for caption in captions]
    assert len(captions) == DRAWINGS and {scene.first.style for scene in seen} == set(scenes.STYLES)
    assert {scene.relation for scene in seen} == {*scenes.RELATIONS, scenes.SAME}
