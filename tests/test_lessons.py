"""The lessons: exercises can be told right from wrong, and every notebook is what its source gives. `.ci/run` runs the
sources from top to bottom."""

import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

LESSONS = Path(__file__).parent.parent / "lessons"
SOURCES = sorted(LESSONS.glob("[0-9][0-9]_*.py"))
TRITON = ("10", "11")  # lessons whose exercises need it
sys.path[:0] = [str(LESSONS), str(Path(__file__).parent)]

NUMBERS = [source.name[:2] for source in SOURCES]


def functions(module, prefix: str = "") -> dict:
    return {
        name.removeprefix(prefix): value
        for name, value in vars(module).items()
        if callable(value) and name.startswith(prefix) and value.__module__ == module.__name__
    }


def checks_of(number: str) -> dict:
    return functions(importlib.import_module(f"checks.lesson{number}"), "check_")


NO_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it is for Linux alone")
EXERCISES = [
    pytest.param(number, name, marks=NO_TRITON if number in TRITON else ())
    for number in NUMBERS
    for name in checks_of(number)
]


def wrong_answers(number: str, exercise: str) -> dict:
    """Those called EXERCISE_something; where one exercise's name begins with another's, the longer one owns it."""
    answers = functions(importlib.import_module(f"wrong_answers.lesson{number}"))
    return {
        name: answer
        for name, answer in answers.items()
        if exercise == max((e for e in checks_of(number) if name.startswith(f"{e}_")), key=len, default="")
    }


def stub(source: Path, name: str):
    """The exercise's function as the learner finds it."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            space = {"torch": torch}
            exec(compile(ast.Module([node], []), str(source), "exec"), space)
            return space[name]
    raise AssertionError(f"{source.name} has no stub called {name}")


def cells(source: Path) -> list[list[str]]:
    """The lines of every cell, without the mark above it and empty lines at its ends."""
    parts = ("\n" + source.read_text(encoding="utf-8")).split("\n# %%")[1:]
    return [part.partition("\n")[2].strip("\n").split("\n") for part in parts]


@pytest.mark.parametrize("number, name", EXERCISES)
def test_exercise_is_marked_right(number, name):
    check = checks_of(number)[name]
    solution = getattr(importlib.import_module(f"solutions.lesson{number}"), name)
    source = next(s for s in SOURCES if s.name.startswith(number))
    assert check(stub(source, name)) == "todo"
    assert check(solution) == "pass"
    wrong = wrong_answers(number, name)
    assert len(wrong) >= 3
    for answer in wrong.values():
        verdict = check(answer)
        assert verdict not in ("todo", "pass") and "\n" not in verdict, f"{answer.__name__}: {verdict}"


@pytest.mark.parametrize("number, name", EXERCISES)
def test_check_never_raises_and_leaves_no_trace(number, name, capfd):
    check = checks_of(number)[name]
    before = torch.random.get_rng_state()
    for careless in (
        lambda *_, **__: None,
        lambda *_, **__: "word",
        lambda *_, **__: 1 / 0,
        lambda: 0,
        lambda *a, **_: a[0],
    ):
        assert check(careless) not in ("todo", "pass")
    assert capfd.readouterr() == ("", "")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_lesson_has_its_parts(source):
    text = source.read_text(encoding="utf-8")
    for part in (
        "*Before:*",
        "*Next:*",
        "## Exercise 1",
        "<summary>Hint</summary>",
        "**Read now:**",
        "## What to remember",
    ):
        assert part in text, part
    for name in checks_of(source.name[:2]):
        assert f"check_{name}({name})" in text
    long = [cell for cell in cells(source) if len(cell) > 25]
    assert not long, long[0][:2]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_is_small_and_runs_through(source):
    path = source.with_suffix(".ipynb")
    assert path.stat().st_size <= 600_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["minidalle"]["seconds"] < 120
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)


def test_notebooks_are_not_stale():
    done = subprocess.run([sys.executable, LESSONS / "build.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_are_small_and_of_drawn_scenes():
    weights = [path for path in (LESSONS / "weights").iterdir()]
    assert sum(path.stat().st_size for path in weights) <= 3_000_000
    assert json.loads((LESSONS / "weights/config.json").read_text())["preset"]["data"]["name"] == "scenes"
