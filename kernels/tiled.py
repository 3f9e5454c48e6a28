"""The kernels' algorithm as PyTorch loops over tiles: what `forward.py` and `backward.py` do, without the GPU in the way.

In: q, k, v (T, D) of one head, in any float dtype, and a mask (T, T) bool. The names are those of the kernels, and the
steps are the same in the same order. What differs: the mask, and which tiles are visited, is looked up here and computed
there, with a loop of its own for tiles that need no mask; the kernels' m starts from a large negative number, which spares
them `base`; they add m and log_l in 16 bits; on Hopper the product with v comes one tile later (`BEHIND`); and the column
mask has its image reordered. The derivations stand in the kernels' docstrings. It is held to the formula in `reference.py`, and the kernels to both.
"""

import math

import torch

LOG2_E = math.log2(math.e)


def forward(q, k, v, mask: torch.Tensor, scale: float, BLOCK_M: int = 16, BLOCK_N: int = 16):
    """o (T, D); m (T,), the largest scores times scale · log₂ e, and log_l (T,), the softmax's denominators, in base 2."""
    o, largest, log_l = torch.empty_like(v), q.new_empty(len(q)), q.new_empty(len(q))
    for m0 in range(0, len(q), BLOCK_M):  # in a kernel: one program each
        queries = slice(m0, m0 + BLOCK_M)
        m = q.new_full((len(q[queries]),), -math.inf)  # the largest score so far
        l = torch.zeros_like(m)  # the sum of 2^(score - m) so far
        acc = torch.zeros_like(q[queries])  # the sum of 2^(score - m) · v so far
        for n0 in key_tiles(mask[queries], BLOCK_N):
            keys = slice(n0, n0 + BLOCK_N)
            s = q[queries] @ k[keys].T  # (BLOCK_M, BLOCK_N)
            s = torch.where(mask[queries, keys], s, -math.inf)
            larger = torch.maximum(m, s.amax(1) * scale * LOG2_E)
            base = larger.masked_fill(larger == -math.inf, 0)  # a row that has seen nothing yet
            p = torch.exp2(s * scale * LOG2_E - base[:, None])
            shrink = torch.exp2(m - base)
            l = l * shrink + p.sum(1)
            acc = acc * shrink[:, None] + p @ v[keys]
            m = larger
        o[queries] = acc / l[:, None]
        largest[queries], log_l[queries] = m, torch.log2(l)
    return o, largest, log_l


def backward_queries(q, k, v, o, do, m, log_l, mask: torch.Tensor, scale: float, BLOCK_M: int = 16, BLOCK_N: int = 16):
    """dq (T, D), and delta (T,) for `backward_keys`; do (T, D) is the gradient of o."""
    dq, delta = torch.zeros_like(q), (o * do).sum(1)
    for m0 in range(0, len(q), BLOCK_M):
        queries = slice(m0, m0 + BLOCK_M)
        for n0 in key_tiles(mask[queries], BLOCK_N):
            keys = slice(n0, n0 + BLOCK_N)
            s = q[queries] @ k[keys].T
            s = torch.where(mask[queries, keys], s, -math.inf)
            p = torch.exp2(s * scale * LOG2_E - m[queries, None] - log_l[queries, None])
            dp = do[queries] @ v[keys].T
            ds = p * (dp - delta[queries, None])
            dq[queries] += ds @ k[keys]
    return dq * scale, delta


def backward_keys(q, k, v, do, m, log_l, delta, mask: torch.Tensor, scale: float, BLOCK_M: int = 16, BLOCK_N: int = 16):
    """dk and dv (T, D). Tiles of scores are transposed: keys down, queries across."""
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for n0 in range(0, len(k), BLOCK_N):
        keys = slice(n0, n0 + BLOCK_N)
        for m0 in key_tiles(mask[:, keys].T, BLOCK_M):  # tiles of queries that see some of these keys
            queries = slice(m0, m0 + BLOCK_M)
            s = k[keys] @ q[queries].T  # (BLOCK_N, BLOCK_M)
            s = torch.where(mask[queries, keys].T, s, -math.inf)
            p = torch.exp2(s * scale * LOG2_E - m[None, queries] - log_l[None, queries])
            dv[keys] += p @ do[queries]
            dp = v[keys] @ do[queries].T
            ds = p * (dp - delta[None, queries])
            dk[keys] += ds @ q[queries]
    return dk * scale, dv


def key_tiles(mask: torch.Tensor, BLOCK: int) -> list[int]:
    """Where the tiles begin in which any of the rows (…, T) bool has a true entry."""
    return [n0 for n0 in range(0, mask.shape[1], BLOCK) if mask[:, n0 : n0 + BLOCK].any()]
