# %% [markdown]
# # 12 · Scaling
#
# **What would 12 B cost?**
#
# The paper's largest model has 12 billion parameters and was trained on 1024 GPUs. Its structure is the one that you
# have built, only larger. This lesson counts what the size asks for: parameters, operations, bytes. Then it builds
# three tools that it makes necessary: sharding, scales for gradients in 16 bits, and gradients that are sent
# compressed.
#
# *Before:* lessons 01 to 09 built the model at a size for a laptop, 10 and 11 its attention on a GPU.
# *Next:* lesson 13 asks what a generator inherits from its data.
#
# **No GPU has run this.** Whatever is said about GPUs here is arithmetic from data sheets. What is measured, was
# measured on two CPU cores.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import dataclasses
import inspect
import json
import subprocess
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.distributed as dist
from drawing import BLUE, GREY, ORANGE, VERMILION
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from minidalle.checkpoint import load_run
from minidalle.config import PAPER
from minidalle.data import scenes
from minidalle.scale import plan
from minidalle.sequence import tokenize
from minidalle.transformer import DALLE

# %% [markdown]
# ## Numbers: what is learned
#
# Take one block of lesson 07, of width C. Attention makes queries, keys and values with a matrix of C × 3C and 3C
# biases, and mixes the heads with C × C and C biases. The MLP goes to 4C and back: two matrices of 4C², and 4C + C
# biases. Each of the two norms has C scales and C shifts. Together
#
# $$\underbrace{3C^2 + 3C + C^2 + C}_{\text{attention}} + \underbrace{8C^2 + 5C}_{\text{MLP}} + \underbrace{4C}_{\text{norms}}
# = 12\,C^2 + 13\,C$$
#
# The number of heads is not in it, and neither is T: a longer stream costs time, but no weights.
#
# Is it right? PyTorch can build a model on the **meta device**: all shapes are there, but no numbers. So even the
# largest size takes no memory, and its parameters can be counted.
#
# ## Exercise 1: an estimator that is exact
#
# Write the count of the whole model. Beside its L blocks it has (lesson 05) one vector of C numbers for each of the V
# text tokens, the K image codes, the text_len positions of text, the text_len pads, the rows and the columns of the
# picture. At the end stand a last norm and two heads, which make V and K logits of C numbers. Heads have no biases,
# and share nothing with the embeddings.


# %%
def count_parameters(c):
    """c: a TransformerConfig, with n_layer, n_embd, text_len, rows, grid, vocab_size (V), codebook_size (K). -> int"""
    raise NotImplementedError  # your code


# %%
from checks.lesson12 import check_count_parameters

check_count_parameters(count_parameters)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Everything but the blocks and the last norm is a table of some rows of C numbers. Add up the rows, multiply once. A
# picture need not be square: rows and grid (its columns) are two numbers.
# </details>
#
# The project's estimator is `parameters` in `minidalle/scale/plan.py`, part by part. It must be what PyTorch counts,
# to the last number.

# %%
sizes = {preset.name: preset.transformer for preset in PAPER}
for name, c in sizes.items():
    with torch.device("meta"):
        counted = sum(p.numel() for p in DALLE(c).parameters())
    parts = plan.parameters(c)
    assert counted == sum(parts.values())
    blocks = parts["blocks, L (12 C² + 13 C)"]
    print(f"{name:10}  planned {sum(parts.values()):,}   counted {counted:,}   in the blocks {blocks / counted:.1%}")
assert counted == 12_292_808_448

# %% [markdown]
# Nearly all of it is matrices in blocks, so $12\,L\,C^2$ is a good first guess of any GPT. The paper states the two
# smaller sizes by width alone; that they have 64 layers too is derived from their parameters.
#
# ## Operations: what is computed
#
# A product of a vector with a matrix of n numbers takes n multiplications and n sums: 2n floating-point operations
# (**FLOPs**). So each of the T positions of a stream takes 2 · 12 C² in each block. Attention compares: a query with
# a key over C numbers (all heads together), and later adds a value of C numbers: 4C for each pair that the mask lets
# through. Each predicted position is multiplied with a head.
#
# For a check, PyTorch counts the FLOPs of a real pass of our small trained model. `addmm` are products with a bias:
# all that the blocks have; `mm` are those without: the heads. (What it counts for attention depends on which pairs
# its kernel skips, so that is left out here; `tests/test_plan.py` compares it too.)


