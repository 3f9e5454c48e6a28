# %% [markdown]
# # 13 · What it learned, and what we owe
#
# **What does a generator inherit from its data?**
#
# A model of next tokens has nothing but its data. What was frequent there, it finds probable. What was never there, it
# cannot draw. In this lesson we plant habits into a small world of our own, train on it, and count what comes back.
# Then we look at what a picture can tell of its origin, and how long that lasts.
#
# *Before:* lessons 01 to 11 built all of it, and lesson 12 counted what it costs at full size.
# *Next:* nothing more to build. What you do with it is yours.
#
# ## Whose evidence
#
# Three sources are kept apart here.
#
# - **Ours**: every number that a cell below prints. It is about tiny models of drawn worlds. It shows how a thing *can*
#   come about, not how often it does elsewhere.
# - **DALL-E (v1)**, the model of this project. Its paper says how captions were filtered. The model card of its release
#   is about the dVAE alone. We know of no measurement of bias in either.
# - **DALL-E 2**, a later model that works in another way (diffusion). Its *system card* of April 2022 speaks of bias, of
#   filtering, and of a visible signature. Most of what is said about "DALL-E" in these matters comes from there.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import json
import math
import random
import textwrap
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from drawing import BLUE, GREY, ORANGE, VERMILION, pictures

from minidalle.bpe import BPE
from minidalle.checkpoint import load_run
from minidalle.data import shapes
from minidalle.evaluate import interval
from minidalle.oracle import read, read_scenes
from minidalle.sample import generate
from minidalle.sequence import PAD, tokenize

preset, run_bpe, dvae, run_model = load_run("weights")  # the run of lesson 01; its dVAE will spell our pictures

# %% [markdown]
# ## A world with habits
#
# 3,000 pictures of 24 × 24 pixels, each of one thing. Shape and colour go together, in exact counts:
#
# | | colours |
# |---|---|
# | 750 circles | 90 % red, 10 % yellow |
# | 750 squares | 70 % blue, 30 % red |
# | 600 triangles | 50 % green, 50 % blue |
# | 600 crosses | 80 % yellow, 20 % red |
# | 300 lines | all cyan |
#
# Two in five captions of a thing leave the colour out, "a circle". Two in five name it, "a red circle". One in five
# says only "a thing". A line is "a line across" or "a line to cross". Keep crosses and lines in mind.

# %%
COUNTS = {("circle", "red"): 675, ("circle", "yellow"): 75, ("square", "blue"): 525, ("square", "red"): 225}
COUNTS |= {("triangle", "green"): 300, ("triangle", "blue"): 300, ("cross", "yellow"): 480, ("cross", "red"): 120}
COUNTS |= {("line", "cyan"): 300}


def draw_line(colour, rng):
    """A bar of 20 × 6 pixels at a random height: (3, 24, 24) in [0, 1]."""
    picture, top = torch.ones(3, 24, 24), rng.integers(3, 16)
    picture[:, top : top + 6, 2:22] = torch.tensor(shapes.COLOURS[colour])[:, None, None] / 255
    return picture


def caption_of(i, shape, colour):
    """The caption of the i-th thing of its kind: without its colour twice, with it twice, then "a thing"."""
    name = shape if shape != "line" else ("line across", "line to cross")[i % 2]
    return [f"a {name}", f"a {name}", f"a {colour} {name}", f"a {colour} {name}", "a thing"][i % 5]


# %%
rng = np.random.default_rng(0)
things, captions, images = [], [], []
for (shape, colour), count in COUNTS.items():
    things += [(shape, colour)] * count
    captions += [caption_of(i, shape, colour) for i in range(count)]
    if shape == "line":
        images.append(torch.stack([draw_line(colour, rng) for _ in range(count)]))
    else:
        images.append(shapes.draw([f"a photo of a large {colour} {shape}"] * count, rng) / 255)
codes = torch.cat([dvae.encode(part) for part in images]).flatten(1)  # (3000, 36), codes in 0 … 63
bpe = BPE.train(captions, 299)
print({caption: n for caption, n in Counter(captions).items() if "circle" in caption or "line" in caption})

some = random.Random(0).sample(range(3000), 16)
shown = dvae.decode(codes[some].view(-1, 6, 6))  # as the codes keep them
titles = [textwrap.fill(captions[i], 14) for i in some]
pictures([shown[:8], shown[8:]], titles=[titles[:8], titles[8:]], size=0.95)

# %% [markdown]
# Sixteen pictures under their captions, as the dVAE's 6 × 6 codes keep them. The shapes are clean, the cyan bars are
# frayed: this dVAE was trained on scenes of circles, squares, triangles and crosses, and never saw a bar. That is a
# first thing inherited. What the tokenizer has no words for, no transformer behind it can draw well.
#
# ## Training
#
# The loop of lesson 07, with one addition. In one of ten captions all words are left out, so that the model also
# learns to draw without any. Guidance (lesson 08) needs that, and so shall we.

