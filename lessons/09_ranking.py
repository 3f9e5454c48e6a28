# %% [markdown]
# # 09 · Ranking
#
# **Which sample fits the caption?**
#
# A drawing is a guess, and some guesses are wrong. So DALL-E draws many and keeps those that fit best. "Fits" has to
# become a number. This lesson builds the model that gives it, CLIP, and measures what the choice is worth.
#
# *Before:* lesson 08 drew many pictures of one caption.
# *Next:* lesson 10 begins with the GPU, and writes a first Triton kernel.

# %% [markdown]
# ## Sixteen drawings, few of them right
#
# A hard caption: no stage of the training ever saw a green cross. The symbols of this lesson: B pairs of picture and
# caption in a batch, E the width of the space that both are brought to, N drawings of one caption.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import random
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import torch
from drawing import BLUE, ORANGE, VERMILION, pictures

from minidalle.checkpoint import load_clip, load_run
from minidalle.clip import neighbours
from minidalle.data import scenes
from minidalle.evaluate import interval, spaced  # a mean with its 95 % interval; items evenly spaced over a list
from minidalle.failures import find  # what the oracle finds wrong in drawings, in words
from minidalle.oracle import judge
from minidalle.sample import generate
from minidalle.sequence import tokenize

preset, bpe, dvae, model = load_run("weights")
_, clip = load_clip("weights")

# %%
caption = "a photo of a green cross on top and the same as a sketch below"
text = tokenize(bpe, [caption], model.config.text_len)  # (1, 32)
codes = generate(model, text, n=16, seeds=range(16), **vars(preset.sample))
drawn = dvae.decode(codes)  # (16, 3, 32, 32)
verdicts, _ = judge(drawn, [caption] * 16)
titles = ["right" if verdict else "wrong" for verdict in verdicts]
pictures([drawn[:8], drawn[8:]], titles=[titles[:8], titles[8:]])
print(f"{verdicts.sum()} of 16 are right")

# %% [markdown]
# Two rows of eight pictures, each with its verdict. In most of the wrong ones the sketch below is a circle or a cross
# with a dent; in three the thing on top is red.
#
# Who says "right"? `judge` does, the project's **oracle**. It finds the objects in the pixels and compares them with
# templates of all shapes. It has learned nothing, and nothing that trains, draws or ranks ever asks it: a model that
# knows its examiner may learn to please *it*. It exists only because this world is drawn by rules. For photographs
# there is none, so the choice must not need it.
#
# What can choose, then? A model that has learned from pictures with their captions which of them belong together.

# %% [markdown]
# ## Two towers into one space
#
# One network turns a picture into E numbers, another one turns a caption into E numbers. Both results are divided by
# their length. So each is a point on a sphere, and the dot product of two of them is the cosine of the angle between
# them: 1 for the same direction, −1 for the opposite. Without the division a tower could raise a score by making
# vectors longer. We want it high for a picture and its own caption, and lower for all others.
#
# We build it for the world of lesson 01: pictures of 2 × 2 cells, captions of two words. Each tower is a single
# matrix.

# %%
WORDS = ["top", "left", "all", "one", "orange", "blue"]
CELLS = {"top": [[0, 1]], "left": [[0, 2]], "all": [[0, 1, 2, 3]], "one": [[0], [1], [2], [3]]}
COLOURS = {"orange": torch.tensor([0.9, 0.62, 0.0]), "blue": torch.tensor([0.0, 0.45, 0.7])}
captions = [f"{place} {colour}" for place in CELLS for colour in COLOURS]  # B = 8


def draw(caption, rng):
    """One right picture of the caption: 4 cells of 3 colour values, (12,)."""
    place, colour = caption.split()
    picture = torch.ones(4, 3)
    picture[rng.choice(CELLS[place])] = COLOURS[colour]
    return picture.flatten()


def towers(images, words, w_image, w_text):
    """images (B, 12) @ (12, E), words (B, 6) @ (6, E), both brought to length 1: (B, E) each."""
    image, text = (images - 0.5) @ w_image, words @ w_text
    return image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)


# %% [markdown]
# ## The price of a batch
#
# Take B pairs, and compute the cosine of every picture with every caption: a matrix (B, B), a row for each picture, a
# column for each caption. The right partners are on the diagonal.
#
# Read a row as logits: *which of these B captions is mine?* That is a choice among B, as the next code is one among
# K, and has the same price: $-\ln$ of the softmax at the right place. A column asks the other question: *which of
# these pictures is mine?*


