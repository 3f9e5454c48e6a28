"""Checks of lesson 06."""

import math

import torch

from checks import Wrong, exercise, expect, expect_tensor


def _softmax_of(x, allowed, late=False):
    """Weights (T, T) of a little attention among the rows of x; `late` masks after the softmax."""
    scores = x @ x.T / x.shape[1] ** 0.5
    if late:
        return scores.softmax(dim=1) * allowed
    return scores.masked_fill(~allowed, float("-inf")).softmax(dim=1)


def _attend(mask):
    return lambda x: _softmax_of(x, mask(len(x))) @ x


def _causal(T):
    return torch.ones(T, T, dtype=torch.bool).tril()


def _with(*pairs):
    """The causal mask, but for these pairs (i, j) that may look ahead."""

    def mask(T):
        allowed = _causal(T)
        for i, j in pairs:
            allowed[i, j] = True
        return allowed

    return mask


def _all_before(T, last=None):
    """All pairs (j, i) with i < j, in order; only those with j = last if it is given."""
    return [(j, i) for j in range(T) if last in (None, j) for i in range(j)]


def _of_length_1(f):
    """Divides by the length, with nothing added to it: zeros would become NaN, and NaN is greater than no threshold."""
    return lambda x: f(x / x.norm(dim=1, keepdim=True))


def _normed(f):
    return lambda x: f((x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-5))


@exercise
def check_leaks(fn):
    whole = _attend(lambda T: torch.ones(T, T, dtype=torch.bool))
    weak = lambda x: x.cumsum(dim=0) + 1e-4 * x.roll(-1, 0) * _ends(x)  # noqa: E731
    late = lambda x: _softmax_of(x, _causal(len(x)), late=True) @ x  # noqa: E731
    for what, f, T, wanted in (
        ("a causal attention", _attend(_causal), 6, []),
        ("a function that looks at no other position", lambda x: 2 * x, 5, []),
        ("a running sum", lambda x: x.cumsum(dim=0), 7, []),
        ("a causal attention behind a layer norm", _normed(_attend(_causal)), 6, []),
        ("an attention without a mask", whole, 4, _all_before(4)),
        ("an attention whose mask comes after the softmax", late, 5, _all_before(5)),
        ("an attention that sees one position ahead", _attend(lambda T: _causal(T + 1)[1:, :-1]), 5, None),
        ("an attention of which only position 0 sees only the last", _attend(_with((0, 5))), 6, [(5, 0)]),
        ("an attention with two holes in its mask", _attend(_with((2, 4), (1, 3))), 7, [(3, 1), (4, 2)]),
        ("an attention without a mask behind a layer norm", _normed(whole), 4, _all_before(4)),
        ("a function that looks at no position but the next", lambda x: x.roll(-1, 0) * _ends(x), 5, None),
        ("a running sum and a ten-thousandth of the next position", weak, 6, None),
        ("a sum of |x| over all that follows", lambda x: x.abs().flip(0).cumsum(0).flip(0), 5, _all_before(5)),
        ("an attention without a mask among vectors of length 1", _of_length_1(whole), 4, _all_before(4)),
    ):
        wanted = [(i + 1, i) for i in range(T - 1)] if wanted is None else wanted
        got = fn(f, T, 8)
        listed = isinstance(got, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in got)
        expect(listed, f"{what}, T = {T}: expected a list of pairs, got {got!r:.60}")
        got = [tuple(int(n) for n in pair) for pair in got]
        for pair in sorted({*got} ^ {*wanted}):
            expect(
                pair in got, f"{what}, T = {T}: position {pair[0]} leaks into output {pair[1]}, and {pair} is missing"
            )
            expect(pair[1] < pair[0], f"{what}, T = {T}: {pair} is no leak: list (j, i) with i < j, j having changed")
            expect(pair in wanted, f"{what}, T = {T}: {pair} is no leak, output {pair[1]} does not depend on {pair[0]}")
        expect(got == wanted, f"{what}, T = {T}: expected {wanted} in this order, each once, got {got}")


def _ends(x):
    """1 for all positions but the last, (T, 1)."""
    ends = torch.ones(len(x), 1)
    ends[-1] = 0
    return ends