# %%
def forward_flops(c):
    """One stream, forward: blocks' products, attention, heads."""
    C, T, cells = c.n_embd, c.text_len + c.rows * c.grid, c.rows * c.grid
    blocks = 2 * 12 * C**2 * T * c.n_layer
    heads = 2 * C * (c.vocab_size * (c.text_len - 2) + c.codebook_size * cells)  # lesson 07: text_len - 2 are predicted
    return blocks, 4 * C * plan.seen_pairs(c), heads


preset, bpe, dvae, tiny = load_run("weights")
text = torch.full((1, tiny.config.text_len), -1)
with FlopCounterMode(display=False) as counter, torch.no_grad():
    tiny(text, torch.zeros(1, tiny.config.n_image, dtype=torch.int64))
real = {str(kind): n for kind, n in counter.get_flop_counts()["Global"].items()}
ours = forward_flops(tiny.config)
print(
    f"counted   addmm {real['aten.addmm']:,}   mm {real['aten.mm']:,}\nby hand  blocks {ours[0]:,}   heads {ours[2]:,}"
)
assert (real["aten.addmm"], real["aten.mm"]) == (ours[0], ours[2])
for c in sizes.values():
    assert forward_flops(c) == tuple(plan.operations(c).values())
for name, parts in (("ours", ours), ("12 B", forward_flops(sizes["dalle-12b"]))):
    print(f"{name}, one stream forward: {sum(parts):.3g} FLOPs; attention's share {parts[1] / sum(parts):.1%}")

# %% [markdown]
# In the large model attention is a hundredth of the whole: C is so large that the matrices outweigh the comparing,
# and the masks spare most pairs. In the tiny one it is more.
#
# The backward pass needs two products for each of the forward: one for the gradient of the input, one for that of the
# weights. So training takes three times the forward. With P parameters, a token costs about $3 \cdot 2P = 6P$, a rule
# worth knowing by heart. A *run* costs $6P$ times the tokens that it sees: updates × batch × T.
#
# Next, tokens against FLOPs for the paper's schedule of 430,000 updates of 1024 streams. (How long its two smaller
# sizes were trained, the paper does not say. We take the same.)

# %%
runs = {preset.name: (preset.transformer, preset.train.transformer) for preset in PAPER}
runs = {"ours, lessons/weights": (tiny.config, preset.train.transformer)} | runs
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
cost = {}
looks = ((VERMILION, -3), (GREY, -12), (ORANGE, -4), (BLUE, 4))  # colour, and points that the name is raised
for (name, (c, stage)), (colour, where) in zip(runs.items(), looks):
    tokens = stage.updates * stage.batch_size * (c.text_len + c.n_image)
    cost[name] = stage.updates * stage.batch_size * plan.training_operations(c, recompute=False)
    P = sum(plan.parameters(c).values())
    axis.plot([1e5, tokens], [cost[name] * 1e5 / tokens, cost[name]], color=colour, marker="o", markevery=[1])
    axis.annotate(name, (tokens, cost[name]), (8, where), textcoords="offset points", fontsize=8)
    print(f"{name:22} {tokens:.3g} tokens, {cost[name]:.3g} FLOPs; 6 P tokens: {6 * P * tokens:.3g}")
for days, of in ((1, "one H100 in a day"), (1024, "1024 H100 in a day")):
    axis.axhline(days * 0.4 * 989e12 * 86400, color="black", linewidth=0.8, linestyle=":")
    axis.text(1.3e5, days * 0.4 * 989e12 * 86400 * 1.4, f"{of}, at 40 % of the data sheet", fontsize=8)
axis.set(
    xscale="log",
    yscale="log",
    xlim=(1e5, 3e13),
    xlabel="tokens seen",
    ylabel="FLOPs",
    ylim=(1e11, 1e24),
    title="tokens against FLOPs",
)
plt.show()