# %%
def price(logits):
    """logits (B, B) -> mean over the rows of -ln softmax(row) at the row's own place, in nats."""
    total = 0.0
    for i, row in enumerate(logits):
        total -= (row - row.logsumexp(0))[i]  # logsumexp: the logarithm of the sum of exp(row)
    return total / len(logits)


three = torch.tensor([[0.9, 0.7, 0.6], [0.5, 0.8, 0.2], [0.7, 0.1, 0.9]])  # 3 pictures down, 3 captions across
for scale in (1, 10, 50):
    print(f"scale {scale:2}: rows {price(scale * three):.3f}   columns {price(scale * three.T):.3f} nats")
higher = three + torch.tensor([[0.5], [0.0], [0.0]])  # picture 0 fits everything better
print(f"scale 10, picture 0 raised: rows {price(10 * higher):.3f}   columns {price(10 * higher.T):.3f}")

# %% [markdown]
# Two things to see.
#
# **The scale.** Cosines lie between −1 and 1, and a softmax of such small numbers is never sure. So they are
# multiplied by a scale, which is learned with the rest. Kept as its logarithm, it cannot become negative; and it is
# capped at 100, so that it does not run away. At such a scale exp(100 · 0.9) is too large for a float32 and comes out
# infinite; `logsumexp` takes the largest number of the row out first.
#
# **Both directions.** A number added to a whole row does not change its softmax: the last line's rows cost what they
# cost before. But ranking compares different *pictures* for one caption, down a column. Only the columns' price makes
# pictures comparable. The loss is the mean of the two.

# %% [markdown]
# ## Exercise 1: the loss
#
# Write the whole loss, from the raw outputs of the towers: bring them to length 1, compute all cosines, multiply by
# exp(`logit_scale`), capped at 100, and take the mean of the two cross-entropies.


# %%
def clip_loss(image, text, logit_scale):
    """image, text (B, E), not of length 1; row i of both is a pair. logit_scale: a tensor of one number. -> nats."""
    raise NotImplementedError  # your code


# %%
from checks.lesson09 import check_clip_loss

