"""Presets, overrides, budgets, and the way back from JSON."""

import dataclasses
import inspect
import json
import re

import pytest

from minidalle import config
from minidalle.config import PRESETS, DVAEStage, Preset, TransformerConfig, TransformerStage, from_dict, load_preset


def test_the_full_size_preset_is_all_defaults_and_the_papers():
    preset = PRESETS["dalle-12b"]
    assert preset == Preset(name="dalle-12b")
    t, d = preset.train.transformer, preset.train.dvae
    assert (t.batch_size, t.updates, t.lr, t.warmup, t.betas) == (1024, 430_000, 4.5e-4, 5_000, (0.9, 0.96))
    assert (t.weight_decay, t.clip, t.ema_decay, t.ema_every, t.text_weight) == (4.5e-2, 4.0, 0.99, 25, 1 / 8)
    assert (d.batch_size, d.updates, d.lr, d.lr_end, d.lr_updates) == (512, 3_000_000, 1e-4, 1.25e-6, 1_200_000)
    assert (d.tau_end, d.tau_updates, d.kl_weight, d.kl_updates, d.ema_decay) == (1 / 16, 150_000, 6.6, 5_000, 0.999)
    assert (preset.transformer.n_layer, preset.transformer.n_head, preset.transformer.n_embd) == (64, 62, 3968)
    assert preset.sample.temperature == 1 and preset.sample.guidance == 1 and preset.sample.top_p == 1
    assert t.muon_lr == 0 and t.caption_dropout == 0 and t.codebook_std == 0 and len(t.halve_at) == 5


def test_small_is_the_papers_stream():
    small = PRESETS["small"]
    assert small.data.height == small.data.width == 256 and small.dvae.downsample == 8
    assert small.transformer.text_len + small.transformer.n_image == 1280


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    preset = load_preset(name, overrides={"train.transformer.halve_at": "5,9"})
    assert from_dict(Preset, json.loads(json.dumps(dataclasses.asdict(preset)))) == preset


def test_overrides_take_the_type_of_what_they_replace():
    preset = load_preset("tiny", overrides={
        "transformer.n_layer": "4", "train.dvae.lr": "1e-3", "dvae.normalize_logits": "false",
        "train.transformer.betas": "0.8,0.9", "transformer.masks": "causal",
    })  # fmt: skip
    assert preset.transformer.n_layer == 4 and preset.train.dvae.lr == 1e-3
    assert preset.dvae.normalize_logits is False and preset.train.transformer.betas == (0.8, 0.9)
    assert preset.transformer.masks == "causal"
    assert PRESETS["tiny"] == load_preset("tiny")  # the preset itself has not changed


def test_overrides_that_fit_only_together_are_taken_together():
    config = load_preset("tiny", overrides={"transformer.n_embd": "128", "transformer.n_head": "4"}).transformer
    assert (config.n_embd, config.n_head) == (128, 4)


def test_json_of_another_version_is_refused():
    with pytest.raises(ValueError, match="unknown setting 'n_heads' of TransformerConfig"):
        from_dict(TransformerConfig, {"n_heads": 3})
    with pytest.raises(ValueError, match="the settings of TransformerConfig must be an object in braces, got 5"):
        from_dict(Preset, {"name": "tiny", "transformer": 5})


