# %% [markdown]
# # 03 · Choosing a code
#
# **How does a gradient cross a choice?**
#
# To spell a picture, an encoder looks at a patch and names one of K codes. A decoder then paints the patch from that
# code alone. If it paints badly, the encoder should learn that another code would have been better. But between the two
# stands a choice, and a choice has no slope to learn along.
#
# *Before:* lesson 02 made the tokens of the text. That took counting, and no gradient.
# *Next:* lesson 04 builds the encoder and the decoder, and trains them through the choice of this lesson.

# %% [markdown]
# ## A choice has no slope
#
# We look at one patch and K = 3 codes. The encoder gives three numbers, the **logits** $\ell_1, \ell_2, \ell_3$. Their
# softmax $q_k = e^{\ell_k} / \sum_j e^{\ell_j}$ says how much it believes in each code.
#
# The decoder shall be as simple as can be. Code k stands for a point in the plane, row k of the **codebook**, and to
# paint is to put that point down. The patch itself is a point x, and the loss of code k is the squared distance.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from drawing import BLUE, GREY, ORANGE, VERMILION
from torch import nn

logits = torch.tensor([0.5, 0.3, 0.2]).log()  # (K,), so that q is 0.5, 0.3, 0.2
codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, -0.6]])  # (K, 2)
x = torch.tensor([0.7, 0.5])  # (2,)


def loss_of(z):
    """z (..., K), which weighs the rows of the codebook -> squared distance to x, (...)."""
    return (z @ codebook - x).square().sum(-1)


one_hot = torch.eye(3)  # row k is 1 at code k and 0 elsewhere: "code k and nothing else"
losses = loss_of(one_hot)  # (K,)
print("loss of each code:", losses)

# %% [markdown]
# Code 0 is the best. Suppose that the encoder chooses the code with the largest logit. Let us raise the logit of code
# 1, little by little, and watch the loss.

# %%
for raise_by in (0.0, 0.25, 0.5, 0.52, 0.75):
    k = (logits + raise_by * one_hot[1]).argmax()
    print(f"logit of code 1 raised by {raise_by:.2f}: code {k}, loss {losses[k]:.2f}")

# %% [markdown]
# Flat, then a jump, then flat again. The slope is 0 wherever there is one. It says nothing about which way to go. Nor
# does PyTorch offer any: `argmax` returns whole numbers, and the gradient ends there.
#
# So let the encoder *draw* a code at random, with the probabilities q. The mean loss of such a draw has a slope:
#
# $$L = \sum_k q_k\, \text{loss}_k, \qquad \frac{\partial L}{\partial \ell_k} = q_k\, (\text{loss}_k - L).$$
#
# It reads well. A code that does worse than the mean gets a positive slope, so descent lowers its logit.

# %%
leaf = logits.clone().requires_grad_()
(exact,) = torch.autograd.grad((leaf.softmax(0) * losses).sum(), leaf)
q = logits.softmax(0)
print("autograd:", exact, "  by the formula:", q * (losses - (q * losses).sum()))

# %% [markdown]
# If this were always possible, the lesson would end here. But it takes the loss of *every* choice. One patch has K of
# them. The paper's pictures have 1024 patches and K = 8192, so there are $8192^{1024}$ choices, and the decoder would
# have to paint them all.
#
# We can afford to paint *once*. What is needed is a gradient from one draw, right on average or nearly so.