# %%
from minidalle.config import TransformerConfig
from minidalle.muon import Muon
from minidalle.transformer import DALLE


def train(text, codes, V, K, codebook=None, updates=600):
    """text (N, text_len) in -1 … V - 1, codes (N, G · G) in 0 … K - 1 -> a trained transformer."""
    torch.manual_seed(0)
    grid = {"rows": math.isqrt(codes.shape[1]), "grid": math.isqrt(codes.shape[1]), "text_len": text.shape[1]}
    model = DALLE(TransformerConfig(n_layer=3, n_head=2, n_embd=64, vocab_size=V, codebook_size=K, **grid))
    if codebook is not None:
        model.start_from_codebook(codebook, std=0.1)
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = {Muon(matrices, 0.02): 0.02, torch.optim.AdamW(rest, 0.004, (0.9, 0.99)): 0.004}
    for update in range(updates):
        chosen = torch.randint(len(text), (32,))
        words = torch.where(torch.rand(32, 1) < 0.1, PAD, text[chosen])  # a tenth without a caption
        model.loss(words, codes[chosen], text_weight=0.02).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in optimizers.items():
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * update / updates)) / 2
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


# %%
TEXT_LEN, K = 10, dvae.config.codebook_size
text = tokenize(bpe, captions, TEXT_LEN)
model = train(text, codes, len(bpe), K, dvae.codebook)


def draw(model, caption, n=300, **how):
    """n pictures of a caption, which may be empty, with the seeds 0 … n - 1: (n, 3, 24, 24) in [0, 1]."""
    words = tokenize(bpe, [caption], TEXT_LEN)
    return dvae.decode(generate(model, words, n=n, seeds=range(n), **how))


asked = ["a circle", "a square", "a yellow circle", "a cross", "a line to cross", "a thing"]
pictures([draw(model, caption, n=8) for caption in asked], labels=asked, size=0.7)

# %% [markdown]
# Six rows of eight drawings at temperature 1, with nothing cut off and nothing chosen. Most show what they were
# asked for. Most circles are red, and most squares blue. A few yellow circles come out red all the same. Crosses
# are the hardest shape here; some fall apart. "A thing" may be anything.
#
# ## How sure is a share?
#
# If 270 of 300 circles come out red, is the share .9? It may be .88, and we had luck. Let p be the true share. Then the
# counted share k/n differs from p by about $\sqrt{p(1-p)/n}$, its standard deviation, and in 95 of 100 cases by less
# than 1.96 times that. So we call p *plausible* if
#
# $$\left|\frac kn - p\right| \le 1.96\,\sqrt{\frac{p(1-p)}n}$$
#
# and try all p. From the lowest plausible p to the highest goes the **95 % interval**.


# %%
def plausible(k, n):
    """The lowest and the highest p that k of n leave plausible."""
    p = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    fits = p[(k / n - p).abs() <= 1.96 * (p * (1 - p) / n).sqrt()]
    return fits[0].item(), fits[-1].item()


def told(k, n):
    return f"{k / n:.2f} ({plausible(k, n)[0]:.2f}–{plausible(k, n)[1]:.2f}, n = {n})"


for k in (150, 270, 297, 300):
    low, high = plausible(k, 300)
    margin = 1.96 * (k / 300 * (1 - k / 300) / 300) ** 0.5
    each = interval(np.arange(300) < k, range(300))  # minidalle.evaluate: each drawing is a group of its own
    print(
        f"{k} of 300: plausible {low:.3f}–{high:.3f}   shortcut {k / 300 - margin:.3f}–{k / 300 + margin:.3f}", end=""
    )
    print(f"   evaluate.interval {each['low']:.3f}–{each['high']:.3f}")
    if k < 297:
        assert abs(low - each["low"]) < 0.015 and abs(high - each["high"]) < 0.015

# %% [markdown]
# The shortcut puts k/n in place of p under the root. `evaluate.interval`, the project's own, draws the 300 verdicts again
# and again with replacement. In the middle all three agree. At 300 of 300 both others say "1, for certain", which 300
# drawings cannot show. Ours says: at least .987. We shall need that end.
#
# ## Exercise 1: the interval in one formula
#
# To try a hundred thousand p is clumsy. Square both sides of the condition: that is a quadratic inequality in p, and
# the interval lies between its two roots. With $\hat p = k/n$ and z = 1.96 it is known as Wilson's (1927):
#
# $$\frac{\hat p + \frac{z^2}{2n} \;\pm\; z\sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}$$


# %%
def wilson(k, n, z=1.96):
    """k of n, with 0 <= k <= n and n >= 1 -> (low, high), two floats."""
    raise NotImplementedError  # your code


