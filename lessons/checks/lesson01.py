"""Checks of lesson 01."""

import math
from collections import Counter

import torch

from checks import exercise, expect, expect_number, expect_tensor


@exercise
def check_shift(fn):
    for streams in ([[0, 4, 6, 8, 8, 7, 7]], [[5, 6, 7], [1, 2, 3]]):
        streams = torch.tensor(streams)
        got = fn(streams.clone())
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        expect(pair, f"expected two tensors, inputs and targets, got {type(got).__name__}")
        expect_tensor(f"the inputs of {streams.tolist()}", got[0], streams[:, :-1])
        expect_tensor(f"the targets of {streams.tolist()}", got[1], streams[:, 1:])


@exercise
def check_stream_nll(fn):
    counts = {(): Counter({0: 3, 1: 1}), (0,): Counter({1: 1, 2: 2}), (0, 2): Counter({5: 4}), (1,): Counter({1: 7})}
    prices = {
        (0, 2, 5): math.log(4 / 3) + math.log(3 / 2),  # 3/4 · 2/3 · 1
        (1, 1): math.log(4),
        (0, 1): math.log(4),  # 3/4 · 1/3
    }
    for tokens, price in prices.items():
        expect_number(f"the price of {list(tokens)}", fn(dict(counts), list(tokens)), price)
    for tokens in ([2], [0, 5], [1, 1, 1]):
        got = fn(dict(counts), tokens)
        expect(got == math.inf, f"{tokens} never came in the pile: expected infinity, got {got!r}")