# %% [markdown]
# Four rising lines on logarithmic scales, one for each model; a run ends at its dot. Our run of lesson 01 ends low
# and at the left. The paper's three end far above it, at the same number of tokens one over the other. The slope is
# the same for all, since FLOPs are 6P × tokens; a model with more parameters lies higher. Two dotted lines show what
# one GPU, and 1024, would do in a day, if they reached 40 % of their data sheet's rate. That share is a guess. (For
# our small model 6P is too much: tables are a large part of its P, and looking up a row costs nothing.)
#
# What would the 12 B run take? We know what our two cores did: that transformer's training took 429 seconds.

# %%
recorded = json.loads(Path("weights/results.json").read_text())["seconds"]["transformer"]
rate = cost["ours, lessons/weights"] / recorded  # FLOPs a second that the two cores reached
year = 365.25 * 86400
print(f"our run: {cost['ours, lessons/weights']:.2g} FLOPs in {recorded:.0f} s: {rate / 1e9:.0f}·10⁹ a second")
print(f"the 12 B run, {cost['dalle-12b']:.2g} FLOPs, at that rate: {cost['dalle-12b'] / rate / year:,.0f} years")
print("\n".join(plan.plan(PAPER[-1], 64, "h100-80gb", utilisation=0.4)[-4:]))

# %% [markdown]
# On two cores some twelve thousand years. The last lines are from `plan`, the project's planner: 64 modern GPUs would
# need some 25 days, if they reached 40 %, a third more work for recomputing (explained below) included. This is
# arithmetic. It leaves out failures, restarts, evaluation, and all
# runs that went wrong before.
#
# ## Bytes: where it has to fit
#
# Training holds each parameter five times in float32, 4 bytes each: the weight, its gradient, AdamW's two moments,
# and the average of the weights that is kept for drawing. That makes 20 P bytes. (Float32 throughout is our own
# choice. The paper kept weights and most moments in 16 bits, and the average outside the GPU.)
#
# And it keeps what the backward pass will need. A block keeps, for each position: its input, the normed input, q, k,
# v, attention's output, the sum, the normed sum (8 C), the MLP's hidden layer before and after GELU (8 C), and H + 4
# single numbers of softmax and norms. On a GPU they have 16 bits, 2 bytes each, but for the residual stream (input and
# sum, 2 C) and the single numbers: these stay in 32. There is a trade: keep only the *input* of each block, and compute
# the rest again when it is needed (**recomputing**, or activation checkpointing). The paper does so, at the price of a
# third more FLOPs.


# %%
def kept_bytes(c, recompute):
    """Of one stream, for the backward pass."""
    T, C = c.text_len + c.rows * c.grid, c.n_embd
    block = 2 * T * 14 * C + 4 * T * (2 * C + c.n_head + 4)  # in 16 bits, and in 32
    blocks = c.n_layer * 4 * T * C + block if recompute else c.n_layer * block  # one block at a time is whole
    return blocks + 4 * 2 * T * C  # and the last norm's input, and the gradient of what the heads read


c = sizes["dalle-12b"]
P = sum(plan.parameters(c).values())
assert sum(plan.state_bytes(c).values()) == 20 * P
assert all(kept_bytes(c, again) == plan.kept_bytes(c, again) for again in (False, True))
print(f"20 P = {20 * P / 1e9:.0f} GB")
print(f"one stream keeps {kept_bytes(c, False) / 1e9:.1f} GB, or {kept_bytes(c, True) / 1e9:.2f} GB with recomputing")

# %% [markdown]
# 246 GB. No GPU of `plan.py` has that. More GPUs that each hold a copy do not help. Each has to hold a *part*: with
# **full sharding** over N GPUs, 20 P / N bytes. Before a block is used, its weights are fetched from all the others,
# and let go after it. For a moment each GPU holds two blocks whole, and embeddings and heads.

# %%
N = 2.0 ** np.arange(11)  # 1 … 1024 GPUs
parts = {
    "weights, 4 P / N (gradients: the same)": (4 * P / N, BLUE, "-"),
    "optimizer and average, 12 P / N": (12 * P / N, VERMILION, "-"),
    "whole for a moment": (plan.gathered_bytes(c) + 0 * N, GREY, "--"),
    "activations of one stream": (kept_bytes(c, False) + 0 * N, ORANGE, "--"),
    "the same with recomputing": (kept_bytes(c, True) + 0 * N, ORANGE, ":"),
    "all, with recomputing": (20 * P / N + plan.gathered_bytes(c) + kept_bytes(c, True), "black", "-"),
}
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, (values, colour, style) in parts.items():
    axis.plot(N, values / 1e9, style, color=colour, label=name, linewidth=2.5 if colour == "black" else 1.5)
