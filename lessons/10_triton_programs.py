# %% [markdown]
# # 10 · Triton, part 1
#
# **What is a program on a GPU?**
#
# So far every operation on tensors was PyTorch's. In this lesson we write our own: an addition, a softmax, and a
# softmax that never sees its whole row at once. The last one is the heart of the attention kernel.
#
# *Before:* lesson 06 built attention, and lesson 07 a whole transformer, with PyTorch's operations.
# *Next:* lesson 11 makes the attention kernel out of what stands here.

# %% [markdown]
# ## Without a GPU
#
# **Triton** is a language for GPUs that looks like Python. On a GPU its functions are compiled. Without one, Triton has
# an *interpreter*: the same functions run on the CPU, step by step, with NumPy. That is what happens below if no GPU
# is found. It has to be chosen before Triton is imported.
#
# The interpreter tells you whether a function is *right*. It is slow, and says nothing about the time on a GPU. Nor
# does this lesson. It also rounds bfloat16 wrongly, so everything here is float32.
#
# Triton comes for Linux. On macOS or Windows, read this notebook as it is, or open it in Colab.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import math
import os

import matplotlib.pyplot as plt
import torch
from drawing import BLUE, GREY, ORANGE, VERMILION

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before the import
try:
    import triton
    import triton.language as tl
except ImportError:
    raise ImportError("This lesson needs Triton, which is for Linux: read the notebook, or open it in Colab.") from None
torch.set_default_device(DEVICE)  # where new tensors go
print("compiled for the GPU" if DEVICE == "cuda" else "in Triton's interpreter, on the CPU")

# %% [markdown]
# ## Cut the work into pieces
#
# A GPU is many **multiprocessors** side by side: 132 on an H100 (SXM). They all run the *same* function, on different
# data. So the first question is always: who does what?
#
# Take a vector of $n = 10$ numbers, and cut it into pieces of `BLOCK` = 4. Piece number $p$ is the work of **program**
# $p$: one run of the function, which knows its number and nothing about the other runs. Here it is in plain PyTorch:

# %%
n, BLOCK = 10, 4
x, y, out = torch.arange(10.0), torch.full([10], 100.0), torch.zeros(10)


def program(p):
    """Adds piece p of x and y."""
    offsets = p * BLOCK + torch.arange(BLOCK)  # (BLOCK,) which elements are mine?
    mask = offsets < n  # (BLOCK,) and which of them exist?
    mine = offsets[mask]
    out[mine] = x[mine] + y[mine]
    print(f"program {p}: offsets {offsets.tolist()}, mask {mask.int().tolist()}")


for p in (2, 0, 1):  # in any order
    program(p)
print(out.tolist())

# %% [markdown]
# Three programs make $3 \cdot 4 = 12$ **lanes**, for ten elements. Two lanes of program 2 have nothing to do: they are
# *masked*. There is such a ragged end whenever `BLOCK` does not divide $n$.
#
# The order of the programs did not matter: none reads what another one writes. That is the condition for
# a GPU to run them at the same time, as many as fit, in an order that nobody promises.

# %% [markdown]
# ## The same as a kernel
#
# In Triton the function is called a **kernel**. Five things are new:
#
# - `X`, `Y` and `OUT` are **pointers**. The kernel does not get a tensor, only the address of its first element.
#   `X + offsets` is a **tile** of four addresses; offsets count elements, not bytes.
# - `tl.program_id(0)` is the program's number.
# - `tl.load` reads from the addresses, `tl.store` writes to them. Both leave the memory of masked lanes alone.
# - `tl.constexpr` marks what is fixed when the kernel is compiled. The size of a tile is, and it must be a power of two.
# - The loop over $p$ is gone. `kernel[grid](…)` **launches** as many programs as the tuple `grid` says: here
#   $\lceil n / \text{BLOCK} \rceil$, which `triton.cdiv` computes. Tensors go in, and the kernel gets their pointers.


# %%
@triton.jit
def add_kernel(X, Y, OUT, n, BLOCK: tl.constexpr):
    """X, Y, OUT (n,) float32, contiguous. Grid: (ceil(n / BLOCK),)."""
    p = tl.program_id(0)
    offsets = p * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    mask = offsets < n
    x = tl.load(X + offsets, mask=mask)
    y = tl.load(Y + offsets, mask=mask)
    tl.store(OUT + offsets, x + y, mask=mask)