@exercise
def check_multi_head(fn):
    for B, T, C, n_head, mask in (
        (1, 3, 4, 1, _causal(3)),
        (2, 5, 12, 3, _causal(5)),
        (1, 4, 8, 4, _with((0, 3), (2, 3))(4)),
        (3, 6, 6, 2, torch.eye(6, dtype=torch.bool) | (torch.arange(6) == 0)),
    ):
        x = torch.randn(B, T, C)
        w_q, w_k, w_v, w_o = (torch.randn(C, C) for _ in range(4))
        given = [t.clone() for t in (x, w_q, w_k, w_v, w_o, mask)]
        got = fn(*given[:5], n_head, given[5])
        wanted = _multi_head(x, w_q, w_k, w_v, w_o, n_head, mask)
        try:
            expect_tensor(f"B = {B}, T = {T}, C = {C}, n_head = {n_head}", got, wanted, tolerance=1e-4)
        except Wrong as wrong:
            raise Wrong(f"{wrong}{_mistake(got, x, w_q, w_k, w_v, w_o, n_head, mask)}") from None
        unchanged = all(torch.equal(a, b) for a, b in zip(given, (x, w_q, w_k, w_v, w_o, mask)))
        expect(unchanged, "one of the inputs was changed: compute out of place")


def _mistake(got, x, w_q, w_k, w_v, w_o, n_head, mask) -> str:
    """What `got` is, where it is what a usual mistake gives; else nothing."""
    (B, T, C), D = x.shape, x.shape[2] // n_head
    right = {"mask": mask, "scale": D**-0.5, "cut": True, "join": True}
    for name, changed in (
        ("as without a mask", {"mask": torch.ones_like(mask)}),
        ("as with mask.T", {"mask": mask.T}),
        ("as with the scale of C instead of D", {"scale": C**-0.5}),
        ("as without a scale", {"scale": 1.0}),
        ("heads not cut right: first view as (B, T, H, D), then swap H and T", {"cut": False}),
        ("heads not put together right: swap H and T back before the reshape", {"join": False}),
        ("heads neither cut nor put together right: H and T are not swapped", {"cut": False, "join": False}),
    ):
        how = right | changed
        q, k, v = ((x @ w).view(B, T, n_head, D).transpose(1, 2) for w in (w_q, w_k, w_v))  # (B, H, T, D) each
        if not how["cut"]:
            q, k, v = ((x @ w).view(B, n_head, T, D) for w in (w_q, w_k, w_v))
        scores = (how["scale"] * q @ k.transpose(-2, -1)).masked_fill(~how["mask"], float("-inf"))
        y = scores.softmax(dim=-1) @ v
        y = (y.transpose(1, 2) if how["join"] else y).reshape(B, T, C) @ w_o
        if isinstance(got, torch.Tensor) and got.shape == y.shape and torch.allclose(got.float(), y, 1e-3, 1e-3):
            return f" ({name})"
    return ""


def _multi_head(x, w_q, w_k, w_v, w_o, n_head, mask):
    """By loops over pictures, heads and positions: (B, T, C)."""
    (B, T, C), D = x.shape, x.shape[2] // n_head
    y = torch.zeros(B, T, C)
    for b in range(B):
        for h in range(n_head):
            part = slice(h * D, (h + 1) * D)
            q, k, v = (x[b] @ w[:, part] for w in (w_q, w_k, w_v))  # (T, D) each
            for i in range(T):
                seen = [j for j in range(T) if mask[i, j]]
                weights = torch.stack([q[i] @ k[j] / math.sqrt(D) for j in seen]).softmax(dim=0)
                y[b, i, part] = weights @ v[seen]
    return y @ w_o


@exercise
def check_row_mask(fn):
    for text_len, grid, rows in ((6, 4, 4), (16, 8, 8), (3, 2, 5), (2, 5, 2), (0, 3, 4), (5, 1, 4), (4, 6, 1)):
        got, T = fn(text_len, grid, rows), text_len + rows * grid
        what = f"text_len {text_len}, a grid of {rows} rows and {grid} columns"
        expect(isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {type(got).__name__}")
        expect(got.shape == (T, T), f"{what}: expected shape {(T, T)}, got {tuple(got.shape)}")
        expect(got.dtype == torch.bool, f"{what}: expected dtype torch.bool, got {got.dtype}")
        for i in range(T):
            for j in range(T):
                may = _may_look(i, j, text_len, grid)
                who = f"position {i} ({_name(i, text_len, grid)}) {'must' if may else 'must not'} see {j} "
                expect(bool(got[i, j]) == may, f"{what}: {who}({_name(j, text_len, grid)})")


def _may_look(i, j, text_len, grid):
    if j > i or j < text_len:
        return j <= i
    (r, c), (s, d) = divmod(i - text_len, grid), divmod(j - text_len, grid)
    return s == r or (s == r - 1 and d >= c)


def _name(p, text_len, grid):
    return "text" if p < text_len else "cell ({}, {})".format(*divmod(p - text_len, grid))
