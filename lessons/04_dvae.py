# %% [markdown]
# # 04 · dVAE
#
# **What does a grid of codes keep of a picture?**
#
# To write thousands of pixel values one by one would be too dear for a transformer. It writes a few dozen *codes*, and
# a **discrete variational autoencoder**, dVAE for short, turns pictures into codes and back. Here you build one, train
# it, break it in several ways, and look at what its codes hold.
#
# *Before:* lesson 03 chose one of $K$ codes and still had a gradient. Add Gumbel noise to the scores of the codes, and
# the code with the largest sum is a fair draw from their softmax. A softmax of those sums, at a temperature $\tau$,
# stands in for that draw while training.
# *Next:* lesson 05 puts caption and codes into one stream.

# %% [markdown]
# ## A trained one
#
# The dVAE of `weights/` has learned from drawn scenes of two objects for four minutes. Here it meets scenes with
# combinations of colour and shape that it never saw, such as green crosses. Eight of them are picked by a seed, not by
# eye.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from drawing import BLUE, GREY, ORANGE, VERMILION, pictures
from torch import nn

from minidalle.checkpoint import load_run
from minidalle.config import DVAEConfig, DVAEStage
from minidalle.data import scenes, shapes
from minidalle.dvae import DVAE, NormalizeLogits, bernoulli_nll, cosine, gumbel_softmax, kl_to_uniform
from minidalle.dvae import logit_laplace_nll, map_pixels, schedules, unmap_pixels, usage

_ = torch.set_flush_denormal(True)  # numbers near 1e-40 are slow on a CPU: take them for 0


# %%
def rms(some, others):
    """Root of the mean squared difference of all pixel values."""
    return (some - others).square().mean().sqrt().item()


dvae = load_run("weights")[2]  # of preset, tokenizer, dVAE and transformer, the third
held_out = scenes.draw(scenes.captions("pairs"), np.random.default_rng(0)).float() / 255  # (N, 3, 32, 32) in [0, 1]
codes = dvae.encode(held_out)  # (N, 8, 8)
rebuilt = dvae.decode(codes)  # (N, 3, 32, 32)
print(tuple(held_out.shape), "->", tuple(codes.shape), "->", tuple(rebuilt.shape))
print(f"typical error {rms(rebuilt, held_out):.3f}; of a white page {rms(torch.ones(()), held_out):.3f}")
shown = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:8]
pictures([held_out[shown], rebuilt[shown]], labels=["original", "rebuilt"], size=0.95)

# %% [markdown]
# Above are the originals, below what the dVAE makes of their codes. Colours and places are kept in all eight pictures,
# shapes in nearly all. Edges are less crisp. The last green cross has become rather round, and the purple cross before
# it has a blue stain. Of 520 such pictures 97 % still show all that their caption says (`weights/results.json`).
#
# The *typical error* is the root of the mean squared difference of all pixel values, on a scale from 0, black, to 1,
# white. It will be our yardstick.
#
# ## What stands between
#
# Between the rows of that figure there was nothing but 64 whole numbers for each picture. Here they are for the third
# one.


