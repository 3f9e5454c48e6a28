"""Plausible wrong answers to the exercises of lesson 08: each must fail its check."""

import torch


def top_p_not_rescaled(probs, p):
    return _kept(probs, p, lambda before, ranked: before < p)


def top_p_one_too_few(probs, p):  # stops before p is passed
    kept = _kept(probs, p, lambda before, ranked: before + ranked <= p)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_one_too_many(probs, p):
    kept = _kept(probs, p, lambda before, ranked: before <= p)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_keeps_ties_with_the_last(probs, p):
    kept = _kept(probs, p, lambda before, ranked: before < p)
    least = kept.masked_fill(kept == 0, 2.0).min(dim=1, keepdim=True).values
    kept = torch.where(probs >= least, probs, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_left_in_order_of_probability(probs, p):
    ranked = probs.sort(dim=1, descending=True, stable=True).values
    kept = torch.where(ranked.cumsum(dim=1) - ranked < p, ranked, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_gathered_instead_of_scattered(probs, p):
    ranked, order = probs.sort(dim=1, descending=True, stable=True)
    kept = torch.where(ranked.cumsum(dim=1) - ranked < p, ranked, 0.0)
    kept = kept / kept.sum(dim=1, keepdim=True)
    return kept.gather(1, order)


def top_p_never_sorted(probs, p):
    kept = torch.where(probs.cumsum(dim=1) - probs < p, probs, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_of_each_code(probs, p):  # takes p for the least probability of one code
    kept = torch.where(probs >= probs.amax(dim=1, keepdim=True) * (1 - p), probs, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_same_codes_in_every_row(probs, p):
    order = probs[0].argsort(descending=True, stable=True)
    ranked = probs[:, order]
    kept = torch.where(ranked.cumsum(dim=1) - ranked < p, ranked, 0.0)[:, order.argsort()]
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_in_place(probs, p):
    kept = _kept(probs, p, lambda before, ranked: before < p)
    probs.copy_(kept / kept.sum(dim=1, keepdim=True))
    return probs


def top_p_rounding_cuts_at_1(probs, p):
    kept = _kept(probs, p, lambda before, ranked: before < p)
    return kept / kept.sum(dim=1, keepdim=True)


def top_p_softmax_again(probs, p):
    kept = _kept(probs, p, lambda before, ranked: before < p)
    return kept.masked_fill(kept == 0, float("-inf")).softmax(dim=1)


def cached_step_without_itself(x, keys, values, w_q, w_k, w_v):
    y, more_keys, more_values = _step(x, keys, values, w_q, w_k, w_v)
    if keys.shape[1]:
        y = _read(x @ w_q, keys, values, w_q.shape[1] ** 0.5)
    return y, more_keys, more_values


def cached_step_without_scale(x, keys, values, w_q, w_k, w_v):
    _, keys, values = _step(x, keys, values, w_q, w_k, w_v)
    return _read(x @ w_q, keys, values, 1.0), keys, values


def cached_step_scale_of_the_states(x, keys, values, w_q, w_k, w_v):
    _, keys, values = _step(x, keys, values, w_q, w_k, w_v)
    return _read(x @ w_q, keys, values, x.shape[1] ** 0.5), keys, values


def cached_step_cache_not_returned(x, keys, values, w_q, w_k, w_v):
    return _step(x, keys, values, w_q, w_k, w_v)[0], keys, values


def cached_step_only_y(x, keys, values, w_q, w_k, w_v):
    return _step(x, keys, values, w_q, w_k, w_v)[0]


def cached_step_new_first(x, keys, values, w_q, w_k, w_v):
    keys = torch.cat([(x @ w_k)[:, None], keys], dim=1)
    values = torch.cat([(x @ w_v)[:, None], values], dim=1)
    return _read(x @ w_q, keys, values, w_q.shape[1] ** 0.5), keys, values


def cached_step_forgets_the_oldest(x, keys, values, w_q, w_k, w_v):
    _, keys, values = _step(x, keys, values, w_q, w_k, w_v)
    return _read(x @ w_q, keys[:, -4:], values[:, -4:], w_q.shape[1] ** 0.5), keys[:, -4:], values[:, -4:]


def cached_step_key_for_value(x, keys, values, w_q, w_k, w_v):
    return _step(x, keys, values, w_q, w_k, w_k)


def cached_step_softmax_over_the_batch(x, keys, values, w_q, w_k, w_v):
    _, keys, values = _step(x, keys, values, w_q, w_k, w_v)
    scores = (keys @ (x @ w_q)[:, :, None])[:, :, 0] / w_q.shape[1] ** 0.5
    return (scores.softmax(dim=0)[:, None] @ values)[:, 0], keys, values


def _kept(probs, p, keep):  # to build wrong ones on
    ranked, order = probs.sort(dim=1, descending=True, stable=True)
    kept = torch.where(keep(ranked.cumsum(dim=1) - ranked, ranked), ranked, 0.0)
    return torch.zeros_like(probs).scatter(1, order, kept)


def _read(q, keys, values, scale):
    scores = (keys @ q[:, :, None])[:, :, 0] / scale
    return (scores.softmax(dim=1)[:, None] @ values)[:, 0]


def _step(x, keys, values, w_q, w_k, w_v):
    keys = torch.cat([keys, (x @ w_k)[:, None]], dim=1)
    values = torch.cat([values, (x @ w_v)[:, None]], dim=1)
    return _read(x @ w_q, keys, values, w_q.shape[1] ** 0.5), keys, values