# %% [markdown]
# ## Draw by a race
#
# A draw must be computed somehow. Let K clocks run. Clock k rings at a random time, and it is in a hurry in proportion
# to $e^{\ell_k}$: its time is exponentially distributed with that rate. The chance that it rings first, at some time t,
# before all others, is
#
# $$\int_0^\infty e^{\ell_k}\, e^{-t e^{\ell_k}} \prod_{j \ne k} e^{-t e^{\ell_j}}\, dt
#   = e^{\ell_k} \int_0^\infty e^{-t \sum_j e^{\ell_j}}\, dt = \frac{e^{\ell_k}}{\sum_j e^{\ell_j}} = q_k .$$
#
# Under the first integral, $e^{\ell_k}\, e^{-t e^{\ell_k}}$ is the chance that clock k rings at time t (a density), and
# each other factor the chance that clock j has not rung by then.
#
# So the winner of the race is a draw from the softmax, exactly.
#
# With U uniform between 0 and 1, such a time is $T_k = -\ln U_k / e^{\ell_k}$. Where $T_k$ is the smallest, its
# negative logarithm is the largest, and
#
# $$-\ln T_k = \ell_k + G_k, \qquad G_k = -\ln(-\ln U_k).$$
#
# $G$ is called **Gumbel noise**, and this way to draw the **Gumbel-max trick**: add noise, take the argmax.


# %%
def gumbel_max(logits, generator):
    """logits (..., K) -> codes (...), drawn from softmax(logits)."""
    u = torch.rand(logits.shape, generator=generator)
    return (logits - torch.log(-torch.log(u))).argmax(-1)


generator = torch.Generator().manual_seed(0)
drawn = gumbel_max(logits.expand(100_000, 3), generator)  # (100 000,)
frequency = torch.bincount(drawn, minlength=3) / len(drawn)
print("softmax:", q, "  frequencies of 100,000 draws:", frequency)
assert torch.allclose(frequency, q, atol=0.01)

# %% [markdown]
# ## Soften the argmax
#
# What has the race won? Chance now comes from outside: the noise does not depend on the logits. Given the noise, the
# code is a plain function of the logits, and only one thing in it has no slope: the argmax.
#
# A softmax is an argmax that has a slope. Divide by a **temperature** τ first, and it can be made as hard as one likes:
#
# $$z = \text{softmax}\left(\frac{\ell + G}{\tau}\right).$$
#
# This is the **Gumbel-softmax**. z is no code but K weights that sum to 1, and the decoder paints from the weighted
# mean of the codebook's rows, `z @ codebook`. Everything is smooth, so the gradient passes.
#
# For K = 3 such a z is a point in a triangle. A corner is one code and nothing else; the middle is a third of each.


# %%
def simplex(axis, z, title):
    """Points z (N, 3) in a triangle, each coloured by its largest weight."""
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.866]])
    axis.plot(*corners[[0, 1, 2, 0]].T, color=GREY, linewidth=1, zorder=0)
    for k, (colour, marker) in enumerate(zip((BLUE, ORANGE, VERMILION), "os^")):
        axis.scatter(*(z[z.argmax(1) == k] @ corners).T, s=8, color=colour, marker=marker, alpha=0.6, linewidth=0)
        place = {"ha": "center", "va": "top" if k < 2 else "bottom", "fontsize": 8}
        axis.text(corners[k, 0], corners[k, 1] + (-0.05, -0.05, 0.05)[k], f"code {k}", **place)
    axis.set(title=title, xlim=(-0.15, 1.15), ylim=(-0.2, 1.05), aspect="equal")
    axis.set_axis_off()


u = torch.rand(400, 3, generator=torch.Generator().manual_seed(1))
figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
for axis, tau in zip(axes, (2.0, 1.0, 0.3, 0.06)):
    z = ((logits - torch.log(-torch.log(u))) / tau).softmax(1)  # (400, 3), the same noise for all four
    share = torch.bincount(z.argmax(1), minlength=3) / len(z)
    print(f"τ = {tau}: largest weight {z.max(1).values.mean():.2f} on average; share of each code", share)
    simplex(axis, z, f"τ = {tau}")
plt.show()

# %% [markdown]
# Four triangles, each with the same 400 draws. At τ = 2 they are a cloud well inside: a little of every code. At τ = 1
# the cloud reaches the edges. At 0.3 most points lie near edges and corners, at 0.06 nearly all of them in a corner.
#
# The colours say which weight is the largest. That does not change with τ, as the printed shares show. At every
# temperature the largest weight is a draw from q, 0.5, 0.3, 0.2. What τ sets is only how much of the *other* codes is
# mixed in.