def add(x, y, BLOCK=4):
    out = torch.empty_like(x)
    grid = (triton.cdiv(len(x), BLOCK),)
    add_kernel[grid](x, y, out, len(x), BLOCK=BLOCK)
    return out


print(add(x, y).tolist())
for length in (1, 4, 10, 1001):
    a, b = torch.randn(length), torch.randn(length)
    assert torch.equal(add(a, b), a + b)


# %%
def draw_walk(offsets, mask, cells, title):
    """offsets, mask (P, BLOCK): where the lanes of P programs point, and whether they are on. cells: memory shown."""
    _, axis = plt.subplots(figsize=(7, 2.1), layout="constrained")
    for p in range(len(offsets)):
        for at, on in zip(offsets[p].tolist(), mask[p].tolist()):
            fill, hatch = ([BLUE, ORANGE, VERMILION][p], None) if on else ("white", "////")
            axis.add_patch(plt.Rectangle((at - 0.45, p - 0.4), 0.9, 0.8, fc=fill, ec="black", hatch=hatch, lw=0.7))
    axis.set(xlim=(-0.7, cells - 0.3), ylim=(len(offsets) - 0.4, -0.6), xticks=range(cells), yticks=range(len(offsets)))
    axis.set(xlabel="offset from the pointer, in elements", ylabel="program", title=title)
    plt.show()


offsets = torch.arange(3)[:, None] * BLOCK + torch.arange(BLOCK)  # (P, BLOCK)
draw_walk(offsets, offsets < n, 12, "n = 10, BLOCK = 4")

# %% [markdown]
# The sums have the same bits as PyTorch's, for every length. The picture shows which program works on which elements: a
# staircase of three programs, four lanes each. Program 0 is on elements 0 to 3, program 1 on 4 to 7, program 2 on 8 and
# 9. Its last two lanes, hatched, point at 10 and 11, where the vector has ended. They are masked.
#
# A program is not a thread. On a GPU its lanes are spread over a block of threads: on NVIDIA's 128, unless you say
# otherwise. That is the compiler's business: you write for the tile.

# %% [markdown]
# ## What happens without the mask
#
# PyTorch would say "index out of range". A kernel has no ranges, only addresses. So we build a place where we can
# watch: memories of twelve numbers, of which only the first ten are our vector. The last two belong to someone else.


# %%
@triton.jit
def careless_kernel(X, OUT, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + offsets, tl.load(X + offsets) * 2)


x_memory, out_memory = torch.arange(12.0), torch.full([12], -1.0)
x, out = x_memory[:10], out_memory[:10]
careless_kernel[(3,)](x, out, BLOCK=4)
print(out_memory.tolist())
assert (out_memory[10:] != -1).all()

# %% [markdown]
# Our ten numbers are right, and there was no error. But the two −1 behind them are gone: somebody else's tensor now
# holds 20 and 22. Such a mistake shows far from its cause, or never.
#
# So the checks of this lesson put your tensors in the midst of a *poisoned* memory. What a kernel reads there spoils
# its result, and what it writes there is found. In the interpreter the check stops your kernel before it does either.
# (Outside the check nothing stops it, as you saw.)

# %% [markdown]
# ## Exercise 1: reverse
#
# Turn a vector around: $y_i = x_{n-1-i}$. Write the kernel above the function, and let the function launch it, with a
# `BLOCK` of your choice. It must be right for every $n$, whether the last tile is full or not.


# %%
# your kernel here: @triton.jit, then def …


def reverse(x, y):
    """x, y (n,) float32, contiguous. Writes the reverse of x to y; returns nothing."""
    raise NotImplementedError  # your code


# %%
from checks.lesson10 import check_reverse

check_reverse(reverse)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start from `add_kernel` and `add`. The store is as before. The load has offsets of its own: which element of x belongs
# to element `offsets` of y? In masked lanes that offset is negative. It does no harm if the load is masked.
# </details>

# %% [markdown]
# ## Rows: the stride
#
# Memory is a line, and a matrix lies in it row behind row. Element $(r, c)$ is at offset $r \cdot \text{stride} + c$.
# The **stride** is the distance from the start of one row to the start of the next: the number of columns, unless
# something lies between the rows. The kernel sees only a pointer, so the launch has to tell it the stride.
#
# Below, `x` is cut out of a larger matrix, and we want the largest number of each row, one program a row. Five columns
# are no power of two, so we take a tile of eight and mask three lanes. A masked lane reads nothing, but it still holds
# *some* value, and `tl.max` looks at all lanes. `other` says which value: −∞, the number that changes no maximum.


