"""What must hold for every input, tried on many: each property against brute force; then what tests/fuzz.py spoils, a little of it.

Examples follow from the tests' names and are the same in every run.
"""

import copy
import dataclasses
import json
import math
import random
import string

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kernels.reference import MASKS, dense_mask
from minidalle import config
from minidalle.bpe import BPE
from minidalle.checkpoint import load_model, load_tensors, read_json, save_tensors
from minidalle.config import PRESETS, Preset, from_dict, load_preset, override
from minidalle.data import folder
from minidalle.sample import choose, generate, probabilities
from minidalle.sequence import PAD, fit_text_len, pack_text, tokenize, unpack_text
from minidalle.studio.records import CLASSES
from tests import fuzz

many = settings(
    max_examples=100, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
few = settings(many, max_examples=30)

ANY_TEXT = st.text(st.characters(), max_size=60)  # all of Unicode, lone surrogates too
CORPUS = ["the cat sat on the mat with the other cat", "a seagull, a gull", "banana bananas ananas"]

# --- text ------------------------------------------------------------------------------------------------------------


def brute_force_encode(merges: list, text: str) -> list[int]:
    """Each merge in the order learned, everywhere, from the left; only within runs of a-z."""
    ids = list(text.lower().encode("utf-8", "replace"))
    for new, pair in enumerate(merges, 256):
        done, i = [], 0
        while i < len(ids):
            hit = tuple(ids[i : i + 2]) == tuple(pair)
            done.append(new if hit else ids[i])
            i += 2 if hit else 1
        ids = done
    return ids


@pytest.fixture(scope="module")
def bpe():
    return BPE.train(CORPUS, 279)


@given(ANY_TEXT)
@example("İstanbul ﬃ ẞ \ud800 \0 🦊")
@many
def test_any_text_survives_but_for_its_case_and_lone_surrogates(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text.lower().encode("utf-8", "replace").decode("utf-8")


@given(st.lists(st.text("abc ,é", min_size=1, max_size=30), min_size=1, max_size=5), st.text("abc ,éABC", max_size=40))
@many
@pytest.mark.filterwarnings("ignore:BPE learned")
def test_encoding_is_each_merge_in_its_turn(texts, text):
    bpe = BPE.train(texts, 300)
    assert bpe.encode(text) == brute_force_encode(bpe.merges, text)


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=30), min_size=1, max_size=5), ANY_TEXT)
@few
@pytest.mark.filterwarnings("ignore:BPE learned")
def test_a_saved_tokenizer_is_the_same(tmp_path, texts, text):
    bpe = BPE.train(texts, 290)
    bpe.save(tmp_path / "bpe.json")
    loaded = BPE.load(tmp_path / "bpe.json")
    assert (loaded.merges, loaded.hash, loaded.encode(text)) == (bpe.merges, bpe.hash, bpe.encode(text))


@given(st.integers(2, 20), st.data())
@many
def test_what_is_packed_comes_back(text_len, data):
    lists = data.draw(st.lists(st.lists(st.integers(0, 10**6), max_size=text_len - 1), min_size=1, max_size=5))
    text = pack_text(lists, text_len)
    assert text.shape == (len(lists), text_len) and (text[:, -1] == PAD).all()
    assert unpack_text(text) == lists
    assert all(row == ids + [PAD] * (text_len - len(ids)) for row, ids in zip(text.tolist(), lists))


@given(st.lists(ANY_TEXT, min_size=1, max_size=4), st.floats(0, 1), st.integers())
@many
def test_the_fitted_length_holds_every_caption_even_with_dropout(bpe, captions, dropout, seed):
    text_len = fit_text_len(bpe, captions)
    longest = max(len(bpe.encode(caption)) for caption in captions)
    assert text_len % 16 == 0 and longest < text_len <= longest + 16
    text = tokenize(bpe, captions, text_len, dropout, random.Random(seed))  # a cut would warn
    assert [bpe.decode(ids) for ids in unpack_text(text)] == [bpe.decode(bpe.encode(caption)) for caption in captions]


# --- masks and sampling ------------------------------------------------------------------------------------------------


def may_look(kind: str, i: int, j: int, text_len: int, grid: int, kernel_size: int) -> bool:
    """The rules of SPEC 5, for one pair of positions."""
    if j > i:
        return False
    if j < text_len or kind == "causal":
        return True
    d, half = i - j, kernel_size // 2
    if kind == "row":
        return d <= grid
    if kind == "column":
        return d % grid == 0
    return any(d == grid * down + right for down in range(half + 1) for right in range(-half, half + 1))


@given(
    st.sampled_from(MASKS),
    st.integers(0, 9),
    st.integers(1, 7),
    st.integers(0, 6),
    st.sampled_from([1, 3, 5, 11]),
)
@many
def test_masks_are_their_rules_pair_by_pair(kind, text_len, grid, rows, kernel_size):
    T = text_len + grid * rows
    mask = dense_mask(kind, text_len, grid, rows, kernel_size)
    want = [[may_look(kind, i, j, text_len, grid, kernel_size) for j in range(T)] for i in range(T)]
    assert mask.tolist() == want


