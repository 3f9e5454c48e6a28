"""Sampling: drawings against the model without a cache, the filters against their definitions, seeds, prefix, bad input."""

import pytest
import torch

from minidalle.config import TransformerConfig
from minidalle.sample import choose, generate, in_batches, probabilities, uniform
from minidalle.sequence import PAD
from minidalle.transformer import DALLE

CONFIG = TransformerConfig(
    n_layer=4, n_head=2, n_embd=16, text_len=6, rows=5, grid=4, vocab_size=20, codebook_size=9, kernel_size=3
)
TEXT = torch.tensor([3, 1, 4, PAD, PAD, PAD])


@pytest.fixture(scope="module")
def model():
    return lively(DALLE(CONFIG))


def lively(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:  # weights so large that every connection shows; norms as they are
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    return model.eval()


def test_greedy_drawing_equals_argmax_of_the_uncached_model(model):
    codes = generate(model, TEXT, 1, [0], temperature=0).flatten()
    logits = model(TEXT[None], codes[None])[1][0]
    assert torch.equal(codes, logits.argmax(-1))


def test_guidance_is_the_extrapolation_of_the_logits(model):
    codes = generate(model, TEXT, 1, [0], temperature=0, guidance=2.5).flatten()
    given = model(TEXT[None], codes[None])[1][0]
    empty = model(torch.full_like(TEXT, PAD)[None], codes[None])[1][0]
    assert torch.equal(codes, (empty + 2.5 * (given - empty)).argmax(-1))
    assert not torch.equal(codes, generate(model, TEXT, 1, [0], temperature=0).flatten())


def test_picture_k_depends_on_its_own_seed_alone(model):
    seeds = [5, 6, 7, 8]
    together = generate(model, TEXT, 4, seeds)
    assert together.shape == (4, 5, 4)
    for k, seed in enumerate(seeds):
        assert torch.equal(generate(model, TEXT, 1, [seed])[0], together[k])
    assert torch.equal(generate(model, TEXT, 4, seeds[::-1]), together.flip(0))
    assert not torch.equal(together[0], together[1])


def test_a_caption_for_each_picture(model):
    texts = torch.stack([TEXT, TEXT.flip(0).roll(-3)])
    both = generate(model, texts, 2, [1, 2])
    assert torch.equal(both[1:], generate(model, texts[1], 1, [2]))


def test_frequencies_are_those_of_the_model(model):
    """The first cell of 4,000 pictures against the model's own probabilities."""
    codes = generate(model, TEXT, 4000, range(4000))[:, 0, 0]
    p = model(TEXT[None], torch.zeros(1, 20, dtype=torch.int64))[1][0, 0].softmax(0)
    assert (torch.bincount(codes, minlength=9) / 4000 - p).abs().max() < 0.03  # about 4 standard errors


def test_batches_cover_every_picture_once_and_stay_small():
    assert [list(r) for r in in_batches(3, CONFIG)] == [[0, 1, 2]]
    full = in_batches(20, TransformerConfig())
    assert [i for r in full for i in r] == list(range(20)) and max(map(len, full)) == 6
    assert [len(r) for r in in_batches(3, TransformerConfig(rows=128, grid=128))] == [1, 1, 1]


def test_callback_tells_every_cell(model):
    seen = []
    codes = generate(model, TEXT, 2, [0, 1], on_token=lambda cell, code: seen.append((cell, code.clone())))
    assert [cell for cell, _ in seen] == list(range(20))
    assert torch.equal(torch.stack([code for _, code in seen], 1), codes.flatten(1))


def test_prefix_is_kept_and_continued_as_the_uncached_model_would(model):
    prefix = torch.randint(9, (2, 4), generator=torch.Generator().manual_seed(2))
    codes = generate(model, TEXT, 2, [0, 1], temperature=0, prefix=prefix, guidance=1.5)
    assert torch.equal(codes[:, :2], prefix.expand(2, -1, -1))
    for flat in codes.flatten(1):
        given, empty = (model(t[None], flat[None])[1][0] for t in (TEXT, torch.full_like(TEXT, PAD)))
        assert torch.equal(flat[8:], (empty + 1.5 * (given - empty)).argmax(-1)[8:])
    codes = generate(model, TEXT, 1, [0], temperature=0, prefix=prefix).flatten()
    logits = model(TEXT[None], codes[None])[1][0]
    assert torch.equal(codes[8:], logits.argmax(-1)[8:])


def test_temperature_divides_the_logits():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    torch.testing.assert_close(probabilities(logits, 0.5, 0, 1.0), (logits / 0.5).softmax(1))
    assert probabilities(logits, 0, 0, 1.0).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("k", [1, 2, 5, 9, 20])
def test_top_k_keeps_the_k_likeliest(k):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    kept = probabilities(logits, 1.0, k, 1.0) > 0
    for row in range(6):
        ranked = sorted(range(9), key=lambda i: -logits[row, i])
        assert set(kept[row].nonzero().flatten().tolist()) == set(ranked[:k])


@pytest.mark.parametrize("top_p", [1e-300, 0.01, 0.5, 0.9, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(top_p):
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(4))
    probs = probabilities(logits, 1.0, 0, top_p)
    torch.testing.assert_close(probs.sum(1), torch.ones(6))
    for row, p in enumerate(logits.softmax(1)):
        ranked, total, expected = sorted(range(9), key=lambda i: -p[i]), 0.0, []
        for i in ranked:
            expected.append(i)
            total += p[i].item()
            if total >= top_p:
                break
        assert set(probs[row].nonzero().flatten().tolist()) == set(expected)


def test_choose_is_the_inverse_of_the_cumulative_sum():
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    for u, code in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.5, 3), (1 - 1e-12, 3)):
        assert choose(p, torch.tensor([u], dtype=torch.float64)).item() == code


