# %% [markdown]
# # 01 · Images as language
#
# **How does next-token prediction become text-to-image?**
#
# A language model does one thing: it is given the beginning of a text, and says which token comes next. DALL-E is
# that, and nothing else. This lesson shows the whole idea on pictures so small that the model is a table of counts.
#
# *Before:* nothing. You know Python and have seen a PyTorch tensor.
# *Next:* lesson 02 makes the words of a caption into tokens.

# %% [markdown]
# ## The whole story in one cell
#
# Below, a caption goes in and pictures come out. The model is this project's own. It learned for thirteen minutes on two CPU
# cores, in a tiny synthetic world of red circles and blue squares (its figures and its seed are in `weights/results.json`).
# Four random seeds for each caption; nothing is chosen.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import random
import textwrap
from collections import Counter, defaultdict

import torch
import torch.nn.functional as F
from drawing import pictures, strip

from minidalle.checkpoint import load_run
from minidalle.sample import generate
from minidalle.sequence import tokenize

# %%
preset, bpe, dvae, model = load_run("weights")
captions = [
    "a photo of a red circle above a blue square",
    "a sketch of a green triangle left of a purple square",
    "a photo of a cyan square on top and the same as a sketch below",
]
rows = []
for caption in captions:
    text = tokenize(bpe, [caption], model.config.text_len)
    codes = generate(model, text, n=4, seeds=range(4), **vars(preset.sample))
    rows.append(dvae.decode(codes))
pictures(rows, labels=[textwrap.fill(caption, 32) for caption in captions])

# %% [markdown]
# Three rows of four small pictures. In each row all four show what the caption says, and most differ: the objects stand
# a little higher or lower, or more to one side. Two of the last row happen to be the same picture; drawing twice may do
# that.
#
# That is the first thing to know about a language model for pictures. It does not look a picture up, and it
# does not compute *the* picture. It **samples** one. So two runs differ as a rule, unless they start from the same
# seed. And nothing promises that a sample is right. It is right as often as the model is good.
#
# All drawings of this model are sampled with the unlikely codes cut off, and with the caption counted for more than it
# would be by itself (lesson 08; our own choice, not the paper's).

# %% [markdown]
# ## A picture as a sentence
#
# Where is the text in a picture? Look at what `generate` returned before `decode` made pixels of it.

# %%
print(codes[0])

# %% [markdown]
# Eight rows of eight whole numbers from 0 to 63. Each is the *code* of a patch of 4 × 4 pixels, a word of a language with 64
# words. Lessons 03 and 04 build the machine that spells pictures so, the **dVAE**. The paper's has 8192 words and
# spells a picture of 256 × 256 pixels in 32 × 32 of them.
#
# Read the codes row by row, put the caption before them, and there is one sequence: first words, then codes.
# *Text to picture* is now *text to text*: continue this sequence. Everything that is known about language models applies.

# %% [markdown]
# ## A world of 2 × 2 pictures
#
# Let us build that by hand. Our pictures have four cells, each white, orange or blue. Our captions have two words:
#
# - `top`, `left`, `all` or `one`: which cells are coloured,
# - `orange` or `blue`: how.
#
# `one` means a single cell, any of the four. So `top blue` has one right picture, and `one blue` has four.

# %%
WORDS = ["top", "left", "all", "one", "orange", "blue"]  # tokens 0 … 5
SEP = 6  # "the picture starts here"
CODES = [7, 8, 9]  # white, orange, blue
SHOWN = [*WORDS, "[SEP]", "white", "orange", "blue"]
CELLS = {"top": [[0, 1]], "left": [[0, 2]], "all": [[0, 1, 2, 3]], "one": [[0], [1], [2], [3]]}


def draw(place, colour, rng):
    """One right picture of the caption, as four tokens in reading order."""
    cells = rng.choice(CELLS[place])
    return [CODES[WORDS.index(colour) - 3] if cell in cells else CODES[0] for cell in range(4)]


def stream(place, colour, rng):
    """Caption, [SEP], picture: 7 tokens."""
    return [WORDS.index(place), WORDS.index(colour), SEP, *draw(place, colour, rng)]


# %%
COLOURS = ["#CCCCCC"] * 6 + ["#999999", "#FFFFFF", "#E69F00", "#0072B2"]
example = stream("top", "orange", random.Random(0))
print(example)
strip(example, COLOURS, [SHOWN[token] for token in example])

# %% [markdown]
# The stream as a strip of seven cells: two grey words, the darker separator, then the picture's cells: orange, orange,
# white, white. The separator tells the model that the caption is over. The paper's stream has 256 cells of text and
# 1024 of picture; where our separator stands in it is our own choice (lesson 05).

# %% [markdown]
# ## A model that counts
#
# The model shall say: after *these* tokens, how likely is each next token? The simplest answer that works is to
# count. In a pile of streams, take every beginning, and note what came next.
#
# We keep one caption out of the pile, `left blue`. We will ask for it at the end.