axis.axhline(80, color="black", linewidth=0.8)
axis.text(1024, 88, "80 GB", fontsize=8, ha="right")
axis.set_xscale("log", base=2)
axis.set(yscale="log", ylim=(0.01, 600), xlabel="GPUs, N", ylabel="GB for each GPU", title="12 B, fully sharded")
axis.set_xticks(N, [f"{int(n)}" for n in N])
axis.legend(fontsize=7, ncols=2, loc="lower left")
plt.show()
print(
    "GB by number of GPUs:", {int(n): round(gb.item(), 1) for n, gb in zip(N, parts["all, with recomputing"][0] / 1e9)}
)

# %% [markdown]
# Lines on logarithmic scales over the number of GPUs. Weights, gradients, optimizer and average halve whenever N
# doubles. Activations and what is whole for a moment do not: they are level lines. The thick sum starts at 250 GB,
# falls below 80 GB at four GPUs, and flattens at about 7 GB, the sum of the level ones. So sharding makes it *fit* on
# a few GPUs; it is for the FLOPs that one needs many.
#
# The paper's GPUs had 16 GB, so not even the weights in 16 bits, 24.6 GB, fitted. It sharded over the 8 GPUs of a
# machine, and each of 128 machines held the whole model. Sharding over *all* GPUs is our own choice (PyTorch's
# FSDP2), not the paper's.
#
# ## Exercise 2: the largest share
#
# 20 P / N is not quite exact. FSDP2 cuts each tensor along its first dimension into pieces of ⌈rows / N⌉ rows
# (rounded up), as `tensor.chunk(N)` does. The last piece may be smaller, and some processes may get none. The first
# always has the most. How many bytes of weights, gradients, moments and average does it hold?


# %%
def largest_share(shapes, n):
    """shapes: one tuple for each parameter, such as (512, 128) or (128,). n: processes. -> bytes of the first, an int"""
    raise NotImplementedError  # your code


# %%
from checks.lesson12 import check_largest_share

check_largest_share(largest_share)

# %% [markdown]
# <details><summary>Hint</summary>
#
# For each shape: its rows, `-(-rows // n)` of them for the first process, times the product of the other dimensions
# (`math.prod`, which is 1 for none). Then 20 bytes for each number.
# </details>
#
# ## Sharding by hand
#
# Two operations carry it, and both can be done by neighbours in a ring, each sending to the next while it receives
# from the one before. In **all-gather** every process ends with all parts. In **reduce-scatter** each has a whole
# tensor, a gradient, and ends with its own part of the *sum* of all. Either takes n − 1 steps of one part each, so a
# process never receives more than one whole tensor, however many there are.


# %%
def all_gather(mine, rank, n):
    """mine: this process's part. -> all parts, in order, one after the other along the first dimension."""
    parts = {rank: mine}
    for step in range(n - 1):
        sent = dist.isend(parts[(rank - step) % n], (rank + 1) % n)  # what came last goes on
        parts[(rank - step - 1) % n] = got = torch.empty_like(mine)
        dist.recv(got, (rank - 1) % n)
        sent.wait()
    return torch.cat([parts[i] for i in range(n)])


def reduce_scatter(whole, rank, n):
    """whole: this process's gradient. -> its own part of the sum over all processes."""
    parts = list(whole.chunk(n))
    for step in range(n - 1):
        sent = dist.isend(parts[(rank - step - 1) % n], (rank + 1) % n)
        got = torch.empty_like(parts[0])
        dist.recv(got, (rank - 1) % n)
        sent.wait()
        at = (rank - step - 2) % n
        parts[at] = parts[at] + got  # a partial sum, which grows on its way around
    return parts[rank]