# %%
@triton.jit
def row_max_kernel(X, OUT, stride, columns, BLOCK: tl.constexpr):
    """X (rows, columns), rows `stride` apart; OUT (rows,). Grid: (rows,); BLOCK at least `columns`."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)  # (BLOCK,)
    x = tl.load(X + row * stride + c, mask=c < columns, other=float("-inf"))
    tl.store(OUT + row, tl.max(x, 0))


memory = torch.arange(24.0).view(3, 8)
x, out = memory[:, :5], torch.empty(3)  # (3, 5): no copy, the same memory
print("shape", tuple(x.shape), "  strides", x.stride())
print("x[2, 1] =", x[2, 1].item(), "  at offset 2 · 8 + 1:", memory.flatten()[2 * 8 + 1].item())
row_max_kernel[(3,)](x, out, x.stride(0), x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
print("largest of each row:", out.tolist())
assert torch.equal(out, x.amax(1))

offsets = torch.arange(3)[:, None] * x.stride(0) + torch.arange(8)  # (P, BLOCK)
draw_walk(offsets, (torch.arange(8) < 5).expand(3, 8), 24, "3 rows of 5 columns, stride 8, BLOCK = 8")

# %% [markdown]
# Again a staircase, one program for each row: five lanes on, three masked. The masked lanes lie on numbers *between*
# our rows, which belong to the larger matrix. Without the mask the maximum of row 0 would be the 7 at offset 7, not 4.

# %% [markdown]
# ## Softmax, and its two traps
#
# The softmax of a row of scores $s_j$ is $p_j = e^{s_j} / \sum_k e^{s_k}$. It can go wrong in two ways: one comes
# from masked lanes, the other from large numbers. (From here on $p$ is a probability, no longer a program's number.)

# %%
row = torch.tensor([2.0, 1.0, 0.0])
for other in (0.0, -math.inf):
    tile = torch.cat([row, torch.tensor([other])])  # three columns, a tile of four
    p = tile.exp() / tile.exp().sum()
    print(f"masked lane {other:4}: p = {[round(v, 3) for v in p[:3].tolist()]}, their sum {p[:3].sum():.3f}")

large = row + 1000
print("scores + 1000:         ", (large.exp() / large.exp().sum()).tolist())
less = large - large.max()
print("minus the maximum:     ", [round(v, 3) for v in (less.exp() / less.exp().sum()).tolist()])

# %% [markdown]
# **The padding counts.** A lane of 0 adds $e^0 = 1$ to the sum, and the three probabilities no longer sum to 1. With
# $-\infty$ it adds $e^{-\infty} = 0$.
#
# **Large scores overflow.** float32 ends at about $3.4 \cdot 10^{38}$, and $e^{89}$ is beyond it. Infinity over
# infinity is NaN. So subtract the row's maximum $m$ first. The result is the same, since that multiplies both parts of
# the fraction by $e^{-m}$:
#
# $$p_j = \frac{e^{s_j - m}}{\sum_k e^{s_k - m}}$$
#
# No exponent is above 0 now, and the largest term is 1, so the sum is at least 1.

# %% [markdown]
# ## Exercise 2: softmax
#
# Write a kernel for the softmax of every row, one program a row. x and y each have their own stride. The check
# tries odd lengths, large scores, and NaN or huge values between and around the rows.


# %%
# your kernel here: @triton.jit, then def …


def softmax(x, y):
    """x, y (rows, columns) float32, rows x.stride(0) and y.stride(0) apart, stride 1 within a row. Writes the softmax of
    each row of x to y, and nothing elsewhere; returns nothing."""
    raise NotImplementedError  # your code


# %%
from checks.lesson10 import check_softmax

check_softmax(softmax)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `row_max_kernel` has the load, and its launch the `BLOCK`. Then `tl.exp`, `tl.sum(…, 0)`, and a store of a whole tile,
# with a mask and with y's own stride. What must a masked lane hold to count neither in the maximum nor in the sum?
# </details>

# %% [markdown]
# ## A row that does not fit
#
# A tile lives in **registers**, the memory nearest to where numbers are computed. An H100 has 65,536 of them, of 32
# bits, in each of its multiprocessors. A row of scores over the paper's stream is 1280 numbers, which fits. But an
# attention kernel takes many queries at once, say 128, because they read the same keys. Then it is 128 · 1280 =
# 163,840 scores, and they do not fit.
#
# So a row comes in tiles, one after the other. Done plainly, that takes three passes: one for the maximum, one for the
# sum, one to divide. Each pass reads the row from memory again. Can maximum and sum be had in one pass?

# %% [markdown]
# ## The online softmax, step by step
#
# After some tiles, keep two numbers: the largest score so far, $m$, and the sum so far, measured from it:
#
# $$l = \sum_{j \text{ so far}} e^{s_j - m}$$
#
# A new tile arrives. The maximum becomes $m' = \max(m, \text{largest of the tile})$. The old terms of the sum were
# measured from $m$, and should now be measured from $m'$. For one of them:
#
# $$e^{s_j - m'} = e^{s_j - m} \cdot e^{m - m'}$$
#
# The factor is the same for all old terms, so it comes out of their sum. The old scores are not needed again:
#
# $$l' = l \cdot e^{m - m'} + \sum_{j \text{ in the tile}} e^{s_j - m'}$$
#
# If the maximum has not moved, the factor is 1. If it has, the factor is below 1, and what was summed before shrinks.
# In the code, `larger` is $m'$ and `shrink` is the factor. We start from $m = -10^{20}$ and $l = 0$; why, comes below.


# %%
def online(s, BLOCK):
    """s (N,) scores. (m, l) after each tile."""
    m, l, history = torch.tensor(-1e20), torch.tensor(0.0), []
    for n0 in range(0, len(s), BLOCK):
        tile = s[n0 : n0 + BLOCK]
        larger = torch.maximum(m, tile.max())  # m'
        shrink = torch.exp(m - larger)
        l = l * shrink + torch.exp(tile - larger).sum()
        m = larger
        history.append((m.item(), l.item()))
    return history


# %%
torch.manual_seed(3)
s = torch.randn(48, device="cpu").to(DEVICE) * 1.5 + torch.linspace(-2, 3, 48)
history = online(s, 8)
for t, (m, l) in enumerate(history):
    print(f"after tile {t}: m = {m:6.3f}   l = {l:6.3f}")
print(f"the whole row:  m = {s.max():6.3f}   l = {torch.exp(s - s.max()).sum():6.3f}")
assert math.isclose(l, torch.exp(s - s.max()).sum(), rel_tol=1e-5)

forgotten = sum(torch.exp(s[n0 : n0 + 8] - s[: n0 + 8].max()).sum().item() for n0 in range(0, 48, 8))
print(f"without rescaling:           l = {forgotten:6.3f}")
nothing = torch.tensor(-math.inf)
print(f"-inf - (-inf) = {nothing - nothing}, but exp(-inf - (-1e20)) = {torch.exp(nothing + 1e20)}")

# %%
edges = [8 * t + 7.5 for t in range(6)]
at_the_end = [torch.exp(s[: 8 * t + 8] - s.max()).sum().item() for t in range(6)]
_, (above, below) = plt.subplots(2, 1, figsize=(7, 4.2), sharex=True, layout="constrained")
above.scatter(range(48), s.tolist(), s=14, color=GREY, ec="black", lw=0.4, label="scores of the row")
stairs = [history[0][0], *(m for m, _ in history)]
above.step([-0.5, *edges], stairs, where="pre", color=BLUE, label="m after this tile")
above.set(ylabel="score")
below.plot(edges, [l for _, l in history], "o-", color=BLUE, label="l: measured from m so far")
below.plot(edges, at_the_end, "s--", color=ORANGE, label="the same sum, measured from the last m")
below.set(xlabel="position in the row (lines: borders of tiles)", ylabel="sum of exponentials", ylim=(0, 7))
for axis in (above, below):
    axis.set(xlim=(-0.5, 47.9), xticks=range(0, 48, 8))
    axis.legend(fontsize=8, loc="upper left")
    for edge in edges[:-1]:
        axis.axvline(edge, color=GREY, lw=0.7)
for t in range(6):
    above.text(8 * t + 3.5, 1.03, f"tile {t}", ha="center", fontsize=8, transform=above.get_xaxis_transform())
plt.show()

# %% [markdown]
# Above, the row's scores and $m$, a staircase that only rises: with tile 2 by a little, with tile 3 by about 3. Below,
# $l$ in blue. It grows with every tile but one: at tile 3 it falls from about 4.9 to 2.1, since the maximum has jumped,
# and all that was summed before counts only $e^{-3.15} \approx 0.04$ times as much.
#
# The dashed line is the same sum measured from the row's true maximum, which nobody knows before tile 3. From there
# on the two are one, and they end at the right value.

# %% [markdown]
# **What if a step is left out?** Without the factor, each tile's sum is measured from the maximum of its time, and
# their total means nothing. It is the line "without rescaling" above, more than twice the right number.
#
# The last line is about the start. Why does $m$ begin at $-10^{20}$, and not at $-\infty$? Because a score that an
# attention mask hides is $-\infty$, and a row may see nothing in its first tiles. Then $s_j - m'$ would be
# $-\infty - (-\infty)$, which is NaN, and a sum with NaN in it stays NaN. From $-10^{20}$ it is $e^{-\infty} = 0$, as
# it should be. The first real score takes the place of $-10^{20}$.

# %% [markdown]
# ## Exercise 3: fold a tile
#
# Write one step of the online softmax, for $R$ rows at once. This time $m$ does begin at $-\infty$, with $l = 0$, and
# you have to keep NaN out: a row that has seen only $-\infty$ keeps $m = -\infty$ and $l = 0$. The check compares with
# the maximum and the sum over all columns so far, for several tilings.


# %%
def fold(m, l, s):
    """m (R,) largest scores so far, l (R,) sums of exp(score - m) so far, s (R, N) the next tile, which may hold -inf.
    Returns what m and l become, each (R,)."""
    raise NotImplementedError  # your code


# %%
from checks.lesson10 import check_fold

check_fold(fold)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Return m' as it is, but *subtract* something finite: m' with every −∞ replaced by 0 (`masked_fill`). Then exp(−∞ − 0)
# is 0, in the tile and in the factor. Mind the dimensions: beside `s`, which is (R, N), m' needs to be (R, 1), so
# `[:, None]`.
# </details>

# %% [markdown]
# ## As a kernel
#
# Now a softmax for rows of any length, in two passes: the first keeps $m$ and $l$, the second divides. One program
# still does one row. The loop over tiles is inside the program, so the tiles of a row do come in order.


# %%
@triton.jit
def long_softmax_kernel(X, Y, stride_x, stride_y, columns, BLOCK: tl.constexpr):
    """X, Y (rows, columns), rows stride_x and stride_y apart. Grid: (rows,); BLOCK any power of two."""
    row = tl.program_id(0)
    m, l = -1e20, 0.0
    for n0 in range(0, columns, BLOCK):
        c = n0 + tl.arange(0, BLOCK)
        s = tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf"))
        larger = tl.maximum(m, tl.max(s, 0))
        l = l * tl.exp(m - larger) + tl.sum(tl.exp(s - larger), 0)
        m = larger
    for n0 in range(0, columns, BLOCK):
        c = n0 + tl.arange(0, BLOCK)
        s = tl.load(X + row * stride_x + c, mask=c < columns, other=float("-inf"))
        tl.store(Y + row * stride_y + c, tl.exp(s - m) / l, mask=c < columns)


x = torch.randn(3, 1280) * 5
y = torch.empty_like(x)
for BLOCK in (16, 128, 2048):
    long_softmax_kernel[(3,)](x, y, x.stride(0), y.stride(0), 1280, BLOCK=BLOCK)
    print(f"BLOCK {BLOCK:4}: largest difference from torch.softmax {(y - x.softmax(1)).abs().max():.1e}")
    assert torch.allclose(y, x.softmax(1), atol=1e-6)

# %% [markdown]
# ## Attention needs no second pass
#
# Attention does not want the probabilities. It wants the average of the values $v_j$ with these weights (lesson 06):
#
# $$o = \sum_j p_j v_j = \frac{\sum_j e^{s_j - m} v_j}{\sum_j e^{s_j - m}} = \frac{\text{acc}}{l}$$
#
# The upper sum, acc, can be kept like $l$: when $m$ becomes $m'$, it shrinks by the *same* factor. There is one
# division, at the end. No score is needed twice, so none has to be stored.


# %%
def attend(q, k, v, BLOCK):
    """q (D,) one query; k, v (N, D) its keys and values. o (D,), m and l."""
    m, l, acc = torch.tensor(-1e20), torch.tensor(0.0), torch.zeros(v.shape[1])
    for n0 in range(0, len(k), BLOCK):
        s = k[n0 : n0 + BLOCK] @ q * len(q) ** -0.5  # (BLOCK,)
        larger = torch.maximum(m, s.max())
        p = torch.exp(s - larger)  # (BLOCK,) e^(s - m'), not yet divided by l
        shrink = torch.exp(m - larger)
        l = l * shrink + p.sum()
        acc = acc * shrink + p @ v[n0 : n0 + BLOCK]  # (D,)
        m = larger
    return acc / l, m, l


# %% [markdown]
# ## The real thing
#
# Our attention kernel stands in `kernels/forward.py`, and the same algorithm as PyTorch loops, with the same names,
# in `kernels/tiled.py`. (There m begins at $-\infty$, and a variable `base` keeps NaN out as in Exercise 3.) Both
# return $m$ and $\log_2 l$ for each query beside $o$, so we can compare all three.
#
# They count in base 2, because a GPU has an instruction for $2^x$ and none for $e^x$. With $e^x = 2^{x \log_2 e}$,
# their $m$ is ours times $\log_2 e$, and $l$ is the same.

# %%
import inspect

from kernels import attention, forward, tiled

T, D = 80, 16
q, k, v = torch.randn(3, T, D)  # (T, D) each, of one head
causal = torch.ones(T, T, dtype=torch.bool).tril()
ours = [attend(q[i], k[: i + 1], v[: i + 1], BLOCK=16) for i in range(T)]  # query i sees keys 0 … i
o, m, l = (torch.stack(each) for each in zip(*ours))

loops = tiled.forward(q, k, v, causal, scale=D**-0.5)
shape = attention.Shape("causal", T, 1, 0, 0)  # KIND, TEXT, GRID, ROWS, HALF: text alone, no row of an image
kernel = [x[0, 0] for x in attention.forward(q[None, None], k[None, None], v[None, None], shape, D**-0.5)]
for name, (o_real, m_real, log_l) in {"tiled.py": loops, "forward.py": kernel}.items():
    pairs = {"o": (o, o_real), "m": (m, m_real / math.log2(math.e)), "l": (l, 2**log_l)}
    for what, (by_hand, real) in pairs.items():
        print(f"{name:10} {what}: largest difference {(by_hand - real).abs().max():.1e}")
        assert torch.allclose(by_hand, real, atol=1e-4, rtol=1e-4)
print("\n" + inspect.getsource(forward.softmax_tile.fn))

# %% [markdown]
# The differences are those of float32. Below them stands the step itself, printed from the kernel's file. It folds a
# tile of keys for many queries at once, so `m` and `l` are vectors. `larger`, `shrink`, `m` and `l` are those of this
# lesson: `shrink` is the factor by which everything before the tile shrinks. `scale` holds $\log_2 e$ as well, and
# `p` is what `acc` needs, not yet divided by `l`. The kernel goes on with
# `acc = tl.dot(p, v, acc * shrink[:, None])`: `tl.dot` multiplies the tiles p and v as matrices and adds its third
# argument.
#
# The grid is (heads of all pictures, tiles of queries). So one program is one head of one picture and one tile of
# queries, and loops over tiles of keys. Which tiles, under which mask, is lesson 11.
#
# **Read now:** `forward` in [`kernels/tiled.py`](../kernels/tiled.py), 22 lines. Then `softmax_tile` in
# [`kernels/forward.py`](../kernels/forward.py), and the lines of `attention_forward` where `m`, `l` and `acc` begin.

# %% [markdown]
# ## What to remember
#
# 1. A program is one run of the kernel. It knows its number, and from that the offsets that it works on.
# 2. A kernel sees pointers, not tensors. Strides say where a row begins, masks say where it ends.
# 3. A mistake at the end of a row need not raise an error. Mask every load and store, and choose what masked lanes hold.
# 4. Softmax: subtract the maximum, and let padding be $-\infty$.
# 5. Online softmax: when the maximum moves, all that was summed before shrinks by $e^{m - m'}$: $l$, and acc with it.
#
# **References.** Tillet, Kung and Cox 2019, *Triton: An Intermediate Language and Compiler for Tiled Neural Network
# Computations*. Milakov and Gimelshein 2018, *Online normalizer calculation for softmax*. Dao et al. 2022,
# *FlashAttention*, where it meets attention. Such kernels are our own choice, not the paper's.