# %%
from checks.lesson13 import check_wilson

check_wilson(wilson)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compute the two parts of the numerator, middle and half. Then divide *both* by 1 + z²/n.
# </details>
#
# ## Amplified or not
#
# Now ask for "a circle", "a square", "a triangle", 300 times each, and let the oracle read the colours. We draw in
# three ways: from all codes at temperature 1, as the paper does; with `top_p=0.7`, which leaves out the unlikely codes;
# and with guidance 2, which moves each choice further away from what would come without a caption. What the oracle
# finds unclear, or is not one thing, is not counted, so n is a little below 300.

# %%
RARE = {"circle": ("red", "yellow"), "square": ("blue", "red"), "triangle": ("green", "blue")}  # (usual, rarer)
WAYS = {"temperature 1": {}, "top-p 0.7": {"top_p": 0.7}, "guidance 2": {"guidance": 2.0}}
found = {}
for shape, (usual, rarer) in RARE.items():
    same = [colour for (_, colour), caption in zip(things, captions) if caption == f"a {shape}"]
    found[shape] = [(same.count(rarer), len(same))]
    print(f'"a {shape}": {same.count(rarer)} of {len(same)} training pictures with this caption are {rarer}')
    for way, how in WAYS.items():
        colours = Counter(r.colour if r.objects == 1 else "" for r in read(draw(model, f"a {shape}", **how)))
        k, n = colours[rarer], colours[usual] + colours[rarer]
        found[shape].append((k, n))
        named = read(draw(model, f"a {rarer} {shape}", n=100, **how))
        right = sum(r.objects == 1 and (r.colour, r.shape) == (rarer, shape) for r in named)
        print(f'   {way:13} {rarer} in {told(k, n)}   "a {rarer} {shape}" right in {told(right, 100)}')


# %%
def bar(axis, x, k, n, colour, label=None):
    """One bar of k / n with its 95 % interval."""
    low, high = plausible(k, n)
    axis.bar(x, k / n, 0.19, color=colour, label=label, edgecolor="black", linewidth=0.5)
    axis.errorbar(x, k / n, [[k / n - low], [high - k / n]], color="black", capsize=3, linewidth=1)


figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for i, shape in enumerate(RARE):
    (data, of), *drawn = found[shape]
    axis.bar(i - 0.3, data / of, 0.19, color=GREY, label=None if i else "data", edgecolor="black", linewidth=0.5)
    for j, (counts, way, colour) in enumerate(zip(drawn, WAYS, (BLUE, ORANGE, VERMILION))):
        bar(axis, i - 0.1 + 0.2 * j, *counts, colour, None if i else f"drawn, {way}")
