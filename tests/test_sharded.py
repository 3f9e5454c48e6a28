"""Sharded training with real processes on the CPU (gloo): the same losses as one process, memory as planned, resuming."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minidalle.bpe import BPE
from minidalle.checkpoint import load_run, save_model
from minidalle.config import DVAEConfig, load_preset
from minidalle.data import shapes
from minidalle.dvae import DVAE
from minidalle.scale import packing, sharded, shards
from minidalle.scale import run as run_module
from minidalle.train import Interrupt
from minidalle.transformer import DALLE

ROOT = Path(__file__).parent.parent
UPDATES = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with pictures in 4 shards, the same as codes, and a dVAE (not trained: what it says does not matter)."""
    folder = tmp_path_factory.mktemp("world")
    captions = [f"a photo of a {size} {colour} circle" for size in ("small", "large") for colour in shapes.COLOURS] * 3
    images = shapes.draw(captions, np.random.default_rng(0), 24)
    (folder / "pictures").mkdir()
    for k, (image, caption) in enumerate(zip(images, captions)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"pictures/{k}.png")
        (folder / f"pictures/{k}.txt").write_text(caption)
    torch.manual_seed(0)
    dvae = DVAE(DVAEConfig(codebook_size=20, n_hid=8, n_init=4, n_group=2, n_block=1, input_kernel=3, patch=2)).eval()
    save_model(folder / "dvae/dvae.safetensors", dvae, dvae.state_dict())
    packing.write(folder / "pictures", folder / "tars", per_shard=9)
    packing.encode(shards.find(f"{folder}/tars/*.tar"), folder / "codes", dvae, 24, 24, torch.device("cpu"))
    return folder


