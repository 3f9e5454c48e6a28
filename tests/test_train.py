"""The loop: resuming ends with the same bits, schedules, averages, interruption; and the whole program, very short."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minidalle.train as train_module
import train_tiny
from minidalle import data, sample
from minidalle.__main__ import main
from minidalle.bpe import BPE
from minidalle.checkpoint import Run, load_dvae, load_tensors, save_tensors
from minidalle.config import TransformerStage, load_preset
from minidalle.data.folder import read
from minidalle.dvae import DVAE
from minidalle.train import (
    average_weights,
    encode_all,
    learning_rate,
    make_optimizers,
    out_of_memory_as_advice,
    pick_device,
    seed_of,
    to_float,
    to_uint8,
    train_clip,
    train_dvae,
    train_transformer,
)  # fmt: skip

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
STAGES = ("dvae", "transformer", "clip")
CAPTION = "a photo of a large red circle"
SHORT = {
    "data.pool": 64, "dvae.n_hid": 8, "dvae.n_init": 8, "dvae.codebook_size": 16, "transformer.n_embd": 24,
    "train.dvae.updates": 12, "train.transformer.updates": 12, "train.log_every": 2, "train.save_every": 5,
    "train.dvae.batch_size": 4, "train.transformer.batch_size": 4,
    "clip.image_width": 24, "clip.text_width": 24, "clip.embed_dim": 8, "train.clip.updates": 12, "train.clip.batch_size": 6,
}  # fmt: skip


class Killed(Exception):
    pass


def run_short(folder, resume=False, kill_at=None, monkeypatch=None, ask_at=None):
    """All three stages; optionally killed (an exception, no goodbye) or asked to stop at the given log call."""
    preset = load_preset("tiny", overrides=SHORT)
    run = Run(folder, {"seed": 3}, resume)
    train = data.load(preset.data, 3)["train"]
    bpe = BPE.train(train.captions, preset.data.vocab_size)
    bpe.save(folder / "bpe.json")
    if kill_at or ask_at:
        log, calls = run.log, [0]

        def counting(record):
            log(record)
            calls[0] += 1
            if calls[0] == kill_at:
                raise Killed
            if calls[0] == ask_at:
                os.kill(os.getpid(), signal.SIGINT)

        run.log = counting
    dvae = train_dvae(run, preset, train.images, 3, CPU)
    codes = encode_all(dvae, train.images, CPU)
    train_transformer(run, preset, bpe, dvae, train.captions, codes, 32, 3, CPU)
    return train_clip(run, preset, bpe, dvae, train, codes, 32, 3, CPU)


def contents(folder) -> dict:
    """Weights by file, and the metrics without their times."""
    files = {name: load_tensors(folder / f"{name}.safetensors")[0] for name in STAGES}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return files, [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s")} for r in lines]


def assert_same(a, b):
    for name in a[0]:
        assert a[0][name].keys() == b[0][name].keys()
        assert all(torch.equal(value, b[0][name][key]) for key, value in a[0][name].items()), name
    assert a[1] == b[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_short(folder)
    return contents(folder)


@pytest.mark.parametrize("kill_at", [2, 5, 7, 9, 12, 16, 20])  # before and after states at 5, 10, 12; in all stages
def test_a_killed_run_resumed_ends_with_the_same_bits(tmp_path, whole, kill_at):
    with pytest.raises(Killed):
        run_short(tmp_path / "run", kill_at=kill_at)
    run_short(tmp_path / "run", resume=True)
    assert_same(contents(tmp_path / "run"), whole)


@pytest.mark.parametrize(
    "call", [3, 7, 11]
)  # weights are written after updates 5, 10, 12 of each stage, and at its end
def test_a_run_killed_between_its_last_state_and_its_weights(tmp_path, whole, monkeypatch, call):
    real, calls = train_module.save_model, []

    def dying(*arguments, **hashes):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **hashes)

    monkeypatch.setattr(train_module, "save_model", dying)
    with pytest.raises(Killed):
        run_short(tmp_path / "run")
    monkeypatch.setattr(train_module, "save_model", real)
    run_short(tmp_path / "run", resume=True)
    assert_same(contents(tmp_path / "run"), whole)


def test_what_is_asked_whether_to_stop_sees_the_average_and_leaves_training_alone(tmp_path):
    preset = load_preset("tiny", overrides=SHORT | {"train.transformer.ema_decay": 0.5})
    run, seen = Run(tmp_path / "run", {}), {}
    train = data.load(preset.data, 3)["train"]
    bpe = BPE.train(train.captions, preset.data.vocab_size)
    bpe.save(run.folder / "bpe.json")
    dvae = train_dvae(run, preset, train.images, 3, CPU)
    codes = encode_all(dvae, train.images, CPU)

    def stop(step, averaged):
        seen[step] = averaged()
        return step == 7

    last = train_transformer(run, preset, bpe, dvae, train.captions, codes, 32, 3, CPU, stop)
    assert list(seen) == [*range(1, 8)] and run.stages["transformer"]["updates"] == 7
    state = load_tensors(run.latest()[1] / "weights.safetensors")[0]
    for name, value in seen[7].state_dict().items():  # the average is what is returned, and not the weights themselves
        assert torch.equal(value, last.state_dict()[name]), name
    assert not torch.equal(seen[7].image_head.weight, state["image_head.weight"])
    assert not torch.equal(seen[6].image_head.weight, seen[7].image_head.weight) and not seen[7].training


@pytest.mark.parametrize("std", [0.0, 0.1])
def test_image_tokens_start_from_the_codebook_where_that_is_asked_for(tmp_path, std):
    """After an update of rate 0 the tokens are as they started: of the rank of the codebook, or of full rank."""
    preset = load_preset("tiny", overrides=SHORT | {
        "train.transformer.codebook_std": std, "train.transformer.lr": 1e-12, "train.transformer.updates": 1,
    })  # fmt: skip
    dvae = DVAE(preset.dvae).eval()  # K = 16 codes of n_init = 8 numbers
    codes = torch.randint(16, (4, 6, 6), generator=torch.Generator().manual_seed(0))
    run, bpe = Run(tmp_path / "run", {}), BPE.train([CAPTION], 265)
    bpe.save(run.folder / "bpe.json")
    model = train_transformer(run, preset, bpe, dvae, [CAPTION] * 4, codes, 32, 3, CPU)
    for tokens in (model.embed.image_token.weight, model.image_head.weight):  # (16, 24)
        spanned = torch.linalg.lstsq((dvae.codebook - dvae.codebook.mean(0)), tokens.detach(), driver="gelsd").solution
        rest = tokens - (dvae.codebook - dvae.codebook.mean(0)) @ spanned
        assert (rest.std() < 1e-4 * tokens.std()) == bool(std)
        assert tokens.std().item() == pytest.approx(std or 0.02, rel=0.3)


@pytest.mark.parametrize("ask_at", [4, 11, 18])
def test_ctrl_c_finishes_the_update_saves_and_says_so(tmp_path, whole, ask_at):
    with pytest.raises(KeyboardInterrupt, match="stopped and saved after update 6 of 12"):
        run_short(tmp_path / "run", ask_at=ask_at)
    run_short(tmp_path / "run", resume=True)
    assert_same(contents(tmp_path / "run"), whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path, whole):
    run_short(tmp_path / "run")
    run_short(tmp_path / "run", resume=True)
    assert_same(contents(tmp_path / "run"), whole)


def test_metrics_hold_what_is_promised(whole):
    by_stage = {stage: [r for r in whole[1] if r["stage"] == stage] for stage in STAGES}
    assert [r["step"] for r in by_stage["dvae"]] == [1, 2, 4, 6, 8, 10, 12]
    assert {"loss", "nll", "kl", "codes_used", "perplexity", "tau", "noise"} <= by_stage["dvae"][0].keys()
    assert {"loss", "text", "image"} <= by_stage["transformer"][0].keys()
    assert {"loss", "accuracy", "scale"} <= by_stage["clip"][0].keys()


def test_training_lowers_all_losses(tmp_path):
    overrides = SHORT | {"train.dvae.updates": 150, "train.transformer.updates": 150, "train.clip.updates": 150, "train.log_every": 1,
                         "train.save_every": 1000, "train.dvae.tau_updates": 150, "train.dvae.noise_updates": 150,
                         "train.dvae.batch_size": 8, "train.transformer.batch_size": 8, "dvae.n_hid": 16}  # fmt: skip
    preset = load_preset("tiny", overrides=overrides)
    run, train = Run(tmp_path / "run", {}), data.load(preset.data, 0)["train"]
    bpe = BPE.train(train.captions, preset.data.vocab_size)
    bpe.save(run.folder / "bpe.json")
    dvae = train_dvae(run, preset, train.images, 0, CPU)
    codes = encode_all(dvae, train.images, CPU)
    train_transformer(run, preset, bpe, dvae, train.captions, codes, 32, 0, CPU)
    train_clip(run, preset, bpe, dvae, train, codes, 32, 0, CPU)
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for stage, key in (("dvae", "nll"), ("transformer", "image"), ("transformer", "text"), ("clip", "loss")):
        values = [r[key] for r in records if r["stage"] == stage]
        assert sum(values[-20:]) < 0.9 * sum(values[:20]), (stage, key)


def test_two_updates_of_the_small_preset(tmp_path):
    """The path of one GPU, held to the CPU: 256 pixels, 32 x 32 codes, 1280 positions, its own widths, tiny batches."""
    overrides = {"data.pool": 2, "train.dvae.batch_size": 1, "train.transformer.batch_size": 1, "train.dvae.updates": 2,
                 "train.transformer.updates": 2, "train.clip.batch_size": 6, "train.clip.updates": 2,
                 "train.log_every": 1}  # fmt: skip
    preset = load_preset("small", overrides=overrides)
    run, train = Run(tmp_path / "run", {}), data.load(preset.data, 0)["train"]
    assert train.images.shape == (2, 3, 256, 256)
    bpe = BPE.train(data.shapes.captions("train"), 300)
    bpe.save(run.folder / "bpe.json")
    dvae = train_dvae(run, preset, train.images, 0, CPU)
    codes = encode_all(dvae, train.images, CPU)
    assert codes.shape == (2, 32, 32)
    model = train_transformer(run, preset, bpe, dvae, train.captions, codes, 256, 0, CPU)
    assert model.config.text_len + model.config.n_image == 1280
    clip = train_clip(run, preset, bpe, dvae, train, codes, 256, 0, CPU)
    assert clip.config.height == 256 and clip.config.context == 256
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert len(records) == 6 and all(0 < r["loss"] < 20 for r in records)


def test_a_mirrored_dvae_sees_about_half_of_its_pictures_mirrored(tmp_path, monkeypatch):
    preset = load_preset("tiny", overrides=SHORT | {"train.dvae.mirror": "true", "train.dvae.updates": 40})
    run, seen = Run(tmp_path / "run", {}), []
    (run.folder / "bpe.json").write_text("{}")
    images = torch.zeros(64, 3, 24, 24, dtype=torch.uint8)
    images[:, :, :, :12] = 255  # bright on the left

    monkeypatch.setattr(train_module, "to_float", lambda batch: seen.append(batch) or batch.float() / 255)
    train_dvae(run, preset, images, 0, CPU)
    seen = torch.cat(seen)
    turned = (seen[:, 0, 0, 0] == 0).float().mean()
    assert len(seen) == 160 and 0.35 < turned < 0.65
    assert ((seen[:, :, :, :12] == 255).all((1, 2, 3)) | (seen[:, :, :, 12:] == 255).all((1, 2, 3))).all()
    assert not (images[:, :, :, 12:] > 0).any()  # the pool itself is not turned


def test_clip_trains_on_groups_of_like_captions_with_their_own_pictures_some_as_the_dvae_paints_them(
    tmp_path, monkeypatch
):
    preset = load_preset("tiny", overrides=SHORT | {"data.pool": 400, "train.clip.alike": 3})
    run, train = Run(tmp_path / "run", {}), data.load(preset.data, 0)["train"]
    bpe = BPE.train(train.captions, preset.data.vocab_size)
    bpe.save(run.folder / "bpe.json")
    painted = torch.full((400, 3, 24, 24), 0.5)
    monkeypatch.setattr(train_module, "decode_all", lambda dvae, codes, device: painted[: len(codes)])
    seen = []
    real = train_module.CLIP.loss

    def spying(self, images, text):
        seen.append((images, text))
        return real(self, images, text)

    monkeypatch.setattr(train_module.CLIP, "loss", spying)
    train_clip(run, preset, bpe, None, train, torch.zeros(400, 6, 6, dtype=torch.int64), 32, 0, CPU)
    own = {caption: {i for i, c in enumerate(train.captions) if c == caption} for caption in train.captions}
    grey = alike = 0
    for images, text in seen:
        captions = [bpe.decode(t for t in row if t >= 0) for row in text.tolist()]
        words = [caption.split() for caption in captions]
        for a in words:
            others = [[i for i, (x, y) in enumerate(zip(a, b)) if x != y] for b in words if len(a) == len(b)]
            alike += any(at and at[-1] - at[0] <= 1 for at in others)  # in one place, of one or two words
        for image, caption in zip(images, captions):
            if (image == 128 / 255).all():
                grey += 1
            else:
                assert any(torch.equal(image, to_float(train.images[i])) for i in own[caption])
    assert 0.3 < grey / (12 * 6) < 0.7 and alike / (12 * 6) > 0.8


def test_a_batch_of_clip_is_full_where_captions_have_none_alike(tmp_path, monkeypatch):
    preset = load_preset("tiny", overrides=SHORT | {"train.clip.alike": 2, "train.clip.batch_size": 8})
    run, captions = Run(tmp_path / "run", {}), ["cat", "a dog", "two red birds", "no fish in the pond"]
    bpe = BPE.train(captions, preset.data.vocab_size)
    bpe.save(run.folder / "bpe.json")
    pictures = data.Pictures(torch.zeros(4, 3, 24, 24, dtype=torch.uint8), captions)
    sizes, real = [], train_module.CLIP.loss
    monkeypatch.setattr(
        train_module.CLIP, "loss", lambda self, x, t: sizes.append((len(x), len(t))) or real(self, x, t)
    )
    monkeypatch.setattr(train_module, "decode_all", lambda dvae, codes, device: torch.zeros(len(codes), 3, 24, 24))
    train_clip(run, preset, bpe, None, pictures, torch.zeros(4, 6, 6, dtype=torch.int64), 32, 0, CPU)
    assert set(sizes) == {(8, 8)}


def test_learning_rate_of_the_paper():
    stage = TransformerStage()
    assert learning_rate(stage, 0) == pytest.approx(4.5e-4 / 5000)
    assert learning_rate(stage, 4_999) == pytest.approx(4.5e-4) == learning_rate(stage, 200_000)
    assert learning_rate(stage, 429_999) == pytest.approx(4.5e-4 / 2**5)
    falling = replace(stage, halve_at=(), lr_end=0.0, lr_updates=1000, warmup=0)
    assert [learning_rate(falling, s) for s in (0, 500, 1000, 2000)] == pytest.approx([4.5e-4, 2.25e-4, 0, 0])


def test_average_is_the_formula_and_copies_integers():
    model = torch.nn.BatchNorm1d(2)
    average = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(8, 2))
    before = {key: value.clone() for key, value in average.items()}
    average_weights(average, model, 0.9)
    now = model.state_dict()
    torch.testing.assert_close(average["running_mean"], 0.9 * before["running_mean"] + 0.1 * now["running_mean"])
    assert average["num_batches_tracked"] == now["num_batches_tracked"] == 1


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_the_rest():
    from minidalle.config import TransformerConfig
    from minidalle.transformer import DALLE

    model = DALLE(
        TransformerConfig(n_layer=2, n_head=1, n_embd=8, text_len=4, rows=2, grid=2, vocab_size=9, codebook_size=9)
    )
    adamw, muon = make_optimizers(model, replace(TransformerStage(), muon_lr=0.02))
    count = lambda o: sum(len(g["params"]) for g in o.param_groups)  # noqa: E731
    assert count(muon) == 2 * 4 and count(adamw) + count(muon) == len(list(model.parameters()))
    assert len(make_optimizers(model, TransformerStage())) == 1


def test_seeds_differ_by_every_part_and_stay():
    assert seed_of(0, "dvae", 1) == seed_of(0, "dvae", 1)
    assert len({seed_of(*parts) for parts in [(0, "dvae", 1), (1, "dvae", 1), (0, "clip", 1), (0, "dvae", 2)]}) == 4


def test_small_things():
    assert pick_device("cpu") == CPU
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert to_uint8(torch.tensor([-0.1, 0.2, 0.999, 1.2])).tolist() == [0, 51, 255, 255]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cpu"):
            pick_device("cuda")
    with pytest.raises(ValueError, match="--train.dvae.batch_size=8"), out_of_memory_as_advice("dvae", 16):
        raise torch.OutOfMemoryError("CUDA out of memory")


# --- the program as a user runs it ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """train_tiny.py in a process of its own, at a hundredth of its length."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    command = [sys.executable, "train_tiny.py", "--budget", "0.004", "--out", str(out), "--data.pool=500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_train_tiny_leaves_everything_it_promises(finished):
    out, printed = finished
    for name in (
        "config.json", "bpe.json", "dvae.safetensors", "transformer.safetensors", "clip.safetensors", "metrics.jsonl",
        "results.json", "curves.png", "reconstructions.png", "samples.png", "rerank.png", "editing.png", "masks.png", "failures.png",
        "state", "model_card.md",
    ):  # fmt: skip
        assert (out / name).exists(), name
    results = json.loads((out / "results.json").read_text())
    for name in ("reconstruction", "seen", "captions", "pairs"):
        for key in (name, f"{name}_clean"):
            r = results["results"][key]
            assert 0 <= r["low"] <= r["value"] <= r["high"] <= 1 and r["n"] in (512, 520)
    for name in ("captions_best_of_16", "captions_mean_of_16", "pairs_best_of_16", "pairs_mean_of_16", "clip_pairs"):
        r = results["results"][name]
        assert 0 <= r["low"] <= r["value"] <= r["high"] <= 1
    assert {"dvae", "transformer", "clip", "measure", "all"} <= results["seconds"].keys()
    assert results["seed"] == 0 and results["sampling"]["temperature"] == 1.0 and results["threads"] >= 1
    assert "samples.png" in printed and "pairs_clean" in printed