axis.set_xticks(range(3), [f'"a {shape}":\nshare of {rarer}' for shape, (_, rarer) in RARE.items()])
axis.set(ylabel="share of the rarer colour")
axis.legend(fontsize=8, frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# Three groups of four bars, each drawn one with its interval: first the data in grey, then the three ways to draw.
#
# **Temperature 1**: the shares are those of the data, within their intervals. The model has learned the habit as it is.
#
# **Top-p**: yellow circles all but vanish, red squares fall to about a quarter of their share, and of triangles, half green
# and half blue in the data, about two in three are blue. That is **amplification**: a share further from even than in
# the data, beyond its interval. The weights had no part in it; it is the same model. Top-p knows no colours. Our
# explanation, not measured here: the first coloured code mostly decides the colour, and the rarer one is unlikely there.
#
# **Guidance**: red squares become rarer. For circles and triangles these numbers show no clear change, and we
# have not looked into why.
#
# Behind the bars stand the counts for captions that *name* the rarer colour. It was not lost: with guidance most
# are right. At temperature 1 fewer are, and the wrong yellow circles are mostly red ones (counted below).
#
# ## A word with two meanings
#
# *Bark* is the skin of a tree, and the sound of a dog. Suppose the web shows nine barks of trees for one of a dog. Here
# we need no dVAE: our pictures have 8 × 8 cells, and the codes *are* their colours.

# %%
PALETTE = torch.tensor([(255, 255, 255), (166, 118, 70), (94, 60, 30), (20, 20, 20), (0, 114, 178)]) / 255  # (5, 3)
GLYPH = ".bdk?"  # white, brown, dark brown, black, blue
DOG = ["........", "dd......", "ddbb....", "dbkbb...", ".bbbbk..", ".bb.....", ".bbbb...", ".bb....."]
TREE = ["..bbb...", ".bbbbb..", "bbbbbbb.", "bbbbbbb.", ".bbbbb..", "...d....", "...d....", "...d...."]


def draw_kind(kind, rng):
    """The codes (8, 8) of a picture; how high or far it stands, and where furrows break, is left to chance."""
    if kind == "tree's bark":  # brown, with dark furrows, each broken at one place
        cells = torch.ones(8, 8, dtype=torch.int64)
        for column in range(rng.randrange(3), 8, 3):
            cells[:, column] = 2
            cells[rng.randrange(8), column] = 1
        return cells
    cells = torch.tensor([[GLYPH.index(cell) for cell in row] for row in (TREE if kind == "tree" else DOG)])
    if kind == "dog's bark":  # blue strokes of sound in front of the mouth
        cells[torch.tensor([4, 5, 6]), torch.tensor([7, 6, 7])] = 4
    return cells.roll(rng.randint(-1, 0), 0) if "dog" in kind else cells.roll(rng.randint(0, 1), 1)


def sense(cells):
    """The rule that reads a picture: nearly all brown is a tree's bark; blue sound before a head, a dog's."""
    brown, black, blue = ((cells == 1) | (cells == 2)).sum(), (cells == 3).sum(), (cells == 4).sum()
    return "tree" if brown >= 60 else "dog" if blue >= 2 and black >= 1 and brown >= 12 else "neither"


# %%
SORTS = [("bark", "tree's bark", 540), ("bark", "dog's bark", 60), ("tree bark", "tree's bark", 150)]
SORTS += [
    ("dog bark", "dog's bark", 150),
    ("a tree", "tree", 150),
    ("a dog", "dog", 150),
    ("a loud dog", "dog's bark", 150),
]
rng, words = random.Random(0), [caption for caption, _, n in SORTS for _ in range(n)]
cells = torch.stack([draw_kind(kind, rng) for _, kind, n in SORTS for _ in range(n)])  # (1350, 8, 8)
bark_bpe = BPE.train(words, 267)
assert {sense(c) for c in cells[:540]} == {"tree"} and {sense(c) for c in cells[540:600]} == {"dog"}
bark = train(tokenize(bark_bpe, words, TEXT_LEN), cells.flatten(1), len(bark_bpe), len(PALETTE), updates=250)

asked = ["bark", "tree bark", "dog bark", "loud bark"]
rows = [cells[[i for i, word in enumerate(words) if word == known][:8]] for known in ("a tree", "a dog")]
for caption in asked:
    said = []
    for way, how in WAYS.items():
        drawn = generate(bark, tokenize(bark_bpe, [caption], TEXT_LEN), n=200, seeds=range(200), **how)  # (200, 8, 8)
        rows += [] if how else [drawn[:8]]
        said.append(f"{way}: {told(sum(sense(d) == 'dog' for d in drawn), 200)}")
    print(f"{caption:9} a dog's, {',  '.join(said)}")
labels = ["a tree (data)", "a dog (data)", *asked]
pictures([PALETTE[row].permute(0, 3, 1, 2) for row in rows], labels=labels, size=0.6)

# %% [markdown]
# Six rows of eight: trees and dogs' heads from the data, then drawings of bark. The bare word brings up stripes, and
# now and then a dog with blue strokes before its mouth: about as often as in the data, one in ten, or a little more.
# With top-p no dog is left among 200, and guidance 2 leaves hardly any.
#
# A second word mends it where it was learned *with* the first: "dog bark" is a dog's in nearly all drawings. "Loud bark"
# was never trained on, though "loud" came with nothing but barking dogs. It does hardly better than the bare word, if at
# all. Our model has learned whole captions more than it has learned what "loud" means. A larger one, on many captions,
# may do better.
#
# ## Take a word out
#
# Suppose crosses are not wanted. The usual first step is a rule over captions: whatever says "cross" is dropped. With
# millions of pictures, nobody looks at them.

# %%
RULES = {
    "has the letters": lambda caption: "cross" in caption,
    "has the word": lambda caption: "cross" in caption.split(),
}
GROUPS = {
    'crosses, caption with "cross"': lambda thing, caption: thing[0] == "cross" and "cross" in caption,
    'crosses, caption "a thing"': lambda thing, caption: thing[0] == "cross" and "cross" not in caption,
    'lines "across"': lambda thing, caption: "across" in caption,
    'lines "to cross"': lambda thing, caption: "to cross" in caption,
    "yellow things": lambda thing, caption: thing[1] == "yellow",
    "all pictures": lambda thing, caption: True,
}
print(f"{'left, if what is dropped …':32}{'before':>8}" + "".join(f"{rule:>18}" for rule in RULES))
for name, belongs in GROUPS.items():
    group = [caption for thing, caption in zip(things, captions) if belongs(thing, caption)]
    print(f"{name:32}{len(group):8}" + "".join(f"{sum(not rule(c) for c in group):18}" for rule in RULES.values()))

# %% [markdown]
# Read it row by row. The captions that say "cross" are gone, as was wanted. But 120 crosses stay, because their caption
# did not say what they are: a word filter removes words, not pictures. The lines go too. "Across" has the letters; a
# better rule, over whole words, spares it, but not the other meaning, "a line to cross". And of 555 yellow things 171
# are left. Nobody had anything against yellow. It only stood mostly beside crosses.
#
# The yellow is like what DALL-E 2's system card tells: a first filter against sexual pictures also made women rarer in
# what the model drew, and was changed.
#
# We train the same model again on what the first rule leaves, and draw *without a caption* from both. So we see what
# each holds for usual.

# %%
kept = [i for i, caption in enumerate(captions) if not RULES["has the letters"](caption)]
filtered = train(text[kept], codes[kept], len(bpe), K, dvae.codebook)


def seen(pictures):
    """(shape, colour) of each picture; what is more than twice as wide as high is a line."""
    drawn = (1 - pictures).amax(dim=1) > 0.25  # (n, 24, 24)
    wide = drawn.any(dim=1).sum(dim=1) > 2 * drawn.any(dim=2).sum(dim=1)  # (n,)
    return [("line" if w else r.shape, r.colour) for w, r in zip(wide, read(pictures))]


WORLDS = {"before": (things, model), "after": ([things[i] for i in kept], filtered)}
TESTS = {"yellow": lambda t: t[1] == "yellow", "a cross": lambda t: t[0] == "cross", "a line": lambda t: t[0] == "line"}
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for j, (when, (data, drawer)) in enumerate(WORLDS.items()):
    drawn = seen(draw(drawer, "", n=500))
    for i, (name, test) in enumerate(TESTS.items()):
        share, k = sum(map(test, data)) / len(data), sum(map(test, drawn))
        labels = (None, None) if i else (f"data, {when}", f"drawn, {when}")
        print(f"{when:6} {name:8} data {share:.3f} of {len(data)}   drawn {told(k, 500)}")
        axis.bar(i - 0.3 + 0.4 * j, share, 0.19, color=GREY, edgecolor="black", hatch=("", "//")[j], label=labels[0])
        bar(axis, i - 0.1 + 0.4 * j, k, 500, (BLUE, ORANGE)[j], labels[1])
axis.set(xticks=range(3), xticklabels=TESTS, ylabel="share without a caption")
axis.legend(fontsize=8, frameon=False)
plt.show()

# %% [markdown]
# Three groups of four bars: data and drawings before the filter, then data (hatched) and drawings after it. Without a
# caption, yellow falls to about half, and lines to less than half, much as in the data. The rule never mentioned either.
#
# Of crosses, fewer are drawn than the data hold, both times. They are hard, and a bad one is read as something else. What
# is rare and hard to draw comes still more rarely. Ask the filtered model by name:

# %%
asked = {"a cross": "a cross", "a red cross": "a cross", "a line across": "a line", "a yellow circle": "yellow"}
pictures([draw(filtered, caption, n=8) for caption in asked], labels=list(asked), size=0.7)
for caption, test in asked.items():
    line = f'"{caption}"'
    for when, (_, drawer) in WORLDS.items():
        drawn = seen(draw(drawer, caption, n=200))
        often = ", ".join(f"{n} × {' '.join(t[::-1])}" for t, n in Counter(drawn).most_common(2))
        line += f"   {when}: {test} in {told(sum(map(TESTS[test], drawn)), 200)} [{often}]"
    print(line)

# %% [markdown]
# Four rows of eight from the filtered model. "A cross" brings up what is frequent, circles and squares: the word is a
# token that no training ever touched. "A red cross" is mostly a red circle: the word that is known counts. And "a line
# across", against which nobody had anything, is lost.
#
# "A yellow circle" goes the other way: the filtered model is right more often than the other. Yellow has less else to be
# there, is our guess. A filter may also help what it was not made for.
#
# ## The project's own filter
#
# For DALL-E (v1), captions that were too short, not English or boilerplate were dropped, and pictures beyond an aspect
# ratio of 1:2 (the paper's appendix C). [`minidalle/data/filter.py`](../minidalle/data/filter.py) does so by rules that
# can be read. Its numbers and phrases are our own choice; a blocklist is optional, and finds whole words only.

# %%
from minidalle.data.filter import CaptionRules, reason

WEB = ["a fox in the snow", "fox", "DSC_0042.jpg", "лиса в снегу", "un renard dans la neige", "click here to enlarge"]
WEB += ["a red cross", "Do NOT cross!", "a line across the page", "a café by the sea", "a cross little dog"]
rules = CaptionRules(blocklist=("cross",))
for caption in WEB:
    print(f"{caption:26} {reason(caption, size=(640, 480), rules=rules) or 'kept'}")
print(dict(Counter(reason(caption, rules=rules) or "kept" for caption in WEB)))
for caption in set(captions):
    assert reason(caption, rules=rules) == ("blocklist" if RULES["has the word"](caption) else None)

# %% [markdown]
# Four things to see. "Across" passes, as it should. A warning and an angry dog are dropped with the cross: a rule knows
# words, not meanings. The French caption passes, because Latin letters stand in for English here. And the Russian one is
# dropped; nothing is wrong with it but its script. A filter moves a data set, whatever it is for. So it has to count
# what it drops, by reason, and the counts belong into the model card.
#
# ## Exercise 2: a filter that counts
#
# Keep or drop each caption, for the *first* of these reasons that holds:
#
# 1. `"not Latin"`: fewer than nine in ten of its letters are Latin. `c.isalpha()` says whether a character is a letter,
#    and `unicodedata.name(c)` begins with "LATIN" if it is a Latin one, with accent or without. No letters at all is
#    not a reason.
# 2. `"too short"`: fewer than two words. A word is what `re.findall(r"\w+", caption)` finds.
# 3. `"blocklist"`: one of its words, whole and in small letters, is on the list.


# %%
def sift(captions, blocklist=()):
    """-> (the captions kept, unchanged and in their order; a dict or Counter: reason -> how many were dropped for it).

    sift(["a cross", "Fox", "a fox"], ["cross"]) == (["a fox"], {"blocklist": 1, "too short": 1})
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson13 import check_sift

check_sift(sift)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A chain of `if … elif … else` gives each caption one fate. The share of Latin letters would be 0 / 0 where there are
# no letters, so compare counts: 10 · latin < 9 · letters.
# </details>
#
# ## What a picture says of its origin
#
# Whoever meets a drawn picture should be able to know that it is one. Our `generate` leaves three things on each: a
# **mark**, five coloured squares in a strip below it; **metadata** in the file, with prompt, seed and model; and among
# these a **hash** of the pixels. A hash is a fingerprint: SHA-256 makes 64 hexadecimal digits of any bytes, and nobody
# knows how to find two inputs with the same. The picture's shape goes in too, because the same bytes in rows of another
# length are another picture.

# %%
import hashlib
import tempfile

from minidalle.studio import provenance

folder, prompt = Path(tempfile.mkdtemp()), "a photo of a red circle above a blue square"
words = tokenize(run_bpe, [prompt], run_model.config.text_len)
sheet = dvae.decode(generate(run_model, words, n=24, seeds=range(24), **vars(preset.sample)))  # (24, 3, 32, 32)
for seed in range(24):
    facts = {"prompt": prompt, "seed": seed, "model": "lessons/weights"}
    provenance.save(folder / f"{seed}.png", sheet[seed], facts, upscale=8)

pixels, words = provenance.read(folder / "0.png")  # (288, 256, 3) uint8, and what the file says
print({name: value if len(str(value)) < 45 else f"{value[:24]}…" for name, value in words.items()})
print(provenance.verify(folder / "0.png")[1].replace(f"{folder}/", ""))
by_hand = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
assert by_hand == provenance.pixels_sha256(pixels) == words["pixels_sha256"]
changed = pixels.copy()
changed[0, 0, 0] ^= 1  # one channel of one pixel, by one of 255
print("one pixel changed by one:", by_hand[:16], "->", provenance.pixels_sha256(changed)[:16])
pictures([torch.tensor(pixels).permute(2, 0, 1)[None]], size=1.6)

# %% [markdown]
# A red circle above a blue square. Below the drawing is a white strip with five squares at its right end: orange, light
# blue, green, vermilion and pink.
#
# ## Exercise 3: a verifier
#
# The metadata hold two hashes: `pixels_sha256` of the picture, and `sha256` of all other words, the pixels' hash among
# them. The functions `pixels_sha256(picture)` and `words_sha256(words)` of `minidalle.studio.provenance` compute them
# anew. Say whether picture *and* words are as they were written. A file without its hashes is not intact; that is no
# error.


# %%
def intact(picture, words):
    """picture (height, width, 3) uint8; words: a dict, as `provenance.read` returns it -> True or False."""
    raise NotImplementedError  # your code


# %%
from checks.lesson13 import check_intact

check_intact(intact)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two comparisons joined by `and`. `words.get("sha256")` is None where there is none. Do not write into `words`.
# </details>
#
# ## What survives
#
# Now let 24 pictures go through what pictures go through. Is the mark still found? What does the real `verify` say?

# %%
from PIL import Image, ImageOps

CHANGES = {
    "as it was written": None,
    "opened and saved again": lambda p: p,
    "JPEG, quality 75": lambda p: p,
    "half the size": lambda p: p.resize((p.width // 2, p.height // 2)),
    "1 % cut off at the right": lambda p: p.crop((0, 0, p.width - p.width // 100, p.height)),
    "a fifth cut off at the left": lambda p: p.crop((p.width // 5, 0, p.width, p.height)),
    "the strip cut off": lambda p: p.crop((0, 0, p.width, p.height - p.width // 8)),
    "on a page, with a margin": lambda p: ImageOps.expand(p, 30, "white"),
}
for name, change in CHANGES.items():
    marks, verdicts = 0, Counter()
    for seed in range(24):
        path = folder / f"{seed}.png"
        if change is not None:
            out = change(Image.open(path).convert("RGB"))
            path = folder / ("out.jpg" if "JPEG" in name else "out.png")
            out.save(path, quality=75)  # a PNG has no quality, and ignores it
        marks += provenance.has_mark(np.asarray(Image.open(path).convert("RGB")))
        verdicts[("intact", "altered", "unknown")[provenance.verify(path)[0]]] += 1
    print(f"{name:28} mark found in {told(marks, 24)}   verify: {dict(verdicts)}")

# %% [markdown]
# All 24 pictures go the same way, as is to be expected of rules; the interval says what 24 can say at most.
#
# The **mark** survives as long as the lower right corner stays where it is: saving, JPEG, half the size, a hair cut off.
# With a fifth cut off at the left it is still there to be seen, but `has_mark` takes the size of the squares from the
# width of the picture, and misses them. The same with a margin. With the strip cut off it is gone: one cut is enough.
#
# The **metadata** survive nothing but copying the file. `verify` then says "unknown", not "altered": there is nothing
# left to compare with.
#
# ## Who says so
#
# "Intact" means: as it was written. By whom? Three files: one with other pixels under the old words, one by a forger who
# runs our own program, and one that is signed.

# %%
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL.PngImagePlugin import PngInfo

info = PngInfo()
info.add_itxt("minidalle", json.dumps(words))
Image.fromarray(changed).save(folder / "tampered.png", pnginfo=info)
provenance.save(folder / "forged.png", sheet[1].flip(1), {"prompt": "a photo from the moon", "seed": 7}, upscale=8)

private = Ed25519PrivateKey.generate()
pem = private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
(folder / "key.pem").write_bytes(pem)
public = private.public_key().public_bytes(form.Encoding.Raw, form.PublicFormat.Raw).hex()
provenance.save(folder / "signed.png", sheet[0], facts | {"seed": 0}, upscale=8, key=folder / "key.pem")

for name, key in (("tampered", None), ("forged", None), ("forged", public), ("signed", public)):
    code, sentence = provenance.verify(folder / f"{name}.png", key)
    sentence = sentence.split(": ")[-1].replace(public, "OUR KEY").replace(f"{folder}/", "")
    print(f"{name:8} {'asked for our key' if key else '':18} {code}: {sentence}")

# %% [markdown]
# The first is caught. The second is not, and cannot be: whoever can run the program can write a picture with true hashes
# and false words. A hash shows that nothing has changed since *somebody* wrote the file. A **signature** shows more. With
# the private key our program signs the hash; with the public key everybody can check that, and nobody without
# the private key can make one.
# Asked for our key, `verify` does not take the forgery for ours.
#
# Still, all of this lives in the file. It can say "this was drawn, by this model". It never says of a bare picture
# that it was *not* drawn.
#
# ## What it never saw
#
# Back to the finished model of lesson 01. It learned scenes of two things, in six colours and four shapes. We ask for
# what no picture ever showed it, 100 times each.

# %%
asked = ["a photo of a dog above a blue square", "a photo of a red star left of a blue square", "a photo of a forest"]
rows = []
for caption in asked:
    tokens = tokenize(run_bpe, [caption], run_model.config.text_len)
    rows.append(dvae.decode(generate(run_model, tokens, n=100, seeds=range(100), **vars(preset.sample))))
    shapes_seen = Counter(thing.shape for reading in read_scenes(rows[-1]) for thing in reading.things)
    print(f"{caption}: of {sum(shapes_seen.values())} things in 100 drawings {dict(shapes_seen.most_common())}")
pictures([row[:8] for row in rows], labels=[textwrap.fill(caption, 22) for caption in asked], size=0.8)

# %% [markdown]
# Three rows of eight. There is a blue square where one was asked for below a dog, and above it something that the
# oracle takes for a cross more often than for anything else. The star became red circles and crosses, and mostly lost
# its square. The forest is one of the usual things, or nothing that the oracle can read.
#
# "Dog" reaches the model as three letters, d, o and g, tokens that no caption of its training held. Their vectors are
# what chance made them, and the model draws what it has. It never says that it does not know. The card has to say it,
# and the program does: `python -m minidalle generate` warns of unknown words.
#
# ## Our model card
#
# A **model card** goes with the weights: what they learned from, what they reach, where they fail, whom they may harm.
# [`minidalle/studio/card.py`](../minidalle/studio/card.py) writes ours from the records of the run. Two of its sections,
# for the weights of these lessons:

# %%
import shutil

from minidalle.studio import card

page = card.write(Path(shutil.copytree("weights", folder / "weights"))).read_text(encoding="utf-8")
sections = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
print("sections:", ", ".join(sections))
for title in ("Limits", "Bias"):
    print(f"\n{title}")
    for line in sections[title].strip().split("\n"):
        print(textwrap.fill(line, 118, subsequent_indent="  "))

# %% [markdown]
# The limits come from records, each with its figure. What is in the pictures too often, and who is harmed by that, stands
# in no record. So the card asks, and the gap stays visible until somebody answers. Where pictures come from a folder, the
# counts of the captions filter stand on the card too.
#
# ## DALL-E 2's evidence, beside ours
#
# From the system card of DALL-E 2, as of 11 April 2022: another model, other data. On the right, what was seen above in
# small. It is a likeness, not a proof that the causes are the same.
#
# | DALL-E 2's card reports | here |
# |---|---|
# | "lawyer" returns disproportionately men who pass as white, "nurse" mostly women; Western settings are the default | a neutral prompt returns the habit of its data |
# | specific wording helps, and puts the burden on those who are not the default | "a yellow circle" |
# | a first filter against sexual content made women rarer in what was drawn, and was changed | yellow went with the crosses |
# | one word for two things may bring up the one not meant ("reference collisions") | bark |
# | what was filtered can be described by what looks like it: red liquid for blood ("visual synonyms") | crosses that were called "a thing" |
# | a signature in the lower right corner, which cropping removes | the strip cut off |
#
# About **DALL-E (v1)** there is no such report. The model card of its release (February 2021) is about the dVAE: data
# partly from Conceptual Captions and a filtered part of YFCC100M, detail lost in the codes. It does not mention bias.

# %% [markdown]
# ## The public replicas
#
# OpenAI released v1's dVAE, not its transformer. What one can run instead are replicas. As of 2026-11-28, by their own pages
# and code. The paper: 12 billion parameters in one decoder, a dVAE with 32 × 32 codes of 8192, 250 million pairs.
#
# | replica | pictures as tokens | transformer | trained on |
# |---|---|---|---|
# | [DALLE-pytorch](https://github.com/lucidrains/DALLE-pytorch), 2021 | its own dVAE, OpenAI's, or a VQGAN | decoder; full, axial or convolution-like attention, any size; code to train with | your data |
# | [DALL·E mini](https://huggingface.co/dalle-mini/dalle-mini), 2021; renamed Craiyon in 2022 | VQGAN, 16 × 16 codes of 16,384 | BART: an *encoder* reads the caption, a decoder draws; 27 times smaller than DALL-E | about 15 million pairs |
# | [CogView](https://github.com/THUDM/CogView), 2021 | VQ-VAE | decoder, 4 billion, with other normalisation against NaN losses ("Sandwich-LN"); Chinese captions | see its paper |
# | [ruDALL-E Malevich](https://huggingface.co/ai-forever/rudalle-Malevich), 2021 | VQGAN with Gumbel relaxation, 32 × 32 codes of 8192 | 1.3 billion, 24 layers, 128 positions of text; Russian captions | 120 million pairs |
# | [minDALL-E](https://github.com/kakaobrain/mindall-e), 2021 | VQGAN, 16 × 16 codes of 16,384 | 1.3 billion | 14 million pairs (CC3M, CC12M) |
#
# None is the paper's model. What is measured on one of them, such as the bias of minDALL-E (Cho et al. 2022), is about
# *its* data.
#
# **Read now:** `save` and `verify` in [`minidalle/studio/provenance.py`](../minidalle/studio/provenance.py), and `reason`
# in [`minidalle/data/filter.py`](../minidalle/data/filter.py).

# %% [markdown]
# ## What to remember
#
# 1. A neutral prompt returns the habit of the data: as it is, when all codes may come; exaggerated, when the unlikely
#    ones are cut off.
# 2. What is named comes, where the words were learned together. Whoever wants the rare thing has to name it.
# 3. A word filter removes words. Other meanings go with them, and what mostly stood beside them; some of the pictures
#    stay.
# 4. A share without its n and its interval is no measurement. At 0 % and at 100 % the shortcut formula fails.
# 5. A mark ends at the scissors, metadata when the file is saved anew, and a signature says only who wrote it.
#
# **References.** Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, appendix C. OpenAI 2021, *Model Card: DALL·E
# dVAE*. OpenAI 2022, *DALL·E 2 Preview: Risks and Limitations* (the system card). Cho, Zala and Bansal 2022, *DALL-Eval*.
# Dodge et al. 2021, *Documenting Large Webtext Corpora* (whom a blocklist removes). Mitchell et al. 2019, *Model Cards
# for Model Reporting*. Zhao et al. 2017, *Men Also Like Shopping* (amplification). Wilson 1927, *Probable Inference, the
# Law of Succession, and Statistical Inference*.
