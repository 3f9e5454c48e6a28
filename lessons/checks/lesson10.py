"""Checks of lesson 10. What a kernel is given lies amid memory that is not its own: what it reads there is poison, and what
it writes there is found."""

import math
import sys
import warnings
from contextlib import contextmanager

import torch

from checks import Wrong, exercise, expect, expect_tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AROUND = 4096  # elements before and behind, more than any offset that is wrong by a plausible mistake
UNTOUCHED = -7.0


@exercise
def check_reverse(fn):
    for n, poison in ((10, 1e30), (1, math.nan), (8, math.nan), (5, math.inf), (37, math.nan)):
        values = torch.randint(0, 100, (1, n), device="cpu").float().to(DEVICE)
        got = _written(f"n = {n}", lambda x, y: fn(x[0], y[0]), values, poison, stride_x=n, stride_y=n)
        _expect_written(f"y for n = {n}", got[0], values[0].flip(0))


@exercise
def check_softmax(fn):
    minus = torch.tensor([0.0, -math.inf, 1.0, -math.inf, 2.0], device=DEVICE)
    for rows, columns, gain, shift, poison, stride_x, stride_y in (
        (3, 5, 1, 0, math.nan, 8, 11),
        (2, 16, 1, 0, math.nan, 16, 16),
        (4, 37, 1, 0, 1e30, 50, 40),
        (2, 1, 1, 0, math.nan, 3, 2),
        (3, 23, 1, 1000, math.inf, 23, 30),
        (3, 23, 1, -1000, math.nan, 30, 23),
        (2, 21, 100, 0, 1e30, 40, 21),
    ):
        values = torch.randn(rows, columns, device="cpu").to(DEVICE) * gain + shift
        what = f"{rows} rows of {columns} scores, the largest {values.max():.4g}"
        got = _written(what, fn, values, poison, stride_x, stride_y)
        _expect_written(f"y for {what}", got, values.softmax(1), 1e-6)
    got = _written("a row with scores of -inf", fn, minus[None], math.nan, 9, 6)
    _expect_written(f"y for {minus.tolist()}", got, minus[None].softmax(1), 1e-6)


def _expect_written(what: str, got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5):
    """As `expect_tensor`, but of an element that still holds the filler it says that it was never written."""
    never = (got == UNTOUCHED).nonzero()
    if len(never):
        at = tuple(never[0].tolist())
        raise Wrong(f"{what}: expected {wanted[at].item():.6g} at {list(at)}, but that element was never written")
    expect_tensor(what, got, wanted, tolerance)