def test_generate_draws_and_the_same_seed_draws_the_same(finished, tmp_path, capsys):
    out, _ = finished
    main(["generate", "a photo of a large red circle", "a sketch of a small blue cross", "--run", str(out),
          "-n", "3", "--seed", "4", "--out", str(tmp_path / "a")])  # fmt: skip
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 7 and "sheet.png" in names and "01-a-photo-of-a-large-red-circle-seed4.png" in names
    main(
        [
            "generate",
            "a photo of a large red circle",
            "--run",
            str(out),
            "-n",
            "1",
            "--seed",
            "5",
            "--out",
            str(tmp_path / "b"),
        ]
    )
    name = "01-a-photo-of-a-large-red-circle-seed5.png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["generate", "", "--run", "RUN"], 2, "a caption is empty"),
        (["generate", "a cat", "--run", "nowhere"], 2, "is nowhere the folder of a run"),
        (["generate", "a cat", "--run", "RUN", "-n", "0"], 2, "must be greater than 0"),
        (["generate", "a cat", "--run", "RUN", "--temperature", "-1"], 2, "temperature must be"),
        (["generate", "a cat", "--run", "RUN", "--top-p", "2"], 2, "top_p must lie"),
        (["generate", "a cat", "--run", "RUN", "--transformer.n_layer=3"], 2, "generate --help lists"),
        (["generate", "a cat", "--run", "RUN", "--reranc", "3"], 2, "did you mean '--rerank'"),
        (["paint", "a cat"], 2, "invalid choice"),
    ],
)
def test_generate_says_what_is_wrong_in_one_sentence(finished, capsys, arguments, code, message, tmp_path):
    arguments = [str(finished[0]) if a == "RUN" else a for a in arguments] + ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error