# %% [markdown]
# Now a model of two layers, trained with them. A process keeps its rows of each matrix, its part of the batch, and
# AdamW's moments *for its rows alone*. AdamW works number by number, so nobody needs to know the others'. The
# backward pass is written out, to show when which matrix is needed: the second twice, and never both at once.


# %%
def problem():
    """The same in every process: two matrices, inputs (12, 8), targets (12, 4)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 8, generator=g)
    return [torch.randn(16, 8, generator=g) / 3, torch.randn(4, 16, generator=g) / 4], x, x[:, :4].sin()


def by_hand(rank, n, updates=20):
    weights, x, target = problem()
    count = target.numel()  # of the whole batch
    mine = [w.chunk(n)[rank].clone() for w in weights]
    x, target = x.chunk(n)[rank], target.chunk(n)[rank]
    optimizer = torch.optim.AdamW(mine, lr=0.05)
    for _ in range(updates):
        h = (x @ all_gather(mine[0], rank, n).T).relu()  # the gathered matrix is gone after the line
        w2 = all_gather(mine[1], rank, n)
        d_out = 2 / count * (h @ w2.T - target)  # the gradient of the mean squared error
        d_h = d_out @ w2 * (h > 0)
        del w2
        mine[0].grad = reduce_scatter(d_h.T @ x, rank, n)
        mine[1].grad = reduce_scatter(d_out.T @ h, rank, n)
        optimizer.step()
    return [all_gather(w, rank, n) for w in mine], sum(w.numel() for w in mine)


# %% [markdown]
# With n = 1 both operations do nothing, and `by_hand(0, 1)` is the run of one process. For two *real* processes we
# write the functions above into a program, and start it twice. Beside them goes the same training by PyTorch's
# `fully_shard`, which is what `minidalle/scale/sharded.py` uses.


# %%
def with_fsdp(rank, n, updates=20):
    from torch.distributed.fsdp import fully_shard

    weights, x, target = problem()
    count, mesh = target.numel(), dist.init_device_mesh("cpu", (n,))
    x, target = x.chunk(n)[rank], target.chunk(n)[rank]
    layers = [torch.nn.Linear(8, 16, bias=False), torch.nn.ReLU(), torch.nn.Linear(16, 4, bias=False)]
    for layer, weight in zip(layers[::2], weights):
        layer.weight.data.copy_(weight)
        fully_shard(layer, mesh=mesh)
    model = fully_shard(torch.nn.Sequential(*layers), mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(updates):
        loss = (model(x) - target).square().sum() / count
        (n * loss).backward()  # fully_shard takes the mean over processes, we want the sum
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() for p in model.parameters()], sum(p.to_local().numel() for p in model.parameters())


# %%
functions = map(inspect.getsource, (all_gather, reduce_scatter, problem, by_hand, with_fsdp))
PROGRAM = "import pathlib, sys, torch\nimport torch.distributed as dist\nfrom safetensors.torch import save_file\n\n"
PROGRAM += (
    "\n\n".join(functions)
    + """
rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
dist.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=2)
found = {f"{way.__name__} {k}": w for way in (by_hand, with_fsdp) for k, w in enumerate(way(rank, 2)[0])}
save_file(found, folder / f"{rank}.safetensors")
print(by_hand(rank, 2)[1], with_fsdp(rank, 2)[1])
dist.destroy_process_group()"""
)
alone, held = by_hand(0, 1)
print(f"one process holds {held} numbers")
with tempfile.TemporaryDirectory() as folder:
    start = lambda rank: subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), folder], **pipes)  # noqa: E731
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for rank, process in enumerate([start(0), start(1)]):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        print(f"process {rank} of two holds, by hand and with FSDP2:", out.split())
        for name, weight in load_file(f"{folder}/{rank}.safetensors").items():
            difference = (weight - alone[int(name[-1])]).abs().max()
            print(f"  {name:11} after 20 updates, largest difference from one process: {difference:.1e}")
            assert difference < 1e-5

# %% [markdown]
# Each process held half of the numbers, saw half of the batch, and ended with the weights that one process finds, up
# to rounding. What goes wrong without the reduce-scatter? Each would follow its own half of the data, and the
# gathered matrix would be stitched together from two different models. Nothing would crash.
#
# ## Sixteen bits, and gradients that vanish
#
# The paper's GPUs were fast in **float16**: 1 bit for the sign, 5 for the exponent, 10 for the fraction. Its smallest
# number is $2^{-24}$, 0.00000006. Whatever is at most half of that becomes 0: it *underflows*. Gradients are small.
# To get a model of more than a billion parameters to train in 16 bits was, says the paper, the most challenging part
# of the project (appendix D).
#
# We look at real gradients. The model is as deep as the paper's, 64 layers, and as wide as a laptop likes, C = 64. It
# learns for 20 updates. Then we note the gradient of every matrix product's output, divided as in the paper: by the
# targets of the whole batch of 1024 streams.

# %%
torch.manual_seed(0)
deep = DALLE(dataclasses.replace(tiny.config, n_layer=64, n_embd=64, n_head=4))
captions = [scenes.same(colour, shape).caption for colour in ("red", "green", "blue") for shape in ("circle", "square")]
codes = dvae.encode(scenes.draw(captions * 8, np.random.default_rng(0)) / 255).flatten(1)  # (48, 64)
text = tokenize(bpe, captions * 8, deep.config.text_len)
optimizer = torch.optim.AdamW(deep.parameters(), lr=1e-3, betas=(0.9, 0.96))
for update in range(20):
    optimizer.param_groups[0]["lr"] = 1e-3 * (update + 1) / 20
    i = torch.randint(len(codes), (8,))
    loss = deep.loss(text[i], codes[i])
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(deep.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()

# %%
found = [[] for _ in deep.blocks]  # for each block, gradients of what its four products put out
for block, kept in zip(deep.blocks, found):
    for part in (block.attn.qkv, block.attn.proj, block.mlp[0], block.mlp[2]):
        part.register_full_backward_hook(lambda part, of_input, of_output, kept=kept: kept.append(of_output[0]))
n_text = (text[:8] >= 0).sum() / 8  # in one stream
deep.loss(text[:8], codes[:8], counts=(1024 * n_text, 1024 * 1024)).total.backward()
gradients = [torch.cat([g.flatten() for g in kept]) for kept in found]  # one vector for each block
tops = [g.abs().max() for g in gradients]
largest = ", ".join(f"2^{tops[k].log2():.1f}" for k in (0, 32, 63))
print(f"loss {loss.total:.2f}; largest gradient in the first, middle and last block: {largest}")


def lost(dtype, scales):
    """The share of each block's gradients that becomes 0."""
    zeros = [((g * s).to(dtype).float() == 0) & (g != 0) for g, s in zip(gradients, scales)]
    return [100 * (zero.sum() / (g != 0).sum()).item() for zero, g in zip(zeros, gradients)]


def room(top, dtype):
    """The largest power of two that leaves `top` below half of what the format can hold."""
    return 2 ** (torch.finfo(dtype).max / 2 / top).log2().floor().item()


# %% [markdown]
# The gradients shrink with depth, as the paper found. Our explanation: on its way back through the sums, the gradient collects a part
# from every block, so the first block receives the most. Which numbers would float16 lose? We count those that are
# not 0 and become 0 when they are cast, three times:
#
# - as they are,
# - multiplied by one power of two for all blocks, as large as the largest gradient of all allows (**loss scaling**),
# - multiplied by a power of two of each block's own, which is divided out after the block. These are the paper's
#   **per-resblock scales**, but that it has two for each block, one for each branch.
#
# Then once more with fewer exponents: `float8_e4m3fn` has 4 bits for the exponent, not 5.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
for axis, dtype, name in zip(axes, (torch.float16, torch.float8_e4m3fn), ("float16", "float8, 4 exponent bits")):
    one, own = room(max(tops), dtype), [room(top, dtype) for top in tops]
    ways = {"as they are": [1] * 64, "one scale": [one] * 64, "a scale for each block": own}
    for (way, scales), colour, style in zip(ways.items(), (VERMILION, ORANGE, BLUE), (":", "--", "-")):
        share = lost(dtype, scales)
        axis.plot(range(1, 65), share, style, color=colour, label=way)
        print(f"{name:24} {way:23} first block {share[0]:5.1f} %, last {share[-1]:5.1f} %")
    axis.set(xlabel="block", title=name)
