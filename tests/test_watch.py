"""What goes wrong in a run is said: spoiled updates leave no trace, ten stop it, collapse and chance are told once."""

import json
import shutil
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minidalle.checkpoint import Run, load_tensors, save_model
from minidalle.clip import CLIP
from minidalle.config import CLIPStage, DVAEStage, load_preset
from minidalle.dvae import DVAE
from minidalle.scale import sharded
from minidalle.train import train_dvae
from minidalle.transformer import DALLE
from minidalle.watch import Watch, check_space, largest_gradient, weights_of

CPU = torch.device("cpu")
STAGE = replace(DVAEStage(), updates=100, warmup=0)
SHORT = {
    "dvae.n_hid": 8, "dvae.n_init": 8, "dvae.codebook_size": 16, "train.log_every": 1, "train.save_every": 4,
    "train.dvae.batch_size": 4, "train.dvae.updates": 8, "train.dvae.ema_decay": 0,
}  # fmt: skip
IMAGES = torch.randint(256, (16, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_finite_update_is_accepted_and_others_are_counted():
    watch, model = Watch("dvae", STAGE), nn.Linear(2, 2)
    nan, inf = float("nan"), float("inf")
    answers = [watch.accepts(*pair, model, 1) for pair in [(1.0, 2.0), (nan, 1.0), (1.0, inf), (-inf, inf), (0.0, 0.0)]]
    assert answers == [True, False, False, False, True] and watch.state == {"skipped": 3, "in_a_row": 0}


def test_ten_in_a_row_stop_the_run_but_not_while_the_scaler_looks_for_its_scale():
    model = nn.Linear(2, 1)
    model(torch.tensor([[1.0, 1.0]])).sum().backward()
    watch = Watch("dvae", STAGE, state={"skipped": 5, "in_a_row": 9})  # as a resumed run finds it
    for _ in range(20):
        assert not watch.accepts(1.0, float("inf"), model, 7, scale=2.0)
    with pytest.raises(
        ValueError,
        match=r"dvae stopped at update 8: in 10 .* in .*--train.dvae.lr=5e-05 or --train.dvae.clip=1",
    ):
        watch.accepts(1.0, float("inf"), model, 8)
    assert watch.state["skipped"] == 26


def test_the_largest_gradient_is_that_which_is_no_number_else_the_longest():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for n, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, n)
    assert largest_gradient(model) == ("1", pytest.approx(18**0.5))  # of its bias, 3 and 3
    model[0].weight.grad[0, 0] = float("nan")
    assert largest_gradient(model)[0] == "0"
    model[1].weight.grad[0, 0] = float("inf")  # both are beyond any number: the nearer to the loss
    assert largest_gradient(model) == ("1", float("inf"))


def spoil(monkeypatch, at, where="loss"):
    """From now on the forward passes with these numbers (from 1) give a loss or a gradient that is no number, and leave
    it in the running means as well."""
    real, calls = DVAE.loss, []

    def spoiled(self, *arguments, **options):
        calls.append(1)
        loss = real(self, *arguments, **options)
        if len(calls) not in at:
            return loss
        for buffer in self.buffers():
            buffer.data.fill_(float("nan") if buffer.is_floating_point() else 99)
        if where == "loss":
            return loss._replace(total=loss.total * float("nan"))
        return loss._replace(total=loss.total + 0 * (self.decoder.blocks.output.conv.w.sum() * 0).sqrt())

    monkeypatch.setattr(DVAE, "loss", spoiled)


def run_dvae(folder, resume=False, **settings):
    run = Run(folder, {}, resume)
    (folder / "bpe.json").write_text("{}")
    return train_dvae(run, load_preset("tiny", overrides=SHORT | settings), IMAGES, 0, CPU)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_spoiled_update_leaves_weights_buffers_and_moments_as_they_were(tmp_path, monkeypatch):
    spoil(monkeypatch, {5})
    model = run_dvae(tmp_path / "run", **{"train.save_every": 1, "train.dvae.updates": 5, "train.dvae.lr_updates": 4})
    states = sorted((tmp_path / "run/state").iterdir())
    assert [path.name for path in states] == ["000000004", "000000005"]
    for file in ("weights", "optimizer"):
        before, after = (load_tensors(path / f"{file}.safetensors")[0] for path in states)
        assert all(torch.equal(value, after[name]) for name, value in before.items()), file
    assert all(value.isfinite().all() for value in model.state_dict().values())
    last = records(tmp_path / "run")[-1]
    assert last["loss"] is None and last["skipped_updates"] == 1  # JSON knows no NaN


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_spoiled_updates_are_skipped_counted_and_the_count_survives_a_resume(tmp_path, monkeypatch, where):
    spoil(monkeypatch, {2, 3, 6}, where)
    model = run_dvae(tmp_path / "run")
    assert [r["skipped_updates"] for r in records(tmp_path / "run")] == [0, 1, 2, 2, 2, 3, 3, 3]
    assert all(value.isfinite().all() for value in model.state_dict().values())
    shutil.rmtree(tmp_path / "run/state/000000008")  # as if it had been killed before the last save
    monkeypatch.undo()
    spoil(monkeypatch, {2}, where)  # update 6 again
    again = run_dvae(tmp_path / "run", resume=True)
    assert [r["skipped_updates"] for r in records(tmp_path / "run")] == [0, 1, 2, 2, 2, 3, 3, 3]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_ten_in_a_row_leave_the_last_state_and_one_sentence(tmp_path, monkeypatch):
    spoil(monkeypatch, {*range(6, 99)})
    with pytest.raises(
        ValueError, match=r"the dvae stopped at update 15: .* \(loss nan; largest gradient in .*: nan\)"
    ):
        run_dvae(tmp_path / "run", **{"train.dvae.updates": 99})
    for file in ("weights", "ema", "optimizer"):
        tensors = load_tensors(tmp_path / f"run/state/000000012/{file}.safetensors")[0]
        assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.parametrize("perplexity, step, told", [(1.7, 11, 1), (1.8, 11, 0), (1.0, 10, 0)])
def test_a_collapsed_codebook_is_told_once_after_the_warm_up(perplexity, step, told):
    watch = Watch("dvae", STAGE, most=88)  # 2 % of it are 1.76
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for k in range(3):
            watch.look({"step": step + k * (step > 10), "perplexity": perplexity})
    assert len(said) == told and (not told or "try --dvae.normalize_logits=true" in str(said[0].message))


@pytest.mark.parametrize(
    "accuracies, told", [([1 / 64] * 5, 1), ([1 / 64] * 4, 0), ([0.1] * 9, 0), ([0.1] + [0] * 5, 1)]
)
def test_a_clip_at_chance_is_told_once(accuracies, told):
    watch = Watch("clip", replace(CLIPStage(), updates=100, warmup=5, batch_size=64))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step, accuracy in enumerate(accuracies, 11):
            watch.look({"step": step, "accuracy": accuracy})
    assert len(said) == told and (not told or "chance is 0.016" in str(said[0].message))


def test_the_weights_are_counted_as_they_are_written(tmp_path):
    preset = load_preset("tiny")
    sizes = weights_of(preset, vocab_size=300, text_len=18)
    dvae = DVAE(preset.dvae)
    save_model(tmp_path / "dvae.safetensors", dvae, dvae.state_dict())
    assert sizes[0] <= (tmp_path / "dvae.safetensors").stat().st_size < 1.05 * sizes[0]
    with torch.device("meta"):
        parts = replace(preset.transformer, vocab_size=300, rows=6, grid=6, codebook_size=88)
        clip = replace(preset.clip, height=24, width=24, context=18, vocab_size=301)
        expected = [sum(p.numel() * 4 for p in m.parameters()) for m in (DALLE(parts), CLIP(clip))]
    assert sizes[1:] == expected


def test_a_disk_without_room_is_told_before_the_run_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = lambda n: monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, n))  # noqa: E731
    # 100 + 300 MB finished, 300 being replaced, 3 states of 4 · 300 + 100, and 33.6 for the rest
    needed = (400 + 300 + 3 * 1300) * 10**6 + 2**25
    free(needed)
    check_space(tmp_path / "a/b/run", [100 * 10**6, 300 * 10**6])
    free(needed - 1)
    with pytest.raises(
        ValueError, match=r"writes up to 4.6 GB, .* 3 states of 1.3 GB .* 4.6 GB are free .* another --out"
    ):
        check_space(tmp_path / "a/b/run", [100 * 10**6, 300 * 10**6])
    (tmp_path / "held").write_bytes(b"x")  # a run that goes on has some of it
    check_space(tmp_path, [100 * 10**6, 300 * 10**6])
    assert [path.name for path in Path(tmp_path).iterdir()] == ["held"]


