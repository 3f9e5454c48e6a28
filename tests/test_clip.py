"""CLIP: the released names and shapes, the formulas against public layers and brute force, hard negatives, ranking."""

import math
import random
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minidalle.clip import CLIP, PIXEL_MEAN, PIXEL_STD, QuickGELU, Transformer, neighbours, sinusoids
from minidalle.config import CLIPConfig
from minidalle.data import scenes, shapes

KEYS = Path(__file__).parent / "keys" / "clip.txt"
TOY = CLIPConfig(
    embed_dim=12, height=16, width=8, patch=4, image_width=24, image_layers=2, image_heads=3, context=8, vocab_size=31,
    text_width=20, text_layers=3, text_heads=2, quick_gelu=False,
)  # fmt: skip


def toy(seed=0, config=TOY):
    torch.manual_seed(seed)
    model = CLIP(config).eval()
    with torch.no_grad():  # norms and biases start at 1 and 0, which would hide a mix-up
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    text = torch.full((n, 8), -1)
    for i in range(n):
        length = 1 + (3 * i + 2) % 7
        text[i, :length] = torch.randint(0, 30, (length,), generator=g)
    return torch.rand(n, 3, 16, 8, generator=g), text


def test_the_defaults_are_the_released_vit_b_32():
    with torch.device("meta"):
        state = CLIP(CLIPConfig()).state_dict()
    lines = [line.split(maxsplit=1) for line in KEYS.read_text().splitlines() if not line.startswith("#")]
    released = {name: tuple(int(n) for n in shape.strip("[]").split(",") if n) for name, shape in lines}
    assert {name: tuple(value.shape) for name, value in state.items()} == released
    assert len(state) == 302 and sum(value.numel() for value in state.values()) == 151_277_313


def public_blocks(transformer, n_head, quick=False):
    """The same blocks from torch's own layer."""
    for block in transformer.resblocks:
        width = block.ln_1.weight.numel()
        activation = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else F.gelu
        layer = nn.TransformerEncoderLayer(width, n_head, 4 * width, 0.0, activation, batch_first=True, norm_first=True)
        layer.load_state_dict({
            "self_attn.in_proj_weight": block.attn.in_proj_weight, "self_attn.in_proj_bias": block.attn.in_proj_bias,
            "self_attn.out_proj.weight": block.attn.out_proj.weight, "self_attn.out_proj.bias": block.attn.out_proj.bias,
            "linear1.weight": block.mlp.c_fc.weight, "linear1.bias": block.mlp.c_fc.bias,
            "linear2.weight": block.mlp.c_proj.weight, "linear2.bias": block.mlp.c_proj.bias,
            "norm1.weight": block.ln_1.weight, "norm1.bias": block.ln_1.bias,
            "norm2.weight": block.ln_2.weight, "norm2.bias": block.ln_2.bias,
        })  # fmt: skip
        yield layer.train()  # no fast path; dropout is 0


@pytest.mark.parametrize("quick", [False, True])
@torch.no_grad()
def test_both_towers_against_torchs_own_layers(quick):
    model = toy(config=CLIPConfig(**(vars(TOY) | {"quick_gelu": quick})))
    images, text = batch()
    x = (images - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]
    v, cells = model.visual, []
    for r in range(4):  # patches in raster order, each flattened against its filter
        for c in range(2):
            patch = x[:, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            cells.append(torch.einsum("bcij,ocij->bo", patch, v.conv1.weight))
    x = torch.stack([v.class_embedding.expand(len(images), -1), *cells], dim=1) + v.positional_embedding
    x = v.ln_pre(x)
    for layer in public_blocks(v.transformer, 3, quick):
        x = layer(x)
    expected = v.ln_post(x)[:, 0] @ v.proj
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-5)

    rows = []
    for row in text.tolist():  # one caption at a time, nothing behind its end-of-text token
        ids = [i for i in row if i >= 0] + [30]
        x = (model.token_embedding(torch.tensor(ids)) + model.positional_embedding[: len(ids)])[None]
        for layer in public_blocks(model.transformer, 2, quick):
            x = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(len(ids)))
        x = model.ln_final(x)[0, -1] @ model.text_projection
        rows.append(x / x.norm())
    torch.testing.assert_close(model.encode_text(text), torch.stack(rows), atol=1e-5, rtol=1e-5)