# %%
rng = random.Random(0)
everything = [(place, colour) for place in CELLS for colour in ("orange", "blue")]
known = [caption for caption in everything if caption != ("left", "blue")]
pile = [stream(*rng.choice(known), rng) for _ in range(2000)]

counts = defaultdict(Counter)  # beginning -> how often each token came next
for s in pile:
    for t in range(len(s)):
        counts[tuple(s[:t])][s[t]] += 1

for beginning in [(), (3,), (3, 5), (3, 5, SEP), (3, 5, SEP, 7)]:
    print([SHOWN[token] for token in beginning], "->", {SHOWN[k]: n for k, n in counts[beginning].items()})

# %% [markdown]
# Read the last two lines. After `one blue [SEP]`, the first cell is white in about three of four cases. After
# `one blue [SEP] white`, the second cell is white in about two of three. The table has learned that one
# cell is coloured, and that it does not matter which. Nobody told it.

# %% [markdown]
# ## Why predicting the next token is enough
#
# A stream has a probability, and the **chain rule** takes it apart into next-token predictions. Write $x_1 \dots x_T$ for its
# tokens:
#
# $$p(x_1 \dots x_T) = p(x_1)\; p(x_2 \mid x_1)\; p(x_3 \mid x_1 x_2) \cdots p(x_T \mid x_1 \dots x_{T-1})$$
#
# It is exact, and it holds in any order of the tokens. So a model that predicts every next token well knows
# the whole distribution of captions and pictures. To *draw* from it, draw one token after another.


# %%
def sample(counts, beginning, length, rng):
    """Continue `beginning` to `length` tokens, each drawn in proportion to its count."""
    tokens = list(beginning)
    while len(tokens) < length:
        options = counts[tuple(tokens)]
        if not options:
            raise LookupError(f"never seen: {[SHOWN[token] for token in tokens]}")
        tokens += rng.choices(list(options), weights=options.values())
    return tokens


PIXELS = torch.tensor([[1.0, 1.0, 1.0], [0.9, 0.62, 0.0], [0.0, 0.45, 0.7]])  # white, orange, blue


def to_pixels(s):
    """The picture in a stream: (3, 2, 2)."""
    return PIXELS[torch.tensor(s[3:]) - CODES[0]].T.view(3, 2, 2)


# %%
rows = []
for caption in ["top orange", "one orange", "one blue"]:
    beginning = [WORDS.index(word) for word in caption.split()] + [SEP]
    drawn = [sample(counts, beginning, 7, random.Random(seed)) for seed in range(8)]
    rows.append(torch.stack([to_pixels(s) for s in drawn]))
pictures(rows, labels=["top orange", "one orange", "one blue"], size=0.7)

# %% [markdown]
# Three rows of eight pictures with four cells each. `top orange` is the same picture eight times: all the probability lies on
# one continuation. `one orange` and `one blue` differ from seed to seed, and each has exactly one coloured cell.
#
# We gave the model a caption and it drew. We trained it on nothing but "what comes next".

# %% [markdown]
# ## Finish a picture
#
# The beginning need not end with the caption. Give `one blue [SEP]` and the first *two* cells, both white: the
# rest of the picture follows. This is how DALL-E finishes a half-drawn picture, and it needs no new code.

# %%
beginning = [3, 5, SEP, 7, 7]
print(Counter(tuple(SHOWN[t] for t in sample(counts, beginning, 7, random.Random(i))[5:]) for i in range(1000)))

# %% [markdown]
# The blue cell is in the lower half; it can no longer be above. It is at the right more often: the table has seen only
# 134 such beginnings, and their accidental imbalance is part of the model.

# %% [markdown]
# ## How good is a model? The loss
#
# Take a stream that the model has not seen, and ask at each place how probable it thought the token that really came. The
# mean of $-\ln p$ over all places is the **cross-entropy**, in nats per token. 0 would be certainty in every
# place; a model that has no idea among $V$ tokens pays $\ln V$.

# %%
fresh = [stream(*rng.choice(known), rng) for _ in range(500)]
per_place = torch.zeros(7)
for s in fresh:
    for t in range(7):
        options = counts[tuple(s[:t])]
        per_place[t] -= torch.tensor(options[s[t]] / options.total()).log() / len(fresh)
print("nats per token, place by place:", [round(x, 2) for x in per_place.tolist()])
print("mean:", round(per_place.mean().item(), 3), "  no idea: ln 10 =", round(torch.tensor(10.0).log().item(), 3))

# %% [markdown]
# The separator costs nothing, because it always comes third. The words and the first cells cost most. The last
# cell costs nothing at all: once three cells are known, the fourth follows.
#
# A neural network is trained by making this number small. For that it needs the right answer for every place, and
# gets it from the stream itself.

# %% [markdown]
# ## Exercise 1: shift
#
# In a stream of $T$ tokens each token but the last is something to predict *from*, and each but the first something to
# predict. So the inputs are the stream without its last token, and the targets are the stream without its first.
# At every place the target is the *next* token. If you forget the shift, the model learns to copy, with a loss of 0.


