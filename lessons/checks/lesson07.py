"""Checks of lesson 07."""

import math

import torch
import torch.nn.functional as F

from checks import Wrong, exercise, expect, expect_number, expect_tensor


def _map(T: int, C: int, mix: bool = False):
    """A function (B, T, C) -> (B, T, C) with weights of its own, not linear; it mixes positions if `mix`."""
    weight, shift = torch.randn(C, C) / C**0.5, torch.randn(C)
    among = torch.softmax(torch.randn(T, T), dim=1) if mix else torch.eye(T)
    return lambda x: torch.tanh(among @ x @ weight + shift)


@exercise
def check_block(fn):
    zero = torch.zeros_like
    x = torch.randn(2, 3, 4)
    got = fn(x.clone(), *[zero] * 4)
    expect_tensor("where both branches return 0, x must come out as it went in", got, x)
    for B, T, C in ((1, 2, 3), (2, 5, 4), (3, 1, 6)):
        x = torch.randn(B, T, C)
        ln_1, attend, ln_2, think = _map(T, C), _map(T, C, mix=True), _map(T, C), _map(T, C)
        half = x + attend(ln_1(x))
        given = x.clone()
        what = f"x of shape {(B, T, C)}"
        expect_tensor(f"{what}, with an MLP that returns 0", fn(x.clone(), ln_1, attend, ln_2, zero), half)
        got, parallel = fn(given, ln_1, attend, ln_2, think), half + think(ln_2(x))
        same = isinstance(got, torch.Tensor) and got.shape == x.shape and torch.allclose(got, parallel, atol=1e-5)
        expect(
            not same, f"{what}: both branches read the same x; the MLP must read what attention has already added to"
        )
        expect_tensor(what, got, half + think(ln_2(half)))
        expect(torch.equal(given, x), f"{what}: the caller's x was changed; write x = x + ..., not x += ...")


@exercise
def check_text_targets(fn):
    for text in (
        [[5, 0, 7, -1, -1, -1]],
        [[3, 1, 0, 4, 2, -1], [0, 0, -1, -1, -1, -1], [9, -1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]],
        [[8, 6, -1], [-1, -1, -1]],
        [[1, 2, 3, 4, -1, -1, -1, -1, -1], [7, 0, 0, 5, 0, 1, 2, 0, -1]],
    ):
        what, given = f"the text {text}", torch.tensor(text)
        got = fn(given)
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        expect(pair, f"expected two tensors, targets and real, got {type(got).__name__}")
        expect(given.tolist() == text, f"the caller's text was changed: {text} became {given.tolist()}")
        targets, real = got
        wanted = torch.tensor([row[1:-1] for row in text])
        _expect_bool(f"real of {what}", real, wanted != -1)
        expect(isinstance(targets, torch.Tensor), f"targets of {what}: expected a tensor, got {type(targets).__name__}")
        shape = tuple(targets.shape)
        expect(shape == tuple(wanted.shape), f"targets of {what}: expected shape {tuple(wanted.shape)}, got {shape}")
        expect_tensor(f"the real targets of {what}", targets[wanted != -1], wanted[wanted != -1])


def _expect_bool(what, got, wanted):
    """`expect_tensor` for truths, which are to be shown as True and False."""
    expect(isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {type(got).__name__} ({got!r:.60})")
    expect(got.shape == wanted.shape, f"{what}: expected shape {tuple(wanted.shape)}, got {tuple(got.shape)}")
    expect(got.dtype == torch.bool, f"{what}: expected dtype torch.bool, got {got.dtype}")
    for at in (got != wanted).nonzero().tolist():
        raise Wrong(f"{what}: expected {wanted[tuple(at)].item()} at {at}, got {got[tuple(at)].item()}")


@exercise
def check_weighted_loss(fn):
    cases = (  # targets, number of codes in a picture, V, K, text_weight (None: the default, 1/8)
        ([[1, 0, 2], [3, -1, -1]], 4, 5, 7, None),
        ([[0, 0, 4, 1], [2, -1, -1, -1], [-1, -1, -1, -1]], 2, 6, 3, None),
        ([[2, 1], [0, -1]], 5, 3, 9, 0.02),
        ([[-1, -1], [-1, -1]], 3, 4, 4, None),
    )
    for rows, M, V, K, weight in cases:
        targets = torch.tensor(rows)
        B, N = targets.shape
        codes = torch.randint(K, (B, M))
        weights, share = ((), 1 / 8) if weight is None else ((weight,), weight)
        for size in (0.0, 2.0):  # logits of 0 know nothing: ln V and ln K
            text_logits, image_logits = size * torch.randn(B, N, V), size * torch.randn(B, M, K)
            what = f"targets {rows}, text_weight {share}, {'random' if size else 'equal'} logits"
            text_logits.requires_grad_(), image_logits.requires_grad_()
            got = fn(text_logits, image_logits, targets.clone(), codes.clone(), *weights)
            triple = isinstance(got, (tuple, list)) and len(got) == 3
            expect(triple, f"expected three numbers, total, text and image, got {type(got).__name__}")
            prices = [
                -F.log_softmax(text_logits[b, n].detach().double(), dim=0)[token].item()
                for b, row in enumerate(rows)
                for n, token in enumerate(row)
                if token != -1
            ]
            text = math.fsum(prices) / max(1, len(prices))
            ln_p = F.log_softmax(image_logits.detach().double(), dim=2)
            image = -sum(ln_p[b, m, codes[b, m]].item() for b in range(B) for m in range(M)) / (B * M)
            expect_number(f"text, {what}", _value(got[1]), text)
            expect_number(f"image, {what}", _value(got[2]), image)
            expect_number(f"total, {what}", _value(got[0]), share * text + (1 - share) * image)
            learns = isinstance(got[0], torch.Tensor) and got[0].requires_grad
            expect(learns, "the total has no gradient, so nothing could be learned from it: keep it a tensor")


def _value(got):
    return got.detach() if isinstance(got, torch.Tensor) else got