def command(world, out, n_processes, *more, shards="codes"):
    start = [sys.executable] if n_processes == 0 else [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), "--standalone",
    ]  # fmt: skip
    stage = {
        "updates": UPDATES, "lr_updates": UPDATES, "batch_size": 8, "warmup": 4, "muon_lr": 0, "bpe_dropout": 0.1,
        "ema_decay": 0.9, "caption_dropout": 0.2, "text_weight": 0.125,
    }  # fmt: skip
    return [
        *start, "-m", "minidalle", "train", "--preset", "tiny", "--shards", f"{world}/{shards}/*.tar", "--dvae", f"{world}/dvae",
        "--out", str(out), "--device", "cpu", "--train.log_every=1", "--train.save_every=7", "--transformer.text_len=48",
        "--dvae.codebook_size=20", "--data.height=24", "--data.width=24", "--data.vocab_size=280", "--transformer.n_layer=2", "--transformer.n_head=2",
        "--transformer.n_embd=32", *(f"--train.transformer.{key}={value}" for key, value in stage.items()), *more,
    ]  # fmt: skip


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def run(*arguments, **options):
    done = subprocess.run(command(*arguments, **options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(world):
    """A run of one process, without torchrun."""
    run(world, world / "alone", 0)
    return world / "alone"


def assert_same_run(out, reference, tolerance=1e-5):
    ours, theirs = metrics(out), metrics(reference)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs] == list(range(1, UPDATES + 1))
    for one, other in zip(ours, theirs):
        for key in ("loss", "text", "image", "gradient"):
            assert one[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), (one["step"], key)
    weights, expected = (load_file(path / "transformer.safetensors") for path in (out, reference))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def test_one_process_learns_and_leaves_a_run_that_draws(alone):
    losses = [record["loss"] for record in metrics(alone)]
    assert losses[-1] < losses[0] - 0.5
    preset, bpe, dvae, model = load_run(alone)
    assert model.config.text_len == 48 and model.config.n_image == 36 and model.config.vocab_size == len(bpe) == 280
    assert len(list((alone / "state").iterdir())) == 2


def test_two_processes_compute_what_one_computes(world, alone):
    run(world, world / "two", 2, "--streams", "3")
    assert_same_run(world / "two", alone)
    for name in ("weights.blocks.0.mlp.0.weight", "exp_avg.blocks.0.mlp.0.weight"):  # each process wrote its half
        files = [load_file(file) for file in sorted((world / "two/state/000000020").glob("*.safetensors"))]
        assert [tuple(tensors[name].shape) for tensors in files if name in tensors] == [(64, 32), (64, 32)]


def test_streams_at_a_time_and_recomputing_change_nothing(world, alone):
    run(world, world / "parts", 0, "--streams", "3", "--no-recompute")
    assert_same_run(world / "parts", alone)


@pytest.mark.slow
def test_pictures_give_the_losses_of_their_codes(world, alone):
    """The same run, from shards of pictures that the dVAE encodes as they come, read by a worker of each process."""
    run(world, world / "pixels", 2, "--workers", "1", shards="tars")
    assert_same_run(world / "pixels", alone)


def test_the_loss_of_an_update_is_that_of_the_whole_batch(world, alone):
    """The first record against the same model and batch by `DALLE.loss`, without any of the sharded code."""
    preset, bpe, dvae, trained = load_run(alone)
    with sharded.processes("cpu") as team:
        first = sharded.Training(preset, trained.config, team, 0, True, dvae.codebook)
        model = DALLE(trained.config)
        model.load_state_dict(sharded.whole(first.model.state_dict()))
    stream = shards.Stream(
        shards.find(f"{world}/codes/*.tar"), 8, partial(run_module.read_codes, model.config), 0, 0, 1, {}
    )
    text, codes = run_module.as_tokens(next(shards.batches(stream)), first, bpe, dvae)
    loss = model.loss(text, codes, text_weight=0.125)
    record = metrics(alone)[0]
    assert (record["loss"], record["text"], record["image"]) == pytest.approx([x.item() for x in loss], rel=1e-5)


def test_the_first_weights_are_those_of_the_model_and_no_process_builds_them_all(monkeypatch):
    preset = load_preset("tiny", overrides={"train.transformer.muon_lr": 0})
    config = dataclasses.replace(preset.transformer, n_layer=4, n_embd=128, n_head=4, vocab_size=300, codebook_size=88)
    torch.manual_seed(0)
    codebook, built = torch.randn(88, 64), []
    plain = DALLE(config)
    plain.start_from_codebook(codebook, preset.train.transformer.codebook_std)
    monkeypatch.setattr(sharded, "DALLE", lambda config: built.append(DALLE(config)) or built[-1])
    with sharded.processes("cpu") as team:
        monkeypatch.setattr(sharded, "initialise", lambda model, *_: [p.is_meta for p in model.parameters()] and model)
        with pytest.raises(NotImplementedError):  # nothing can be copied out of the meta device
            sharded.whole(sharded.Training(preset, config, team, 0, True, codebook).model.state_dict())
        monkeypatch.undo()
        ours = sharded.whole(sharded.Training(preset, config, team, 0, True, codebook).model.state_dict())
    for name, value in plain.state_dict().items():
        assert ours[name].mean() == pytest.approx(value.mean().item(), abs=0.003), name
        assert ours[name].std() == pytest.approx(value.std().item(), rel=0.15, abs=1e-8), name
        assert value.std() == 0 or not torch.equal(ours[name], value)


def test_bfloat16_blocks_give_nearly_the_same_loss_and_gradients():
    preset = load_preset("tiny", overrides={"train.transformer.muon_lr": 0})
    config = dataclasses.replace(
        preset.transformer, n_embd=64, n_head=2, vocab_size=300, codebook_size=88, rows=4, grid=4
    )
    torch.manual_seed(0)
    text, codes, results = torch.randint(300, (2, 18)), torch.randint(88, (2, 16)), []
    text[:, -1] = -1
    with sharded.processes("cpu") as team:
        for half in (False, True):
            with torch.device("meta"):
                model = DALLE(config)
            model = sharded.initialise(sharded.shard(model, True, half), team.device, 0, torch.randn(88, 64), 0.0)
            read = []
            for layer in (model.blocks[0].attn.qkv, model.blocks[0].mlp[0], model.blocks[0].ln_2):
                layer.register_forward_pre_hook(partial(lambda seen, _, inputs: seen.append(inputs[0].dtype), read))
            loss = model.loss(text, codes)
            assert read[:3] == ([torch.bfloat16, torch.float32, torch.bfloat16] if half else [torch.float32] * 3)
            loss.total.backward()
            gradients = sharded.whole({name: p.grad for name, p in model.named_parameters()})
            results.append((loss.total.item(), gradients))
            assert all(g.dtype == torch.float32 for g in gradients.values())
    (exact, gradients), (rough, other) = results
    assert rough == pytest.approx(exact, rel=0.01) and rough != exact
    for name, g in gradients.items():
        assert (other[name] - g).norm() < 0.1 * g.norm() + 1e-4, name


@pytest.mark.parametrize("before, after", [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_it_goes_on_with_another_number_of_processes(world, alone, before, after):
    out = world / f"from-{before}-to-{after}"
    process = subprocess.Popen(
        command(world, out, before), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: (out / "state/000000007").exists(), process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    done = sharded.states(out / "state")[-1]
    assert 7 <= int(done.name) < UPDATES and len(metrics(out)) == int(done.name)  # saved where it was stopped
    assert f"stopped and saved after update {int(done.name)} of {UPDATES}" in said
    load_run(out)  # it draws already
    stop = subprocess.Popen(
        command(world, out, after, "--resume"), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(metrics(out)) > int(done.name), stop)
    stop.send_signal(signal.SIGTERM)
    stop.communicate()
    run(world, out, before, "--resume")  # a second time
    assert_same_run(out, alone)
    last = [json.loads((path / "state/000000020/state.json").read_text())["positions"] for path in (out, alone)]
    assert last[0] == last[1]
    assert {path.suffix for path in (out / "state").rglob("*.*")} == {".safetensors", ".json"}


def test_a_state_is_saved_once_and_leftovers_of_a_killed_save_go(world, alone, tmp_path):
    preset, bpe, dvae, trained = load_run(alone)
    (tmp_path / ".writing-000000000").mkdir()
    (tmp_path / ".writing-000000000/shard-00001.safetensors").write_bytes(b"cut off")
    with sharded.processes("cpu") as team:
        training = sharded.Training(preset, trained.config, team, 0, True, dvae.codebook)
        training.save(tmp_path)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
        training.save(tmp_path)
        assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert [path.name for path in tmp_path.iterdir()] == ["000000000"]


def test_a_second_signal_within_its_grace_is_the_first_one_again():
    for grace, expected in ((30, contextlib.nullcontext()), (0, pytest.raises(KeyboardInterrupt))):
        with expected, Interrupt(grace) as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked
            time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_resuming_wants_its_own_tokenizer_but_not_the_shards_where_they_were(world, alone, tmp_path):
    shutil.copytree(world / "codes", tmp_path / "moved/codes")
    shutil.copytree(alone, tmp_path / "run")
    done = run(tmp_path / "moved", tmp_path / "run", 0, "--resume", "--dvae", f"{world}/dvae")
    first, last = done.stdout.splitlines()
    assert first.startswith("4 shards of codes in 4 lanes; ") and first.endswith("resumed after update 20 of 20")
    assert last == f"20 of 20 updates are done: {tmp_path}/run is a run that `generate` can draw with"
    BPE.train(["a photo"], 257).save(tmp_path / "other.json")
    wrong = command(world, tmp_path / "run", 0, "--resume", "--bpe", str(tmp_path / "other.json"))
    done = subprocess.run(wrong, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "was begun with another tokenizer" in done.stderr, done.stderr
    shard = sorted((tmp_path / "moved/codes").glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes() + bytes(512))  # the same name, other contents
    other = command(tmp_path / "moved", tmp_path / "run", 0, "--resume", "--dvae", f"{world}/dvae")
    done = subprocess.run(other, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "holds a run with other settings (shards is" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_state_that_is_cut_off_is_one_sentence_that_says_what_to_remove(world, alone, tmp_path):
    shutil.copytree(alone, tmp_path / "run")
    file = sorted((tmp_path / "run/state/000000020").glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    broken = command(world, tmp_path / "run", 0, "--resume")
    done = subprocess.run(broken, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "is no whole state (remove it, and --resume takes the one" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_killed_process_stops_the_job_by_name_and_no_update_is_lost_or_repeated(world, alone):
    out = world / "killed"
    process = subprocess.Popen(command(world, out, 2), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "state/000000007").exists(), process)
    os.kill(worker_of_rank(process.pid, 1), signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert "rank      : 1" in said, said[-3000:]
    run(world, out, 2, "--resume")
    assert_same_run(out, alone)


def wait_for(condition, process, seconds=120):
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stderr.read()[-2000:]
        assert time.monotonic() - start < seconds
        time.sleep(0.01)


def worker_of_rank(parent: int, rank: int) -> int:
    """The process that torchrun started for this rank, by its environment."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            text, stat = path.read_bytes(), path.with_name("stat").read_text()
        except OSError:
            continue
        if f"\0RANK={rank}\0".encode() in b"\0" + text and int(stat.rpartition(")")[2].split()[1]) == parent:
            return int(path.parent.name)
    raise AssertionError("no such process")


MEMORY = """
import dataclasses, sys, torch
from minidalle.config import load_preset
from minidalle.scale import plan, sharded
with sharded.processes("cpu") as team:
    preset = load_preset("tiny", overrides={"train.transformer.muon_lr": 0})
    config = dataclasses.replace(preset.transformer, vocab_size=300, rows=6, grid=6, codebook_size=88, n_embd=128, n_head=4)
    training = sharded.Training(preset, config, team, 0, True, torch.randn(88, 64))
    local = lambda tensors: sum(t.to_local().nbytes for t in tensors)
    p = list(training.model.parameters())
    text, codes = torch.randint(300, (2, 18)), torch.randint(88, (2, 36))
    text[:, -1] = -1
    loss = training.model.loss(text, codes).total.backward()
    have = {"weights": local(p), "gradients": local(x.grad for x in p), "average": local(training.average.values())}
    training.update(text, codes, 1)
    have["moments"] = sum(local((s["exp_avg"], s["exp_avg_sq"])) for s in training.optimizer.state.values())
    numbers = [have[name] for name in ("weights", "gradients", "moments", "average")]
    planned = [value // team.count for value in plan.state_bytes(config).values()]
    sys.stdout.write(" ".join(map(str, ["BYTES", team.rank, *numbers, *planned])) + chr(10))  # at once: the other writes there too
"""


def test_memory_of_each_process_is_as_planned(tmp_path):
    (tmp_path / "memory.py").write_text(MEMORY)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--no-python"]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, sys.executable, str(tmp_path / "memory.py")], env=environment, capture_output=True, text=True
    )
    lines = [found.split() for found in re.findall(r"BYTES ([\d ]+)", done.stdout)]  # two may share a line
    assert sorted(line[0] for line in lines) == ["0", "1"], done.stderr[-2000:]
    for _, *numbers in lines:
        have, planned = map(int, numbers[:4]), map(int, numbers[4:])
        for one, other in zip(have, planned):
            assert one == pytest.approx(other, rel=0.01)  # an odd row falls to one of the two


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--train.transformer.muon_lr=0.02"], "Muon needs whole matrices"),
        (["--dvae.codebook_size=64"], "is for a dVAE of 64 codes, ÷4, and this one has 20, ÷4"),
        (["--resume"], "holds a run with other settings"),
        ([], "is not empty: add --resume"),
    ],
)
def test_bad_input_is_one_sentence(world, alone, more, sentence):
    if "--resume" in more:
        more = [*more, "--transformer.n_layer=3"]
    out = world / "other" if "64" in str(more) or "muon" in str(more) else alone
    done = subprocess.run(command(world, out, 0, *more), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert out == alone or not out.exists()  # so that the corrected command finds nothing in its way


@pytest.mark.slow
def test_more_processes_than_lanes_is_one_sentence_from_each(world):
    done = subprocess.run(command(world, world / "many", 3), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (
        done.returncode != 0 and "4 shards and a batch of 8 make 4 lanes, which 3 processes cannot share" in done.stderr
    )
