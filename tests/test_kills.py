"""The command `tests/kills.py` at its smallest, and what it rests on: order of writes, leftovers, and a signal in a sentence."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidalle import checkpoint
from minidalle.checkpoint import Run, replacing
from minidalle.cli import run_command

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_run_killed_at_a_random_time_and_one_inside_a_save_end_with_the_same_bits():
    done = subprocess.run([sys.executable, "tests/kills.py", "--kills", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "2 of 2 kills resumed bitwise" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("and resumed bitwise") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="it looks a file up by its number")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_disk_holds_all_of_it_before_it_has_its_name_and_the_name_before_it_goes_on(tmp_path, monkeypatch, kind):
    done = []
    names = lambda number: Path(os.readlink(f"/proc/self/fd/{number}")).name  # noqa: E731
    for name, shown in (("fsync", names), ("replace", lambda a, b: Path(b).name)):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real, s=shown: done.append((n, s(*a))) or r(*a))
    with replacing(tmp_path / "new") as aside:
        if kind == "folder":
            aside.mkdir()
            (aside / "part").write_text("x")
            done.append(("written", "new"))
        else:
            aside.write_text("x")
            done.append(("written", "new"))
    parts = [("fsync", "part"), ("fsync", "new")] if kind == "folder" else [("fsync", "new")]
    assert done == [("written", "new"), *parts, ("replace", "new"), ("fsync", tmp_path.name)]


def test_a_state_that_was_deleted_half_has_no_states_name(tmp_path, monkeypatch):
    run = Run(tmp_path / "run", {})
    (run.folder / "bpe.json").write_text("{}")
    save = lambda step: run.save_state(  # noqa: E731
        {"stage": "dvae", "step": step, "seconds": 0.0}, {"weights": {"w": torch.zeros(2)}}
    )
    save(1), save(2)
    real = shutil.rmtree

    def dying(path, *arguments, **options):
        if Path(path).name.endswith("000000001"):
            next(Path(path).iterdir()).unlink()
            raise KeyboardInterrupt
        return real(path, *arguments, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        save(3)
    monkeypatch.undo()
    assert [path.name for path in run.states()] == ["000000002", "000000003"]
    Run(run.folder, {}, resume=True)
    assert not list((run.folder / "state").glob(".writing-*"))


def test_metrics_are_on_the_disk_before_the_state_that_follows_them(tmp_path, monkeypatch):
    run = Run(tmp_path / "run", {})
    (run.folder / "bpe.json").write_text("{}")
    run.log({"stage": "dvae", "step": 1})
    flushed, real = [], checkpoint.flush
    monkeypatch.setattr(checkpoint, "flush", lambda path: flushed.append(path.name) or real(path))
    run.save_state({"stage": "dvae", "step": 1, "seconds": 0.0}, {})
    assert flushed[0] == "metrics.jsonl" and flushed[-1] == "000000001"


def test_a_run_killed_before_its_settings_were_written_can_be_begun_again(tmp_path):
    (tmp_path / "run/.writing-abc").mkdir(parents=True)
    Run(tmp_path / "run", {}, resume=True)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run/.writing-abc").mkdir(parents=True)
    Run(tmp_path / "run", {})


def test_sigterm_outside_of_training_ends_in_a_sentence_and_the_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: signal.raise_signal(signal.SIGTERM), "; go on with --resume")
    assert stop.value.code == 1 and capsys.readouterr().err == "stopped; go on with --resume\n"
    assert signal.getsignal(signal.SIGTERM) is before
