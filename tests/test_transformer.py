"""The transformer: what is predicted where, the weighted loss by hand, no leak, sizes, and that it learns."""

import contextlib
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from kernels.reference import attention, dense_mask
from minidalle.attention import layer_masks
from minidalle.config import PRESETS, TransformerConfig
from minidalle.sequence import PAD
from minidalle.transformer import DALLE, cross_entropy

CONFIG = TransformerConfig(
    n_layer=3, n_head=2, n_embd=16, text_len=6, rows=4, grid=3, vocab_size=20, codebook_size=7, kernel_size=3
)


def batch(n=2, config=CONFIG):
    generator = torch.Generator().manual_seed(0)
    text = torch.full((n, config.text_len), PAD)
    text[:, :3] = torch.randint(config.vocab_size, (n, 3), generator=generator)
    return text, torch.randint(config.codebook_size, (n, config.n_image), generator=generator)


def lively(config=CONFIG) -> DALLE:
    """A model whose weights are large enough for every connection to show."""
    torch.manual_seed(0)
    model = DALLE(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model


def test_shapes_of_the_logits():
    text_logits, image_logits = DALLE(CONFIG)(*batch())
    assert text_logits.shape == (2, 4, 20) and image_logits.shape == (2, 12, 7)


def test_against_the_formula_written_out():
    """The whole network once more with the masks as dense matrices and no module of ours but its weights."""
    model, (text, image) = lively().double(), batch()
    w = dict(model.named_parameters())
    rows = [
        [w["embed.text_pad.weight"][p] if t == PAD else w["embed.text_token.weight"][t] for p, t in enumerate(row)]
        for row in text.tolist()
    ]
    words = torch.stack([torch.stack(row) for row in rows]) + w["embed.text_position.weight"]
    cell = torch.arange(12)
    place = w["embed.image_row.weight"][cell // 3] + w["embed.image_column.weight"][cell % 3]
    x = torch.cat([words, w["embed.image_token.weight"][image] + place], 1)
    norm = lambda x, name: F.layer_norm(x, (16,), w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    for i, kind in enumerate(layer_masks(CONFIG)):
        b = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{b}.ln_1"), f"{b}.attn.qkv").split(16, dim=2)
        heads = [t.view(2, 18, 2, 8).transpose(1, 2) for t in (q, k, v)]
        y = attention(*heads, dense_mask(kind, 6, 3, 4, 3)).transpose(1, 2).reshape(2, 18, 16)
        x = x + linear(y, f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{b}.ln_2"), f"{b}.mlp.0")), f"{b}.mlp.2")
    h = norm(x, "ln_f")
    text_logits, image_logits = model(text, image)
    torch.testing.assert_close(text_logits, h[:, 0:4] @ w["text_head.weight"].T)
    torch.testing.assert_close(image_logits, h[:, 5:17] @ w["image_head.weight"].T)


@pytest.mark.parametrize("masks", ["dalle", "causal"])
def test_no_prediction_sees_its_target_or_what_follows(masks):
    config = TransformerConfig(**{**CONFIG.__dict__, "masks": masks})
    model, (text, image) = lively(config), batch(1)
    text_before, image_before = model(text, image)
    for p in range(5):  # text position p is predicted by text_logits[p - 1]
        other = text.clone()
        other[0, p] = 13 if text[0, p] != 13 else 12
        text_logits, image_logits = model(other, image)
        assert torch.equal(text_logits[0, :p], text_before[0, :p])
        if p < 4:
            assert not torch.equal(text_logits[0, p], text_before[0, p])
        assert (image_logits != image_before).any(-1).all()  # every image cell sees all text
    for cell in range(12):
        other = image.clone()
        other[0, cell] = (image[0, cell] + 1) % 7
        text_logits, image_logits = model(text, other)
        assert torch.equal(text_logits, text_before)
        assert torch.equal(image_logits[0, : cell + 1], image_before[0, : cell + 1])
        if cell + 1 < 12:
            assert not torch.equal(image_logits[0, cell + 1], image_before[0, cell + 1])


def test_loss_by_hand():
    """Sums over real targets only: tokens 1 and 2 of each caption (the first is given), and all image cells."""
    model, (text, image) = lively(), batch()
    text_logits, image_logits = model(text, image)
    ln_p = text_logits.log_softmax(-1)
    by_hand = -sum(ln_p[b, p - 1, text[b, p]] for b in range(2) for p in (1, 2)) / 4
    ln_q = image_logits.log_softmax(-1)
    image_by_hand = -sum(ln_q[b, c, image[b, c]] for b in range(2) for c in range(12)) / 24
    loss = model.loss(text, image)
    torch.testing.assert_close(loss.text, by_hand)
    torch.testing.assert_close(loss.image, image_by_hand)
    torch.testing.assert_close(loss.total, by_hand / 8 + image_by_hand * 7 / 8)


@pytest.mark.parametrize("N, V", [(7, 11), (1500, 3000), (0, 5)])
def test_cross_entropy_in_chunks_is_that_of_torch(N, V):
    """Value and gradients in float64; 1500 rows are two chunks of 3000 logits."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, 8, generator=generator, dtype=torch.float64, requires_grad=True) for n in (N, V))
    targets = torch.randint(V, (N,), generator=generator)
    ours = 3 * cross_entropy(states, weight, targets)  # 3: the gradient that arrives is not always 1
    expected = 3 * F.cross_entropy(states @ weight.T, targets, reduction="sum") / max(1, N)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(*(torch.autograd.grad(loss, (states, weight)) for loss in (ours, expected))):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("grid", [3, 16])
def test_what_is_computed_again_in_the_backward_pass_gives_the_same_gradients(grid):
    """16 x 16 codes go through `windowed`."""
    config = dataclasses.replace(CONFIG, grid=grid, rows=grid)
    generator = torch.Generator().manual_seed(0)
    text, image = batch()[0], torch.randint(7, (2, grid * grid), generator=generator)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = DALLE(dataclasses.replace(config, recompute=recompute))
        loss = model.loss(text, image).total
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*gradients)


def test_captions_of_unequal_length_are_weighed_by_targets_not_by_captions():
    model, (text, image) = lively(), batch()
    text[0, 1:] = PAD  # one caption of one token (no target), one of three (two targets)
    alone = model.loss(text[1:], image[1:]).text
    torch.testing.assert_close(model.loss(text, image).text, alone)


def test_no_text_target_gives_a_text_loss_of_zero():
    model, (text, image) = lively(), batch()
    loss = model.loss(torch.full_like(text, PAD), image)
    assert loss.text.item() == 0
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_loss_at_the_start_is_that_of_guessing():
    torch.manual_seed(0)
    loss = DALLE(CONFIG).loss(*batch(64))
    assert loss.text.item() == pytest.approx(math.log(20), abs=0.05)
    assert loss.image.item() == pytest.approx(math.log(7), abs=0.05)


def test_every_parameter_gets_a_gradient_and_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model, (text, image) = DALLE(CONFIG), batch(4)
    text[0, 3:5] = torch.tensor([1, 2])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(120):
        loss = model.loss(text, image)
        optimizer.zero_grad()
        loss.total.backward()
        if step == 0:
            assert all(p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
    assert loss.image.item() < 0.2 * math.log(7)


def test_12b_has_the_papers_blocks():
    """12 d² weights a block for 64 blocks of width 3968 are 12.09 billion (SPEC 5); biases and norms beside them."""
    config = PRESETS["dalle-12b"].transformer
    with torch.device("meta"):
        model = DALLE(config)
    d, layers = 3968, 64
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    assert matrices == 12 * d**2 * layers == 12_092_178_432
    tables = (16_384 + 256 + 256 + 8192 + 32 + 32) * d  # tokens, pads, positions, codes, rows, columns
    heads = (16_384 + 8192) * d
    biases_and_norms = layers * (3 * d + d + 4 * d + d + 4 * d) + 2 * d
    assert sum(p.numel() for p in model.parameters()) == matrices + tables + heads + biases_and_norms
    assert config.text_len + config.n_image == 1280 and d // config.n_head == 64


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t, i: (t[:, :5], i), "expected text of shape"),
        (lambda t, i: (t.clamp(min=0), i), "end in -1"),
        (lambda t, i: (t.where(t < 0, 20), i), "made by the model's own tokenizer"),
        (lambda t, i: (t, i[:, :11]), "expected image codes of shape"),
        (lambda t, i: (t, i + 7), "image codes must lie in"),
    ],
)
def test_input_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DALLE(CONFIG)(*change(*batch()))


def test_image_tokens_can_start_as_projections_of_the_codebook():
    config = dataclasses.replace(CONFIG, codebook_size=50, n_embd=64)
    codebook = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 9) + 5
    codebook[7] = codebook[3]
    codebook[9] = (codebook[1] + codebook[2]) / 2
    torch.manual_seed(0)
    model = DALLE(config)
    text_before = model.embed.text_token.weight.clone()
    model.start_from_codebook(codebook, std=0.3)
    read, predicted = model.embed.image_token.weight, model.image_head.weight
    for weight in (read, predicted):
        assert 0.2 < weight.std() < 0.4 and weight.requires_grad
        torch.testing.assert_close(weight[7], weight[3])  # codes that paint the same
        torch.testing.assert_close(weight[9], (weight[1] + weight[2]) / 2)  # the map is linear
        assert torch.linalg.matrix_rank(weight) == 8
    assert not torch.allclose(read, predicted)  # two projections, as the two are untied
    assert torch.equal(model.embed.text_token.weight, text_before)


def test_keys_and_values_are_kept_for_who_asks():
    model, kept = lively().eval(), []
    text, codes = batch()
    stream = torch.cat([model.embed.text(text), model.embed.image(codes)], dim=1)
    assert torch.equal(model.run(stream, kept), model.run(stream))
    assert [tuple(part.shape) for pair in kept for part in pair] == [(2, 2, 18, 8)] * 6
    attn, x = model.blocks[0].attn, model.blocks[0].ln_1(stream)
    _, *keys_and_values = attn.qkv(x).chunk(3, dim=-1)
    for mine, part in zip(kept[0], keys_and_values):
        torch.testing.assert_close(mine, part.unflatten(2, (2, 8)).transpose(1, 2))


def test_a_codebook_may_have_two_codes_but_not_one():
    for codes in (1, 2):
        model = DALLE(dataclasses.replace(CONFIG, codebook_size=codes))
        with contextlib.nullcontext() if codes == 2 else pytest.raises(ValueError, match="a codebook of 1 codes"):
            model.start_from_codebook(torch.randn(codes, 8), std=0.3)


def test_settings_are_checked_before_anything_is_built():
    with pytest.raises(ValueError) as expected:
        dataclasses.replace(CONFIG, kernel_size=4).check()
    with pytest.raises(ValueError) as caught:
        DALLE(dataclasses.replace(CONFIG, kernel_size=4))
    assert str(caught.value) == str(expected.value)


def test_weights_start_at_0_02_and_biases_at_0():
    """But for the projections onto the residual stream, which adds up two of them for each layer."""
    torch.manual_seed(0)
    model = DALLE(dataclasses.replace(CONFIG, n_embd=64, n_layer=8))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.dim() == 2:
            small = name.endswith(("attn.proj.weight", "mlp.2.weight"))
            assert p.std().item() == pytest.approx(0.02 / 16**0.5 if small else 0.02, rel=0.2), name
