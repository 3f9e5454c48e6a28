"""Checks of lesson 03."""

import torch

from checks import exercise, expect, expect_tensor


def _relaxed(logits, u, tau):
    return ((logits - torch.log(-torch.log(u.clamp(1e-9, 1 - 1e-7)))) / tau).softmax(1)


def _gradient(what: str, z, leaf, weights):
    """The gradient of (z * weights).sum() by leaf; `Wrong` if there is none."""
    expect(z.requires_grad, f"{what}: no gradient reaches the argument; something cut it, such as argmax or detach")
    (gradient,) = torch.autograd.grad((z * weights).sum(), leaf, allow_unused=True)
    expect(gradient is not None, f"{what}: no gradient reaches the argument")
    return gradient


@exercise
def check_relaxed_choice(fn):
    for shape, tau, size in (((1, 2), 1.0, 1), ((4, 3), 0.5, 2), ((3, 5), 2.0, 3), ((3, 3), 0.1, 1), ((6, 2), 4.0, 5)):
        logits, u = size * torch.randn(shape), 0.02 + 0.96 * torch.rand(shape)
        what = f"for logits {[round(v, 2) for v in logits[0].tolist()]}, the first of {shape[0]} rows, and tau = {tau}"
        leaf = logits.clone().requires_grad_()
        got = fn(leaf, u.clone(), tau)
        wanted = _relaxed(leaf, u, tau)
        expect_tensor(f"the weights {what}", got, wanted, 1e-4)
        weights = torch.randn(shape)
        of_mine = torch.autograd.grad((wanted * weights).sum(), leaf)[0]
        expect_tensor(f"the gradient {what}", _gradient(what, got, leaf, weights), of_mine, 1e-3)

    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    got = fn(logits.repeat(20_000, 1), torch.rand(20_000, 3), 0.5)
    frequency = torch.bincount(got.argmax(1), minlength=3) / len(got)
    expect_tensor("how often each code has the largest weight", frequency, logits.exp(), 0.02)

    for logits, u in (([2.4, 0.0, 0.0], [1e-5, 0.5, 0.5]), ([-11.0, 0.0, 0.0], [1 - 1e-5, 0.5, 0.5])):
        got = fn(torch.tensor([logits]), torch.tensor([u]), 1.0)
        wanted = _relaxed(torch.tensor([logits]), torch.tensor([u]), 1.0)
        what = f"for logits {logits}, u = {u} and tau = 1 (a u that is only near 0 or 1 must stay as it is)"
        expect_tensor(f"the weights {what}", got, wanted, 0.02)

    for u in ([0.0, 0.5, 0.5], [1.0, 0.5, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 0.3], [1 - 2**-24, 2**-24, 0.5]):
        for logits in ([0.0, 0.0, 0.0], [1e4, 0.0, -1e4], [1e4, 1e4, 0.0]):
            for tau in (1.0, 1 / 16):
                leaf = torch.tensor([logits, logits]).requires_grad_()
                got = fn(leaf, torch.tensor([u, [0.2, 0.4, 0.6]]), tau)
                what = f"for logits {logits}, u = {u} and tau = {tau}"
                expect(bool(got.isfinite().all()), f"{what}: expected finite weights, got {got[0].tolist()}")
                expect_tensor(f"the sums of the weights {what}", got.sum(1), torch.ones(2), 1e-4)
                gradient = _gradient(what, got, leaf, torch.tensor([1.0, 2.0, 3.0]))
                expect(bool(gradient.isfinite().all()), f"{what}: expected a finite gradient, got {gradient.tolist()}")


@exercise
def check_straight_through(fn):
    for shape in ((1, 2), (5, 3), (3, 8), (2, 40)):
        soft = torch.randn(shape).softmax(1).requires_grad_()
        row = [round(v, 3) for v in soft[0].tolist()[:8]]
        what = f"for soft {row}{' …' if shape[1] > 8 else ''}, the first of {shape[0]} rows"
        hard = torch.nn.functional.one_hot(soft.argmax(1), shape[1]).float()
        given = soft * 1  # no leaf, as it would be in a model
        got = fn(given)
        expect_tensor(f"the values {what}", got, hard, 1e-5)
        expect_tensor(f"your argument afterwards, {what}", given, soft)
        weights = torch.randn(shape)
        gradient = _gradient(what, got, soft, weights)
        expect_tensor(f"the gradient of (z * weights).sum() by soft, {what}", gradient, weights, 1e-5)
