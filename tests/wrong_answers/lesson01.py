"""Plausible wrong answers to the exercises of lesson 01: each must fail its check."""

import math


def shift_not_shifted(streams):
    return streams, streams


def shift_the_wrong_way(streams):
    return streams[:, 1:], streams[:, :-1]


def shift_along_the_batch(streams):
    return streams[:-1], streams[1:]


def shift_rolled(streams):
    return streams, streams.roll(-1, 1)


def stream_nll_mean(counts, tokens):
    total = _right_nll(counts, tokens)
    return total / len(tokens)


def stream_nll_last_token_only(counts, tokens):
    options = counts.get(tuple(tokens[:-1]), {})
    return -math.log(options[tokens[-1]] / sum(options.values())) if tokens[-1] in options else math.inf


def stream_nll_in_bits(counts, tokens):
    return _right_nll(counts, tokens) / math.log(2)


def stream_nll_free_where_unseen(counts, tokens):
    known = [t for t in range(len(tokens)) if tokens[t] in counts.get(tuple(tokens[:t]), {})]
    return sum(-math.log(counts[tuple(tokens[:t])][tokens[t]] / sum(counts[tuple(tokens[:t])].values())) for t in known)


def stream_nll_without_first(counts, tokens):
    return _right_nll(counts, tokens) + math.log(counts[()].get(tokens[0], 1) / sum(counts[()].values()))


def _right_nll(counts, tokens):  # to build wrong ones on
    total = 0.0
    for t, token in enumerate(tokens):
        options = counts.get(tuple(tokens[:t]), {})
        if token not in options:
            return math.inf
        total -= math.log(options[token] / sum(options.values()))
    return total
