# %% [markdown]
# # 11 · Triton, part 2: fused attention
#
# **How does attention avoid the T × T matrix?**
#
# Attention compares every position of the stream with every other. The formula writes all comparisons into one matrix.
# This lesson computes the same output, and the same gradients, without ever having that matrix.
#
# *Before:* lesson 10 wrote the first kernels in Triton, and a softmax that never sees its whole row at once.
# *Next:* lesson 12 counts what the whole model would cost. After this one you can read `kernels/` from end to end.

# %% [markdown]
# ## What the matrix costs
#
# Count it for the paper's model. The stream has T = 1280 positions, so one head's matrix has 1280² = 1.6 million
# numbers, in 16 bits 3.3 MB. The head's queries, keys, values and outputs together are 0.66 MB. A layer has 62 heads:
# 203 MB for one picture. There are 64 layers. Written naively, without computing anything again, training would keep
# the matrices until the backward: 13 GB for one picture.
#
# And it has to travel. A GPU computes out of small fast memory, a few hundred kB for each of its multiprocessors. A
# matrix of 3.3 MB does not fit. It goes out to the large, slow memory and comes back, several times. So the aim is not
# fewer multiplications. It is that scores are born, used and forgotten inside the fast memory. That is what *fused*
# means.
#
# **Without a GPU** the next cell sets `TRITON_INTERPRET=1`. Triton then compiles nothing. It runs a kernel's lines as
# Python, with NumPy behind them, one program after the other. The numbers should agree with a GPU's up to rounding.
# The time says nothing: this lesson states no speed, and no GPU has run this project's kernels yet. (Triton is for
# Linux. On macOS or Windows read the outputs here, or use Colab.)

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/
import math
import os

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # has to be set before `import triton`

import matplotlib.pyplot as plt
import triton
import triton.language as tl
from drawing import BLUE, GREY, ORANGE, VERMILION
from matplotlib.colors import ListedColormap

from kernels import tiled
from kernels.attention import FORWARD, fused_attention, loads_for, to_mask_order
from kernels.bench import full_shape, tiles_read, with_gradients
from kernels.reference import MASKS, attention, dense_mask

# %% [markdown]
# ## Attention as the formula
#
# One picture, one head. `q`, `k`, `v` are queries, keys and values, each (T, D), with D the width of the head.
# `mask[i, j]` says whether position i may look at position j. `scale` is $1/\sqrt D$. The scores are
#
# $$s_{ij} = \text{scale} \cdot q_i \cdot k_j$$
#
# Over the keys j that query i may see, $p_i$ is the softmax of $s_i$, and the output is the average
# $o_i = \sum_j p_{ij} v_j$. Whole matrices have capital letters: S and P are T × T.
#
# We take a toy stream, smaller than that of the trained run: 16 positions of text and 8 × 8 codes, so T = 80. We use
# the four masks of `kernels/reference.py`, conv with a 3 × 3 kernel.


# %%
def naive(q, k, v, mask, scale):
    s = scale * q @ k.T  # (T, T)
    p = s.masked_fill(~mask, float("-inf")).softmax(1)  # (T, T)
    return p @ v  # (T, D)


TEXT, GRID, D = 16, 8, 16
masks = {kind: dense_mask(kind, TEXT, GRID, kernel_size=3).to(device) for kind in MASKS}
T, scale = len(masks["causal"]), D**-0.5
q, k, v, do = torch.randn(4, T, D, generator=torch.Generator().manual_seed(0)).to(device)  # do: for the backward
print("T =", T, "  numbers in q, k, v, o:", 4 * T * D, "  in s and p:", 2 * T * T)

