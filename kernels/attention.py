"""`fused_attention`: the Triton kernels behind one differentiable function, with everything they need prepared.

In: q, k, v (B, H, T, D) and which of DALL-E's masks; out: (B, H, T, D). Here are the checks, the choice of tiles for the
GPU at hand, the order in which the column mask wants its image, and the `autograd.Function`. The algorithm is in
`tiled.py`, the kernels in `forward.py` and `backward.py`.

What it promises: sums in float32 whatever the dtype; the same inputs give the same bits, and each head's bits do not
depend on what else is in the batch; nothing of size T × T is stored, and no tile outside the mask's band is read.
"""

import difflib
import math
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from kernels.reference import MASKS

try:
    import triton

    from kernels.backward import backward_keys, backward_queries
    from kernels.forward import attention_forward
except ImportError:  # macOS and Windows have no Triton
    triton = None

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_WIDTHS = (16, 32, 64, 128)


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: str = "causal",
    text_len: int = 256,
    grid: int = 32,
    kernel_size: int = 11,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale · q kᵀ, over the keys that the mask allows) v, differentiable in q, k and v.

    q, k, v (B, H, T, D), any strides, of one dtype: float16, bfloat16 or float32 (whose products follow
    `torch.get_float32_matmul_precision()`: "highest" is exact); D 16, 32, 64 or 128; T = text_len + rows · grid.
    mask: "causal", "row", "column" or "conv" (SPEC 5; `reference.dense_mask` is its definition), kernel_size that of
    conv. scale: 1/√D if None. Scores, times scale, must stay below 10²⁰. Returns (B, H, T, D).

    On a CPU the kernels run in Triton's interpreter, if TRITON_INTERPRET=1 was set before `import triton`. Raises
    ValueError for what does not fit, ImportError where there is no Triton.
    """
    check(q, k, v, mask, text_len, grid, kernel_size, scale)
    rows = (q.shape[2] - text_len) // grid
    shape = Shape(mask if rows else "causal", text_len, grid, rows, kernel_size // 2)
    return FusedAttention.apply(q, k, v, shape, q.shape[-1] ** -0.5 if scale is None else float(scale))


class Shape(NamedTuple):
    """The stream and its mask, in the kernels' names."""

    KIND: str
    TEXT: int
    GRID: int
    ROWS: int
    HALF: int  # of the convolution's kernel, left and right of its middle


class Tiles(NamedTuple):
    """How one kernel cuts its work."""

    BLOCK_M: int  # queries: larger reads keys less often, and takes registers
    BLOCK_N: int  # keys
    num_warps: int  # of a program: 4 hold a tile of 64 × 128 scores, 64 in each thread
    num_stages: int = 2  # tiles in flight: one is loaded while one is used; more only take shared memory


# The tiles were chosen by what the compiler makes of them (`bench.py` counts it), at D = 64 in 16 bits on sm_80 and
# sm_90: no register spilled in a loop over whole tiles, 8 warps or more on a multiprocessor, fewest instructions beside
# those of the tensor cores.
FORWARD = {"pointers": Tiles(128, 64, 4), "descriptors": Tiles(64, 128, 4)}
QUERIES = {"pointers": Tiles(128, 32, 4), "descriptors": Tiles(64, 64, 4)}  # backward_queries
KEYS = {"pointers": Tiles(32, 128, 4), "descriptors": Tiles(64, 64, 4)}  # backward_keys


def tiles_for(table: dict[str, Tiles], loads: str, D: int, dtype: torch.dtype) -> Tiles:
    """The table's tiles, smaller where an entry or a row is larger, so that shared memory still holds them."""
    tiles = table[loads]
    if dtype == torch.float32:
        tiles = Tiles(32, 32, 8 if D == 128 else 4)
    elif D == 128:
        tiles = Tiles(min(tiles.BLOCK_M, 64), min(tiles.BLOCK_N, 64), tiles.num_warps)
    return tiles


