"""Run folders: atomic files, self-describing weights, refusals, and states that are whole or not there."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError

from minidalle import checkpoint
from minidalle.bpe import BPE
from minidalle.checkpoint import (
    Run,
    fingerprint,
    load_dvae,
    load_run,
    load_tensors,
    read_json,
    replacing,
    save_model,
    save_tensors,
    write_json,
)  # fmt: skip
from minidalle.config import DVAEConfig, Preset, TransformerConfig
from minidalle.dvae import DVAE
from minidalle.transformer import DALLE

DVAE_CONFIG = DVAEConfig(codebook_size=8, n_hid=8, n_init=4, n_group=1, n_block=1, patch=4, normalize_logits=True)
MODEL_CONFIG = TransformerConfig(
    n_layer=1, n_head=1, n_embd=8, text_len=16, rows=2, grid=2, vocab_size=257, codebook_size=8
)


def make_run(folder, seed=0):
    """A run folder as training leaves it, with untrained weights."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    bpe, dvae, model = BPE.train(["aa"], 257), DVAE(DVAE_CONFIG), DALLE(MODEL_CONFIG)
    bpe.save(folder / "bpe.json")
    write_json(folder / "config.json", {"preset": dataclasses.asdict(Preset(name="tiny")), "seed": seed})
    save_model(folder / "dvae.safetensors", dvae, dvae.state_dict())
    hashes = {"tokenizer": bpe.hash, "dvae": fingerprint(dvae.state_dict())}
    save_model(folder / "transformer.safetensors", model, model.state_dict(), **hashes)
    return bpe, dvae, model


def test_a_run_comes_back_as_it_was(tmp_path):
    bpe, dvae, model = make_run(tmp_path)
    preset, bpe2, dvae2, model2 = load_run(tmp_path)
    assert preset == Preset(name="tiny") and bpe2.hash == bpe.hash
    assert dvae2.config == DVAE_CONFIG and model2.config == MODEL_CONFIG
    assert not dvae2.training and not model2.training
    for ours, theirs in ((dvae, dvae2), (model, model2)):
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("part, file", [("dvae", "dvae.safetensors"), ("tokenizer", "bpe.json")])
def test_a_transformer_refuses_parts_it_was_not_trained_with(tmp_path, part, file):
    make_run(tmp_path / "one")
    make_run(tmp_path / "two", seed=1)
    BPE.train(["bb"], 257).save(tmp_path / "two" / "bpe.json")
    shutil.copy(tmp_path / "two" / file, tmp_path / "one" / file)
    with pytest.raises(ValueError, match=f"trained with another {part} .* put the file back"):
        load_run(tmp_path / "one")


def test_weights_of_another_kind_are_refused(tmp_path):
    make_run(tmp_path)
    shutil.copy(tmp_path / "transformer.safetensors", tmp_path / "dvae.safetensors")
    with pytest.raises(ValueError, match="holds 'minidalle DALLE 1', expected 'minidalle DVAE 1'"):
        load_dvae(tmp_path)
    save_tensors(tmp_path / "dvae.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown origin"):
        load_dvae(tmp_path)