def test_the_budget_scales_every_length_and_nothing_else():
    half, whole = load_preset("dalle-12b", budget=0.5), PRESETS["dalle-12b"]
    assert half.train.dvae == dataclasses.replace(
        DVAEStage(), updates=1_500_000, lr_updates=600_000, tau_updates=75_000, kl_updates=2_500
    )
    assert half.train.transformer == dataclasses.replace(
        TransformerStage(), updates=215_000, lr_updates=215_000, warmup=2_500,
        halve_at=tuple(at // 2 for at in TransformerStage().halve_at),
    )  # fmt: skip
    assert half.transformer == whole.transformer
    assert load_preset("tiny", budget=1e-9).train.dvae.updates == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "tinny"}, "unknown preset 'tinny' .did you mean 'tiny'"),
        ({"name": "tiny", "data": "shape"}, "unknown data 'shape' .did you mean 'shapes'"),
        ({"name": "tiny", "overrides": {"transformer.n_head": "5"}}, "must be a multiple of n_head 5"),
        ({"name": "tiny", "overrides": {"transformer.masks": "axial"}}, "'dalle' or 'causal'"),
        ({"name": "tiny", "overrides": {"dvae.likelihood": "laplace"}}, "'logit_laplace', 'bernoulli' or 'gaussian'"),
        ({"name": "tiny", "overrides": {"dvae.n_hid": "6"}}, "multiple of 4"),
        ({"name": "tiny", "data": "openmoji", "overrides": {"data.fold": "1"}}, "data.fold is for shapes and scenes"),
        ({"name": "tiny", "overrides": {"data.height": "26"}}, "use multiples of 4"),
        ({"name": "tiny", "overrides": {"data.name": "openmoji"}}, "choose the pictures with --data"),
        (
            {"name": "tiny", "overrides": {"clip.height": "99", "clip.context": "5"}},
            "clip.context, clip.height cannot be",
        ),
        ({"name": "tiny", "overrides": {"transformer.rows": "4"}}, "transformer.rows cannot be set"),
        ({"name": "tiny", "overrides": {"dvae.input_kernel": "4"}}, "input_kernel must be odd"),
        ({"name": "tiny", "overrides": {"transformer.kernel_size": "4"}}, "kernel_size must be odd"),
        ({"name": "tiny", "overrides": {"transformer.text_len": "1"}}, "at least 2"),
        ({"name": "tiny", "overrides": {"transformer.n_layer": "0"}}, "transformer.n_layer must be greater than 0"),
        ({"name": "tiny", "overrides": {"dvae.patch": "0"}}, "dvae.patch must be greater than 0"),
        ({"name": "tiny", "overrides": {"train.log_every": "0"}}, "train.log_every must be greater than 0"),
        ({"name": "tiny", "overrides": {"train.dvae.lr": "nan"}}, "train.dvae.lr must be greater than 0, got nan"),
        ({"name": "tiny", "overrides": {"train.transformer.bpe_dropout": "2"}}, "0 or more and at most 1"),
        ({"name": "tiny", "overrides": {"sample.top_p": "2"}}, "top_p must lie"),
        ({"name": "tiny", "overrides": {"sample.temperature": "-1"}}, "temperature must be"),
        ({"name": "tiny", "budget": 0}, "positive"),
        ({"name": "tiny", "budget": float("nan")}, "positive"),
        ({"name": "tiny", "overrides": {"transformer.n_layers": "4"}}, "did you mean 'n_layer'"),
        ({"name": "tiny", "overrides": {"transfomer.n_layer": "4"}}, "did you mean 'transformer'"),
        (
            {"name": "tiny", "overrides": {"transformer.n_layer": "four"}},
            "n_layer must be of type int, such as 3, got 'four'",
        ),
        ({"name": "tiny", "overrides": {"transformer": "4"}}, "group of settings"),
        ({"name": "tiny", "overrides": {"name.x": "4"}}, "plain value"),
        ({"name": "tiny", "overrides": {"dvae.normalize_logits": "maybe"}}, "must be of type bool"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_preset(**arguments)


@pytest.mark.parametrize("name", [
    "DataConfig", "DVAEConfig", "TransformerConfig", "CLIPConfig", "StageConfig", "DVAEStage", "TransformerStage", "CLIPStage",
    "SampleConfig",
])  # fmt: skip
def test_each_field_names_where_its_value_comes_from(name):
    """A mark of SPEC.md (P, C, A, D, O), a section of it, or CLIP's paper."""
    lines = inspect.getsource(getattr(config, name)).splitlines()
    starts = [n for n, line in enumerate(lines) if re.match(r"    [a-z_]+: ", line)]
    assert len(starts) >= 4
    for n in starts:
        last = next(
            (m for m in range(n + 1, len(lines)) if re.match(r"    \S", lines[m]) and lines[m] != "    )"), len(lines)
        )
        comment = " ".join(line.partition("#")[2] for line in lines[n:last])
        assert re.search(r"\b([PCAD] [A-Z\d]|P Fig|SPEC \d|Radford|[CO]\b)", comment), lines[n]