# %%
def shift(streams):
    """streams (B, T) int64 -> inputs (B, T - 1), targets (B, T - 1)."""
    raise NotImplementedError  # your code


# %%
from checks.lesson01 import check_shift

check_shift(shift)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two slices along the second dimension: `streams[:, :-1]` leaves out something, `streams[:, 1:]` something else. Which is which?
# </details>

# %% [markdown]
# ## Exercise 2: the price of a stream
#
# Compute $-\ln p$ of one whole stream under a table of counts: by the chain rule the *sum* over its tokens of
# $-\ln(\text{count of this token after this beginning} / \text{count of all tokens after it})$. A token that never came
# there has probability 0, and then the price is infinite.


# %%
def stream_nll(counts, tokens):
    """counts: beginning (a tuple) -> Counter of next tokens. tokens: a list. -> a float, nats; float("inf") if impossible."""
    raise NotImplementedError  # your code


# %%
from checks.lesson01 import check_stream_nll

check_stream_nll(stream_nll)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Loop over t. `options = counts.get(tuple(tokens[:t]), {})` is what came after the beginning of length t. Return infinity
# as soon as `tokens[t]` is not in it.
# </details>

# %% [markdown]
# ## Where counting ends
#
# Now ask for the caption that we left out.

# %%
try:
    sample(counts, [1, 5, SEP], 7, random.Random(0))
except LookupError as error:
    print(error)

# %% [markdown]
# The table has seen `left orange`, and `top blue`. From these you and I know what `left blue` must be. The table
# does not: to it, two beginnings are the same or they have nothing in common.
#
# Nor would a larger table do. Our stream has 7 tokens. The paper's has 1280, and there are $8192^{1024}$ pictures alone.
# Hardly any beginning of a picture is ever met twice. What is needed is a function that treats *like* beginnings alike,
# learned from examples. That function is the **transformer** of lessons 06 and 07. The rest stays as it is here.

# %% [markdown]
# ## The real thing
#
# Here is our trained transformer at the very same task. `model(text, image)` returns two tables of logits: 324 numbers
# for each place of the text that is predicted, one for each token of the vocabulary, and 64 for each cell of the
# picture. We need the second: the softmax of a row says how likely each code is in that cell. (Lesson 07 explains why
# 30 of the 32 places of the text are predicted.)
#
# The text goes in with −1 where there is no word, and its last column, always −1, is [SEP]. Lesson 05 explains why.

# %%
text = tokenize(bpe, [captions[2]], model.config.text_len)  # (1, 32), the caption that `codes` was drawn for
image = codes[:1].flatten(1)  # (1, 64)
with torch.no_grad():
    text_logits, image_logits = model(text, image)
print(tuple(text_logits.shape), tuple(image_logits.shape))

# %% [markdown]
# `image_logits[:, c]` predicts cell c, and was computed from everything before it: the shift is built in. So the loss of
# the picture by hand is the mean of $-\ln p$ as above. It must be what `model.loss` returns.

# %%
ln_p = F.log_softmax(image_logits[0], dim=1)  # (64, K)
by_hand = -ln_p[torch.arange(64), image[0]].mean()
with torch.no_grad():
    real = model.loss(text, image).image
print(f"by hand {by_hand:.6f}   model.loss {real:.6f}   no idea: ln 64 = {torch.tensor(64.0).log():.3f}")
assert torch.isclose(by_hand, real, atol=1e-5)

# %% [markdown]
# And it has what the table lacks. The next caption has a colour and a shape that no picture in its training had
# together: no stage ever saw a green cross.

# %%
text = tokenize(bpe, ["a photo of a green cross above a red square"], model.config.text_len)
drawn = generate(model, text, n=8, seeds=range(8), **vars(preset.sample))
pictures([dvae.decode(drawn)])

# %% [markdown]
# Eight small pictures: green things above red squares. Most of the green things are crosses; look for those that
# are not.
#
# Of drawings of held-out combinations 86 % are right (`pairs` in `weights/results.json`), of training captions 95 %
# (`seen`). Two more combinations are held out to make choices on, and of these only 69 % are right (`tuning`). All this
# is tiny and synthetic, seed 0.
#
# **Read now:** [`train_tiny.py`](../train_tiny.py), the whole project on one page, and `generate` in
# [`minidalle/sample.py`](../minidalle/sample.py). You will recognise the loop.

# %% [markdown]
# ## What to remember
#
# 1. A picture is spelled in codes. Behind its caption, it is one stream of tokens.
# 2. By the chain rule, predicting each next token well is all there is to learn.
# 3. The model samples. Two runs differ as a rule, and nothing promises that a sample is right.
# 4. Finishing a picture is the same as drawing one, with a longer beginning.
# 5. A table of counts cannot draw what it has not seen. A network that treats like beginnings alike can.
#
# **References.** Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, section 2. Shannon 1951, *Prediction and Entropy of
# Printed English*, for the idea of pricing a text by guessing its next letter.