def test_the_sharded_update_skips_as_well_and_counts_on_after_a_resume(tmp_path):
    preset = load_preset("tiny", overrides={"train.transformer.muon_lr": 0})
    config = replace(
        preset.transformer, n_layer=1, n_embd=32, n_head=1, vocab_size=300, rows=6, grid=6, codebook_size=88
    )
    text, codes = torch.randint(300, (2, 18)), torch.randint(88, (2, 36))
    text[:, -1] = -1
    with sharded.processes("cpu") as team:
        training = sharded.Training(preset, config, team, 0, True, torch.randn(88, 64))
        assert training.update(text, codes, 2)["skipped_updates"] == 0
        name = "exp_avg.image_head.weight"
        kept = {name: value.full_tensor().clone() for name, value in training.tensors().items()}
        training.model.embed.image_token.weight.data.fill_(float("nan"))
        assert training.update(text, codes, 1)["skipped_updates"] == 1
        now = {name: value.full_tensor() for name, value in training.tensors().items()}
        assert all(torch.equal(now[n], kept[n]) for n in kept if n.startswith(("exp_avg", "weights.blocks")))
        assert kept[name].abs().sum() > 0
        training.save(tmp_path)
        again = sharded.Training(preset, config, team, 0, True, torch.randn(88, 64))
        again.restore(sharded.states(tmp_path)[-1])
        assert again.step == 2 and again.watch.state == {"skipped": 1, "in_a_row": 1}
        with pytest.raises(ValueError, match=r"the transformer stopped at update 11: .* largest gradient in .*: nan"):
            for _ in range(12):
                again.update(text, codes, 2)
        path = tmp_path / "000000002/state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"positions": 5}))
        with pytest.raises(ValueError, match="state.json is not as a run writes it: remove"):
            again.restore(path.parent)