# %% [markdown]
# ## Exercise 1: a relaxed choice that cannot break
#
# Write the Gumbel-softmax for given uniform numbers u. It must also survive the worst of them. At u = 1 the noise is
# +∞, and softmax then computes ∞ − ∞. At u = 0 it is −∞, which does the same if a whole row has it. The result is NaN,
# "not a number", and a single NaN in the loss spoils every weight of the model. An update of the paper's dVAE draws
# about four billion numbers, so even the rarest values come up.


# %%
def relaxed_choice(logits, u, tau):
    """logits (B, K), u (B, K) in [0, 1], both ends included, tau > 0 -> weights (B, K), whose rows sum to 1.

    Finite, with a finite gradient, also for logits such as 10000.
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson03 import check_relaxed_choice

check_relaxed_choice(relaxed_choice)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `u.clamp(low, high)` before the logarithms. Change only the very ends: a number such as 0.00001 is nothing special.
# And mind the upper end: in 32 bits, `1 - 1e-9` *is* 1, while `1 - 1e-7` is less. Leave the exponentials to
# `torch.softmax`, which subtracts the largest logit first.
# </details>

# %% [markdown]
# ## The real thing
#
# Here is the project's own, at logits as an encoder gives them: one row of K for each cell of a grid, with K as the
# second dimension. With the same generator it must give the same values as our formula.

# %%
from minidalle.dvae import cosine, gumbel_softmax, usage

some = 3 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(2))  # (B, K, rows, grid)
real = gumbel_softmax(some, tau=0.5, generator=torch.Generator().manual_seed(3))
u = torch.rand(2, 4, 4, 8, generator=torch.Generator().manual_seed(3))  # (B, rows, grid, K): there K comes last
by_hand = ((some - torch.log(-torch.log(u)).movedim(3, 1)) / 0.5).softmax(1)
print(
    f"largest difference {(real - by_hand).abs().max():.1e}   sums over K {real.sum(1).min():.4f} … {real.sum(1).max():.4f}"
)
assert torch.allclose(real, by_hand, atol=1e-5)

# %% [markdown]
# ## Straight through
#
# There is a bolder way. In the forward pass, give the decoder the hard choice: the one-hot vector of the largest
# weight. In the backward pass, pretend that it had been the soft z, and send the gradient there. This is the
# **straight-through** estimator. The decoder then never sees a mixture. But the gradient belongs to another function
# than the one that was computed.

# %% [markdown]
# ## Exercise 2: straight-through
#
# It takes one line, if you have a term whose value is 0 and whose gradient is not. `soft - soft.detach()` is one:
# `detach` keeps the value and cuts the gradient.


# %%
def straight_through(soft):
    """soft (B, K), rows that sum to 1 -> (B, K): one-hot at the largest weight of each row; the gradient is soft's."""
    raise NotImplementedError  # your code


# %%
from checks.lesson03 import check_straight_through

check_straight_through(straight_through)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `F.one_hot(soft.argmax(1), soft.shape[1])` gives whole numbers, which have no gradient at all. Make floats of them,
# and add the term of value 0.
# </details>

# %% [markdown]
# ## What each of them costs
#
# Back to our single patch, where we know the exact gradient. Take many draws, compute the gradient from each, and ask
# two things.
#
# - The **bias**: how far is their mean from the exact gradient?
# - The **spread**: how far is a single one from their mean?


# %%
def gradients(tau, hard, n=200_000):
    """The gradient of the loss by the logits from each of n draws: (n, 3)."""
    leaf = logits.repeat(n, 1).requires_grad_()
    z = gumbel_softmax(leaf, tau, generator=torch.Generator().manual_seed(0))
    if hard:
        z = F.one_hot(z.argmax(1), 3) + z - z.detach()
    return torch.autograd.grad(loss_of(z).sum(), leaf)[0]