axes[0].set_ylabel("gradients that become 0, %")
axes[1].legend(fontsize=8)
plt.show()
print(f"bfloat16, as they are: at most {max(lost(torch.bfloat16, [1] * 64)):.4f} % in a block")

# %% [markdown]
# Two panels over the 64 blocks. At the left float16: as they are, most gradients become 0, about 79 % in the first
# block, and more with depth, about 95 % in the last. One scale mends that: hardly anything is lost, and the curve of
# the scales for each block lies on it, at 0. At our size one scale is enough. The paper says that it was enough for
# language models of that size, and not for its text-to-image model, whose gradients span more than float16 does. It also says
# that the span grows with the model.
#
# So at the right we shrink the format instead. Unscaled, all is lost. One scale has to suit the first block, and
# loses about 13 % there, rising to about a third in the last ones. With a scale for each block the share stays
# between 10 and 20 % all along: depth makes no difference any more. That is the paper's remedy, seen at a small size.
#
# Two caveats. We cast exact gradients, so nothing here says how such losses add up on the way down, nor what they do
# to training. And bfloat16 loses nothing of it, unscaled: it has the 8 exponent bits of float32.

# %% [markdown]
# How large should a scale be? Nobody knows the largest gradient beforehand. So the paper lets each of its 128 scales
# find its way, two in each block. All start at $M \cdot 2^{13}$, with M the number of GPUs. After an update in which all gradients of the
# branch were finite, its scale grows by a factor $2^{1/1000}$. If one overflowed, the whole update is skipped and the
# scale is divided by √2. The gradients on the sums, past the branches, stay in float32.
#
# ## PowerSGD: send less
#
# Between machines the network was slow, and after each update the gradients have to be averaged over all of them.
# **PowerSGD** (Vogels et al. 2019) sends two thin matrices in place of a gradient. Let M be the gradient of a weight,
# n × k, and Q a matrix k × r with small r. One step:
#
# 1. $P = M Q$, averaged over machines: n × r numbers are sent. Make its columns orthonormal.
# 2. $Q' = M^\top P$, averaged: k × r numbers.
# 3. All machines use $\hat M = P Q'^\top$, the mean of their gradients projected on r directions.
#
# What is left out, $M - \hat M$, need not be lost. Each machine keeps it in an **error buffer** and adds it to its
# next gradient: *error feedback*. A direction that was left out grows there until it is among the r.


# %%
def compress(gradients, errors, Q):
    """gradients, errors: one (n, k) for each machine; Q (k, r). -> what all use (n, k), new errors, new Q."""
    M = [g + e for g, e in zip(gradients, errors)]
    P = torch.linalg.qr(sum(m @ Q for m in M) / len(M)).Q  # (n, r), orthonormal columns
    Q = sum(m.T @ P for m in M) / len(M)  # (k, r)
    used = P @ Q.T
    return used, [m - used for m in M], Q


def learn(r, feedback=True, queries="warm", updates=200, lr=0.1):
    """Least squares on two machines, each with its own data: (n, k) = (32, 32) weights. -> losses."""
    g = torch.Generator().manual_seed(0)
    x, truth = torch.randn(2, 512, 32, generator=g), torch.linalg.qr(torch.randn(32, 32, generator=g)).Q
    w, errors, Q, losses = torch.zeros(32, 32), [torch.zeros(32, 32)] * 2, torch.randn(32, r, generator=g), []
    for _ in range(updates):
        off = x @ (w - truth)  # (2, 512, 32)
        losses.append(off.square().mean().item())
        used, left, new = compress([a.T @ b / 512 for a, b in zip(x, off)], errors, Q)
        w = w - lr * used
        errors = left if feedback else errors
        Q = {"warm": new, "fixed": Q, "anew": torch.randn(32, r, generator=g)}[queries]
    return losses


# %%
figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
ways = {"r = 32: exact": (32, True), "r = 2, with error feedback": (2, True), "r = 2, without": (2, False)}
for (name, way), colour, style in zip(ways.items(), ("black", BLUE, VERMILION), (":", "-", "--")):
    losses = learn(*way)
    axis.plot(losses, style, color=colour, label=name)
    print(f"{name:27} loss after 30 updates {losses[30]:.2g}, 100: {losses[100]:.2g}, 199: {losses[199]:.2g}")
