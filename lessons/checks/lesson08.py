"""Checks of lesson 08."""

import torch

from checks import exercise, expect, expect_tensor


def _top_p(row, p):
    """One row by hand: pick the likeliest code that is left until those picked have probability p."""
    left, picked, total = list(range(len(row))), [], 0.0
    while left and total < p:
        code = max(left, key=lambda k: (row[k], -k))
        left.remove(code)
        picked.append(code)
        total += row[code]
    return [row[k] / total if k in picked else 0.0 for k in range(len(row))]


@exercise
def check_top_p(fn):
    cases = [  # what is special; rows; p. Sums of these numbers are exact, so that no rounding decides
        ("", [[0.5, 0.25, 0.125, 0.125]], 0.6),
        ("two codes reach p exactly", [[0.5, 0.25, 0.125, 0.125]], 0.75),
        ("not in order", [[0.125, 0.5, 0.0, 0.375], [0.25, 0.0625, 0.6875, 0.0]], 0.7),
        ("the first alone is more than p", [[0.125, 0.625, 0.25]], 0.05),
        ("equal codes: the lower number first", [[0.25, 0.25, 0.25, 0.25], [0.125, 0.375, 0.125, 0.375]], 0.5),
        ("p = 1 keeps all", [[0.5, 0.0, 0.25, 0.25], [0.125, 0.125, 0.125, 0.625]], 1.0),
    ]
    cases += [(f"p {p}", (torch.randn(5, 40) * 2).softmax(1).tolist(), p) for p in (0.3, 0.7, 0.95)]
    for special, rows, p in cases:
        probs = torch.tensor(rows)
        wanted = torch.tensor([_top_p(row, p) for row in rows])
        given = probs.clone()
        got = fn(given, p)
        what = f"probs {rows}, p {p}" if len(rows) < 5 else f"5 rows of 40 codes, {special}"
        expect_tensor(what + (f" ({special})" if special and len(rows) < 5 else ""), got, wanted)
        expect(torch.equal(given, probs), f"{what}: your function changed its input; make a new tensor")
    almost_certain = [[1e-8, 1.0, 1e-9]]  # in float32 the sum is 1 as soon as the middle one is in it
    got = fn(torch.tensor(almost_certain), 1.0)
    expect_tensor(f"probs {almost_certain}, p 1.0", got, torch.tensor(almost_certain))
    for code in (got[0] == 0).nonzero().flatten().tolist():
        what = f"probs {almost_certain}, p 1.0: p = 1 keeps all, but code {code} was lost to rounding"
        expect(False, f"{what}; if p is 1, return probs as they are")


def _attend_all(x, w_q, w_k, w_v):
    q, k, v = x @ w_q, x @ w_k, x @ w_v  # (B, T, D) each
    T, D = q.shape[1:]
    y = torch.empty_like(q)
    for t in range(T):  # position by position, so that this is not what the lesson does
        weights = (q[:, t, None] * k[:, : t + 1]).sum(2).div(D**0.5).softmax(1)  # (B, t + 1)
        y[:, t] = (weights[:, :, None] * v[:, : t + 1]).sum(1)
    return y, k, v


@exercise
def check_cached_step(fn):
    for B, T, C, D in ((1, 4, 4, 4), (3, 6, 5, 2)):
        x, (w_q, w_k, w_v) = torch.randn(B, T, C), torch.randn(3, C, D)
        y, keys, values = _attend_all(x, w_q, w_k, w_v)
        for t in range(T):
            what = f"B {B}, C {C}, D {D}, {t} positions before this one"
            given = keys[:, :t].clone(), values[:, :t].clone()
            got = fn(x[:, t].clone(), *given, w_q.clone(), w_k.clone(), w_v.clone())
            three = isinstance(got, (tuple, list)) and len(got) == 3
            expect(three, f"{what}: expected three tensors, y, keys and values, got {type(got).__name__}")
            expect_tensor(f"{what}: y", got[0], y[:, t], 1e-4)
            expect_tensor(f"{what}: keys", got[1], keys[:, : t + 1], 1e-4)
            expect_tensor(f"{what}: values", got[2], values[:, : t + 1], 1e-4)