def test_weights_that_do_not_fit_their_architecture_are_refused(tmp_path):
    dvae = DVAE(DVAE_CONFIG)
    save_model(tmp_path / "dvae.safetensors", dvae, {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit the architecture"):
        load_dvae(tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    make_run(tmp_path)
    (tmp_path / "bpe.json").unlink()
    with pytest.raises(ValueError, match="bpe.json does not exist"):
        load_run(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text", "missing"])
def test_damaged_files_are_named(tmp_path, damage):
    make_run(tmp_path)
    path = tmp_path / "dvae.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("hello")
    else:
        path.unlink()
    with pytest.raises(ValueError, match="dvae.safetensors"):
        load_dvae(tmp_path)


def test_json_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match="config.json does not exist: is .* the folder of a run"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        read_json(tmp_path / "config.json")


def test_a_folder_that_is_no_run_is_named(tmp_path):
    write_json(tmp_path / "config.json", [1])
    with pytest.raises(ValueError, match="names no preset"):
        load_run(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(OSError), replacing(path) as aside:
        aside.write_text("half")
        raise OSError("no space left on device")
    assert read_json(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_fingerprint_sees_every_bit_and_name():
    a = {"x": torch.zeros(2, 2), "y": torch.ones(1)}
    assert fingerprint(a) == fingerprint(dict(reversed(a.items())))
    for other in ({**a, "x": torch.zeros(4)}, {**a, "y": torch.ones(1).nextafter(torch.zeros(1))}, {"x": a["x"]}):
        assert fingerprint(other) != fingerprint(a)


def info(step, stage="dvae"):
    return {"stage": stage, "step": step, "seconds": 0.0, "scaler": {}}


def test_states_are_complete_and_the_last_two_are_kept(tmp_path):
    run = Run(tmp_path / "run", {"seed": 0})
    BPE.train(["aa"], 257).save(run.folder / "bpe.json")
    assert run.latest()[1] is None
    for step in (10, 20, 30):
        run.save_state(info(step), {"weights": {"w": torch.full((2,), float(step))}})
    assert [path.name for path in run.states()] == ["000000020", "000000030"]
    with pytest.raises(TypeError):  # a save that fails half-way leaves no state under its name
        run.save_state(info(40) | {"seconds": object()}, {"weights": {"w": torch.zeros(2)}})
    latest, folder = run.latest()
    assert latest["step"] == 30 and load_tensors(folder / "weights.safetensors")[0]["w"].tolist() == [30, 30]
    assert not list(run.folder.glob("state/.writing*"))


def test_a_state_can_be_resumed_from_its_folder_alone(tmp_path):
    run = Run(tmp_path / "run", {"seed": 0})
    make_run(run.folder)
    run.stages["dvae"] = {"updates": 5, "seconds": 1.0}
    run.save_state(info(10, "transformer"), {"weights": {"w": torch.zeros(2)}})
    assert run.states()[0].name == "000000015"
    before = (run.folder / "dvae.safetensors").read_bytes()
    (run.folder / "dvae.safetensors").unlink()
    (run.folder / "bpe.json").unlink()
    latest, _ = run.latest()
    assert (run.folder / "dvae.safetensors").read_bytes() == before and (run.folder / "bpe.json").exists()
    assert latest["stages"] == {"dvae": {"updates": 5, "seconds": 1.0}}


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty: add --resume .* or choose another --out"):
        Run(tmp_path, {"seed": 0})
    with pytest.raises(ValueError, match="holds no run to resume"):
        Run(tmp_path, {"seed": 0}, resume=True)
    with pytest.raises(ValueError, match="is a file"):
        Run(tmp_path / "notes.txt", {"seed": 0})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_resuming_a_run_with_other_settings_is_refused(tmp_path):
    Run(tmp_path / "run", {"preset": {"name": "tiny", "dvae": {"n_hid": 8}}, "seed": 0})
    with pytest.raises(ValueError, match=r"preset.dvae.n_hid is 8 there, 9 here; seed is 0 there, 1 here"):
        Run(tmp_path / "run", {"preset": {"name": "tiny", "dvae": {"n_hid": 9}}, "seed": 1}, resume=True)
    Run(tmp_path / "run", {"preset": {"name": "tiny", "dvae": {"n_hid": 8}}, "seed": 0}, resume=True)


def test_how_to_sample_and_log_may_change_on_resume(tmp_path):
    settings = {"preset": {"sample": {"top_p": 1.0}, "train": {"log_every": 50, "save_every": 5}}, "seed": 0}
    Run(tmp_path / "run", settings)
    settings["preset"] = {"sample": {"top_p": 0.5}, "train": {"log_every": 1, "save_every": 1}}
    Run(tmp_path / "run", settings, resume=True)
    assert read_json(tmp_path / "run" / "config.json") == settings


def test_what_a_killed_run_had_half_written_is_swept_away(tmp_path):
    Run(tmp_path / "run", {})
    for left in (".writing-a", "state/.writing-b"):
        (tmp_path / "run" / left / "part").mkdir(parents=True)
    Run(tmp_path / "run", {}, resume=True)
    assert not list((tmp_path / "run").rglob(".writing-*"))


def test_a_disk_that_is_full_is_an_os_error(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="could not be written: I/O error: No space left"):
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path):
    run = Run(tmp_path / "run", {})
    for stage, step in (("dvae", 5), ("dvae", 10), ("transformer", 5), ("transformer", 10)):
        run.log({"stage": stage, "step": step})
    with run.metrics.open("a") as file:
        file.write('{"stage": "transf')  # cut off by a crash
    run.forget_after("transformer", 5)
    kept = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in kept] == [("dvae", 5), ("dvae", 10), ("transformer", 5)]