def test_uniform_numbers_belong_to_their_seed():
    assert torch.equal(uniform(7, 5), uniform(7, 5)) and not torch.equal(uniform(7, 5), uniform(8, 5))
    assert torch.equal(uniform(7, 3), uniform(7, 5)[:3])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n": 0, "seeds": []}, "n >= 1"),
        ({"n": 2}, "1 seeds"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 2.0}, "top_p"),
        ({"guidance": float("nan")}, "guidance"),
        ({"text": torch.full((5,), PAD)}, "expected text of shape"),
        ({"text": torch.full((3, 6), PAD)}, "one caption or 1, one a picture, got 3"),
        ({"prefix": torch.zeros(5, 4, dtype=torch.int64)}, "with 0 < r < 5 rows"),
        ({"prefix": torch.zeros(2, 3, dtype=torch.int64)}, "expected a prefix"),
        ({"prefix": torch.zeros(0, 4, dtype=torch.int64)}, "expected a prefix"),
        ({"prefix": torch.zeros(3, 2, 4, dtype=torch.int64)}, "expected a prefix"),
        ({"prefix": torch.full((2, 4), 9)}, "must lie in 0 … 8"),
        ({"seeds": [2**70]}, "a seed must lie"),
        ({"seeds": [-1]}, "a seed must lie"),
    ],
)
def test_bad_settings_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        generate(**{"model": model, "text": TEXT, "n": 1, "seeds": [0]} | change)


def test_the_tail_is_cut_where_the_sum_is_reached_and_nowhere_without_top_p():
    quarters = torch.zeros(1, 4, dtype=torch.float64)
    assert probabilities(quarters, 1.0, 0, 0.5).tolist() == [[0.5, 0.5, 0, 0]]  # the third would be one too many
    assert (probabilities(torch.tensor([[0.0, -70.0]]), 1.0, 0, 1.0) > 0).all()  # beside 1, it adds nothing to the sum


def test_probabilities_that_are_no_numbers_give_the_last_code():
    """Not the one behind it: the drawing goes on, and `generate` refuses it in the end."""
    assert choose(torch.full((1, 4), torch.nan), torch.tensor([0.5], dtype=torch.float64)).tolist() == [3]


@pytest.mark.parametrize("tensor", ["image_head.weight", "embed.image_token.weight"])
def test_a_model_that_has_gone_wrong_is_refused(tensor):
    model = lively(DALLE(CONFIG))
    with torch.no_grad():
        model.get_parameter(tensor).fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are no finite numbers"):
        generate(model, TEXT, 1, [0])