def by_sorting(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float] | None:
    """What `probabilities` should give for one row; None where rounding could decide."""
    K = len(logits)
    if temperature == 0:
        return [float(i == logits.index(max(logits))) for i in range(K)]
    logits = [x / temperature for x in logits]
    if 0 < top_k < K:
        kth = sorted(logits, reverse=True)[top_k - 1]
        logits = [x if x >= kth else -math.inf for x in logits]
    weights = [math.exp(x - max(logits)) for x in logits]
    probs = [w / math.fsum(weights) for w in weights]
    if top_p < 1:
        order, total, kept = sorted(range(K), key=lambda i: -probs[i]), 0.0, []
        for i in order:
            if kept and abs(total - top_p) < 1e-9:
                return None
            if kept and total >= top_p:
                break
            kept.append(i)
            total += probs[i]
        probs = [p / math.fsum(probs[i] for i in kept) if i in kept else 0.0 for i, p in enumerate(probs)]
    return probs


FEW_VALUES = st.sampled_from([-math.inf, -5.0, -1.0, 0.0, 0.0, 0.5, 3.0])  # so that many are tied
ROW = st.lists(FEW_VALUES | st.floats(-20, 20), min_size=1, max_size=12).filter(lambda row: max(row) > -math.inf)
TEMPERATURE = st.just(0.0) | st.floats(0.001, 10)


@given(ROW, TEMPERATURE, st.integers(0, 14), st.just(1.0) | st.floats(1e-6, 1))
@example([0.0], 0.0, 1, 1.0)
@example([0.0, 0.0, 0.0], 1.0, 1, 0.5)
@example([-math.inf, 1.0, -math.inf], 0.001, 2, 0.1)
@settings(many, max_examples=300)
def test_filters_are_what_sorting_says(row, temperature, top_k, top_p):
    want = by_sorting(row, temperature, top_k, top_p)
    got = probabilities(torch.tensor([row, row], dtype=torch.float64), temperature, top_k, top_p)
    assert torch.equal(got[0], got[1])
    if want is not None:
        assert got[0].tolist() == pytest.approx(want, abs=1e-9)


@given(ROW, st.floats(0, 1, exclude_max=True), TEMPERATURE, st.integers(0, 14), st.floats(1e-6, 1))
@example([-math.inf, 0.0, -math.inf], 0.0, 1.0, 0, 1.0)
@many
def test_the_code_that_is_drawn_is_where_the_sum_passes_u_and_possible(row, u, temperature, top_k, top_p):
    probs = probabilities(torch.tensor([row], dtype=torch.float64), temperature, top_k, top_p)
    code = choose(probs, torch.tensor([u], dtype=torch.float64)).item()
    sums = np.cumsum(probs[0].numpy())
    assert probs[0, code] > 0
    assert code == next(i for i, s in enumerate(sums) if s > u * sums[-1])


# --- pictures, settings, files -------------------------------------------------------------------------------------------


@given(*[st.integers(1, 3000)] * 2, *[st.integers(1, 300)] * 2, st.none() | st.integers(0, 2**32))
@many
def test_a_crop_lies_inside_its_picture(width, height, to_height, to_width, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    left, top, right, bottom = folder.view_box((width, height), to_height, to_width, rng)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert (right - left) * to_height == pytest.approx((bottom - top) * to_width, rel=1e-6)


def dotted(part, name: str = "") -> list[str]:
    """Every setting of a preset, such as "train.dvae.lr"."""
    if not dataclasses.is_dataclass(part):
        return [name]
    return [
        key for f in dataclasses.fields(part) for key in dotted(getattr(part, f.name), f"{name}.{f.name}".lstrip("."))
    ]


def value_at(part, key: str):
    for name in key.split("."):
        part = getattr(part, name)
    return part


KEYS = [key for key in dotted(PRESETS["tiny"]) if key != "name"]
ANY_VALUE = st.text(max_size=8) | st.integers().map(str) | st.floats().map(str) | st.sampled_from(["true", "1,2", ","])


@given(st.sampled_from(KEYS), ANY_VALUE)
@settings(many, max_examples=200)
def test_an_override_changes_one_setting_or_is_refused_in_a_sentence(key, value):
    old = PRESETS["tiny"]
    try:
        new = override(old, key, value)
    except ValueError as error:
        assert key.split(".")[-1] in str(error)
        return
    assert type(value_at(new, key)) is type(value_at(old, key))
    differing = {k for k in KEYS if value_at(new, k) is not value_at(old, k) and value_at(new, k) != value_at(old, k)}
    assert differing <= {key}
    assert repr(from_dict(Preset, json.loads(json.dumps(dataclasses.asdict(new))))) == repr(new)  # repr: nan is not nan


@given(st.dictionaries(st.sampled_from([*KEYS, "x", "transformer", ""]), ANY_VALUE, max_size=3))
@settings(many, max_examples=200)
def test_a_preset_that_is_loaded_can_be_built_or_says_why_not(overrides):
    try:
        preset = load_preset("tiny", overrides=overrides)
    except ValueError as error:
        assert str(error)
        return
    config.check_numbers(preset)
    assert preset.data.height % preset.dvae.downsample == preset.data.width % preset.dvae.downsample == 0


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(WORDS, WORDS, max_size=5), st.lists(st.integers(0, 3), max_size=3))
@few
def test_a_files_metadata_and_tensors_come_back(tmp_path, metadata, shape):
    tensors = {"w": torch.arange(math.prod(shape), dtype=torch.float32).view(shape)}
    save_tensors(tmp_path / "w.safetensors", tensors, metadata)
    loaded, said = load_tensors(tmp_path / "w.safetensors")
    assert said == metadata and loaded.keys() == {"w"} and torch.equal(loaded["w"], tensors["w"])