def test_features_have_length_one_and_quick_gelu_is_its_formula():
    model, (images, text) = toy(), batch()
    for features in (model.encode_image(images), model.encode_text(text)):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    assert (QuickGELU()(x) - F.gelu(x)).abs().max() < 0.021


def test_the_loss_by_hand():
    model, (images, text) = toy(), batch(4)
    with torch.no_grad():
        a, b = model.encode_image(images).double(), model.encode_text(text).double()
        scale = math.exp(model.logit_scale.item())
        score = [[scale * float(a[i] @ b[j]) for j in range(4)] for i in range(4)]
        log_sum = lambda values: math.log(sum(math.exp(v) for v in values))  # noqa: E731
        rows = sum(log_sum(score[i]) - score[i][i] for i in range(4)) / 4
        columns = sum(log_sum([score[i][j] for i in range(4)]) - score[j][j] for j in range(4)) / 4
    loss = model.loss(images, text)
    assert loss.total.item() == pytest.approx((rows + columns) / 2, rel=1e-4)
    assert loss.accuracy.item() == sum(max(range(4), key=lambda j, i=i: score[i][j]) == i for i in range(4)) / 4


def test_the_loss_does_not_depend_on_the_order_of_the_pairs():
    model, (images, text) = toy(), batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model.loss(images, text).total, model.loss(images[order], text[order]).total)


def test_places_start_as_waves_along_rows_and_columns():
    rows, columns, width = 3, 5, 8
    places = sinusoids(rows, columns, width)
    assert places.shape == (15, 8)
    for r in range(rows):
        for c in range(columns):
            waves = [f(at * w) for at in (r, c) for f in (math.sin, math.cos) for w in (1, 10**-0.5)]
            assert places[r * columns + c].tolist() == pytest.approx([2**0.5 * wave for wave in waves], abs=1e-6)
    start = CLIP(TOY).visual.positional_embedding
    assert (start[0] == 0).all() and torch.equal(start[1:], sinusoids(4, 2, 24))