# %%
def code_map(picture, grid):
    """picture (3, 32, 32) beside its codes, grid (8, 8); where the most frequent code stands, grey."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.2, 3.2), layout="constrained")
    left.imshow(picture.permute(1, 2, 0), extent=(0, 32, 32, 0), interpolation="nearest")
    left.set(xticks=range(0, 33, 4), yticks=range(0, 33, 4), xlabel="pixel", ylabel="pixel")
    left.grid(color=GREY, linewidth=0.5)
    usual = grid == grid.flatten().mode().values
    right.imshow(usual, cmap="Greys", vmin=0, vmax=5)
    for (row, column), code in np.ndenumerate(grid.numpy()):
        right.text(column, row, code, ha="center", va="center", fontsize=9)
    right.set(xticks=range(8), yticks=range(8), xlabel="column of the grid", ylabel="row of the grid")
    plt.show()


code_map(held_out[shown[2]], codes[shown[2]])

# %% [markdown]
# On the left the picture, a yellow and a purple outline, cut into 8 × 8 patches of 4 × 4 pixels. On the right the code
# of each patch; grey where it is the most frequent one, which here means white ground.
#
# Two things to see. 24,576 bits of pixels have become $64 \cdot \log_2 64 = 384$ bits, a sixty-fourth. (In the paper
# it is less than a hundredth.) And a code is not the name of a patch alone. Row 1 is white, yet most of its codes are
# others than that of the ground: outlines begin right below. Encoder and decoder look beyond a patch, so a code may
# speak of what is around it.
#
# ## By hand: the two networks
#
# The **encoder** ends in $K$ scores for each cell, the *logits*. The **decoder** paints from codes. Ours are as small
# as can be. `PixelUnshuffle(4)` stacks the 48 values of a 4 × 4 patch into the channels of one cell; `PixelShuffle(4)`
# spreads them out again. One 3 × 3 convolution on either side lets a cell see its eight neighbours.
#
# We train on single drawn shapes of 24 × 24 pixels on white: a grid of 6 × 6 cells, and $K = 32$ codes.

# %%
K = 32
words = [caption for caption in shapes.captions("train") if "black" not in caption]
rng = np.random.default_rng(0)
train_images = shapes.draw(shapes.in_rounds(words, 3000, rng), rng).float() / 255  # (3000, 3, 24, 24)
words = [caption for caption in shapes.captions("pairs") if "black" not in caption]  # never trained on
test_images = shapes.draw(words * 4, rng).float() / 255  # (64, 3, 24, 24)


def encoder(n_out):
    return nn.Sequential(  # (B, 3, 24, 24)
        nn.PixelUnshuffle(4),  # (B, 48, 6, 6)
        nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(),
        nn.Conv2d(64, n_out, 1),  # (B, n_out, 6, 6)
    )  # fmt: skip


def decoder(n_in):
    return nn.Sequential(  # (B, n_in, 6, 6); of the first weight, a 1 × 1 convolution, column k belongs to code k
        nn.Conv2d(n_in, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 6 * 16, 1),  # (B, 96, 6, 6)
        nn.PixelShuffle(4),  # (B, 6, 24, 24)
    )  # fmt: skip


# %% [markdown]
# ## What is a painting worth?
#
# The decoder gives six numbers for each pixel, two for each colour. They describe a **density** $f(x)$: how likely is
# each brightness $x$? The price of the true pixel is $-\ln f(x)$. So a decoder that is sure and wrong pays dearly, and
# one that is unsure can say so.
#
# Which density? A normal one spreads over all numbers, but a pixel ends at 0 and 1. What the decoder says about values
# below 0 is wasted. The paper's answer (section A.3): move the pixel onto the whole line by
# $y = \mathrm{logit}\,x = \ln\frac{x}{1-x}$, and use the Laplace density there. Its middle is $\mu$, its width $b$:
#
# $$g(y) = \frac{1}{2b}\; e^{-|y - \mu| / b}$$
#
# Six numbers: $\mu$ for three colours, and $\ln b$ for three, so that $b$ is positive whatever the network gives.


# %%
def laplace(y, mu, b):
    return torch.exp(-(y - mu).abs() / b) / (2 * b)


x = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # the middles of 20,000 steps from 0 to 1
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
for mu, b, style, colour in ((0, 1, "-", BLUE), (1.5, 0.3, "--", ORANGE), (-0.5, 2, ":", VERMILION)):
    g = laplace(torch.logit(x), mu, b)
    f = g / (x * (1 - x))
    print(f"mu {mu:4}, b {b:3}: area under g(logit x) {g.mean():.3f}, under f {f.mean():.3f}")
    axis.plot(x[20:-20], f[20:-20], style, color=colour, label=f"µ = {mu}, b = {b}")
axis.set(xlabel="brightness x", ylabel="density f(x)", ylim=(0, 6))
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Put $\mathrm{logit}\,x$ into $g$ and stop there, and the areas are wrong. A density must have area 1, or it cannot be
# compared with another. The move stretches the line, near the ends most: a step $dx$ becomes $dy = dx / (x(1-x))$.
# With that slope as a factor the area is 1, and this is the **logit-Laplace** density:
#
# $$f(x \mid \mu, b) = \frac{1}{2b\,x(1-x)}\; e^{-|\mathrm{logit}\,x - \mu| / b}$$
#
# The figure shows three of them over the brightness: one with a blunt peak at 0.5, one with a sharp peak near 0.8, and
# a wide one that shoots up at both ends. The figure is cut off at 6; the sharp peak goes on to about 11. (The wide
# one's area of 0.998 should be 1: our steps are too coarse for the ends.)
#
# ## Why pixels are moved away from 0 and 1
#
# White paper is $x = 1$, and $\mathrm{logit}\,1 = \infty$. So first, $x$ becomes $(1 - 2\varepsilon)\,x + \varepsilon$
# with $\varepsilon = 0.1$: black is 0.1, white 0.9. After painting, this is undone.

# %%
for white in (torch.tensor(1.0), map_pixels(torch.tensor(1.0))):
    price = logit_laplace_nll(white, torch.tensor(2.0), torch.tensor(-1.0))
    print(f"x = {white:.1f}: logit {torch.logit(white):.2f}, price {price:.2f}")
there = map_pixels(torch.tensor([0.0, 0.25, 1.0]))
print("there", there.numpy(), "and back", unmap_pixels(there).numpy())

# %% [markdown]
# Where white is 1, the price is no number (`nan`): something infinite less something infinite. The other price is
# negative. A price can be: a density may exceed 1, and the logarithm of such a number is above 0.
#
# ## Exercise 1: the price of a pixel
#
# Write $-\ln f(x \mid \mu, b)$, term by term, for mapped pixels $x$. You are given $\ln b$, not $b$. Do not compute
# $f$ first: far from $\mu$ it is so small that the computer takes it for 0, and $-\ln 0$ is infinite.


# %%
def logit_laplace(x, mu, ln_b):
    """x in (0, 1), mu, ln_b: tensors of one shape -> -ln f, nats, of the same shape."""
    raise NotImplementedError  # your code


# %%
from checks.lesson04 import check_logit_laplace

check_logit_laplace(logit_laplace)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The logarithm of a product is a sum, so there are four terms: one from $e^{…}$, and one from each factor of
# $2 \cdot b \cdot x(1-x)$. Dividing by $b$ is multiplying by `torch.exp(-ln_b)`. `torch.logit` is there.
# </details>

# %% [markdown]
# ## What is a code worth?
#
# The softmax of a cell's logits says how likely each code is: $q_1 \dots q_K$. Painting well asks for certain codes. A
# second price holds against that: the **Kullback–Leibler divergence** from $q$ to the uniform distribution, where each
# code has $1/K$:
#
# $$\mathrm{KL}(q \,\|\, \mathrm{uniform}) = \sum_k q_k \ln \frac{q_k}{1/K} = \sum_k q_k \ln q_k + \ln K$$
#
# It says how far the cell is from a fair die. A grid of fair dice tells nothing, and is free.
#
# Why pay it? With it, the loss is an upper bound on $-\ln p(\text{picture})$ in a model that rolls fair dice for codes,
# then paints (section 2; with real choices in place of mixtures). The uniform distribution is its *prior*, what is
# known about codes before a picture is seen. Stage two learns a better one, the transformer.

# %%
logits = torch.tensor([2.0, 0.0, 0.0, 0.0])
for name, some in {"fair die": 0 * logits, "plain": logits, "certain": 50 * logits}.items():
    q = some.softmax(0)
    print(f"{name:8}  q = {[round(v, 3) for v in q.tolist()]}  KL {torch.special.xlogy(q, q).sum() + np.log(4):.3f}")
for tau in (1, 1 / 4, 1 / 16):
    print(f"tau = {tau:<6}  KL of softmax(logits / tau) = {kl_to_uniform(logits[None, :] / tau).item():.3f}")

# %% [markdown]
# From 0 for a fair die to $\ln K$, here $\ln 4 = 1.386$, for a certain code. The last lines show a trap: were the
# temperature inside, the KL would rise by itself as $\tau$ falls, and the encoder would be fined for the schedule. It
# is taken from the *plain* logits: no $\tau$, no noise (an author says so where the paper's code was released).
#
# ## Exercise 2: the KL of a grid
#
# The same for whole grids: logits of shape $(B, K, \text{rows}, \text{columns})$, one KL for each cell. Logits can be
# large: then some $q_k$ is 0 in the computer, and $0 \cdot \ln 0$ must not become `nan`.


# %%
def kl_to_prior(logits):
    """logits (B, K, rows, columns) -> KL(softmax(logits) || uniform) of each cell, nats: (B, rows, columns)."""
    raise NotImplementedError  # your code


# %%
from checks.lesson04 import check_kl_to_prior

check_kl_to_prior(kl_to_prior)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The codes stand in dimension 1. `F.log_softmax` gives $\ln q$, finite for any logits; $q$ is its `exp()`. Do not
# forget $\ln K$.
# </details>

# %% [markdown]
# ## The whole loss, and its schedules
#
# Add the prices of all pixels, and $\beta$ times the KL of all cells. Then divide by the number of pixel values:
#
# $$\text{loss} = \frac{1}{\text{pixel values}} \Big( \sum -\ln f(x) \;+\; \beta \sum_{\text{cells}} \mathrm{KL} \Big)$$
#
# At $\beta = 1$ this is the bound. The paper sets $\beta = 6.6$ (A.2). Both $\tau$ and $\beta$ move along half a
# cosine: $\tau$ from 1 to 1/16 in 150,000 updates, $\beta$ from 0 to 6.6 in the first 5,000.


# %%
def half_cosine(step, updates, start, end):
    """From start to end in so many updates, then constant."""
    progress = np.minimum(step / updates, 1)
    return end + (start - end) * (1 + np.cos(np.pi * progress)) / 2


steps = np.arange(0, 170_001, 100)
tau, beta = half_cosine(steps, 150_000, 1, 1 / 16), half_cosine(steps, 5_000, 0, 6.6)
real = [schedules(DVAEStage(), step) for step in steps]
assert np.allclose(tau, [r["tau"] for r in real]) and np.allclose(beta, [r["kl_weight"] for r in real])
figure, (tau_axis, beta_axis) = plt.subplots(1, 2, figsize=(7, 2.2), layout="constrained")
tau_axis.plot(steps / 1000, tau, color=BLUE)
tau_axis.set(xlabel="thousand updates", ylabel="temperature τ", ylim=(0, 1.05))
beta_axis.plot(steps / 1000, beta, color=ORANGE)
beta_axis.set(xlabel="thousand updates", ylabel="weight β", ylim=(0, 7))
plt.show()

# %% [markdown]
# Two curves: $\tau$ glides down over nearly the whole width, $\beta$ is at its height almost at once. Our reading:
# hot first, so that every code gets some gradient; cold later, so that the mixture becomes nearly one code, which is
# what the decoder will meet in use. And no price on codes before encoder and decoder have agreed on any.
#
# ## The real thing
#
# `DVAE.loss` in `minidalle/dvae.py` does all of this. Build a small one, in the structure of the released code, and
# compute its loss once more, the density by PyTorch's own Laplace.

# %%
torch.manual_seed(0)
small = DVAE(DVAEConfig(codebook_size=16, n_hid=8, n_init=8, n_group=3, n_block=1))
images = torch.rand(2, 3, 32, 32)
real = small.loss(images, tau=0.7, kl_weight=6.6, generator=torch.Generator().manual_seed(1))

logits = small.logits(images)  # (2, 16, 8, 8)
z = gumbel_softmax(logits, 0.7, generator=torch.Generator().manual_seed(1))  # the same noise
mu, ln_b = small.decoder(z).chunk(2, dim=1)  # (2, 3, 32, 32) each
x = map_pixels(images)
ln_f = torch.distributions.Laplace(mu, ln_b.exp()).log_prob(x.logit()) - (x * (1 - x)).log()
q = logits.softmax(1)
kl = (q * (q * 16).log()).sum(1)  # (2, 8, 8)
by_hand = (-ln_f.sum() + 6.6 * kl.sum()) / images.numel()
print(f"by hand {by_hand:.6f}   DVAE.loss {real.total:.6f}")
assert torch.isclose(by_hand, real.total, atol=1e-5)

# %% [markdown]
# **Read now:** from `logit_laplace_nll` to `DVAE.loss` in [`minidalle/dvae.py`](../minidalle/dvae.py), then `Block`
# and `groups` above them.
#
# ## Training
#
# In a lesson we have seconds and 400 updates; the paper trained for 3,000,000 (A.2). So we begin with four changes that
# are also made in `tiny`, this project's setting for minutes on a CPU. They are our own choice, not the paper's:
#
# - **Bernoulli** in place of logit-Laplace: the cross-entropy between the pixel and $\mathrm{sigmoid}(\mu)$; $\ln b$
#   is not used.
# - **$\beta = 0$**: no KL. So what is minimised is no bound on anything.
# - **Normalised logits**: over the batch each code's logit gets mean 0 and one and the same spread, a learned number
#   that starts at 3.
# - **$\tau$ ends at 1/2**, not at 1/16.
#
# Each can be turned back to the paper's below.

# %%
CELLS_PER_VALUE = 36 / (3 * 24 * 24)  # 1/48: a code stands for 48 pixel values


def train(likelihood="bernoulli", beta=0.0, tau=(1.0, 0.5), normalise=True, updates=400):
    torch.manual_seed(0)
    enc, dec = encoder(K), decoder(K)
    if normalise:
        enc.append(NormalizeLogits(K))
    parameters = [*enc.parameters(), *dec.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=8e-3, fused=True)
    for step in range(updates):
        x = map_pixels(train_images[torch.randint(len(train_images), (32,))])  # (32, 3, 24, 24)
        logits = enc(x)  # (32, K, 6, 6)
        z = gumbel_softmax(logits, cosine(step, 0.7 * updates, *tau))  # (32, K, 6, 6), mixtures
        mu, ln_b = dec(z).chunk(2, dim=1)  # (32, 3, 24, 24) each
        price = bernoulli_nll(x, mu) if likelihood == "bernoulli" else logit_laplace_nll(x, mu, ln_b)
        loss = price.mean() + beta * CELLS_PER_VALUE * kl_to_uniform(logits).mean()
        optimizer.param_groups[0]["lr"] = cosine(step, updates, 8e-3, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return enc.eval(), dec.eval()


# %% [markdown]
# In use there is no noise and no mixture: each cell is the code with the largest logit. We also measure the pictures
# painted from mixtures, as in training, and how many codes occur. Their **perplexity** is $e$ to the entropy of their
# frequencies: 1 if only one occurs, $K$ if all occur equally often. Count and perplexity together are the *usage*.


# %%
@torch.no_grad()
def measure(enc, dec, tau_end=0.5):
    """Numbers in a line, and the rebuilt test pictures (64, 3, 24, 24)."""
    logits = enc(map_pixels(test_images))  # (64, K, 6, 6)
    codes = logits.argmax(1)  # (64, 6, 6)
    one_hot = F.one_hot(codes, K).permute(0, 3, 1, 2).float()  # (64, K, 6, 6)
    mixture = gumbel_softmax(logits, tau_end, generator=torch.Generator().manual_seed(1))
    single, mixed = (unmap_pixels(dec(z)[:, :3].sigmoid()) for z in (one_hot, mixture))
    line = f"error {rms(single, test_images):.3f}, from mixtures {rms(mixed, test_images):.3f}; "
    count = usage(codes, K)
    line += f"KL {kl_to_uniform(logits).mean():.2f}; {count['codes_used']} codes, perplexity {count['perplexity']:.1f}"
    return line, single


right = train()
line, rebuilt_right = measure(*right)
print(line)
print(f"error of a white page {rms(torch.ones(()), test_images):.3f}; ln K = {np.log(K):.2f}")
pictures([test_images[:12], rebuilt_right[:12]], labels=["original", "rebuilt"], size=0.65)

# %% [markdown]
# Twelve pictures with colours and shapes that never went together in training, and what is left of them. The places
# are right, the shapes roughly, the colours only in part (in our run the green crosses turned blue). The seams of
# the patches show. That took seconds. The dVAE at the top had more than fifteen times as many updates, and larger
# networks.
#
# Painting from mixtures does no better than from single codes. So little is lost when a single code is taken. The cells
# have not all made up their minds: a KL of about 2.65, where 3.47 would be certainty, is that of a fair choice among
# about 2.3 codes.
#
# ## The same networks with VQ
#
# **Vector quantisation** chooses without chance: the encoder gives a vector $v$ for each cell, and the code is the
# nearest of $K$ codebook vectors, $e$. The picture's gradient is handed straight through from $e$ to $v$. One more
# term draws $e$ to $v$; a quarter of it the other way, the *commitment*, keeps $v$ near what it chose.
#
# How heavy these terms are, and where the codebook starts, is left to us. We try two ways.


# %%
def nearest(v, book):
    """v (B, width, rows, columns), book (K, width) -> codes (B, rows, columns)."""
    return torch.cdist(v.movedim(1, -1), book).argmin(-1)


def train_vq(from_data, weight, updates=400, width=8):
    torch.manual_seed(0)
    enc, dec = encoder(width).append(nn.BatchNorm2d(width, affine=False)), decoder(width)
    some = enc(map_pixels(train_images[:200])).movedim(1, -1).flatten(0, 2)[torch.randperm(7200)[:K]]  # (K, width)
    book = nn.Parameter(some.detach() if from_data else torch.randn(K, width))
    optimizer = torch.optim.Adam([*enc.parameters(), *dec.parameters(), book], lr=8e-3, fused=True)
    for step in range(updates):
        x = map_pixels(train_images[torch.randint(len(train_images), (32,))])  # (32, 3, 24, 24)
        v = enc(x)  # (32, width, 6, 6)
        e = book[nearest(v, book)].movedim(-1, 1)  # (32, width, 6, 6)
        mu = dec(v + (e - v).detach())[:, :3]  # painted from e; its gradient goes to v
        terms = F.mse_loss(e, v.detach()) + 0.25 * F.mse_loss(v, e.detach())
        optimizer.param_groups[0]["lr"] = cosine(step, updates, 8e-3, 0)
        optimizer.zero_grad()
        (bernoulli_nll(x, mu).mean() + weight * terms).backward()
        optimizer.step()
    return enc.eval(), dec.eval(), book.detach()


# %%
rows = [test_images[:12]]
for from_data, weight in ((False, 1.0), (True, 0.1)):
    enc, dec, book = train_vq(from_data, weight)
    with torch.no_grad():
        vq_codes = nearest(enc(map_pixels(test_images)), book)
        single = unmap_pixels(dec(book[vq_codes].movedim(-1, 1))[:, :3].sigmoid())
    print(f"from data: {from_data!s:5}  weight {weight}: error {rms(single, test_images):.3f}; {usage(vq_codes, K)}")
    rows.append(single[:12])
pictures(rows, labels=["original", "VQ, random start, weight 1", "VQ, start from data, 0.1"], size=0.6)

# %% [markdown]
# Three rows: originals, then VQ twice. Started from random vectors, with heavy terms, it uses fewer than half of the
# codes and has lost most of the colours. Started from vectors that the encoder gives, with light terms, it is about as
# good as our dVAE, with about as many codes. So the choice needs no chance. It needs care of its own. (One run each,
# with seed 0, and they differ in two things, start and weight: they cannot tell which of the two mattered.)
#
# ## What goes wrong
#
# Now the dVAE again, with one thing wrong at a time, in as many updates.

# %%
SETTINGS = {
    "logits not normalised": dict(normalise=False),
    "beta 6.6": dict(beta=6.6),
    "tau 4 throughout": dict(tau=(4, 4)),
    "tau 1/16 throughout": dict(tau=(1 / 16, 1 / 16)),
    "logit-Laplace": dict(likelihood="laplace"),
}
trained = {name: train(**settings) for name, settings in SETTINGS.items()}
rows = [test_images[:12], rebuilt_right[:12]]
print(f"{'as above':22} {measure(*right)[0]}")
for name, (enc, dec) in trained.items():
    line, single = measure(enc, dec, SETTINGS[name].get("tau", (1, 0.5))[1])
    print(f"{name:22} {line}")
    rows.append(single[:12])
pictures(rows, labels=["original", "as above", *SETTINGS], size=0.6)

# %% [markdown]
# Seven rows: originals, our dVAE, and five runs with one setting changed: one run each, with seed 0.
#
# - **Logits not normalised: collapse.** Every cell has the same code, and every picture is the same pale square. A
#   code that is ahead at the start learns to paint everything; the others get next to no gradient, and stay behind.
#   The KL is $\ln K$, as large as can be, for every cell is certain. A large KL does not mean that the codes tell
#   anything. A KL with some weight in the loss should work against this collapse, as it draws every cell towards all
#   codes; we have not shown it here.
# - **$\beta = 6.6$: near silence.** The KL is a fraction of what it was. Filled shapes are grey blobs, outlines nearly
#   gone. Yet about as many codes are counted as before: where the logits are nearly equal, the largest is an accident.
#   So look at pictures, usage and KL together. (6.6 here weighs four times what it does in the paper, where a code
#   stands for 192 pixel values; 1.65 would be the same weight.)
# - **$\tau = 4$: a decoder that never met a single code.** From mixtures it paints far better than from single codes.
#   But these are all that it gets in use: then its colours are too strong, and there are stains.
# - **$\tau = 1/16$ from the start:** somewhat worse than ours here, and no collapse.
# - **logit-Laplace:** blocks of one colour in about the right places.

# %% [markdown]
# Plain logits, $\beta = 6.6$ and logit-Laplace are settings of the paper, the second with four times its weight. Why do
# they fail here? For the first, see above. For the second, compare what a code costs with what all codes gain. For the
# third, see where the gradient is: the derivative of the price by $\mu$ is $\pm 1/b$, a pull that is stronger the
# smaller $b$ is.

# %%
with torch.no_grad():
    x = map_pixels(test_images)
    prices = {}
    for name, (enc, dec) in {"as above": right, **trained}.items():
        one_hot = F.one_hot(enc(x).argmax(1), K).permute(0, 3, 1, 2).float()
        mu, ln_b = dec(one_hot).chunk(2, dim=1)
        prices[name] = bernoulli_nll(x, mu).mean().item()
white = (test_images == 1).all(1, keepdim=True).expand_as(x)  # the ground; mu and ln_b are those of logit-Laplace now
print(f"a certain code: {6.6 * CELLS_PER_VALUE * np.log(K):.2f} nats per pixel value")
print(f"what all codes gain: {prices['logits not normalised'] - prices['as above']:.2f}")
print(f"logit-Laplace, price of a value: white {logit_laplace_nll(x, mu, ln_b)[white].mean():.2f}", end=", ")
print(f"other {logit_laplace_nll(x, mu, ln_b)[~white].mean():.2f}")
pull = (-ln_b).exp()
print(f"white: {white.float().mean():.0%} of the values, {pull[white].sum() / pull.sum():.0%} of the pull on mu")

# %% [markdown]
# A Bernoulli price has a floor, the entropy of the pixel value. Three quarters of the values are white and near that
# floor even without codes, so all codes together gain only about 0.06. At $\beta = 6.6$ naming a code for certain costs
# several times as much, and about twice as much even at 1.65: silence is the better bargain.
#
# A logit-Laplace price has no floor. A density can be far above 1, and $b$ can shrink as long as $\mu$ is right. Three
# quarters of our pixel values are ground of one and the same white. There $b$ becomes tiny, and nearly all of the pull
# on $\mu$ comes from ground that is right already. Photographs seldom hold such ground, we suppose; we have measured
# none. Whether `tiny` fails with logit-Laplace for this reason alone is not known.

# %% [markdown]
# ## Four things that `tiny` does otherwise
#
# They are our own choice, not the paper's. The rest stands in `experiments.md` and, to the last number, in `TINY` in
# `minidalle/config.py`. The last column says what a return to the paper's setting changes, in runs on shapes at a fifth
# of the usual length, with two seeds. *Right*: drawings, by the whole model, that show all that was asked; 0.836 as it
# is. *Rebuilt*: pictures that are clean after the dVAE, 0.850 as it is. ± is two standard errors.
#
# | | the paper | `tiny` | with the paper's setting |
# |---|---|---|---|
# | likelihood | logit-Laplace | Bernoulli | right −0.816 ± 0.044 |
# | $\beta$ | 6.6 | 0 | right −0.745 ± 0.044 |
# | logits | as they are | normalised | rebuilt −0.198 ± 0.102; right −0.020 ± 0.044 |
# | last $\tau$ | 1/16 | 1/2 | rebuilt −0.165 ± 0.102; right +0.013 ± 0.044 |
#
# In `tiny` too a code stands for 48 pixel values, and for 192 in the paper. So 6.6 weighs four times what it does in
# the paper; 1.65 would be the same weight.
#
# Likelihood and $\beta$ may belong together, for logit-Laplace can gain more than a code costs. One run had both, at
# full length, and $\beta = 1.65$. It learned a little: rebuilt 0.096, right 0.139.

# %% [markdown]
# ## How the trained one uses its codes
#
# Back to the dVAE of the scenes, and all of its held-out pictures.

# %%
count = torch.bincount(codes.flatten(), minlength=64)  # (64,)
figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
axis.bar(range(64), 100 * count.sort(descending=True).values / count.sum(), color=BLUE)
axis.set(xlabel="the 64 codes, most frequent first", ylabel="percent of all cells")
plt.show()
used = usage(codes, 64)
print(used, f" most frequent: {count.argmax()}; a cell holds at most {np.log2(used['perplexity']):.1f} of 6 bits")

# %% [markdown]
# Bars, falling: one code fills more than a third of all cells, the next is far below, and then comes a long slope down
# to codes that are hardly used. Nearly all codes occur, but the perplexity is that of about 18 codes used equally
# often. It is no collapse: most of a drawn scene *is* white. No one number tells that. Once more: look at pictures,
# usage and KL together.
#
# ## One code, one patch?
#
# Last, take the eighth picture of the first figure and put one other code into its grid: at row 2, column 4, inside
# the cross. First that of a cell inside the square, then that of the ground.


# %%
def patch_distance(row, column):
    """How many pixels each pixel lies outside of the cell's patch: (32, 32), 0 inside."""
    y, x = (torch.arange(32) - 4 * first for first in (row, column))
    outside = [torch.maximum(-v, v - 3).clamp(min=0) for v in (y, x)]
    return torch.maximum(outside[0][:, None], outside[1])