def test_odd_captions_are_drawn_with_a_warning(finished, capsys, tmp_path):
    main(["generate", "ein roter Kreis, größer " * 20, "--run", str(finished[0]), "-n", "1", "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert "the model reads 'ein', 'roter', 'kreis', 'größer' in pieces" in error and "tokens was cut to" in error
    assert (tmp_path / "sheet.png").exists()


# --- edit, rank, --rerank ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "circle.png"
    Image.fromarray(data.shapes.draw([CAPTION], np.random.default_rng(1))[0].permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.mark.parametrize("rows", [None, 1, 5])
def test_edit_keeps_the_codes_of_the_top_rows_in_every_picture(finished, picture, tmp_path, monkeypatch, rows):
    drawn, real = [], sample.generate
    monkeypatch.setattr(sample, "generate", lambda *a, **k: drawn.append(real(*a, **k)) or drawn[-1])
    given = [] if rows is None else ["--rows", str(rows)]
    main(
        ["edit", CAPTION, "--image", str(picture), "--run", str(finished[0]), "-n", "4", "--out", str(tmp_path), *given]
    )
    codes = load_dvae(finished[0]).encode(to_float(torch.from_numpy(read(picture, (24, 24)))[None]))
    kept = rows or 6 * 15 // 32
    assert (torch.cat(drawn)[:, :kept] == codes[:, :kept]).all() and len(torch.cat(drawn)) == 4
    assert (torch.cat(drawn)[:, kept:] != codes[:, kept:]).any()
    assert len(list(tmp_path.glob("*seed*.png"))) == 4 and (tmp_path / "sheet.png").exists()


def test_edit_takes_the_top_alone_for_the_same_on_white(finished, picture, tmp_path):
    whole = Image.open(picture).convert("RGB")
    whole.paste("white", (0, 8, 24, 24))
    whole.save(tmp_path / "whole.png")
    whole.crop((0, 0, 24, 8)).save(tmp_path / "top.png")  # 2 of 6 rows of codes
    for name in ("whole", "top"):
        out = ["--run", str(finished[0]), "--rows", "2", "-n", "2", "--out", str(tmp_path / name)]
        main(["edit", CAPTION, "--image", str(tmp_path / f"{name}.png"), *out])
    whole, top = ({p.name: p.read_bytes() for p in (tmp_path / n).glob("*seed*.png")} for n in ("whole", "top"))
    assert whole == top and len(whole) == 2


def test_rerank_keeps_the_candidates_that_clip_scores_highest(finished, tmp_path, capsys):
    run = str(finished[0])
    main(["generate", CAPTION, "--run", run, "-n", "12", "--out", str(tmp_path / "all")])
    main(["generate", CAPTION, "--run", run, "-n", "3", "--rerank", "12", "--out", str(tmp_path / "best")])
    capsys.readouterr()
    paths = sorted((tmp_path / "all").glob("*seed*.png"))
    main(["rank", CAPTION, *map(str, paths), "--run", run])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.strip().splitlines()]
    scores = [float(score) for score, _ in lines]
    assert len(lines) == 12 and scores == sorted(scores, reverse=True) and -1 <= scores[-1] < scores[0] <= 1
    best = {path.name: path.read_bytes() for path in (tmp_path / "best").glob("*seed*.png")}
    assert best == {Path(path).name: Path(path).read_bytes() for _, path in lines[:3]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["edit", CAPTION, "--image", "GOOD", "--rows", "6"],
            "--rows must lie in 1 … 5, as this run draws 6 rows, got 6",
        ),
        (["edit", CAPTION, "--image", "GOOD", "--rows", "0"], "--rows must lie in 1 … 5"),
        (["edit", CAPTION, "--image", "GOOD", "--rows", "-3"], "--rows must lie in 1 … 5"),
        (["edit", CAPTION, "--image", "wide.png"], "wide.png is 48 wide and 24 high, expected width to height as"),
        (["edit", CAPTION, "--image", "text.png"], "text.png: does not decode"),
        (["edit", CAPTION, "--image", "none.png"], "none.png is no file"),
        (["edit", CAPTION], "the following arguments are required: --image"),
        (["edit", " ", "--image", "GOOD"], "a caption is empty"),
        (["rank", CAPTION], "the following arguments are required: IMAGE"),
        (["rank", CAPTION, "none.png"], "none.png is no file"),
        (["rank", CAPTION, "GOOD", "wide.png"], "wide.png is 48 wide and 24 high"),
        (["generate", CAPTION, "-n", "9", "--rerank", "4"], "--rerank 4 is fewer than the 9 pictures"),
        (["generate", CAPTION, "--rerank", "0"], "must be greater than 0"),
    ],
)
def test_edit_and_rank_say_what_is_wrong_in_one_sentence(finished, picture, capsys, tmp_path, arguments, message):
    Image.new("RGB", (48, 24)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("not a picture")
    files = {"GOOD": picture, **{name: tmp_path / name for name in ("wide.png", "text.png", "none.png")}}
    with pytest.raises(SystemExit) as stop:
        main([*(str(files.get(a, a)) for a in arguments), "--run", str(finished[0])])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize("mode, size", [("L", (24, 24)), ("RGBA", (48, 48)), ("P", (240, 240)), ("CMYK", (24, 24))])
def test_a_picture_of_another_mode_or_size_is_converted(finished, picture, tmp_path, mode, size):
    path = tmp_path / ("in.jpg" if mode == "CMYK" else "in.png")
    Image.open(picture).resize(size).convert(mode).save(path)
    main(["edit", CAPTION, "--image", str(path), "--run", str(finished[0]), "-n", "1", "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_clip_of_another_tokenizer_is_refused(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run, ignore=shutil.ignore_patterns("state"))
    tensors, metadata = load_tensors(run / "clip.safetensors")
    save_tensors(run / "clip.safetensors", tensors, metadata | {"tokenizer": "0" * 64})
    with pytest.raises(SystemExit) as stop:
        main(["generate", CAPTION, "--run", str(run), "--rerank", "12"])
    assert stop.value.code == 2 and "was trained with another tokenizer" in capsys.readouterr().err
    (run / "clip.safetensors").unlink()
    with pytest.raises(SystemExit):
        main(["generate", CAPTION, "--run", str(run), "--rerank", "12"])
    assert "clip.safetensors does not exist" in capsys.readouterr().err


def test_a_folder_of_twenty_pictures_with_four_bad_ones(tmp_path, capsys):
    """Every stage for two updates, on pictures of one's own."""
    folder, rng = tmp_path / "mine", np.random.default_rng(0)
    for i in range(20):
        path = folder / "ab"[i % 2] / f"{i // 2}.png"  # equal names in two folders
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(40, 50, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"noise of the same number {i}")  # "same", and no scene
    (folder / "a" / "3.png").write_bytes((folder / "a" / "3.png").read_bytes()[:200])
    (folder / "b" / "3.png").write_text("no picture")
    (folder / "a" / "4.txt").unlink()
    (folder / "b" / "4.txt").write_text(" ")
    (folder / "a" / "5.txt").write_text("noise")
    (folder / "b" / "5.txt").write_text("IMG_0001.JPG")
    updates = [f"--train.{stage}.updates=2" for stage in STAGES]
    small = [
        "--data.pool=40",
        "--train.dvae.batch_size=4",
        "--train.transformer.batch_size=4",
        "--train.clip.batch_size=4",
    ]
    out = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert call("--data", str(folder), "--out", str(out), *updates, *small, "--data.filter=true") is None
    printed = capsys.readouterr()
    assert "captions filter: 14 kept, 1 boilerplate, 1 too short, 4 unusable" in printed.out
    assert "skipped 6 of 20 pictures" in printed.err
    for name in ("a/3.png", "b/3.png", "a/4.png", "b/4.png"):
        assert name in printed.err
    results = json.loads((out / "results.json").read_text())
    dropped = {"too long": 0, "not Latin": 0, "boilerplate": 1, "too short": 1, "blocklist": 0, "aspect ratio": 0}
    assert results["filter"] == {"kept": 14, **dropped, "unusable": 4} and results["splits"]["train"] == 40
    results = results["results"]
    assert results["psnr"]["n"] >= 1 and "codes_used" in results and "pairs" not in results
    for name in ("samples", "reconstructions", "editing", "rerank", "curves"):
        assert (out / f"{name}.png").exists()
    main(["generate", "noise number 3", "--run", str(out), "-n", "1"])


@pytest.mark.parametrize("files, message", [
    ({}, "no pictures in"), ({"a.png": 1, "b.png": 1}, "no captions in"), ({"a.png": 1, "a.txt": "x"}, "only 1 usable"),
])  # fmt: skip
def test_a_folder_that_cannot_be_used_is_one_sentence(tmp_path, capsys, files, message):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in files.items():
        if content == 1:
            Image.new("RGB", (40, 40)).save(folder / name)
        else:
            (folder / name).write_text(content)
    assert call("--data", str(folder), "--out", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


def test_a_folder_that_is_missing_is_one_sentence(tmp_path, capsys):
    assert call("--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")) == 2
    assert "there is no such folder" in capsys.readouterr().err


def call(*arguments):
    try:
        parsed = train_tiny.parse(list(arguments))
        train_tiny.run_command(lambda: train_tiny.train_tiny(*parsed))
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset", "tinny"], "did you mean 'tiny'"),
        (["--preset", "dalle-12b"], "is for many GPUs"),
        (["--data", "shape"], "did you mean 'shapes'"),
        (["--transformer.n_layers=4"], "did you mean 'n_layer'"),
        (["--budget", "-1"], "must be greater than 0"),
        (["--nonsense"], "unknown argument"),
        (["--transformer.n_head=5", "--data.pool=10"], "multiple of n_head"),
    ],
)
def test_train_tiny_says_what_is_wrong_in_one_sentence(tmp_path, capsys, arguments, message):
    assert call("--out", str(tmp_path / "run"), "--budget", "0.0001", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "Traceback" not in error


def test_a_start_that_failed_does_not_block_its_folder(tmp_path):
    assert call("--out", str(tmp_path / "run"), "--budget", "0.0001", "--data.height=20", "--data.width=20") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError("not enough memory\nlong story"), MemoryError(), OSError("disk")])
def test_failures_are_one_sentence_and_exit_1(capsys, error):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        train_tiny.run_command(fail, "; go on")
    assert stop.value.code == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and printed[0].startswith("error: ") and printed[0].endswith("; go on")


def test_an_existing_run_is_refused_and_another_preset_cannot_resume_it(finished, capsys):
    out = str(finished[0])
    before = (finished[0] / "config.json").read_bytes()
    assert call("--out", out) == 2
    assert "is not empty: add --resume" in capsys.readouterr().err
    assert call("--out", out, "--resume") == 2
    assert "holds a run with other settings" in capsys.readouterr().err
    assert (finished[0] / "config.json").read_bytes() == before


def test_a_full_disk_is_one_sentence_and_the_last_state_stays(tmp_path, monkeypatch, capsys):
    real = Run.save_state
    calls = []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, *arguments)

    monkeypatch.setattr(Run, "save_state", full)
    settings = ["--data.pool=20", "--train.save_every=2", "--train.dvae.updates=6", "--dvae.n_hid=8"]
    assert call("--out", str(tmp_path / "run"), *settings) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run" / "state").iterdir()] == ["000000002"]