def test_the_scale_is_capped_at_100_and_starts_at_one_over_007():
    torch.manual_seed(0)
    assert CLIP(TOY).logit_scale.exp().item() == pytest.approx(1 / 0.07)
    model, (images, text) = toy(), batch()
    losses = []
    for value in (100.0, 1000.0):
        model.logit_scale.data.fill_(math.log(value))
        losses.append(model.loss(images, text).total.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_an_equal_caption_is_not_a_wrong_answer():
    model, (images, text) = toy(), batch(3)
    text[2] = text[0]
    with torch.no_grad():
        logits = model.logit_scale.exp() * model.encode_image(images) @ model.encode_text(text).T
        logits[0, 2] = logits[2, 0] = -math.inf
        expected = (F.cross_entropy(logits, torch.arange(3)) + F.cross_entropy(logits.T, torch.arange(3))) / 2
    torch.testing.assert_close(model.loss(images, text).total, expected)


def test_a_caption_is_read_to_its_end_and_not_beyond():
    model, (_, text) = toy(), batch()
    before = model.encode_text(text)
    n = int((text[1] >= 0).sum())
    assert 0 < n < 7
    for at in range(n):  # every token counts
        changed = text.clone()
        changed[1, at] = (changed[1, at] + 1) % 30
        assert not torch.equal(model.encode_text(changed)[1], before[1])
    longer = F.pad(text, (0, 0))
    longer[1, n + 1 :] = -1
    assert torch.equal(model.encode_text(longer), before)


def test_rank_is_the_cosine_and_refuses_nothing():
    model, (images, text) = toy(), batch()
    scores = model.rank(text[0], images)
    expected = F.cosine_similarity(model.encode_image(images), model.encode_text(text[:1]))
    torch.testing.assert_close(scores, expected)
    with pytest.raises(ValueError, match="no picture to rank"):
        model.rank(text[0], images[:0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode_image(torch.rand(2, 3, 8, 16)), r"expected images \(B, 3, 16, 8\), got \(2, 3, 8, 16\)"),
        (lambda m: m.encode_text(torch.zeros(2, 9, dtype=torch.int64)), r"expected text \(B, 8\)"),
        (lambda m: m.encode_text(torch.full((1, 8), 3)), "end in -1"),
        (lambda m: m.encode_text(torch.tensor([[3] * 6 + [-1, 3]])), "end in -1"),
        (lambda m: m.encode_text(torch.tensor([[30] + [-1] * 7])), "model's own tokenizer"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(toy())


@pytest.mark.parametrize("change, message", [
    ({"text_heads": 3}, "text_width 20 must be a multiple of text_heads 3"), ({"patch": 3}, "cut into patches"),
    ({"image_width": 22, "image_heads": 2}, "image_width 22 must be a multiple of 4"),
])  # fmt: skip
def test_a_config_that_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        CLIP(CLIPConfig(**(vars(TOY) | change)))


# --- hard negatives --------------------------------------------------------------------------------------------------


def differ_in_one_place(a: str, b: str) -> bool:
    """Brute force: equal but for one or two neighbouring words of each."""
    a, b = a.split(), b.split()
    start = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[start:], b[start:]
    while rest_a and rest_b and rest_a[-1] == rest_b[-1] and (len(rest_a) > 1 and len(rest_b) > 1):
        rest_a.pop(), rest_b.pop()
    something_stays = len(rest_a) < len(a) and len(rest_b) < len(b)
    return something_stays and 1 <= len(rest_a) <= 2 and 1 <= len(rest_b) <= 2


def reordered(a: str, b: str) -> bool:
    return a != b and sorted(a.split()) == sorted(b.split())


def test_neighbours_by_brute_force():
    captions = [
        "a red cat",
        "a blue cat",
        "a red dog",
        "a blue fox",
        "cat a red",
        "a big red cat",
        "a red cat",
        "an owl",
        "x",
    ]
    near = neighbours(captions)
    seen = {c: {n for s in range(300) for n in near(c, 9, random.Random(s))} for c in captions}
    for c in captions:
        assert seen[c] == {o for o in captions if o != c and (differ_in_one_place(c, o) or reordered(c, o))}, c
    assert seen["x"] == set() and "cat a red" in seen["a red cat"] and "a big red cat" not in seen["a red dog"]


@pytest.mark.parametrize("world", [shapes, scenes])
def test_a_group_differs_in_one_way_and_never_holds_the_same_picture_or_a_held_out_one(world):
    train = world.captions("train")
    near, known, rng = neighbours(train), set(train), random.Random(0)
    orders = swaps = 0
    for caption in rng.choices(train, k=600):
        group = near(caption, 3, rng)
        assert 1 <= len(group) <= 3 and len({caption, *group}) == len(group) + 1 and set(group) <= known
        if all(reordered(caption, other) for other in group):
            orders += 1
        else:
            assert all(differ_in_one_place(a, b) for a in group for b in (caption, *group) if a != b)
        if world is scenes:
            scene = scenes.parse(caption)
            assert scene.turned.caption not in group
            swaps += scene.swapped.caption in group
    if world is scenes:
        assert 0.15 < orders / 600 < 0.35 and swaps > 60
    else:
        assert orders == 0


def test_words_in_another_order_are_found_whatever_they_are():
    captions = [" ".join(p) for p in permutations("abcde")]
    near = neighbours(captions)
    found = {c for seed in range(4000) for c in near("a b c d e", 3, random.Random(seed))}
    assert found == set(captions) - {"a b c d e"}


def test_a_few_updates_teach_it_colours():
    torch.manual_seed(0)
    config = CLIPConfig(**(vars(TOY) | {"width": 16}))
    model = CLIP(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], np.float32)
    text = torch.full((4, 8), -1)
    text[:, 0] = torch.arange(4)
    g, losses = torch.Generator().manual_seed(0), []
    for _ in range(60):
        images = torch.from_numpy(colours)[:, :, None, None] * (0.7 + 0.3 * torch.rand(4, 3, 16, 16, generator=g))
        loss = model.loss(images, text)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.total.item())
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0] and loss.accuracy == 1


def test_weights_start_as_strong_as_the_release_says():
    """Deviations of its text tower, for width 64 and five layers; biases of the residual projections at 0."""
    torch.manual_seed(0)
    for block in Transformer(64, 5, 2, True, False).resblocks:
        for weight, std in (
            (block.attn.out_proj.weight, 64**-0.5 * 10**-0.5),
            (block.mlp.c_fc.weight, 128**-0.5),
            (block.mlp.c_proj.weight, 64**-0.5 * 10**-0.5),
        ):
            assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert not block.attn.out_proj.bias.any()