# --- anything else: fuzz.py, for a moment ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return fuzz.Targets(tmp_path_factory.mktemp("fuzz"))


CALLS = {"pictures": 60, "captions": 60, "checkpoints": 15, "shards": 30, "pickles": 60, "verbs": 25, "page": 10}


@pytest.mark.parametrize("kind", CALLS)
def test_nothing_broken_ends_in_a_traceback(targets, kind, monkeypatch):
    monkeypatch.chdir(targets.place)
    monkeypatch.delenv("MINIDALLE_TRACEBACK", raising=False)
    if kind == "page" and not fuzz.GRADIO:
        pytest.skip("the page is in requirements-extra.txt")
    for number in range(CALLS[kind]):
        error = fuzz.once(targets, kind, 0, number)
        assert error is None, f"python tests/fuzz.py --only {kind} --call {number}: {error!r}"


CLAIMS = {  # what a file of weights may say of itself, which is found out before memory is taken for it
    "transformer": {"n_layer": [-1, 10**9], "n_head": [0], "grid": [0], "rows": [10**12], "vocab_size": [-1, 10**13], "n_embd": [1.5]},
    "clip": {"image_layers": [10**9], "image_heads": [0], "patch": [0], "height": [10**9], "text_width": [10**12]},
    "dvae": {"n_group": [0, 30, 10**9], "n_block": [10**12], "n_hid": [10**12], "patch": [0], "codebook_size": [10**12]},
}  # fmt: skip


@pytest.mark.parametrize(
    "name, key, value", [(n, k, v) for n, claim in CLAIMS.items() for k, vs in claim.items() for v in vs]
)
def test_an_architecture_that_the_weights_cannot_have_is_refused(tmp_path, name, key, value):
    tensors, metadata = load_tensors(fuzz.RUN / f"{name}.safetensors")
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {key: value})
    save_tensors(tmp_path / "w.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match="do not fit the architecture stored with them"):
        load_model(tmp_path / "w.safetensors", *CLASSES[name])


@pytest.mark.parametrize("name, tensor", [("transformer", "embed.image_token.weight"), ("clip", "ln_final.bias")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name, tensor):
    """One that drew with them looked for a code beyond the last."""
    tensors, metadata = load_tensors(fuzz.RUN / f"{name}.safetensors")
    tensors[tensor].view(-1)[-1] = math.nan
    save_tensors(tmp_path / "w.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=f"is damaged: {tensor} holds"):
        load_model(tmp_path / "w.safetensors", *CLASSES[name])


def test_a_model_that_overflows_says_so_instead_of_drawing(targets):
    model = copy.deepcopy(targets.run.model)
    torch.nn.init.constant_(model.image_head.weight, 1e308)
    with pytest.raises(ValueError, match="logits are no finite numbers"):
        generate(model, targets.run.text("a"), 1, [0])


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "9" * 5000, "{", "\ud800"])
def test_json_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="config.json is not JSON"):
        read_json(tmp_path / "config.json")


def test_a_finding_is_seen(targets, monkeypatch):
    """The fuzz itself: an error that is no sentence, an odd exit code, and a second line are each noticed."""
    monkeypatch.setitem(fuzz.Targets.KINDS, "pictures", (lambda *_: 1 // 0, 1))
    assert isinstance(fuzz.once(targets, "pictures", 0, 0), ZeroDivisionError)
    for does in (
        lambda _: 1 // 0,
        lambda _: exit(3),
        lambda _: print("one\ntwo", file=fuzz.sys.stderr),
        lambda _: exit(2),
    ):
        monkeypatch.setattr(fuzz, "minidalle", does)
        with pytest.raises((ZeroDivisionError, AssertionError)):
            fuzz.check_verb(["plan"])
