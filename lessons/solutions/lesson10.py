"""Solutions of lesson 10."""

import torch
import triton
import triton.language as tl


@triton.jit
def _reverse_kernel(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(Y + offsets, tl.load(X + (n - 1 - offsets), mask=inside), mask=inside)


def reverse(x, y):
    BLOCK = 4
    _reverse_kernel[(triton.cdiv(len(x), BLOCK),)](x, y, len(x), BLOCK=BLOCK)


@triton.jit
def _softmax_kernel(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    inside = c < columns
    x = tl.load(X + row * stride_x + c, mask=inside, other=float("-inf"))
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=inside)


def softmax(x, y):
    rows, columns = x.shape
    BLOCK = triton.next_power_of_2(columns)
    _softmax_kernel[(rows,)](x, y, x.stride(0), y.stride(0), columns, BLOCK=BLOCK)


def fold(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    base = larger.masked_fill(larger == -torch.inf, 0)  # a row that has seen nothing yet
    return larger, l * torch.exp(m - base) + torch.exp(s - base[:, None]).sum(1)