def interpreted() -> bool:
    """Do the kernels run in Triton's interpreter, on the CPU?"""
    return triton is not None and not isinstance(attention_forward, triton.JITFunction)


def check(q, k, v, mask, text_len, grid, kernel_size, scale):
    """Raise ValueError or ImportError, in one sentence, for what the kernels cannot do."""
    check_tensors(q, k, v)
    check_mask(mask, text_len, grid, kernel_size, scale)
    B, H, T, D = q.shape
    if k.shape != q.shape or v.shape != q.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must all be of one shape (B, H, T, D), got {shapes}")
    if T < 1 or text_len > T or (T - text_len) % grid or B * H < 1:
        raise ValueError(
            f"q of shape {tuple(q.shape)} does not hold text_len = {text_len} positions and whole rows of grid = {grid}: "
            "T must be text_len + rows · grid, and no dimension empty"
        )


def check_mask(mask, text_len, grid, kernel_size, scale):
    if mask not in MASKS:
        near = difflib.get_close_matches(str(mask), MASKS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown mask {mask!r}{hint}: expected one of {', '.join(MASKS)}")
    if text_len < 0 or grid < 1:
        raise ValueError(f"text_len must be 0 or more and grid at least 1, got {text_len} and {grid}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if scale is not None and not 1e-6 <= scale <= 1e6:
        raise ValueError(f"scale must lie in 10⁻⁶ … 10⁶, got {scale}")


def check_tensors(q, k, v):
    if triton is None:
        raise ImportError("our attention kernels need Triton, which Linux has: use scaled_dot_product_attention here")
    if any(x.dim() != 4 for x in (q, k, v)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must all have four dimensions (B, H, T, D), got {shapes}")
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in DTYPES:
        names = ", ".join(str(x.dtype).removeprefix("torch.") for x in (q, k, v))
        raise ValueError(
            f"q, k and v must share one of float16, bfloat16 and float32, got {names}: convert them with .to()"
        )
    if len({q.device, k.device, v.device}) > 1:
        raise ValueError(
            f"q, k and v must be on one device, got {q.device}, {k.device}, {v.device}: move them with .to()"
        )
    widths = {x.shape[3] for x in (q, k, v)}
    if len(widths) > 1 or not widths <= {*HEAD_WIDTHS}:
        raise ValueError(f"heads must all be 16, 32, 64 or 128 wide, got {sorted(widths)}: pad q, k and v with zeros")
    if q.device.type == "cpu" and not interpreted():
        raise ValueError(
            "q is on the CPU, where Triton's kernels run only if TRITON_INTERPRET=1 was set before `import triton`: "
            "set it, or move q, k and v to a GPU"
        )
    if interpreted() and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter rounds bfloat16 wrongly: use float16 or float32 on the CPU")
    if q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) < (8, 0):
        raise ValueError("the kernels need a GPU of compute capability 8.0 (Ampere) or later")


# --- launching -----------------------------------------------------------------------------------------------------


class FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, shape: Shape, scale: float):
        q, k, v = (ready(to_mask_order(x, shape)) for x in (q, k, v))
        o, m, log_l = forward(q, k, v, shape, scale)
        ctx.save_for_backward(q, k, v, o, m, log_l)
        ctx.shape, ctx.scale = shape, scale
        return from_mask_order(o, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, do):
        q, k, v, o, m, log_l = ctx.saved_tensors
        for_keys = any(ctx.needs_input_grad[1:3])
        do = ready(to_mask_order(do, ctx.shape))
        gradients = backward(q, k, v, o, do, m, log_l, ctx.shape, ctx.scale, for_keys)
        wanted = zip(gradients, ctx.needs_input_grad)
        return *(from_mask_order(x, ctx.shape) if needed else None for x, needed in wanted), None, None


def forward(q, k, v, shape: Shape, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """o (B, H, T, D); m and log_l (B, H, T) float32; q, k, v as `ready` leaves them, in the order of their mask."""
    B, H, T, D = q.shape
    o = torch.empty(B, T, H, D, dtype=q.dtype, device=q.device).transpose(1, 2)  # as the next layer wants it
    m, log_l = torch.empty(2, B, H, T, dtype=torch.float32, device=q.device)
    loads = loads_for(q)
    tiles = tiles_for(FORWARD, loads, D, q.dtype)
    with on(q.device):
        attention_forward[(B * H, triton.cdiv(T, tiles.BLOCK_M))](
            q, k, v, o, m, log_l, *strides(q, k, v, o), H, scale * math.log2(math.e), **shape._asdict(), D=D,
            **tiles._asdict(), BEHIND=loads == "descriptors", **how(loads, q.dtype),
        )  # fmt: skip
    return o, m, log_l


def backward(q, k, v, o, do, m, log_l, shape: Shape, scale: float, for_keys: bool = True):
    """dq, and if asked for dk and dv, each (B, H, T, D); else None for them."""
    B, H, T, D = q.shape
    loads = loads_for(q)
    dq, delta = torch.empty_like(q, memory_format=torch.contiguous_format), torch.empty_like(m)
    common = (H, scale * math.log2(math.e), scale)
    tiles = tiles_for(QUERIES, loads, D, q.dtype)
    with on(q.device):
        backward_queries[(B * H, triton.cdiv(T, tiles.BLOCK_M))](
            q, k, v, o, do, m, log_l, delta, dq, *strides(q, k, v, o, do), *common, **shape._asdict(), D=D,
            **tiles._asdict(), **how(loads, q.dtype),
        )  # fmt: skip
        if not for_keys:
            return dq, None, None
        dk, dv = torch.empty_like(dq), torch.empty_like(dq)
        tiles = tiles_for(KEYS, loads, D, q.dtype)
        backward_keys[(B * H, triton.cdiv(T, tiles.BLOCK_N))](
            q, k, v, do, m, log_l, delta, dk, dv, *strides(q, k, v, do), *common, **shape._asdict(), D=D,
            **tiles._asdict(), **how(loads, q.dtype),
        )  # fmt: skip
    return dq, dk, dv


def strides(*tensors: torch.Tensor) -> list[int]:
    """Of each (B, H, T, D) the first three."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def how(loads: str, dtype: torch.dtype) -> dict:
    exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {"DESCRIPTORS": loads == "descriptors", "PRECISION": "ieee" if exact else "tf32"}


def loads_for(x: torch.Tensor) -> str:
    """By "descriptors" on Hopper and data-centre Blackwell, in 16 bits; else, and in the interpreter, by "pointers"."""
    nvidia = x.device.type == "cuda" and torch.version.cuda is not None  # AMD's GPUs are called "cuda" as well
    hopper = nvidia and torch.cuda.get_device_capability(x.device)[0] in (9, 10)
    return "descriptors" if hopper and x.dtype != torch.float32 else "pointers"


def on(device: torch.device):
    """Launch on this device; descriptors need a little memory there."""
    if device.type != "cuda":
        return torch.no_grad()
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
    return torch.cuda.device(device)


def ready(x: torch.Tensor) -> torch.Tensor:
    """x as the kernels read it: rows contiguous, everything on a boundary of 16 bytes; a copy only if it is not so."""
    even = all(stride and stride * x.element_size() % 16 == 0 for stride in x.stride()[:3])
    fits = x.stride(3) == 1 and even and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def to_mask_order(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """x (B, H, T, D), for the column mask with its image column by column, so that a column is contiguous."""
    if shape.KIND != "column":
        return x
    text, image = x.split([shape.TEXT, shape.ROWS * shape.GRID], dim=2)
    image = image.unflatten(2, (shape.ROWS, shape.GRID)).transpose(2, 3).flatten(2, 3)
    return torch.cat([text, image], dim=2)


def from_mask_order(x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The inverse of `to_mask_order`."""
    return to_mask_order(x, shape._replace(ROWS=shape.GRID, GRID=shape.ROWS))
