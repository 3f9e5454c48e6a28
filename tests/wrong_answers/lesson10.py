"""Plausible wrong answers to the exercises of lesson 10: each must fail its check."""

import torch
import triton
import triton.language as tl

# --- reverse -------------------------------------------------------------------------------------------------------


def _launch_1d(kernel, x, y, BLOCK=4):
    kernel[(triton.cdiv(len(x), BLOCK),)](x, y, len(x), BLOCK=BLOCK)


@triton.jit
def _unmasked(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + offsets, tl.load(X + (n - 1 - offsets)))


@triton.jit
def _off_by_one(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(Y + offsets, tl.load(X + (n - offsets), mask=inside), mask=inside)


@triton.jit
def _tile_by_tile(X, Y, n, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    first = tl.program_id(0) * BLOCK
    inside = first + lane < n
    tl.store(Y + first + lane, tl.load(X + first + BLOCK - 1 - lane, mask=first + BLOCK - 1 - lane < n), mask=inside)


@triton.jit
def _first_program_only(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(Y + offsets, tl.load(X + (n - 1 - offsets), mask=inside), mask=inside)


@triton.jit
def _from_whole_tiles(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    back = tl.num_programs(0) * BLOCK - 1 - offsets
    tl.store(Y + offsets, tl.load(X + back, mask=back < n), mask=offsets < n)


@triton.jit
def _copied(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(Y + offsets, tl.load(X + offsets, mask=inside), mask=inside)


def reverse_unmasked(x, y):
    _launch_1d(_unmasked, x, y)


def reverse_off_by_one(x, y):
    _launch_1d(_off_by_one, x, y)


def reverse_tile_by_tile(x, y):
    _launch_1d(_tile_by_tile, x, y)


def reverse_without_program_id(x, y):
    _launch_1d(_first_program_only, x, y)


def reverse_from_the_end_of_the_last_tile(x, y):
    _launch_1d(_from_whole_tiles, x, y)


def reverse_not_reversed(x, y):
    _launch_1d(_copied, x, y)


def reverse_whole_tiles_only(x, y):
    BLOCK = 4
    if len(x) >= BLOCK:
        _right_reverse[(len(x) // BLOCK,)](x, y, len(x), BLOCK=BLOCK)


@triton.jit
def _right_reverse(X, Y, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(Y + offsets, tl.load(X + (n - 1 - offsets), mask=inside), mask=inside)


def reverse_in_a_new_tensor(x, y):
    return x.flip(0)


if not torch.cuda.is_available():  # right values: only the interpreter sees what a kernel wrote

    def reverse_without_a_kernel(x, y):
        y.copy_(x.flip(0))


# --- softmax -------------------------------------------------------------------------------------------------------


def _launch_rows(kernel, x, y):
    rows, columns = x.shape
    kernel[(rows,)](x, y, x.stride(0), y.stride(0), columns, BLOCK=triton.next_power_of_2(columns))


@triton.jit
def _padding_is_zero(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c, mask=c < columns, other=0.0)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


@triton.jit
def _zero_in_the_maximum(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c, mask=c < columns, other=0.0)
    p = tl.where(c < columns, tl.exp(x - tl.max(x, 0)), 0.0)
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


@triton.jit
def _no_maximum(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    p = tl.exp(tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf")))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


@triton.jit
def _unmasked_load(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c)
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


@triton.jit
def _unmasked_store(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf"))
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0))


@triton.jit
def _masked_too_late(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.where(c < columns, tl.load(X + row * stride_x + c), float("-inf"))
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


@triton.jit
def _logarithms(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf"))
    x = x - tl.max(x, 0)
    tl.store(Y + row * stride_y + c, x - tl.log(tl.sum(tl.exp(x), 0)), mask=c < columns)


@triton.jit
def _right_softmax(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf"))
    p = tl.exp(x - tl.max(x, 0))
    tl.store(Y + row * stride_y + c, p / tl.sum(p, 0), mask=c < columns)


def softmax_padding_is_zero(x, y):
    _launch_rows(_padding_is_zero, x, y)


def softmax_zero_in_the_maximum(x, y):
    _launch_rows(_zero_in_the_maximum, x, y)


def softmax_no_maximum(x, y):
    _launch_rows(_no_maximum, x, y)


def softmax_unmasked_load(x, y):
    _launch_rows(_unmasked_load, x, y)


if not torch.cuda.is_available():  # right values: only the interpreter sees what was read

    def softmax_masked_too_late(x, y):
        _launch_rows(_masked_too_late, x, y)


def softmax_unmasked_store(x, y):
    _launch_rows(_unmasked_store, x, y)


def softmax_of_logarithms(x, y):
    _launch_rows(_logarithms, x, y)


def softmax_rows_taken_for_contiguous(x, y):
    rows, columns = x.shape
    _right_softmax[(rows,)](x, y, columns, columns, columns, BLOCK=triton.next_power_of_2(columns))


def softmax_one_stride_for_both(x, y):
    rows, columns = x.shape
    _right_softmax[(rows,)](x, y, x.stride(0), x.stride(0), columns, BLOCK=triton.next_power_of_2(columns))


def softmax_tile_too_short(x, y):
    rows, columns = x.shape
    _right_softmax[(rows,)](x, y, x.stride(0), y.stride(0), columns, BLOCK=triton.next_power_of_2(columns + 1) // 2)


def softmax_first_row_only(x, y):
    columns = x.shape[1]
    _right_softmax[(1,)](x, y, x.stride(0), y.stride(0), columns, BLOCK=triton.next_power_of_2(columns))


if not torch.cuda.is_available():

    def softmax_without_a_kernel(x, y):
        y.copy_(x.softmax(1))


# --- fold ----------------------------------------------------------------------------------------------------------


def _base(m):
    return m.masked_fill(m == -torch.inf, 0)


def fold_not_rescaled(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, l + torch.exp(s - _base(larger)[:, None]).sum(1)


def fold_rescaled_upside_down(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, l * torch.exp(_base(larger) - _base(m)) + torch.exp(s - _base(larger)[:, None]).sum(1)


def fold_tile_rescaled_too(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, (l + torch.exp(s - _base(larger)[:, None]).sum(1)) * torch.exp(m - _base(larger))


def fold_measured_from_the_old_maximum(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, l * torch.exp(m - _base(larger)) + torch.exp(s - _base(m)[:, None]).sum(1)


def fold_measured_from_the_tile(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, l * torch.exp(m - _base(larger)) + torch.exp(s - _base(s.amax(1))[:, None]).sum(1)


def fold_maximum_of_the_tile(m, l, s):
    larger = s.amax(1)
    return larger, l * torch.exp(m - _base(larger)) + torch.exp(s - _base(larger)[:, None]).sum(1)


def fold_nan_where_nothing_is_seen(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return larger, l * torch.exp(m - larger) + torch.exp(s - larger[:, None]).sum(1)


def fold_without_maximum(m, l, s):
    return torch.maximum(m, s.amax(1)), l + torch.exp(s).sum(1)


def fold_one_maximum_for_all_rows(m, l, s):
    larger = torch.maximum(m, s.amax())
    return larger, l * torch.exp(m - _base(larger)) + torch.exp(s - _base(larger)[:, None]).sum(1)


def fold_in_place(m, l, s):
    torch.maximum(m, s.amax(1), out=m)
    return m, l * torch.exp(m - _base(m)) + torch.exp(s - _base(m)[:, None]).sum(1)


def fold_swapped(m, l, s):
    larger = torch.maximum(m, s.amax(1))
    return l * torch.exp(m - _base(larger)) + torch.exp(s - _base(larger)[:, None]).sum(1), larger