class _Amid:
    """A matrix (rows, columns), `x`, with rows `stride` apart, in a memory that is otherwise full of `filler`."""

    def __init__(self, name: str, rows: int, columns: int, stride: int, filler: float):
        self.name, self.stride = name, stride
        self.memory = torch.full((AROUND + rows * stride + AROUND,), filler, device=DEVICE)
        self.x = self._matrix(self.memory, rows, columns)
        self.own = torch.zeros(len(self.memory), dtype=torch.bool, device=DEVICE)
        self._matrix(self.own, rows, columns).fill_(True)

    def _matrix(self, memory: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        return memory[AROUND : AROUND + rows * self.stride].view(rows, self.stride)[:, :columns]

    def expect_own(self, does: str, offsets: torch.Tensor):
        """Raise `Wrong` if one of the offsets, counted from the memory's begin, is not in the matrix."""
        strays = offsets[~self.own[offsets]].tolist()
        if strays:
            (rows, columns), (row, column) = self.x.shape, divmod(strays[0] - AROUND, self.stride)
            where = f"column {column} of row {row}" if 0 <= row < rows else f"offset {strays[0] - AROUND}"
            size = f"{rows} × {columns}, rows {self.stride} apart"
            more = f"; {len(strays)} elements in all" if len(strays) > 1 else ""
            raise Wrong(f"your kernel {does} outside {self.name} ({size}): {where}{more}")


def _written(what: str, fn, values: torch.Tensor, poison: float, stride_x: int, stride_y: int) -> torch.Tensor:
    """What fn(x, y) writes to y, where x holds `values` (rows, columns); `Wrong` if it reads or writes anything else."""
    x, y = _Amid("x", *values.shape, stride_x, poison), _Amid("y", *values.shape, stride_y, UNTOUCHED)
    x.x.copy_(values)
    before = x.memory.view(torch.int32).clone()  # bits, as NaN does not equal itself
    with warnings.catch_warnings(), _watched(x, y) as seen:
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, in the interpreter, at an overflow
        try:
            fn(x.x, y.x)
        except Exception as error:
            cause = error
            while cause and not isinstance(cause, Wrong):  # Triton wraps what is raised in a kernel
                cause = cause.__cause__
            raise cause or error from None
    expect(torch.equal(before, x.memory.view(torch.int32)), f"{what}: your function changed x or the memory around it")
    changed = (y.memory != UNTOUCHED).nonzero().flatten()
    expect(len(changed) > 0, f"{what}: nothing was written into y")
    by_kernel = seen is None or "writes" in seen
    expect(by_kernel, f"{what}: y was written, but not by a kernel; launch one that calls tl.store")
    y.expect_own("writes", changed)
    return y.x


@contextmanager
def _watched(*memories: _Amid):
    """In Triton's interpreter, a kernel that leaves its matrices is stopped before it does. (A GPU only has the poison.)

    Yields a set, in which is "reads" or "writes" once a kernel has done so; or None where nothing is seen.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    builder = getattr(interpreter, "interpreter_builder", None)
    calls = {"reads": "create_masked_load", "writes": "create_masked_store"}  # both: addresses first
    if builder is None or not all(hasattr(builder, call) for call in calls.values()):
        yield None
        return
    seen = set()

    def watch(does: str, call):
        def watched(addresses, *rest, **options):
            mask = rest[0] if does == "reads" else rest[1]
            seen.add(does)
            on = torch.from_numpy(addresses.data.astype("int64")[mask.data])
            for amid in memories:
                offsets = (on - amid.memory.data_ptr()) // amid.memory.element_size()
                amid.expect_own(does, offsets[(offsets >= 0) & (offsets < len(amid.memory))])
            return call(addresses, *rest, **options)

        return watched

    for does, call in calls.items():
        setattr(builder, call, watch(does, getattr(builder, call)))
    try:
        yield seen if DEVICE == "cpu" else None  # on a GPU kernels are compiled, and nothing is seen
    finally:
        for call in calls.values():
            delattr(builder, call)


@exercise
def check_fold(fn):
    plain = torch.randn(3, 12)
    falling = torch.randn(2, 12).sort(1, descending=True)[0]
    large = torch.randn(4, 12) * 300
    hidden = torch.randn(5, 12)
    hidden[0, :4] = -math.inf  # nothing to see in the first tiles
    hidden[1, 8:] = -math.inf  # nor in the last ones
    hidden[2] = -math.inf  # nor anywhere
    hidden[3, ::2] = -math.inf
    for name, scores in (("plain", plain), ("falling", falling), ("large", large), ("partly -inf", hidden)):
        for widths in ((4, 4, 4), (1,) * 12, (5, 7), (12,), (8, 2, 2)):
            _check_tiling(fn, name, scores, widths)


def _check_tiling(fn, name: str, scores: torch.Tensor, widths: tuple[int, ...]):
    m, l = scores.new_full((len(scores),), -math.inf), scores.new_zeros(len(scores))
    end = 0
    for width in widths:
        tile, end = scores[:, end : end + width], end + width
        what = f"{name} scores, tiles {list(widths)}, after {end} columns"
        got = fn(m.clone(), l.clone(), tile.clone())
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        expect(pair, f"{what}: expected two tensors, m and l, got {type(got).__name__}")
        m = scores[:, :end].amax(1)
        l = torch.exp(scores[:, :end] - m.masked_fill(m == -math.inf, 0)[:, None]).sum(1)
        expect_tensor(f"m, {what}", got[0], m)
        expect_tensor(f"l, {what}", got[1], l)
