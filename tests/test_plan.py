"""The planner against what PyTorch counts in real, small models; the paper's sizes against the formula and SPEC.md."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from full_size import kept_for_backward, streams_of
from minidalle.__main__ import main
from minidalle.config import PAPER, PRESETS, TransformerConfig, load_preset
from minidalle.scale import plan
from minidalle.train import make_optimizers
from minidalle.transformer import DALLE

SPEC = (Path(__file__).parent.parent / "SPEC.md").read_text(encoding="utf-8")
TOY = TransformerConfig(n_layer=3, n_head=4, n_embd=64, text_len=16, rows=8, grid=8, vocab_size=300, codebook_size=90)


@pytest.mark.parametrize("preset", [*PAPER, PRESETS["small"]], ids=lambda preset: preset.name)
def test_parameters_are_counted_exactly(preset):
    with torch.device("meta"):
        model = DALLE(preset.transformer)
    parts = plan.parameters(preset.transformer)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["blocks, L (12 C² + 13 C)"] == sum(p.numel() for p in model.blocks.parameters())


def test_the_papers_sizes_are_those_of_the_spec():
    sizes = {preset.name: preset.transformer for preset in PAPER}
    layers, heads, width, n_embd = map(
        int, re.search(r"(\d+) layers, (\d+) heads × (\d+), d_model (\d+)", SPEC).groups()
    )
    largest = sizes["dalle-12b"]
    assert (largest.n_layer, largest.n_head, largest.n_embd // largest.n_head) == (layers, heads, width)
    assert largest.n_embd == n_embd
    smaller = re.search(r"d_model (\d+) \(([\d.]+) B\) and (\d+) \(([\d.]+) B\)", SPEC).groups()
    for n_embd, billions in zip(smaller[::2], smaller[1::2]):
        c = sizes[f"dalle-{billions}b"]
        assert (c.n_layer, c.n_embd, c.n_embd // c.n_head) == (layers, int(n_embd), width)
        assert 12 * layers * c.n_embd**2 / 1e9 == pytest.approx(float(billions), abs=0.06)


def number(pattern: str) -> list[float]:
    """The numbers in the first match of the pattern in SPEC.md, "5,000" and "4.5e-2" as such, "1/16" as a quotient."""
    found = re.search(pattern, SPEC)
    assert found, pattern
    values = [group.replace(",", "").split("/") for group in found.groups()]
    return [float(v[0]) / float(v[1]) if len(v) == 2 else float(v[0]) for v in values]


@pytest.mark.parametrize("preset", PAPER, ids=lambda preset: preset.name)
def test_the_papers_constants_are_those_of_the_spec(preset):
    t, d, s, n = preset.train.transformer, preset.train.dvae, preset.transformer, r"([\d,.e-]*\d)"
    adam = rf"AdamW β {n}/{n}, ε {n}, weight decay {n}; "
    assert [*t.betas, t.eps, t.weight_decay] == number(rf"{adam}gradient clip")
    assert [t.clip, t.warmup, t.lr] == number(rf"gradient clip {n}; lr warm-up to 4.5e-4 over {n} updates")[:2] + [
        4.5e-4
    ]
    assert [t.ema_decay, t.ema_every] == number(rf"EMA {n} every {n} updates")
    assert [t.batch_size, t.updates] == number(rf"batch {n}; {n} updates on 1024 V100")
    assert [t.text_weight] == number(r"loss \| ([\d/]+) · text") and len(t.halve_at) == 5
    assert [t.bpe_dropout] == [x / 100 for x in number(rf"positions, {n} % BPE dropout")]
    assert [*d.betas, d.eps, d.weight_decay, d.ema_decay] == number(rf"{adam}EMA of weights {n}; batch 512")
    assert [d.batch_size, d.updates] == number(rf"EMA of weights .*?; batch {n}; {n} updates")
    assert [d.tau_start, d.tau_end, d.tau_updates] == number(rf"τ {n} → ([\d/]+) over {n} updates")
    assert [d.kl_weight, d.kl_updates] == number(rf"β 0 → {n} over {n}, then constant")
    assert [d.lr, d.lr_end, d.lr_updates] == number(rf"lr {n} → {n} over {n} \|")
    assert [s.text_len, s.n_image] == number(rf"tokens: {n} text, then {n} = 32×32 image")
    assert [s.vocab_size, s.codebook_size] == number(rf"separate: {n} text, {n} image")
    assert [preset.data.vocab_size] == number(rf"lower-cased, vocabulary {n}, at most")
    assert [preset.dvae.codebook_size, preset.dvae.downsample] == number(rf"codebook K = {n} \(÷{n} each side\)")


def test_bytes_of_weights_gradients_moments_and_average_are_exact():
    model = DALLE(TOY)
    optimizers = make_optimizers(model, PRESETS["dalle-12b"].train.transformer)
    model.loss(*streams_of(TOY, 2)).total.backward()
    for optimizer in optimizers:
        optimizer.step()
    moments = [
        t for optimizer in optimizers for state in optimizer.state.values() for t in state.values() if t.dim() > 0
    ]
    assert [t.nbytes for t in moments] and plan.state_bytes(TOY) == {
        "weights, 4 P": sum(p.nbytes for p in model.parameters()),
        "gradients, 4 P": sum(p.grad.nbytes for p in model.parameters()),
        "AdamW's two moments, 8 P": sum(t.nbytes for t in moments),
        "average, 4 P": sum(t.nbytes for t in model.state_dict().values()),
    }


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("n_layer, n_embd, text_len, grid, masks", [
    (3, 64, 16, 8, "causal"), (2, 96, 64, 16, "dalle"), (5, 32, 32, 12, "dalle"),
])  # fmt: skip
def test_bytes_kept_for_the_backward_pass_are_within_a_tenth(n_layer, n_embd, text_len, grid, masks, recompute, half):
    """With and without activation checkpointing, in float32 and with bfloat16 in the blocks."""
    c = replace(TOY, n_layer=n_layer, n_embd=n_embd, text_len=text_len, rows=grid, grid=grid, masks=masks)
    planned, ends = plan.kept_bytes(c, recompute, half), 4 * 2 * (c.text_len + c.n_image) * c.n_embd
    if recompute:  # in the forward pass no block is whole yet
        planned -= plan.kept_bytes(replace(c, n_layer=1), False, half) - ends
    assert planned == pytest.approx(kept_for_backward(c, recompute, half), rel=0.1)


def test_operations_are_those_of_a_real_pass():
    c = replace(TOY, masks="causal")
    model = DALLE(c)
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(*streams_of(c, 1))
    T, parts = c.text_len + c.n_image, plan.operations(c)
    whole = (
        4 * c.n_embd * c.n_layer * (T**2 - plan.seen_pairs(c) // c.n_layer)
    )  # PyTorch's path computes the dead pairs too
    assert counter.get_total_flops() == sum(parts.values()) + whole


def test_cache_is_the_keys_and_values_of_all_positions():
    model, kept = DALLE(TOY), []
    text, image = streams_of(TOY, 1)
    model.run(torch.cat([model.embed.text(text), model.embed.image(image)], dim=1), kept)
    assert plan.cache_numbers(TOY) == sum(t.numel() for pair in kept for t in pair)


def test_a_layout_fits_or_says_what_would():
    c, gpu = PRESETS["dalle-12b"].transformer, plan.GPUS["rtx-4090"]
    assert plan.fitting(c, 1024, 32, gpu) and not plan.fitting(c, 1024, 16, gpu)
    with pytest.raises(ValueError, match="32 such GPUs would do"):
        plan.plan(PRESETS["dalle-12b"], 8, "rtx-4090", 0.4)
    said = "\n".join(plan.plan(PRESETS["small"], 16, "custom:1e15,80e9,123e9", 0.4))
    assert "at 123 GB/s" in said and " hours, " in said  # beyond one machine, too; and in less than a day
    with pytest.raises(ValueError, match="no number of custom:1e12,1e9,1e9 would do"):
        plan.plan(PRESETS["dalle-12b"], 8, "custom:1e12,1e9,1e9", 0.4)
    for way in plan.layouts(c, 1024, 64):
        assert way.streams * way.steps * 64 == 1024


def test_full_sharding_divides_the_state_alone():
    c = PRESETS["dalle-2.8b"].transformer
    one, many = (next(plan.layouts(c, gpus, gpus)) for gpus in (1, 64))
    state = sum(plan.state_bytes(c).values())
    assert one.bytes - many.bytes == pytest.approx(state * 63 / 64)
    assert plan.communication(c, 1, 4) == 0 and plan.communication(c, 2, 1) == sum(plan.parameters(c).values()) * 4


def test_the_verb_prints_the_plan(capsys):
    main(["plan", "--preset", "dalle-12b", "--gpus", "512", "--gpu", "a100-80gb", "--utilisation", "0.5"])
    out = capsys.readouterr().out
    assert "12,292,808,448" in out and "47 row, 16 column, 1 conv" in out and "512 x a100-80gb" in out
    seconds = re.search(r"operations, ([\d.]+) s\n", out)[1]
    work = plan.training_operations(PRESETS["dalle-12b"].transformer, ", with recomputing;" in out) * 1024
    assert float(seconds) == pytest.approx(work / 512 / 312e12 / 0.5, abs=0.01)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--preset", "dalle-13b"], "did you mean 'dalle-12b'"),
        (["--gpus", "7"], "take 8, or change --train.transformer.batch_size"),
        (["--gpu", "h100"], "did you mean 'h100-80gb'"),
        (["--gpu", "custom:1,2"], "custom:FLOPS,BYTES,BANDWIDTH"),
        (["--gpu", "custom:nan,1,1"], "custom:FLOPS,BYTES,BANDWIDTH"),
        (["--utilisation", "40"], "at most 1, got 40"),
        (["--transformer.n_head=7"], "must be a multiple of n_head"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said and said.count("\n") == 1 and "Traceback" not in said


def test_a_preset_of_settings_is_planned_as_it_is(capsys):
    main(["plan", "--preset", "small", "--gpus", "1", "--gpu", "rtx-4090", "--transformer.n_layer=2"])
    assert "small: 2 layers" in capsys.readouterr().out
    assert load_preset("small").transformer.n_layer == 12
