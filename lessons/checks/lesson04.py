"""Checks of lesson 04."""

import math

import torch

from checks import exercise, expect, expect_tensor


@exercise
def check_logit_laplace(fn):
    def by_formula(x, mu, ln_b):
        wanted = torch.empty_like(x)
        for i in range(x.numel()):
            v, m, b = x.flatten()[i].item(), mu.flatten()[i].item(), math.exp(ln_b.flatten()[i].item())
            wanted.view(-1)[i] = abs(math.log(v / (1 - v)) - m) / b + math.log(2 * b * v * (1 - v))
        return wanted

    for x, mu, ln_b in ((0.2, 1.0, 0.0), (0.5, 0.0, 0.0), (0.9, 0.0, 0.0), (0.2, 1.0, -1.5), (0.9, -2.0, 1.0)):
        given = [torch.tensor([value], dtype=torch.float64) for value in (x, mu, ln_b)]
        what = f"the price of x = {x} under mu = {mu}, ln b = {ln_b}"
        got, wanted, ln_slope = fn(*(t.clone() for t in given)), by_formula(*given), math.log(x * (1 - x))
        for wrong, why in (
            (-wanted, "all signs are turned: the price is -ln f, not ln f"),
            (wanted - 2 * ln_slope, "ln(x (1 - x)) has the wrong sign: f is divided by x (1 - x)"),
            (wanted - ln_slope, "ln(x (1 - x)), the slope, is missing"),
        ):
            numbers = f"expected {wanted.item():.6g}, got {wrong.item():.6g}"
            expect(not _same(got, wrong), f"{what}: {numbers}; {why}")
        expect_tensor(what, got, wanted)
    for shape in ((2, 3, 4, 5), (7,)):
        x, mu, ln_b = 0.1 + 0.8 * torch.rand(shape), 2 * torch.randn(shape), torch.randn(shape)
        expect_tensor(
            f"for tensors of shape {shape}", fn(x.clone(), mu.clone(), ln_b.clone()), by_formula(x, mu, ln_b), 1e-4
        )
    far = [torch.tensor([value]) for value in (0.1, 60.0, -3.0)]
    expect_tensor("for x = 0.1, far from mu = 60, with ln b = -3", fn(*(t.clone() for t in far)), by_formula(*far))
    x = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for mu, ln_b in ((0.5, -0.5), (-1.0, -2.0)):
        area = torch.exp(-fn(x.clone(), torch.full_like(x, mu), torch.full_like(x, ln_b))).mean().item()
        expect(abs(area - 1) < 1e-3, f"the area under f for mu = {mu}, ln b = {ln_b}: expected 1, got {area:.4g}")


def _same(got, wanted) -> bool:
    fits = isinstance(got, torch.Tensor) and got.shape == wanted.shape
    return fits and torch.allclose(got.double(), wanted, rtol=0, atol=1e-5)


@exercise
def check_kl_to_prior(fn):
    def grid(*logits):
        return torch.tensor(logits).view(1, -1, 1, 1)

    even = torch.zeros(1, 5, 2, 3)
    expect_tensor("equal logits of 5 codes tell nothing", fn(even.clone()), torch.zeros(1, 2, 3))
    third = math.log(6 / 2)  # two of six codes, equally likely
    expect_tensor(
        "two of 6 codes equally likely", fn(grid(30.0, 30.0, 0.0, 0.0, 0.0, 0.0)), torch.full((1, 1, 1), third)
    )
    q = (0.5, 0.25, 0.125, 0.125)
    wanted = sum(p * math.log(4 * p) for p in q)
    got = fn(torch.tensor(q).log().view(1, 4, 1, 1))
    expect_tensor(f"q = {q}", got, torch.full((1, 1, 1), wanted))
    for shape in ((2, 7, 3, 4), (3, 4, 5, 2)):
        logits = 2 * torch.randn(shape)
        p = logits.double().softmax(1)
        wanted = (p * (p * shape[1]).log()).sum(1).float()
        expect_tensor(f"for logits of shape {shape}", fn(logits.clone()), wanted)
    certain = grid(1000.0, 0.0, -1000.0)
    expect_tensor("logits of 1000, 0 and -1000", fn(certain.clone()), torch.full((1, 1, 1), math.log(3)))