axis.set(yscale="log", ylim=(1e-12, 3), xlabel="update", ylabel="mean squared error")
axis.legend(fontsize=8, loc="lower left")
plt.show()
for queries in ("fixed", "anew"):
    print(f"r = 2, with error feedback, Q {queries:5}: loss after 199 updates {learn(2, True, queries)[199]:.2g}")

# %% [markdown]
# Three falling curves on a logarithmic scale. Exact gradients are fastest. With two of 32 directions an update, an
# eighth of the numbers, and error feedback, the loss falls more slowly, but it keeps falling. Without feedback it
# falls far more slowly: what each update leaves out is forgotten.
#
# A warning about toys. Here Q is the one that the last update found, as in Vogels et al. The paper reports that a
# random Q, drawn once and kept, did as well, and that a new one for each update did much worse. Our toy says the
# opposite twice: with a fixed Q it diverges, with new ones it is no worse. There is a reason: $(M - \hat M)\,Q = 0$,
# so with the same Q nothing of what was left out enters the next P, and it piles up. A toy shows how a mechanism
# works. It does not say what happens at 12 B.
#
# ## Exercise 3: what is saved
#
# How much less is sent? In the paper each weight is sharded over the m = 8 GPUs of a machine, and each GPU compresses
# its own shard, with rank r / m. Of one block of width d:
#
# | gradient | its shard | P | Q |
# |---|---|---|---|
# | of q, k, v and the mixing of heads: 4 times | d × d/m | d × r/m | d/m × r/m |
# | first of the MLP | d × 4d/m | d × r/m | 4d/m × r/m |
# | second of the MLP | 4d/m × d | 4d/m × r/m | d × r/m |
#
# The **compression rate** is 1 − (all P and Q) / (all shards), in numbers sent.


# %%
def saved(r, d, m):
    """r: total rank, d: width, m: GPUs of a machine. -> the share that is saved, a float; for m = 8 it is 1 - 5r / 8d"""
    raise NotImplementedError  # your code


# %%
from checks.lesson12 import check_saved

check_saved(saved)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The shards sum to $12 d^2 / m$. Of the P's five are d × r/m, and one is 4d/m × r/m. Go through the Q's in the same
# way.
# </details>
#
# The paper found ranks of 512, 640 and 896 to be enough for its three sizes (Table 1). With d = 1920, 2688 and 3968
# that saves 83, 85 and 86 %.
#
# This project has neither (our own choice, not the paper's). Today's GPUs compute in **bfloat16**, where no scales are
# needed; on older ones `minidalle/train.py` takes one scale for all. And FSDP2 sends gradients whole, in float32.
#
# **Read now:** [`minidalle/scale/plan.py`](../minidalle/scale/plan.py) from `parameters` to `times`: it is this
# lesson's arithmetic. Then `shard` and `Training.update` in
# [`minidalle/scale/sharded.py`](../minidalle/scale/sharded.py).

# %% [markdown]
# ## What to remember
#
# 1. A GPT has about $12\,L\,C^2$ parameters; a token costs 6P FLOPs in training; training holds 20 P bytes, and
#    activations.
# 2. Full sharding: all-gather weights before use, reduce-scatter gradients after. What is computed stays the same.
# 3. Sharding divides what belongs to parameters. It does not divide activations, nor what is whole for a moment.
# 4. Gradients shrink with depth, and a format with few exponents loses them. A scale for each branch brings them
#    back.
# 5. A gradient can be sent as two thin matrices, if what is left out is remembered: PowerSGD saves 1 − 5r / 8d.
#
# **References.** Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, sections 2.4 and 2.5, appendices B.2, D
# and E. Kaplan et al. 2020, *Scaling Laws for Neural Language Models* (6P). Rajbhandari et al. 2020, *ZeRO*.
# Micikevicius et al. 2018, *Mixed Precision Training*. Vogels et al. 2019, *PowerSGD*. Chen et al. 2016, *Training
# Deep Nets with Sublinear Memory Cost*.