i, row, column = shown[7], 2, 4
views, inside = [], patch_distance(row, column) == 0
for new in (codes[i, 5, 4], count.argmax()):
    edited = codes[i].clone()
    edited[row, column] = new
    before, after = dvae.decode(torch.stack([codes[i], edited]))
    change = (after - before).abs().amax(0)  # (32, 32)
    share = change[inside].square().sum() / change.square().sum()
    far = [patch_distance(row, column)[change > least].max().item() for least in (0.02, 1e-6)]
    print(f"code {codes[i, row, column]} -> {new}: {share:.0%} of the squared change inside the patch; changes over")
    print(f"  0.02 end {far[0]} pixels outside of it, all changes {far[1]} pixels")
    marked = before.where(~inside, before * 0.6)
    views.append(torch.stack([before, marked, after, 1 - change.expand(3, -1, -1)]))
pictures(views, [["rebuilt", "the patch, darkened", "edited", "change (dark)"]], ["square's code", "ground's code"])

# %% [markdown]
# Two rows. In the first a clean purple patch sits in the green cross: this code paints its own patch and little else.
# In the second the patch is white, and the cross has lost its right arm and frays on all sides. Only about two thirds
# of the squared change lie inside the patch.
#
# Why does an edit reach further? The decoder has three 3 × 3 convolutions on cells and three on half cells: a code can
# touch pixels up to $3 \cdot 4 + 3 \cdot 2 = 18$ outside of its patch, and none beyond. What it does there shrinks
# fast.

# %% [markdown]
# ## What to remember
#
# 1. A dVAE spells a picture in a grid of codes: place, shape and colour stay, crisp edges go.
# 2. Two prices are paid: the picture under the decoder's density, and $\beta$ times how far the codes are from fair
#    dice.
# 3. logit-Laplace lives on (0, 1), so pixels are moved away from its ends. The KL is taken from the plain logits.
# 4. Codebooks collapse: to one code, to silence, or to mixtures that single codes cannot match. Look at pictures, usage
#    and KL together.
# 5. A code paints its patch, and touches its neighbourhood.
#
# **References.** Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, sections 2 and 2.1, A.2, A.3. Kingma and
# Welling 2014, *Auto-Encoding Variational Bayes*. Jang et al. 2017, *Categorical Reparameterization with
# Gumbel-Softmax*. van den Oord et al. 2017, *Neural Discrete Representation Learning*, for VQ. Higgins et al. 2017,
# *beta-VAE*, for $\beta$.