taus = 2.0 ** torch.arange(-4, 2.5, 0.5)
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, colour, hard in (("Gumbel-softmax", BLUE, False), ("straight-through", ORANGE, True)):
    each = [gradients(tau.item(), hard) for tau in taus]
    axis.plot(taus, [(g.mean(0) - exact).norm() for g in each], "o-", color=colour, label=f"{name}: bias")
    axis.plot(taus, [g.var(0).sum().sqrt() for g in each], "s--", color=colour, label=f"{name}: spread")
axis.axhline(exact.norm(), color=GREY, label="length of the exact gradient")
axis.set(xscale="log", yscale="log", xlabel="temperature τ", ylabel="length")
axis.set_xticks([1 / 16, 1 / 4, 1, 4], ["1/16", "1/4", "1", "4"])
axis.minorticks_off()
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Two rising solid lines, the biases, nearly one upon the other, and two falling dashed ones, the spreads. The bias
# shrinks with τ. At τ = 4 it is nearly as long as the exact gradient, and undoes most of it. The spread grows as τ
# falls. At τ = 1/16 it is several times the length of the exact gradient. Straight-through has about the same bias
# here, and more spread.
#
# A larger batch averages the spread away, but never the bias. So no temperature is right. Hot gives a steady gradient
# of the wrong goal, cold a wild gradient of the right one. Hence the usual way: **begin hot, and cool down**.

# %% [markdown]
# ## A choice without chance: the nearest neighbour
#
# The best-known other way is that of the VQ-VAE. It draws nothing. Its encoder gives not K logits but a point e of the
# codebook's own space, and the code is the row c that lies *nearest*. The gradient goes straight through: what the
# decoder wants of c is handed to e. That leaves two wishes, and each gets a loss. In them sg, "stop gradient", is
# `detach`:
#
# $$\lVert \text{sg}(e) - c \rVert^2 \;+\; \beta\, \lVert e - \text{sg}(c) \rVert^2 .$$
#
# The first pulls the row to the points that chose it, since nothing else moves the rows. The second, the **commitment
# loss**, keeps the encoder close to the row that it chose. Without it, e may wander and change rows again and again. β
# is usually 1/4.
#
# Below are both ways of choosing, with the same arguments and the same three results.


# %%
def choose_by_gumbel(given, codebook, tau):
    """given: logits (B, K); codebook (K, 2) -> what the decoder gets (B, 2), extra loss, codes (B,)."""
    z = gumbel_softmax(given, tau)  # (B, K)
    extra = torch.zeros(())  # in lesson 04, here stands the KL term
    return z @ codebook, extra, given.argmax(1)


def choose_by_distance(given, codebook, tau, beta=0.25):
    """given: points (B, 2); codebook (K, 2) -> what the decoder gets (B, 2), extra loss, codes (B,)."""
    codes = torch.cdist(given, codebook).argmin(1)  # (B,)
    c = codebook[codes]  # (B, 2)
    extra = (given.detach() - c).square().sum(1).mean() + beta * (given - c.detach()).square().sum(1).mean()
    return given + (c - given).detach(), extra, codes


# %% [markdown]
# ## One task for all
#
# The pictures are points of a square, from −1 to 1 each way, all equally likely. The encoder is a small network, the
# codebook has 16 rows, and to paint is to put the row down. Sixteen points cannot meet them all. The best that they can
# do is about 0.042, the error of a 4 × 4 pattern.


