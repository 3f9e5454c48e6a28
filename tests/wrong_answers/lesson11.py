"""Plausible wrong answers to the exercises of lesson 11: each must fail its check."""

import torch
import torch.nn.functional as F


def fold_tile_without_the_rescale_line(m, l, acc, s, v):
    larger, _, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    return larger, l + p.sum(1), acc + p @ v


def fold_tile_acc_not_rescaled(m, l, acc, s, v):
    larger, shrink, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    return larger, l * shrink + p.sum(1), acc + p @ v


def fold_tile_l_not_rescaled(m, l, acc, s, v):
    larger, shrink, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    return larger, l + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_the_new_tile_rescaled_too(m, l, acc, s, v):
    larger, shrink, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    return larger, (l + p.sum(1)) * shrink, (acc + p @ v) * shrink[:, None]


def fold_tile_shrink_upside_down(m, l, acc, s, v):
    larger, _, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    grow = torch.exp(base - m.masked_fill(m == -torch.inf, 0))
    return larger, l * grow + p.sum(1), acc * grow[:, None] + p @ v


def fold_tile_nan_where_nothing_is_seen(m, l, acc, s, v):
    larger = torch.maximum(m, s.amax(1))
    p, shrink = torch.exp(s - larger[:, None]), torch.exp(m - larger)
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_maximum_of_this_tile_only(m, l, acc, s, v):
    larger = s.amax(1)
    base = larger.masked_fill(larger == -torch.inf, 0)
    p, shrink = torch.exp(s - base[:, None]), torch.exp(m - base)
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_p_from_the_old_maximum(m, l, acc, s, v):
    larger, shrink, _ = _maxima(m, s)
    p = torch.exp(s - m.masked_fill(m == -torch.inf, 0)[:, None])
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_maximum_of_the_whole_tile(m, l, acc, s, v):
    larger = torch.maximum(m, s.max().expand_as(m))
    base = larger.masked_fill(larger == -torch.inf, 0)
    p, shrink = torch.exp(s - base[:, None]), torch.exp(m - base)
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_divided_by_l(m, l, acc, s, v):
    larger, l, acc = _right_fold(m, l, acc, s, v)
    return larger, l, acc / l[:, None]


def fold_tile_as_an_average_of_averages(m, l, acc, s, v):
    larger, l, _ = _right_fold(m, l, acc, s, v)
    return larger, l, (acc + s.softmax(1) @ v) / 2


def fold_tile_in_base_2(m, l, acc, s, v):
    larger, _, base = _maxima(m, s)
    p, shrink = torch.exp2(s - base[:, None]), torch.exp2(m - base)
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def fold_tile_in_place(m, l, acc, s, v):
    larger, shrink, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    acc *= shrink[:, None]
    acc += p @ v
    return larger, l * shrink + p.sum(1), acc


def fold_tile_without_a_maximum(m, l, acc, s, v):
    return torch.maximum(m, s.amax(1)), l + s.exp().sum(1), acc + s.exp() @ v


def fold_tile_wrong_order(m, l, acc, s, v):
    m, l, acc = _right_fold(m, l, acc, s, v)
    return l, m, acc


def grad_queries_without_scale_at_the_end(*inputs):
    return _queries(*inputs) / inputs[7]


def grad_queries_scores_not_scaled(*inputs):
    return _queries(*inputs, score_scale=1.0)


def grad_queries_without_delta(*inputs):
    return _queries(*inputs, ds=lambda p, dp, delta: p * dp)


def grad_queries_delta_outside_the_bracket(*inputs):
    return _queries(*inputs, ds=lambda p, dp, delta: p * dp - delta)


def grad_queries_delta_added(*inputs):
    return _queries(*inputs, ds=lambda p, dp, delta: p * (dp + delta))


def grad_queries_delta_of_this_tile(*inputs):
    return _queries(*inputs, ds=lambda p, dp, delta: p * (dp - (p * dp).sum(1, keepdim=True)))


def grad_queries_ds_transposed(*inputs):
    return _queries(*inputs, product=lambda ds, k: ds.T @ k if len(ds) == len(k) else ds @ k)