check_clip_loss(clip_loss)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.nn.functional.cross_entropy(logits, own)` with `own = torch.arange(B)` is our `price`. Length 1 is along E,
# not along the batch. For the columns transpose the logits.
# </details>

# %% [markdown]
# ## Training the two matrices
#
# All eight captions in a batch, a new picture of each at every step.

# %%
torch.set_grad_enabled(True)  # the next cell turns it off; this is for when you run this one again
torch.manual_seed(0)
rng, words = random.Random(0), torch.zeros(8, 6)  # row i: 1 where a word stands in caption i
for i, c in enumerate(captions):
    words[i, [WORDS.index(word) for word in c.split()]] = 1
w_image, w_text = (0.3 * torch.randn(12, 8)).requires_grad_(), (0.3 * torch.randn(6, 8)).requires_grad_()  # E = 8
log_scale = torch.tensor(1 / 0.07).log().requires_grad_()  # CLIP's start
optimizer = torch.optim.Adam([w_image, w_text, log_scale], lr=0.02)
matrices = []
for step in range(301):
    image, text = towers(torch.stack([draw(c, rng) for c in captions]), words, w_image, w_text)  # (8, E) each
    logits = log_scale.exp() * image @ text.T  # (8, 8)
    loss = (price(logits) + price(logits.T)) / 2
    if step in (0, 300):
        matrices.append((image @ text.T).detach())
        found = (logits.argmax(dim=1) == torch.arange(8)).sum()
        print(f"step {step:3}: loss {loss.item():.4f}   {found} of 8 pictures find their caption")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
torch.set_grad_enabled(False)  # nothing more is trained here
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.3), layout="constrained", sharey=True)
for axis, matrix, title in zip(axes, matrices, ("before training", "after 300 steps")):
    shown = axis.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
    axis.set_xticks(range(8), captions, rotation=60, fontsize=8, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(8), captions, fontsize=8)
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("caption")
axes[0].set_ylabel("a picture of")
figure.colorbar(shown, ax=axes, label="cosine")
plt.show()

# %% [markdown]
# Two maps of eight pictures by eight captions. Before training there is no order. After it the diagonal is the
# brightest of each row and of each column.
#
# The loss began at about 4.9. That is more than ln 8 = 2.08, what a model without any idea pays: the scale starts at
# 14, so an untrained tower is already sure, and mostly wrong.
#
# Nobody told the towers what "top" is or what orange looks like. They had to find out, because the other captions of
# the batch were wrong.

# %% [markdown]
# ## The real one
#
# Our CLIP reads pictures of 32 × 32 with a vision transformer: patches of 4 × 4 pixels are its tokens. It reads
# captions with a causal transformer, and takes the state of the end-of-text token. It was trained for one and a half
# minutes. Ten captions, and a new picture of each:

# %%
ten = ["a photo of a red circle above a blue square", "a photo of a blue square above a red circle"]
ten += ["a photo of a blue circle above a red square", "a photo of a red circle left of a blue square"]
ten += ["a photo of a red cross above a blue square", "a sketch of a red circle above a blue square"]
ten += ["a sketch of a green triangle left of a purple square", "a sketch of a purple square left of a green triangle"]
ten += ["a photo of a yellow cross right of a cyan cross", scenes.same("cyan", "square").caption]
images = scenes.draw(ten, np.random.default_rng(0)).float() / 255  # (10, 3, 32, 32)
tokens = tokenize(bpe, ten, clip.config.context)  # (10, 32)
image, text = clip.encode_image(images), clip.encode_text(tokens)  # (10, E) each, of length 1
cosines = image @ text.T  # (10, 10)

# %%
figure = plt.figure(figsize=(8.5, 5.2), layout="constrained")
grid = figure.add_gridspec(10, 2, width_ratios=(1, 12))
for i in range(10):
    beside = figure.add_subplot(grid[i, 0])
    beside.imshow(images[i].permute(1, 2, 0), interpolation="nearest")
    beside.set(xticks=[], yticks=[])
    beside.set_ylabel(textwrap.fill(f"{i} {ten[i]}", 40), rotation=0, ha="right", va="center", fontsize=7)
axis = figure.add_subplot(grid[:, 1])
axis.imshow(cosines, cmap="cividis", vmin=-0.6, vmax=1, aspect="auto")
for (i, k), value in np.ndenumerate(cosines.numpy()):
    axis.text(k, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.3 else "black")
axis.set_xticks(range(10), range(10))
axis.set(yticks=[], xlabel="caption, by the number at the left")
figure.supylabel("a picture of", fontsize=10)
plt.show()
own = torch.arange(10)
print("pictures whose best caption is not their own:", (cosines.argmax(dim=1) != own).nonzero()[:, 0].tolist())
print("captions whose best picture is not their own:", (cosines.argmax(dim=0) != own).nonzero()[:, 0].tolist())

# %% [markdown]
# Ten pictures down, each behind its number and its caption; ten captions across, by these numbers; a cosine in each
# field. The diagonal is bright, about 0.9 and more.
#
# The first five captions are alike, and each of their pictures scores above 0.3 with all five. With the last four
# captions it scores below. Captions 1 and 2 have all words in common, and a photo of one scores about 0.9 with the
# other; CLIP keeps them apart by a hair. And it errs: picture 0, a *circle* above a square, fits caption 4, with a
# *cross*, a little better than its own.
#
# Now the numbers: our loss on this matrix, and the real one; our cosines, and `rank`.

# %%
logits = clip.logit_scale.exp() * cosines
ours, real = (price(logits) + price(logits.T)) / 2, clip.loss(images, tokens).total
print(f"loss: ours {ours:.6f}   CLIP.loss {real:.6f}   scale {clip.logit_scale.exp():.1f}")
assert torch.isclose(ours, real, atol=1e-4)
scores = clip.rank(tokens[0], images)  # (10,)
print("scores of the ten pictures for caption 0:", [round(x, 2) for x in scores.tolist()])
assert torch.allclose(scores, cosines[:, 0], atol=1e-5)

# %% [markdown]
# The order of the candidates means nothing, only their scores count. `rank` returns the scores, and whoever asks
# sorts them.

# %% [markdown]
# ## Exercise 2: the best first
#
# Given the raw output of the image tower for n pictures and that of the text tower for one caption, say in which
# order the pictures fit: the number of the best one first. If somebody shuffles the pictures, the same *pictures*
# must come out in the same order.


# %%
def best_first(images, caption):
    """images (n, E), caption (E,), not of length 1. -> (n,) int64: the best picture's number, the second best's, …"""
    raise NotImplementedError  # your code


# %%
from checks.lesson09 import check_best_first

check_best_first(best_first)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A long vector has large dot products with everything, so divide by the length first. `argsort` gives the numbers of
# the smallest first, unless it is told `descending=True`.
# </details>

# %% [markdown]
# ## What a batch makes hard
#
# CLIP learns what its batches ask of it, and no more. If the 63 other captions of a batch speak of other things, the
# words alone can be enough to find one's own, in whatever order. Then which object is above the other hardly matters.
# This is our reason; in short trials on single shapes no difference showed (`experiments.md`), and on scenes we have
# not measured it.

# %%
train = scenes.captions("train")
near = neighbours(train)
for seed in range(4):  # four draws of a neighbour
    print(near(ten[0], 1, random.Random(seed)))
chance = 1 - (1 - 1 / len(train)) ** 63
print(f"chance that 63 captions drawn at random contain one certain caption, such as the swapped one: {chance:.3f}")

# %% [markdown]
# Four draws of a neighbour. A random batch of 64 would hold the swapped caption in 3 % of cases. So our batches are
# made of pairs of captions that are nearly alike: other words in one place, or the same words in another order. Such
# wrong answers are called **hard negatives**.
#
# And half of the pictures in training are shown as the dVAE paints them, since what will be ranked comes out of the
# dVAE too. That showed no gain in those trials either. Both are our own choice, not the paper's. So is one detail of
# the loss: an *equal* caption elsewhere in the batch is as true as one's own, and is left out of the sums.

# %% [markdown]
# ## Best of N
#
# Now the question of this lesson. We take 96 captions with a held-out pair, make 32 drawings of each, and let CLIP
# score them. For comparison, how probable the transformer itself finds its drawing: $\ln p$, summed over the 64 codes.
# (The drawings are made with guidance 1.5 and top-p 0.7, as at the beginning, see lesson 08. This $\ln p$ is the
# transformer's own, without guidance and over all codes.) The oracle comes last.

# %%
many = spaced(sorted(scenes.captions("pairs")), 96)  # 96 captions, evenly spaced in the order of the alphabet
texts, scores, ln_p, right, kept = tokenize(bpe, many, model.config.text_len), [], [], [], []
for i, each in enumerate(many):
    codes = generate(model, texts[i], 32, range(32 * i, 32 * i + 32), **vars(preset.sample))  # (32, 8, 8)
    drawn = dvae.decode(codes)  # (32, 3, 32, 32)
    scores.append(clip.rank(texts[i], drawn))
    logits = model(texts[i].expand(32, -1), codes.flatten(1))[1]  # (32, 64, K)
    ln_p.append(logits.log_softmax(2).gather(2, codes.view(32, 64, 1)).sum(dim=(1, 2)))
    right.append(torch.from_numpy(judge(drawn, [each] * 32)[0]).float())
    kept.append(drawn)
scores, ln_p, right, kept = map(torch.stack, (scores, ln_p, right, kept))  # (96, 32, …) each


def best_of(n, scores):
    """(96,): 32 drawings in groups of n; in how many groups the one with the highest score is right."""
    best = scores.view(96, -1, n).argmax(dim=2, keepdim=True)  # (96, 32 / n, 1)
    return right.view(96, -1, n).gather(2, best).mean(dim=(1, 2))


# %%
ns = [1, 2, 4, 8, 16, 32]
figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
judges = {"the oracle itself: the bound": (right, ORANGE, "s"), "CLIP": (scores, BLUE, "o")}
judges |= {"the transformer's ln p": (ln_p, VERMILION, "^")}
for name, (by, colour, mark) in judges.items():
    found = [interval(best_of(n, by).numpy(), many) for n in ns]
    axis.plot(ns, [f["value"] for f in found], color=colour, marker=mark, label=name)
    print(f"{name:28}", "  ".join(f"{n}: {f['value']:.3f}" for n, f in zip(ns, found)))
    if name == "CLIP":
        axis.fill_between(ns, [f["low"] for f in found], [f["high"] for f in found], color=colour, alpha=0.15)
axis.set_xscale("log", base=2)
axis.set_xticks(ns, ns)
axis.set(xlabel="N, drawings to choose from", ylabel="share of captions\nwhose choice is right", ylim=(0.7, 1.01))
axis.legend(frameon=False, fontsize=8, loc="lower right")
axis.grid(alpha=0.3)
plt.show()
for n in (4, 32):
    for what, others in (("one drawing", best_of(1, scores)), ("the same by ln p", best_of(n, ln_p))):
        gain = interval((best_of(n, scores) - others).numpy(), many)
        print(f"CLIP's best of {n:2}, minus {what:16}: {gain['value']:+.3f} ({gain['low']:+.3f} … {gain['high']:+.3f})")

# %% [markdown]
# Three lines over N from 1 to 32. All begin at about 0.82, the share of right drawings. The oracle's line is the
# bound, a judge that knows: it nears 1, so nearly every caption has a right drawing among eight. CLIP's line rises to
# about 0.9 at N = 4 and stays there. The transformer's own $\ln p$ gains least. The shade is CLIP's 95 % interval,
# over captions; below stand the gains, with theirs.
#
# So choosing by CLIP helps: where the interval of a gain lies above 0, it is more than luck. Whether CLIP is better
# than $\ln p$ is plain at N = 4, and not at 32, where each caption gives one choice only. More drawings do not help
# for ever. They mend bad luck; what CLIP gets wrong they do not mend.
#
# The paper draws 512 and reports gains up to about N = 32, with far larger models, photographs, and no oracle. For
# this project's README, 128 such captions were drawn 16 times: 0.837 for one drawing, 0.922 for CLIP's choice (tiny
# and synthetic, seed 0).

# %% [markdown]
# ## In CLIP's order
#
# The three captions with the fewest right drawings, and the first 16 drawings of each, the best first: eight in the
# upper row, then eight in the lower.

# %%
for i in right.mean(dim=1).argsort(stable=True)[:3].tolist():
    order = scores[i, :16].argsort(descending=True)
    titles = [f"{scores[i, k]:.2f}\n{'right' if right[i, k] else 'WRONG'}" for k in order]
    rows, names = [kept[i, order[:8]], kept[i, order[8:]]], [textwrap.fill(many[i], 20), ""]
    pictures(rows, titles=[titles[:8], titles[8:]], labels=names, size=0.7)

# %% [markdown]
# Three captions with sixteen drawings each, in two rows, each drawing under its score and the oracle's verdict. For the
# first, our hard caption, the two right ones come first, by a clear margin. (Five were right above; these are other
# seeds.) For the other two, right and wrong are mixed, and their scores overlap: five drawings of the second caption
# share 0.95, three right and two wrong. Mostly a circle became a cross there, or a cross a circle.
#
# Why these two? Beside the four held-out pairs, two further pairs, purple cross and cyan circle, were kept out to make
# choices on. A purple cross above a blue circle, a cyan circle left of a green cross: either caption names two pairs
# that no stage ever saw.

# %% [markdown]
# ## CLIP's mistakes
#
# All captions whose best of 32 is wrong. Behind the arrow stands what the oracle finds wrong in it.

# %%
first = scores.argmax(dim=1)  # (96,)
missed = [i for i in range(96) if not right[i, first[i]]]
chosen = torch.stack([kept[i, first[i]] for i in missed])
reasons = [finding.reason for finding in find(chosen, [many[i] for i in missed])]
titles = [f"{textwrap.fill(many[i], 22)}\n{textwrap.fill('→ ' + reason, 22)}" for i, reason in zip(missed, reasons)]
print(len(missed), "of 96; a right drawing among the 32:", sum(right[i].any().item() for i in missed))
half = (len(missed) + 1) // 2
pictures([chosen[:half]], titles=titles[:half], size=1.5)
pictures([chosen[half:]], titles=titles[half:], size=1.5)

# %% [markdown]
# Nine captions, and a drawing of each. In more than half a cross is drawn as another shape, or another shape as a
# cross, and CLIP overlooks it: neither the transformer nor CLIP has seen these pairs. (Three of the five are a purple
# cross, one of the two further pairs.) Others are broken, or touch. No batch ever showed CLIP a broken picture as a
# wrong answer, so it never learned to mind.
#
# *Above drawn as diagonal to*: the oracle names the upper thing first, so to it a yellow square *below* a red one is a
# red one *above*. It found the two neither one over the other nor side by side.
#
# For each of the nine a right drawing was there. The chooser failed.
#
# **Read now:** `CLIP.loss`, `CLIP.rank` and `neighbours` in [`minidalle/clip.py`](../minidalle/clip.py), then
# `measure_ranking` in [`minidalle/evaluate.py`](../minidalle/evaluate.py), which measures this for the README.

# %% [markdown]
# ## What to remember
#
# 1. Two towers bring pictures and captions to one space, where the cosine says how well they fit.
# 2. The loss is a choice among the batch, in both directions: captions for a picture, pictures for a caption.
# 3. The batch decides what is learned. Without hard negatives, words in any order *can* be enough.
# 4. Choosing helps for a few drawings, then the chooser's own mistakes set the limit.
# 5. Whoever measures must take no part: not in training, not in drawing, not in choosing.
#
# **References.** Radford et al. 2021, *Learning Transferable Visual Models From Natural Language Supervision*. Ramesh
# et al. 2021, *Zero-Shot Text-to-Image Generation*, sections 2.6 and 3.