# %%
def train(choose, tau_at, n_out, updates=1000):
    """tau_at: number of the update -> τ; n_out: numbers that the encoder gives. -> encoder, codebook (16, 2)."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, n_out))
    codebook = nn.Parameter(0.3 * torch.randn(16, 2))
    optimizer = torch.optim.Adam([*encoder.parameters(), codebook], lr=0.01)
    for step in range(updates):
        x = 2 * torch.rand(256, 2) - 1  # (B, 2)
        painted, extra, _ = choose(encoder(x), codebook, tau_at(step))
        loss = (painted - x).square().sum(1).mean() + extra
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.requires_grad_(False), codebook.detach()


# %% [markdown]
# We train in five ways. `cosine(step, 800, 1.0, 1 / 2)` falls from 1 to 1/2 along half a cosine in 800 updates, then
# stays. So the last 200 updates are made at the last temperature.

# %%
ways = {  # how to choose, τ at an update, the encoder's numbers
    "τ = 2 throughout": (choose_by_gumbel, lambda step: 2.0, 16),
    "τ from 1 to 1/2": (choose_by_gumbel, lambda step: cosine(step, 800, 1.0, 1 / 2), 16),
    "τ from 1 to 1/16": (choose_by_gumbel, lambda step: cosine(step, 800, 1.0, 1 / 16), 16),
    "τ = 1/16 throughout": (choose_by_gumbel, lambda step: 1 / 16, 16),
    "nearest neighbour": (choose_by_distance, lambda step: None, 2),
}
trained = {name: train(*way) for name, way in ways.items()}

# %% [markdown]
# Two errors are worth a look. One is *as trained*: with the weights z of the last temperature. The other is *as used*:
# with the code of the largest logit and nothing else. It is the second that counts, because the transformer will be
# given codes, and will give codes back.

# %%
test = 2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)) - 1
for name, (choose, tau_at, _) in ways.items():
    encoder, rows = trained[name]
    painted, _, codes = choose(encoder(test), rows, tau_at(1000))
    errors = [(p - test).square().sum(1).mean() for p in (painted, rows[codes])]
    used = usage(codes, 16)["codes_used"]
    print(f"{name:20} error as trained {errors[0]:.3f}   as used {errors[1]:.3f}   codes in use {used}")

# %%
side = torch.linspace(-1, 1, 200)
every = torch.cartesian_prod(side, side)  # (40 000, 2)
figure, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained", sharey=True)
for axis, (name, (choose, tau_at, _)) in zip(axes, ways.items()):
    encoder, rows = trained[name]
    codes = choose(encoder(every), rows, tau_at(1000))[2]
    shown = codes.view(200, 200).T.numpy()  # the second coordinate runs upwards
    border = (np.diff(shown, axis=0)[:, 1:] != 0) | (np.diff(shown, axis=1)[1:] != 0)
    axis.imshow(border, cmap="Greys", vmax=2, extent=(-1, 1, -1, 1), origin="lower")
    in_use = sorted(set(codes.tolist()))
    unused = [k for k in range(16) if k not in in_use]
    middles = torch.stack([every[codes == k].mean(0) for k in in_use])
    axis.scatter(*middles.T, s=40, color="black", marker="+", linewidth=1, label="middle of a region")
    axis.scatter(*rows[in_use].T, s=22, color=BLUE, label="row of a code in use")
    axis.scatter(*rows[unused].T, s=30, color=VERMILION, marker="x", label="row of a code not in use")
    axis.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", xlabel="first coordinate")
    axis.set_title(name, fontsize=9)
axes[0].set_ylabel("second coordinate")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# Five squares, cut by grey lines into the regions of the codes. A dot is a row of the codebook, a plus the middle of a
# region, which is the best place for its row.
#
# - **Stays hot.** As trained, the error is a third of what sixteen points can do at best. That is a sign of cheating: a
#   mixture of rows can be any point. The outer rows stand outside of their middles, because mixing draws everything
#   inwards. As used, nothing is mixed, and the error is about four times as large.
# - **Cools down.** The two errors come close, and the rows stand near their middles. Ending at 1/2 the mixture still
#   flatters a little: as trained, the error is below what sixteen points can do. Ending at 1/16 it does not, but one
#   code is lost, the cross in the third square, and noise makes the error as trained larger than as used.
# - **Cold from the start.** The two errors are close as well, but larger. Codes that were behind at first got hardly
#   any gradient, and stayed behind: the crosses are rows that no point chooses. This is what cooling too early comes
#   to.
# - **Nearest neighbour.** No chance, so the two errors are one. It does about as well here as cooling down. Its
#   weakness is that of the cold start: a row that is nearest to nothing never moves.
#
# This is one seed. With two others the run to 1/2 lost a code as well, and the nearest neighbour once did best:
# differences of .005 between these three ways mean nothing. The cold start was worse with every seed we tried.

# %% [markdown]
# ## What the paper does, and what we do
#
# The paper trains with the Gumbel-softmax. τ falls from 1 to 1/16 along half a cosine, in 150,000 updates. To *encode*
# a picture for the transformer, it takes the largest logit, without noise (section 2.2, appendix A.2). An author has
# added that training uses the noise and the soft weights forward and backward: no straight-through.
#
# In the choice, our small model does two things otherwise. Both are our own choice, not the paper's: τ ends at 1/2, and
# the noise is faded in from none to full. (It also normalises its logits, gives the KL term no weight, and has another
# likelihood: lesson 04.)
#
# Below, `dvae.decode` paints a picture from codes, and `dvae.paint` from weights z, mixed or not.

# %%
from minidalle.checkpoint import load_run
from minidalle.data import scenes
from minidalle.dvae import schedules

preset, _, dvae, _ = load_run("weights")
stage = preset.train.dvae
for step in (0, stage.updates // 4, stage.updates // 2, stage.updates):
    now = schedules(stage, step)
    print(f"update {step:5}: τ {now['tau']:.2f}, noise {now['noise']:.2f}")

captions = scenes.captions("captions")[::8]
images = scenes.draw(captions, np.random.default_rng(0)).float() / 255  # (B, 3, S, S)
with torch.no_grad():
    logits = dvae.logits(images)  # (B, K, rows, grid)
    used = (dvae.decode(logits.argmax(1)) - images).square().mean()
    print(f"\n{len(images)} pictures, mean squared error with the largest logit alone: {used:.6f}")
    for tau in (4, 1, 1 / 2, 1 / 16):
        z = gumbel_softmax(logits, tau, generator=torch.Generator().manual_seed(0))
        print(f"with a draw at τ = {tau:6}: {(dvae.paint(z) - images).square().mean():.6f}")

# %% [markdown]
# At τ = 4, where it was never trained, the decoder reads such mixtures badly. At τ = 1 a draw paints *better* than the
# largest logit alone: the mixture helps, and the error flatters. At τ = 1/2, where the training ended, the two are
# close, so there is little left to cool for. At 1/16 a draw is nearly one code, and the noise sometimes makes it the
# second best. That is why pictures are encoded without noise.
#
# Short runs of this project that cool on to 1/16 rebuild fewer pictures cleanly. Fading the noise in, on the other
# hand, has shown no effect. (These were runs in another world, that of shapes: `experiments.md`; tiny and synthetic.)
#
# **Read now:** `gumbel_softmax` and `schedules` in [`minidalle/dvae.py`](../minidalle/dvae.py), twenty lines together.

# %% [markdown]
# ## What to remember
#
# 1. A choice has no slope. The mean loss of a random choice has one, but takes all K outcomes.
# 2. argmax(logits + Gumbel noise) is an exact draw from the softmax, with all the chance outside.
# 3. A softmax at temperature τ in place of the argmax lets the gradient through. Hot is biased, cold is noisy: begin
#    hot, cool down.
# 4. Straight-through and VQ-VAE choose hard and pass the gradient as if they had not. A code that is never chosen never
#    learns.
# 5. Judge by the codes as they are used: the largest logit, no noise. The loss in training flatters while τ is hot.
#
# **References.** Jang, Gu and Poole 2017, *Categorical Reparameterization with Gumbel-Softmax*, and Maddison, Mnih and
# Teh 2017, *The Concrete Distribution*: the same idea, found twice. Bengio, Léonard and Courville 2013, on
# straight-through. Van den Oord, Vinyals and Kavukcuoglu 2017, *Neural Discrete Representation Learning*: VQ-VAE.
# Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, section 2.1.