# %% [markdown]
# ## The rescale line
#
# Lesson 10 took a row in tiles. For one query, it kept the largest score so far, $m$, and the softmax's denominator so
# far, $l$. For the output it also kept the numerator, acc:
#
# $$m = \max_j s_j \qquad l = \sum_j e^{s_j - m} \qquad acc = \sum_j e^{s_j - m}\, v_j \qquad o = acc / l$$
#
# A new tile raises the maximum to $m'$. One factor, $\text{shrink} = e^{m - m'}$, puts right all that was kept, although
# its scores are long forgotten:
#
# $$l' = l \cdot \text{shrink} + \sum_{\text{new } j} e^{s_j - m'} \qquad\quad
# acc' = acc \cdot \text{shrink} + \sum_{\text{new } j} e^{s_j - m'}\, v_j$$
#
# Try it with one query, four keys in two tiles, and values of width 1. Then leave out the line that computes `shrink`:
# it stays 1, and the first tile counts as if its best score were as good as the second's. The result is still an
# average of the values, and looks harmless. Nothing crashes. Only a comparison shows it.

# %%
s1, v1 = torch.tensor([1.0, 2.0, 5.0, 0.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
for rescale in (True, False):
    m, l, acc = torch.tensor(-1e20), torch.tensor(0.0), torch.tensor(0.0)
    for tile in (slice(0, 2), slice(2, 4)):
        larger = torch.maximum(m, s1[tile].max())
        p = torch.exp(s1[tile] - larger)
        shrink = torch.exp(m - larger) if rescale else 1.0
        l, acc, m = l * shrink + p.sum(), acc * shrink + p @ v1[tile], larger
    print("with the rescale line:   " if rescale else "without the rescale line:", f"{acc / l:.3f}")
print(f"formula:                  {s1.softmax(0) @ v1:.3f}")

# %% [markdown]
# ## Exercise 1: fold in one tile
#
# Write one step for M queries at once, all three of m, l and acc. As in lesson 10, a forbidden score is $-\infty$, and
# before the first tile m is $-\infty$, l and acc are 0. A query may see nothing for several tiles, and has to stay like
# that: $-\infty - (-\infty)$ is not a number, and must not arise.


# %%
def fold_tile(m, l, acc, s, v):
    """m, l (M,), acc (M, D): kept so far. s (M, N): scores of a new tile, already multiplied by scale, -inf where
    forbidden. v (N, D).

    Returns m, l and acc as they are with the new tile, acc not divided by l. The arguments stay as they were.
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson11 import check_fold_tile

check_fold_tile(fold_tile)

# %% [markdown]
# <details><summary>Hint</summary>
#
# m and l are those of `fold` in lesson 10: return the new maximum, but subtract something finite. What shrinks l
# shrinks acc. Mind the shapes: acc is (M, D), and there is one factor for each row. What the tile adds to acc is a
# product of matrices, (M, N) times (N, D).
# </details>

# %% [markdown]
# ## Tile by tile
#
# Now the whole forward. The queries are cut into tiles of BLOCK_M, the keys into tiles of BLOCK_N. A tile of queries
# goes over the tiles of keys and keeps m, l and acc for each of its rows. In Triton this outer loop will be the
# programs, which run side by side.
#
# Here m starts at $-10^{20}$, smaller than any score that we will meet: then no difference is $-\infty - (-\infty)$,
# and no special case is needed. The `continue` skips tiles in which the mask allows no pair.
#
# Beside `o` the function returns one number a row. The softmax is $p_j = e^{s_j - m} / l = e^{s_j - (m + \ln l)}$. So
# whoever knows `lse` $= m + \ln l$, the logarithm of the sum of all $e^{s_j}$, gets any entry of P from its score
# alone. The backward will live on that: of all T² entries of P, T numbers are kept.


# %%
def tiled_forward(q, k, v, mask, scale, BLOCK_M=16, BLOCK_N=16):
    o, lse = torch.empty_like(q), q.new_empty(len(q))
    for m0 in range(0, len(q), BLOCK_M):
        rows = slice(m0, m0 + BLOCK_M)
        m = q.new_full((len(q[rows]),), -1e20)
        l, acc = torch.zeros_like(m), torch.zeros_like(q[rows])  # (BLOCK_M,), (BLOCK_M, D)
        for n0 in range(0, len(k), BLOCK_N):
            cols = slice(n0, n0 + BLOCK_N)
            if not mask[rows, cols].any():
                continue
            s = scale * q[rows] @ k[cols].T  # (BLOCK_M, BLOCK_N)
            s = s.masked_fill(~mask[rows, cols], float("-inf"))
            larger = torch.maximum(m, s.amax(1))
            p, shrink = torch.exp(s - larger[:, None]), torch.exp(m - larger)
            l = l * shrink + p.sum(1)
            acc = acc * shrink[:, None] + p @ v[cols]
            m = larger
        o[rows], lse[rows] = acc / l[:, None], m + l.log()
    return o, lse


for kind, mask in masks.items():
    difference = (tiled_forward(q, k, v, mask, scale)[0] - naive(q, k, v, mask, scale)).abs().max().item()
    print(f"{kind:7} largest difference from the formula {difference:.1e}")
    assert difference < 1e-5

# %% [markdown]
# ## Tiles that nobody reads
#
# The differences are rounding, and the loops never hold more than 16 × 16 scores. Now to the `continue`.
#
# Where a tile holds no allowed pair, all its p are 0, and reading it changes nothing. Looking for such tiles in a mask
# would mean reading T × T entries again. So a kernel finds them by arithmetic, from five facts that our kernels call
# `Shape`: (KIND, TEXT, GRID, ROWS, HALF). KIND is the mask. TEXT positions of text come first, then ROWS rows of GRID
# codes. HALF is for conv alone. Query i of the image sees the text, and a band of keys that ends at i and begins at
#
# - causal: 0,
# - row: i − GRID,
# - conv: i − (GRID · HALF + HALF), where HALF is 5 for an 11 × 11 kernel: five rows up and five to the left. (The
#   paper's neighbourhood wraps around the ends of a row. To read that as raster order is our own choice, not the
#   paper's. Inside this band some pairs are forbidden still.)
# - column: the start of the column, *if the image comes column by column*. In raster order every row has a cell of the
#   column, and a tile of 64 keys is two rows: every tile before the query would be needed. So for this mask the
#   image is transposed first. That is the paper's way, too.
#
# Except for causal, no band begins before TEXT: what it would reach there is text, which is seen anyway.


# %%
def visited(shape, BLOCK_M, BLOCK_N):
    """Which tiles are read, (tiles of queries, tiles of keys) bool, from a few whole numbers."""
    kind, TEXT, GRID, ROWS, HALF = shape
    T = TEXT + ROWS * GRID
    table = torch.zeros(-(-T // BLOCK_M), -(-T // BLOCK_N), dtype=torch.bool)
    for tile, first in enumerate(range(0, T, BLOCK_M)):  # its first query
        last = min(first + BLOCK_M, T) - 1
        begin = {
            "causal": 0,
            "row": first - GRID,
            "column": first - (first - TEXT) % ROWS,
            "conv": first - (GRID * HALF + HALF),
        }[kind]
        if kind != "causal":
            begin = max(begin, TEXT) if first >= TEXT else 0  # a query of the text sees all text before it
        table[tile, : min(last, TEXT - 1) // BLOCK_N + 1] = True  # the text
        table[tile, begin // BLOCK_N : last // BLOCK_N + 1] = True  # the band
    return table


# %% [markdown]
# Hold the rule to the three masks of the paper, and to plain causal, on the paper's stream: 256 + 32 × 32 = 1280
# positions, in tiles of 128 queries × 64 keys, 10 × 20 = 200 tiles. Those are the tiles of our forward kernel in 16
# bits on most GPUs; on Hopper and data-centre Blackwell they are 64 × 128, and in 32 bits smaller.
#
# `full_shape(kind)` is (KIND, TEXT, GRID, ROWS, HALF) at the paper's size. `to_mask_order` puts the image column by
# column for the column mask, and leaves it as it is for the others. `share_of` says, for every tile, which share of its
# pairs the mask allows, and the `assert` that the rule reads exactly the tiles where it is above 0.


# %%
def share_of(mask):  # (1280, 1280) -> (10, 20)
    return mask.float().unflatten(1, (20, 64)).unflatten(0, (10, 128)).mean((1, 3))


panels, positions = {}, torch.arange(1280).view(1, 1, -1, 1)
for kind in MASKS:
    order = to_mask_order(positions, full_shape(kind)).flatten()  # for column: column by column
    panels[kind] = share_of(dense_mask(kind, 256, 32)[order][:, order])
    assert torch.equal(visited(full_shape(kind), 128, 64), panels[kind] > 0)
panels["column in raster order"] = share_of(dense_mask("column", 256, 32))

figure, axes = plt.subplots(1, 5, figsize=(11, 3), layout="constrained", sharey=True)
edges, look = (range(0, 1281, 64), range(0, 1281, 128)), {"edgecolors": "#DDDDDD", "linewidth": 0.4}
states = {"white": "no pair allowed: never read", ORANGE: "some pairs", BLUE: "every pair"}
for axis, (title, share) in zip(axes, panels.items()):
    state = (share > 0).int() + (share == 1).int()  # 0, 1 or 2, an index into the states
    axis.pcolormesh(*edges, state, cmap=ListedColormap(list(states)), vmin=0, vmax=2, antialiased=True, **look)
    axis.set_title(f"{title}\n{int((share > 0).sum())} of 200 tiles", fontsize=8)
    axis.set(xlabel="key", xticks=(0, 256, 768, 1280), yticks=(0, 256, 768, 1280), aspect="equal")
    axis.tick_params(labelsize=8)
axes[0].set(ylabel="query", ylim=(1280, 0))
patches = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor=GREY) for colour in states]
figure.legend(patches, states.values(), loc="outside lower center", ncols=3, fontsize=8)
plt.show()

# %% [markdown]
# Five tables of tiles, queries down, keys across: blue, every pair is allowed; orange, some pairs; white, none: never
# read. Causal is a full triangle, 110 of 200. Row, column and conv are the text at the left and a band along the
# diagonal: 61, 54 and 74. On the right, the column mask in raster order fills the triangle again, although it allows
# few pairs in each tile.
#
# Blue tiles save work too: there no mask has to be applied. Our real kernels have two loops. The first applies no mask
# and goes over whole tiles of text (with the causal mask, of all earlier keys). The second, with the mask, goes over the
# band.
#
# Does the real kernel keep to the rule? **Poison** tells. NaN times anything is NaN, even times 0. So put NaN into one
# tile of values, run the kernel, and see which rows of the output are NaN: their queries have read the tile.
# `tiles_read` does it for each tile in turn. (At the full 1280 positions this takes the interpreter some seconds; we do
# two of the masks, and the tests of this project do all four on a smaller stream.) `loads_for` says in which way the
# kernels load their tiles on this machine, and the table `FORWARD` which size of tiles goes with it.

# %%
tiles = FORWARD[loads_for(q.half())]  # of this machine: 128 × 64 on a CPU
for kind in ("row", "column"):
    read = tiles_read(full_shape(kind), tiles, "v")
    assert torch.equal(read, visited(full_shape(kind), tiles.BLOCK_M, tiles.BLOCK_N))
    print(f"{kind:6} the real kernel reads {int(read.sum())} of {read.numel()} tiles, those of the rule and no other")

# %% [markdown]
# ## What is moved
#
# Count the numbers that one head moves between slow and fast memory in a forward. First the naive way, three steps,
# each of which reads its inputs and writes its result:
#
# | step | reads | writes |
# |---|---|---|
# | S = scale · Q Kᵀ | 2 · T · D | T² |
# | P = softmax of S under the mask | T² | T² |
# | O = P V | T² + T · D | T · D |
#
# In all `4 T² + 4 T D`, and the mask comes on top. The fused way reads each query once and writes each output once:
# `2 T D`. Each *visited* tile reads BLOCK_N keys and as many values: `2 · BLOCK_N · D`. The T numbers of `lse` are too
# few to draw. For the column mask we also transpose q, k, v and o: `4 T D` numbers are read, and written again.

# %%
ways = {"naive": {"scores": 2 * 1280**2, "probabilities": 2 * 1280**2, "k and v": 2 * 1280 * 64}}
for kind in MASKS:
    ways[f"fused, {kind}"] = {"k and v": int(visited(full_shape(kind), 128, 64).sum()) * 2 * 64 * 64}
for parts in ways.values():
    parts["q and o"] = 2 * 1280 * 64
ways["fused, column"]["transposing"] = 8 * 1280 * 64

figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
colours = {"scores": VERMILION, "probabilities": ORANGE, "k and v": BLUE, "q and o": GREY, "transposing": "#009E73"}
total = [0.0] * len(ways)
for name, colour in colours.items():
    megabytes = [2e-6 * parts.get(name, 0) for parts in ways.values()]  # 16 bits: 2 bytes a number
    axis.barh(list(ways), megabytes, left=total, color=colour, label=name)
    total = [a + b for a, b in zip(total, megabytes)]
axis.invert_yaxis()
axis.set(xlabel="MB moved by one head, forward, T = 1280, D = 64, 16 bits (counted)")
axis.legend(fontsize=8)
plt.show()
print({way: round(x, 2) for way, x in zip(ways, total)})

# %% [markdown]
# Five bars. The naive one is 13.8 MB long, nearly all of it scores and probabilities on their way out and back. The
# fused ones have no such part, and are between 1.3 and 2.5 MB long. For the column mask the transposing is about half
# of the bar: compared with reading all 110 tiles, it saves half of the products, but no bytes.
#
# This is a count, not a measurement. It takes every read as one from slow memory, and a GPU's caches serve some of
# them. And mind what is *not* claimed: with the causal mask the fused bar still grows with T², because every tile of
# queries reads all keys before it. That is about T² · D / BLOCK_M numbers instead of 4 T²: the larger BLOCK_M, the
# fewer. What falls from T² to T is what has to be *kept*.

# %% [markdown]
# ## The same in Triton
#
# Lesson 10 in three sentences: a kernel is run by many *programs*, and each asks `tl.program_id` which part of the work
# is its own. It loads a tile of numbers at a time, from the address of each. A *mask* on a load or a store says which
# of these addresses may be touched.
#
# Here, for one head, one picture and the causal mask, one program takes one tile of queries. Compare it line by line
# with `tiled_forward`. New are the loads and stores, and that the mask is computed from the positions i and j.
# (`input_precision="ieee"` multiplies in full float32.)
#
# T need not be a multiple of a tile. `load_tile` fills the rows behind the end with zeros and does not touch their
# memory. Why zeros, if the mask hides those keys anyway? Their p is 0, but 0 · NaN is NaN, and free memory may hold
# anything. We run it with tiles of 32, which do not divide T = 80, on buffers of 96 rows with NaN behind the end.


# %%
@triton.jit
def load_tile(X, start, T: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Rows start … start + BLOCK - 1 of X (T, D): a tile (BLOCK, D)."""
    i, d = start + tl.arange(0, BLOCK), tl.arange(0, D)
    return tl.load(X + i[:, None] * D + d[None, :], mask=i[:, None] < T, other=0.0)


# %%
@triton.jit
def causal_forward(
    Q, K, V, O, LSE, scale, T: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    m0 = tl.program_id(0) * BLOCK_M
    i = m0 + tl.arange(0, BLOCK_M)
    q = load_tile(Q, m0, T, D, BLOCK_M)
    m = tl.full([BLOCK_M], -1e20, tl.float32)
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for n0 in range(0, tl.minimum(m0 + BLOCK_M, T), BLOCK_N):  # tiles behind the last query are never read
        j = n0 + tl.arange(0, BLOCK_N)
        k, v = load_tile(K, n0, T, D, BLOCK_N), load_tile(V, n0, T, D, BLOCK_N)
        s = scale * tl.dot(q, k.T, input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        s = tl.where(j[None, :] <= i[:, None], s, float("-inf"))
        larger = tl.maximum(m, tl.max(s, 1))
        p, shrink = tl.exp(s - larger[:, None]), tl.exp(m - larger)
        l = l * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p, v, input_precision="ieee")
        m = larger
    tl.store(LSE + i, m + tl.log(l), mask=i < T)
    out = O + i[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out, acc / l[:, None], mask=i[:, None] < T)


# %%
buffers = torch.full((3, 96, D), torch.nan, device=device)
buffers[:, :T] = torch.stack([q, k, v])
o, lse = torch.empty_like(q), q.new_empty(T)
programs = triton.cdiv(T, 32)
causal_forward[(programs,)](*buffers, o, lse, scale, T, D, BLOCK_M=32, BLOCK_N=32)

loops, loops_lse = tiled_forward(q, k, v, masks["causal"], scale)
real = fused_attention(q[None, None], k[None, None], v[None, None], "causal", TEXT, GRID)[0, 0]
print(f"{programs} programs; largest differences: o {(o - loops).abs().max():.1e} from our loops, ", end="")
print(f"{(o - real).abs().max():.1e} from the real kernel; lse {(lse - loops_lse).abs().max():.1e}")
assert torch.allclose(o, loops, atol=1e-5) and torch.allclose(o, real, atol=1e-5)
assert torch.allclose(lse, loops_lse, atol=1e-5)

# %% [markdown]
# ## Backward: the formula
#
# Training gives us `do`, the gradient of the loss with respect to `o`. It has o's shape. Wanted are `dq`, `dk` and
# `dv`. Go backwards, one step at a time. As matrices: S = scale · Q Kᵀ, P = softmax(S), O = P V.
#
# **Through the values.** $o_i = \sum_j p_{ij} v_j$ is linear in v and in p. Value j went into every output i, with
# weight $p_{ij}$, and gets its share back with the same weight:
#
# $$dV = P^\top dO \qquad dP = dO\, V^\top$$
#
# **Through the softmax.** Within one row, $p_k = e^{s_k} / \sum e^s$. Raising $s_j$ raises $p_j$ and lowers all others:
# $\partial p_k / \partial s_j = p_k\,(1_{k = j} - p_j)$. Sum over k with weight $dp_k$:
#
# $$ds_j = p_j\,\Big(dp_j - \sum_k p_k\, dp_k\Big)$$

# %% [markdown]
# **The number delta.** That sum runs over a whole row, which a tile does not have. But put $dp_k = do \cdot v_k$ into
# it:
#
# $$\sum_k p_k\, dp_k = do \cdot \sum_k p_k v_k = do \cdot o = \text{delta}$$
#
# One number for each row, from `do` and `o`, which are there already. It is subtracted from every entry of its row. So,
# with ∘ for the product entry by entry, $dS = P \circ (dP - \text{delta})$.
#
# **Through the scores.** They are linear in q and in k:
#
# $$dQ = \text{scale} \cdot dS\, K \qquad dK = \text{scale} \cdot dS^\top Q$$
#
# Write it down with whole matrices first, and let autograd judge. Where the mask forbids a pair, p is 0, and so is ds:
# no other mask is needed.


# %%
def formula_backward(q, k, v, do, mask, scale):
    s = (scale * q @ k.T).masked_fill(~mask, float("-inf"))
    p = s.softmax(1)  # (T, T)
    delta = (do * (p @ v)).sum(1)  # (T,)
    dv = p.T @ do
    dp = do @ v.T  # (T, T)
    ds = p * (dp - delta[:, None])
    return scale * ds @ k, scale * ds.T @ q, dv


leaves = [x.clone().requires_grad_() for x in (q, k, v)]
by_autograd = torch.autograd.grad(naive(*leaves, masks["conv"], scale), leaves, do)
for name, ours, wanted in zip(("dq", "dk", "dv"), formula_backward(q, k, v, do, masks["conv"], scale), by_autograd):
    print(f"{name}: largest difference from autograd {(ours - wanted).abs().max():.1e}")
    assert torch.allclose(ours, wanted, atol=1e-5)

# %% [markdown]
# ## Backward: tile by tile
#
# Three matrices of T × T stand in that function: p, dp and ds. Entry (i, j) of each needs only row i of q and do, row j
# of k and v, and two numbers, `lse` and `delta` of row i. So they too can live tile by tile. P is **computed again**,
# $p_{ij} = e^{s_{ij} - lse_i}$, instead of T² numbers kept.
#
# dk and dv are sums over queries, dq is a sum over keys. If one program did both, many would add to the same rows at
# once. The order of these additions would differ from run to run, and with it the last bits of the gradients. So there
# are two loops, in our kernels too: here a tile of keys owns its rows of dk and dv, and takes in all queries that see
# it.
#
# It has its price in products of matrices. With P kept, the formulas above take four: for dV, dP, dQ and dK. Each of
# the two loops computes S and dP for itself, which makes seven.


# %%
def tiled_backward_keys(q, k, v, do, lse, delta, mask, scale, BLOCK_M=16, BLOCK_N=16):
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    for n0 in range(0, len(k), BLOCK_N):
        cols = slice(n0, n0 + BLOCK_N)
        for m0 in range(0, len(q), BLOCK_M):
            rows = slice(m0, m0 + BLOCK_M)
            if not mask[rows, cols].any():
                continue
            s = scale * q[rows] @ k[cols].T  # (BLOCK_M, BLOCK_N)
            s = s.masked_fill(~mask[rows, cols], float("-inf"))
            p = torch.exp(s - lse[rows, None])
            dv[cols] += p.T @ do[rows]
            dp = do[rows] @ v[cols].T
            ds = p * (dp - delta[rows, None])
            dk[cols] += scale * ds.T @ q[rows]
    return dk, dv


for kind, mask in masks.items():
    o, lse = tiled_forward(q, k, v, mask, scale)
    dk, dv = tiled_backward_keys(q, k, v, do, lse, (do * o).sum(1), mask, scale)
    _, dk_formula, dv_formula = formula_backward(q, k, v, do, mask, scale)
    print(f"{kind:7} dk {(dk - dk_formula).abs().max():.1e}   dv {(dv - dv_formula).abs().max():.1e} from the formula")
    assert torch.allclose(dk, dk_formula, atol=1e-5) and torch.allclose(dv, dv_formula, atol=1e-5)

# %% [markdown]
# ## Exercise 2: the gradient of the queries
#
# The other loop: each tile of queries owns its rows of dq and goes over the tiles of keys. `lse` is that of
# `tiled_forward`, `delta` is $do \cdot o$ of each row. Two conditions, as for a kernel:
#
# - A tile in which the mask allows no pair is not read. The check puts NaN there.
# - `k` and `v` may be longer than T. What stands behind T is free memory, and NaN too.


# %%
def grad_queries(q, k, v, do, lse, delta, mask, scale, block):
    """q, do (T, D); k, v (N, D), N >= T, of which the first T rows count; lse, delta (T,); mask (T, T) bool.

    block: both sides of a tile; it need not divide T. Returns dq (T, D). The arguments stay as they were.
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson11 import check_grad_queries

check_grad_queries(grad_queries)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start from `tiled_backward_keys`, with the loops exchanged: the queries outside. What is added up is `ds @ k[cols]`.
# Both loops end at T, so let the last slice end there as well: `slice(n0, min(n0 + block, T))`.
# </details>

# %% [markdown]
# ## The real thing
#
# First the twin in PyTorch loops, `kernels/tiled.py`. It works in base 2, as the kernels do, because a GPU has an
# instruction for $2^x$ and none for $e^x$: scores are multiplied by log₂ e. It returns m and log₂ l apart; their sum,
# times ln 2, is our `lse`.
#
# Then the Triton kernels, through `fused_attention`, the function that the transformer calls on a GPU. It takes
# `(B, H, T, D)`, here B = 2 pictures and H = 2 heads. Output and all three gradients, for each mask, against the
# formula of `kernels/reference.py` and autograd.


# %%
def compare(kind, batch):
    mask = masks[kind]
    o, lse = tiled_forward(q, k, v, mask, scale)
    dq = formula_backward(q, k, v, do, mask, scale)[0]
    ours = [o, lse, dq, *tiled_backward_keys(q, k, v, do, lse, (do * o).sum(1), mask, scale)]
    o, m, log_l = tiled.forward(q, k, v, mask, scale)
    dq, delta = tiled.backward_queries(q, k, v, o, do, m, log_l, mask, scale)
    dk, dv = tiled.backward_keys(q, k, v, do, m, log_l, delta, mask, scale)
    twin = [o, (m + log_l) * math.log(2), dq, dk, dv]
    formula = with_gradients(lambda *x: attention(*x, mask), *batch)
    fused = with_gradients(lambda *x: fused_attention(*x, kind, TEXT, GRID, kernel_size=3), *batch)
    return ("o lse dq dk dv", ours, twin), ("o dq dk dv", fused, formula)


batch = torch.randn(4, 2, 2, T, D, generator=torch.Generator().manual_seed(1)).to(device)  # q, k, v, do
for kind in MASKS:
    for title, pair in zip(("ours and tiled.py  ", "fused and formula  "), compare(kind, batch)):
        differences = [(x - y).abs().max().item() for x, y in zip(*pair[1:])]
        print(f"{kind:7}", title, "  ".join(f"{n} {x:.1e}" for n, x in zip(pair[0].split(), differences)))
        assert max(differences) < 1e-5

# %% [markdown]
# All agree, up to rounding. What does the real kernel have that ours has not? Batches and heads, with any strides. 16
# bits for the inputs, with sums in float32. Two loops over keys, so that whole tiles need no mask. Masks in few
# instructions a score: done naively to every score, a mask takes about as many as the softmax itself (see `hide` in
# `kernels/forward.py`). And on Hopper and data-centre Blackwell, in 16 bits, loads by a unit that copies whole tiles
# (TMA). The idea is the one you have built. Fusing is our own choice, not the paper's: the paper is from 2021,
# FlashAttention from 2022.
#
# **Read now:** [`kernels/reference.py`](../kernels/reference.py), [`kernels/tiled.py`](../kernels/tiled.py),
# [`kernels/forward.py`](../kernels/forward.py) (start at `attention_forward`) and
# [`kernels/backward.py`](../kernels/backward.py) (`backward_queries`), in this order. The names are the same in all of
# them.

# %% [markdown]
# ## What to remember
#
# 1. Keep m, l and acc for each query. When the maximum grows, one factor $e^{m - m'}$ puts all that was kept right.
# 2. Scores live in one tile and are forgotten. Of the T × T matrix one number a row is kept, the log-sum-exp.
# 3. From it the backward computes P again. delta = do · o replaces the only sum over a whole row.
# 4. A tile without an allowed pair is not read: causal 110, row 61, column 54, conv 74 of 200.
# 5. Fused attention is exact. It saves memory and its traffic, not the multiplications of the tiles that are read.
#
# **References.** Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*. Rabe and Staats 2021,
# *Self-attention Does Not Need O(n²) Memory*. Dao et al. 2022, *FlashAttention*. Dao 2023, *FlashAttention-2*. Ramesh
# et al. 2021, *Zero-Shot Text-to-Image Generation*, Fig. 11, for the masks.
