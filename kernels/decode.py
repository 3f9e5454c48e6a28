"""Attention of one new query to the keys in the cache: what sampling does 1024 times for every picture and layer.

There is one row of scores and nothing for a tensor core to do; the time goes into reading keys and values once, and so
only those are read that the layer's mask lets the query see: 256 + 33 of 1280 for a row layer. The keys lie in the cache
in the order in which they were drawn, so a column's are `grid` apart; `key_position` counts them off. Where the query
stands is read from memory, not passed as a number: the launch is the same for every token, and a CUDA graph can hold it.

One program for each head would leave most of a GPU idle, so the keys of a head are dealt out to SPLITS programs. Each
keeps (m, l, acc) as in forward.py; the second kernel brings them to their common maximum, by the same rescaling. SPLITS
depends on the stream's length and on the mask alone: a head's bits are the same in a batch of any size.
"""

import math

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS and Windows have no Triton
    triton = None

from kernels.attention import check_mask, check_tensors, on

PER_SPLIT = 128  # keys that a program reads at most, if all of T are seen
BLOCK = 32  # keys that it reads at a time


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    mask: str = "causal",
    text_len: int = 256,
    grid: int = 32,
    kernel_size: int = 11,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of one position of the stream. q (B, H, 1, D); k, v (B, H, T, D), the cache with room for the whole
    stream, of any strides (copied unless that along D is 1); what lies behind `position` is not read. position (1,)
    int64 on the same device: the query's place, 0 … T-1 (not checked, for that would wait for the GPU).
    Returns (B, H, 1, D).

    For sampling: it has no gradient. Raises ValueError for shapes, dtypes or masks as `fused_attention` does.
    """
    check_tensors(q, k, v)
    check_mask(mask, text_len, grid, kernel_size, scale)
    B, H, _, D = q.shape
    T = k.shape[2]
    if (
        q.shape[2] != 1
        or k.shape != (B, H, T, D)
        or v.shape != k.shape
        or max(1, text_len) > T
        or (T - text_len) % grid
    ):
        raise ValueError(
            f"expected q (B, H, 1, D) and k, v (B, H, T, D) with T = text_len + rows · grid, the whole stream, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} with text_len = {text_len}, grid = {grid}"
        )
    if position.shape != (1,) or position.dtype != torch.int64 or position.device != q.device:
        raise ValueError(
            f"expected position as one int64 on {q.device}, as in torch.tensor([{T - 1}]), "
            f"got {position.dtype} {tuple(position.shape)} on {position.device}"
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("decode_attention has no gradient: call it under torch.no_grad(), or use fused_attention")
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    half = kernel_size // 2
    splits = split_count(mask, text_len, grid, (T - text_len) // grid, half)
    o = torch.empty(B, H, 1, D, dtype=q.dtype, device=q.device)
    parts = torch.empty(B * H, splits, D + 2, dtype=torch.float32, device=q.device)
    with on(q.device):
        decode_split[(B * H, splits)](
            q, k, v, position, parts, *(s for x in (q, k, v) for s in x.stride()[:2]), k.stride(2), v.stride(2),
            H, (q.shape[-1] ** -0.5 if scale is None else scale) * math.log2(math.e),
            KIND=mask, TEXT=text_len, GRID=grid, HALF=half, D=D, SPLITS=splits, BLOCK=BLOCK,
        )  # fmt: skip
        decode_combine[(B * H,)](parts, o, D=D, SPLITS=splits, PADDED=triton.next_power_of_2(splits))
    return o


def split_count(kind: str, text_len: int, grid: int, rows: int, half: int) -> int:
    """How many programs share the keys of a head; by the longest that a query of this stream can see."""
    longest = {
        "causal": rows * grid,
        "row": min(rows * grid, grid + 1),
        "column": rows,
        "conv": (half + 1) * (2 * half + 1) if grid > 2 * half else min(rows * grid, grid * half + half + 1),
    }
    return -(-(text_len + longest[kind]) // PER_SPLIT)


if triton is not None:

    @triton.jit
    def key_count(position, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr):
        """How many keys `key_position` has to count off for the query at `position`."""
        i = position - TEXT  # in the image
        if KIND == "row":
            band = tl.minimum(i, GRID) + 1
        elif KIND == "column":
            band = i // GRID + 1
        elif KIND == "conv" and GRID > 2 * HALF:
            band = (HALF + 1) * (2 * HALF + 1)
        elif KIND == "conv":
            band = tl.minimum(i, GRID * HALF + HALF) + 1
        else:
            band = i + 1
        return tl.where(i < 0, position + 1, TEXT + band)

    @triton.jit
    def key_position(n, position, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr):
        """Where in the stream the n-th key stands that the query at `position` may see; -1 if there is none.

        First the text, then the band from its far end; for conv row by row of the kernel, as P Fig. 11 counts.
        """
        i = position - TEXT
        u = n - TEXT  # counts along the band
        if KIND == "row":
            j = tl.maximum(i - GRID, 0) + u
        elif KIND == "column":
            j = i % GRID + u * GRID
        elif KIND == "conv" and GRID > 2 * HALF:
            j = i - (u // (2 * HALF + 1) * GRID + u % (2 * HALF + 1) - HALF)
        elif KIND == "conv":  # the rows of the kernel touch: a band
            j = tl.maximum(i - GRID * HALF - HALF, 0) + u
        else:
            j = u
        j = tl.where((j >= 0) & (j <= i), j + TEXT, -1)
        return tl.where(n < TEXT, tl.where(n <= position, n, -1), j)

    @triton.jit
    def decode_split(
        Q, K, V, POSITION, PARTS,
        stride_qb, stride_qh, stride_kb, stride_kh, stride_vb, stride_vh, stride_kt, stride_vt,
        H, scale,
        KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr,
        D: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Q (B, H, 1, D), K, V (B, H, T, D), POSITION (1,) → PARTS (B · H, SPLITS, D + 2) float32: acc, m, l.

        Grid (B · H, SPLITS).
        """
        position = tl.load(POSITION).to(tl.int32)
        count = key_count(position, KIND, TEXT, GRID, HALF)
        head, part = tl.program_id(0), tl.program_id(1)
        b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
        d = tl.arange(0, D)
        q = tl.load(Q + b * stride_qb + h * stride_qh + d).to(tl.float32)
        share = tl.cdiv(tl.cdiv(count, SPLITS), BLOCK) * BLOCK
        m = tl.full([1], -1e20, tl.float32)
        l = tl.zeros([1], tl.float32)
        acc = tl.zeros([D], tl.float32)
        for n0 in range(part * share, tl.minimum((part + 1) * share, count), BLOCK):
            n = n0 + tl.arange(0, BLOCK)
            j = key_position(n, position, KIND, TEXT, GRID, HALF)
            seen = (n < count) & (j >= 0)
            j = tl.where(seen, j, 0).to(tl.int64)[:, None]
            k = tl.load(K + b * stride_kb + h * stride_kh + j * stride_kt + d[None, :], mask=seen[:, None], other=0.0)
            v = tl.load(V + b * stride_vb + h * stride_vh + j * stride_vt + d[None, :], mask=seen[:, None], other=0.0)
            s = tl.where(seen, tl.sum(q[None, :] * k.to(tl.float32), 1) * scale, float("-inf"))  # (BLOCK,)
            larger = tl.maximum(m, tl.max(s, 0))
            p = tl.math.exp2(s - larger)
            shrink = tl.math.exp2(m - larger)
            l = l * shrink + tl.sum(p, 0)
            acc = acc * shrink + tl.sum(p[:, None] * v.to(tl.float32), 0)
            m = larger
        out = PARTS + (head * SPLITS + part).to(tl.int64) * (D + 2)
        tl.store(out + d, acc)
        tl.store(out + D + tl.arange(0, 1), m)
        tl.store(out + D + 1 + tl.arange(0, 1), l)

    @triton.jit
    def decode_combine(PARTS, O, D: tl.constexpr, SPLITS: tl.constexpr, PADDED: tl.constexpr):
        """PARTS (B · H, SPLITS, D + 2) → O (B, H, 1, D), contiguous. Grid (B · H,)."""
        head = tl.program_id(0).to(tl.int64)
        d, part = tl.arange(0, D), tl.arange(0, PADDED)
        base = PARTS + (head * SPLITS + part) * (D + 2)
        there = part < SPLITS
        m = tl.load(base + D, mask=there, other=-1e20)
        l = tl.load(base + D + 1, mask=there, other=0.0)
        acc = tl.load(base[:, None] + d[None, :], mask=there[:, None], other=0.0)  # (PADDED, D)
        weight = tl.math.exp2(m - tl.max(m, 0))  # a part without keys has l = 0 and acc = 0
        o = tl.sum(acc * weight[:, None], 0) / tl.sum(l * weight, 0)
        tl.store(O + head * D + d, o.to(O.dtype.element_ty))
