"""Checks of lesson 11."""

import torch

from checks import Wrong, exercise, expect, expect_tensor
from kernels.reference import attention, dense_mask


def _run(what, fn, *arguments):
    """fn(*arguments); what it raises is told with the case, `what`, in which it did."""
    try:
        return fn(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Wrong(f"{what}: your function raised {type(error).__name__}: {error}") from None


def _unchanged(names, arguments, before):
    for name, x, y in zip(names, arguments, before):
        same = torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
        expect(same, f"your function changed its argument {name}: make a new tensor instead of writing into it")


def _fold_case(fn, what, scores, values, widths):
    """Fold the tiles in one by one; after each, m, l and acc must be those of all keys so far."""
    kept = (torch.full((len(scores),), -torch.inf), torch.zeros(len(scores)), torch.zeros(len(scores), values.shape[1]))
    end = 0
    for number, width in enumerate(widths, 1):
        start, end = end, end + width
        arguments = (*kept, scores[:, start:end].clone(), values[start:end].clone())
        before = [x.clone() for x in arguments]
        got = _run(f"{what}, tile {number}", fn, *arguments)
        triple = isinstance(got, (tuple, list)) and len(got) == 3
        expect(triple, f"expected three tensors, m, l and acc, got {type(got).__name__}")
        _unchanged(("m", "l", "acc", "s", "v"), arguments, before)
        s, v = scores[:, :end].double(), values[:end].double()
        m = s.amax(1)
        p = torch.exp(s - m.masked_fill(m == -torch.inf, 0)[:, None])
        kept = tuple(x.float() for x in (m, p.sum(1), p @ v))
        for name, x, y in zip(("m", "l", "acc"), got, kept):
            expect_tensor(f"{what}, {name} after tile {number}", x, y)


@exercise
def check_fold_tile(fn):
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    _fold_case(fn, "one query, scores 1, 2, then 5, 0", torch.tensor([[1.0, 2, 5, 0]]), torch.eye(4)[:, :2], [2, 2])
    _fold_case(fn, "4 queries, 3 tiles of 5 keys", draw(4, 15), draw(15, 3), [5, 5, 5])
    _fold_case(fn, "scores that fall", draw(3, 12) - 4 * torch.arange(12), draw(12, 3), [3, 3, 6])
    _fold_case(fn, "scores that grow to some hundreds", draw(6, 12) + 40 * torch.arange(12), draw(12, 2), [4, 4, 4])
    hidden = draw(5, 12)
    hidden[1:3, :8], hidden[2:, 8:], hidden[4, 4:8] = -torch.inf, -torch.inf, -torch.inf
    _fold_case(fn, "queries that see nothing in some tiles", hidden, draw(12, 5), [4, 4, 4])


def _queries(kind, text_len, grid, rows, D, scale, seed, spare=5):
    """q, k, v, do, lse, delta, mask in float64, `spare` rows of NaN behind k and v; and dq by autograd."""
    mask = dense_mask(kind, text_len, grid, rows, kernel_size=3)
    q, k, v, do = torch.randn(4, len(mask), D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q.requires_grad_()
    o = attention(*(x[None, None] for x in (q, k, v)), mask, scale)[0, 0]
    (dq,) = torch.autograd.grad(o, q, do)
    q, o = q.detach(), o.detach()
    lse = (scale * q @ k.T).masked_fill(~mask, -torch.inf).logsumexp(1)
    k, v = (torch.cat([x, x.new_full((spare, D), torch.nan)]) for x in (k, v))
    return (q, k, v, do, lse, (o * do).sum(1), mask), dq


def _call(what, fn, inputs, scale, block):
    arguments = [x.clone() for x in inputs]
    got = _run(what, fn, *arguments, scale, block)
    _unchanged(
        ("q", "k", "v", "do", "lse", "delta", "mask"), [x.double() for x in arguments], [x.double() for x in inputs]
    )
    return got


@exercise
def check_grad_queries(fn):
    for seed, (kind, text_len, grid, rows, D, scale, block) in enumerate(
        [
            ("causal", 4, 2, 2, 3, 0.5, 4),
            ("row", 16, 8, 4, 8, 0.3, 16),
            ("column", 5, 4, 4, 4, 1.0, 8),
            ("conv", 13, 8, 5, 16, 0.25, 16),
        ]
    ):
        inputs, dq = _queries(kind, text_len, grid, rows, D, scale, seed)
        what = f"{kind} mask, T = {len(dq)}, D = {D}, tiles of {block}, NaN in k and v behind T"
        expect_tensor(what, _call(what, fn, inputs, scale, block), dq)
        mask = inputs[-1]
        for n0 in range(0, len(dq), block):
            dead = [m0 for m0 in range(0, len(dq), block) if not mask[m0 : m0 + block, n0 : n0 + block].any()]
            if not dead:
                continue
            poisoned = [x.clone() for x in inputs]
            poisoned[1][n0 : n0 + block] = poisoned[2][n0 : n0 + block] = torch.nan
            keys = f"keys {n0} … {min(n0 + block, len(dq)) - 1}"
            got = _call(f"{kind} mask, tiles of {block}, NaN in {keys}", fn, poisoned, scale, block)
            for m0 in dead:
                rows_of_tile = slice(m0, min(m0 + block, len(dq)))
                queries = f"queries {m0} … {rows_of_tile.stop - 1}"
                what = f"{kind} mask, tiles of {block}, NaN in {keys}, which {queries} do not see: dq of these queries"
                expect_tensor(what, got[rows_of_tile], dq[rows_of_tile])