def grad_queries_softmax_of_the_tile(*inputs):
    return _queries(*inputs, probabilities=lambda s, lse: s.softmax(1).nan_to_num(0.0))


def grad_queries_in_base_2(*inputs):
    return _queries(*inputs, probabilities=lambda s, lse: torch.exp2(s - lse))


def grad_queries_lse_forgotten(*inputs):
    return _queries(*inputs, probabilities=lambda s, lse: torch.exp(s))


def grad_queries_without_mask(*inputs):
    return _queries(*inputs, masked=False)


def grad_queries_tiles_below_the_diagonal_only(*inputs):
    return _queries(*inputs, live=lambda m0, n0, tile: n0 < m0 and tile.any())


def grad_queries_reads_dead_tiles(*inputs):
    return _queries(*inputs, live=lambda m0, n0, tile: True)


def grad_queries_reads_tiles_left_of_the_diagonal(*inputs):
    return _queries(*inputs, live=lambda m0, n0, tile: n0 <= m0)


def grad_queries_skips_half_dead_tiles(*inputs):
    return _queries(*inputs, live=lambda m0, n0, tile: tile.all())


def grad_queries_the_last_tile_lost(q, k, v, do, lse, delta, mask, scale, block):
    whole = len(q) // block * block
    dq = torch.zeros_like(q)
    dq[:whole] = _queries(*(x[:whole] for x in (q, k, v, do, lse, delta)), mask[:whole, :whole], scale, block)
    return dq


def grad_queries_overwritten_by_each_tile(*inputs):
    return _queries(*inputs, add=False)


def grad_queries_whole_matrices(q, k, v, do, lse, delta, mask, scale, block):
    k, v = k[: len(q)], v[: len(q)]
    p = torch.exp((scale * q @ k.T).masked_fill(~mask, -torch.inf) - lse[:, None])
    return scale * (p * (do @ v.T - delta[:, None])) @ k


def grad_queries_reads_behind_the_end(q, k, v, do, lse, delta, mask, scale, block):
    return _queries(q, k, v, do, lse, delta, F.pad(mask, (0, len(k) - len(q))), scale, block, T=len(k))


def grad_queries_scales_q_in_place(q, *rest):
    right = _queries(q, *rest)
    q *= rest[6]
    return right


def grad_queries_is_that_of_the_keys(q, k, v, do, lse, delta, mask, scale, block):
    p = torch.exp((scale * q @ k[: len(q)].T).masked_fill(~mask, -torch.inf) - lse[:, None])
    return scale * (p * (do @ v[: len(q)].T - delta[:, None])).T @ q


def _maxima(m, s):  # to build wrong ones on: the new maximum, the factor of what was kept, what to subtract
    larger = torch.maximum(m, s.amax(1))
    base = larger.masked_fill(larger == -torch.inf, 0)
    return larger, torch.exp(m - base), base


def _right_fold(m, l, acc, s, v):
    larger, shrink, base = _maxima(m, s)
    p = torch.exp(s - base[:, None])
    return larger, l * shrink + p.sum(1), acc * shrink[:, None] + p @ v


def _queries(
    q, k, v, do, lse, delta, mask, scale, block,
    score_scale=None, masked=True, add=True, T=None,
    live=lambda m0, n0, tile: tile.any(),
    probabilities=lambda s, lse: torch.exp(s - lse),
    ds=lambda p, dp, delta: p * (dp - delta),
    product=lambda ds, k: ds @ k,
):  # fmt: skip
    """The right answer, of which any part can be replaced by a wrong one."""
    T, dq = len(q) if T is None else T, torch.zeros_like(q)
    for m0 in range(0, len(q), block):
        rows = slice(m0, min(m0 + block, len(q)))
        for n0 in range(0, T, block):
            cols = slice(n0, min(n0 + block, T))
            if not live(m0, n0, mask[rows, cols]):
                continue
            s = (scale if score_scale is None else score_scale) * q[rows] @ k[cols].T
            s = s.masked_fill(~mask[rows, cols], -torch.inf) if masked else s
            p = probabilities(s, lse[rows, None])
            tile = product(ds(p, do[rows] @ v[cols].T, delta[rows, None]), k[cols])
            dq[rows] = dq[rows] + tile if add else tile
    return scale * dq
