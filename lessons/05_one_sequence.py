# %% [markdown]
# # 05 · One sequence
#
# **What are the 1,280 positions?**
#
# A caption is a line of words. A picture is a grid of codes. The transformer reads neither: it reads one sequence of
# vectors. This lesson lays caption and picture into one stream, and gives every position of it a vector.
#
# *Before:* lesson 02 made tokens of a caption, lessons 03 and 04 made codes of a picture. *Next:* lesson 06 says
# which position may look at which.

# %% [markdown]
# ## Two lists of whole numbers
#
# We take the trained models of this project, one caption of their world, and a picture of it.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from drawing import pictures

from minidalle.checkpoint import load_run
from minidalle.data import scenes

preset, bpe, dvae, model = load_run("weights")
V, K, C, G = model.config.vocab_size, model.config.codebook_size, model.config.n_embd, model.config.grid
caption = "a photo of a red circle above a blue square"
tokens = bpe.encode(caption)  # a list of ids in 0 … V - 1
picture = scenes.draw([caption], np.random.default_rng(0)) / 255  # (1, 3, 32, 32) in [0, 1]
codes = dvae.encode(picture)  # (1, G, G), codes in 0 … K - 1
text_len = model.config.text_len
print(f"V = {V}, K = {K}, C = {C}, G = {G}, text_len = {text_len}")
print(len(tokens), "tokens:", tokens)
print(codes[0].numel(), "codes, the first row of the grid:", codes[0, 0].tolist())

# %% [markdown]
# Both are whole numbers, called *ids*, but they are words of two languages. V counts the tokens of the text, K the
# codes of the picture. (G is the side of the grid of codes; C will be the width of a vector.) Token 5 and code 5 have
# nothing to do with each other, so each language will have a table of its own.
#
# And one thing is uneven. A picture always has G · G codes. A caption has as many tokens as it needs.

# %% [markdown]
# ## Why the text gets a fixed length
#
# Suppose the codes began right behind the last word. Then cell (0, 0) of the picture, its top left, would stand at
# position 19 behind this caption, and at position 29 behind another. All that depends on *where* a cell is would move
# with it.
#
# So the text part has a fixed length, `text_len`: 256 positions in the paper, 32 in this run. Then cell (r, c), row r
# and column c, always stands at position
#
# $$\text{text\_len} + G \cdot r + c.$$
#
# Cell (3, 2) is at 32 + 8 · 3 + 2 = 58 here, and at 256 + 32 · 3 + 2 = 354 in the paper. The last cell there, (31,
# 31), is at 1279. So these are the 1,280 positions: 256 for the text, then 32 · 32 = 1,024 for the picture, row by
# row.

# %% [markdown]
# ## What stands in the empty places?
#
# Our caption leaves 13 of the 32 text positions without a token. The last of them gets a name of its own below; the
# other twelve are called **pads**. A tempting idea is to fill them with the id 0. Watch what becomes of a caption
# that contains token 0.

# %%
caption_with_0 = [72, 0, 101]
filled = caption_with_0 + [0] * 5
print("filled with 0:", filled)
print("and back:     ", [token for token in filled if token != 0])

# %% [markdown]
# The caption came back shorter. Id 0 is a real token: here it is the byte 0, in other vocabularies a letter or a
# mark. To say "0 means nothing" takes a word away from the language, and no error ever tells you.
#
# An extra id, V, would be safer. But then model and tokenizer disagree about how many tokens there are, and every
# empty place looks the same. So we do something else. **A pad is a position without a token, never an id.** In a
# tensor of whole numbers we write −1 there. It is a mark and is never looked up in a table.

# %% [markdown]
# ## And where does the picture begin?
#
# One more mark stands between text and picture: here the picture starts. It is the separator of lesson 01, **[SEP]**.
# It always stands at the last text position: 255 at the paper's size, 31 here. So a caption has room for `text_len - 1`
# tokens.
#
# | position, full size | here | holds |
# |---|---|---|
# | 0 … n − 1 | 0 … n − 1 | the n tokens of the caption |
# | n … 254 | n … 30 | pads |
# | 255 | 31 | [SEP] |
# | 256 … 1279 | 32 … 95 | codes, in reading order |
#
# The paper has 256 positions of text and 1,024 of picture. To give [SEP] the last of the 256, and to write it as −1
# like a pad, is our own choice, not the paper's. So is the rule that pads and [SEP] are read but never predicted
# (lesson 07).

# %% [markdown]
# ## Exercise 1: pack
#
# Lay captions into the text part of the stream. Each is a list of ids. The result has one row for each, −1 where
# there is no token, and −1 always in the last column. What does not fit is cut off at the end.


# %%
def pack(token_lists, text_len):
    """B lists of ids -> (B, text_len) int64. pack([[7, 0], [5, 6, 7, 8]], 4) is [[7, 0, -1, -1], [5, 6, 7, -1]]."""
    raise NotImplementedError  # your code


# %%
from checks.lesson05 import check_pack

check_pack(pack)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start with `torch.full((len(token_lists), text_len), -1)`: whole numbers, because −1 is one. Then write each caption
# into the start of its row, but at most `text_len - 1` tokens of it. Cut a copy: the caller still needs the list.
# </details>

# %% [markdown]
# ## The real pack
#
# `pack_text` does this, and `unpack_text` undoes it. A round trip must give back every caption, token 0 included. One
# that is too long is cut with a warning, so that nobody loses words without knowing (our own choice; the paper does
# not say).

# %%
import warnings

from minidalle.sequence import pack_text, tokenize, unpack_text

lists = [tokens, caption_with_0, []]
text = pack_text(lists, text_len)  # (3, 32)
print(text[1].tolist())
assert unpack_text(text) == lists
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    pack_text([list(range(8))], 6)
print(told[0].message)

# %% [markdown]
# Now draw the whole stream. In rows of G positions it needs four rows for the text and eight for the picture.
# `tokenize` is `bpe.encode` and `pack_text` in one.

# %%
from matplotlib.patheffects import withStroke

text = tokenize(bpe, [caption], text_len)  # (1, 32)
words = [bpe.decode([token]).replace(" ", "␣") for token in tokens]
labels = words + ["pad"] * (text_len - 1 - len(words)) + ["[SEP]"] + codes.flatten().tolist()
shades = torch.full((text_len // G, G, 3), 0.87)  # pads grey,
shades.view(-1, 3)[: len(words)] = torch.tensor([0.66, 0.85, 0.96])  # words blue,
shades[-1, -1] = torch.tensor([0.94, 0.71, 0.2])  # [SEP] orange,
cells = shades.permute(2, 0, 1).repeat_interleave(4, 1).repeat_interleave(4, 2)
cells = torch.cat([cells, dvae.decode(codes)[0]], dim=1)  # and under the codes the picture that they spell: (3, 48, 32)

figure, axis = plt.subplots(figsize=(4.2, 5.6), layout="constrained")
axis.imshow(cells.permute(1, 2, 0), extent=(-0.5, G - 0.5, len(labels) // G - 0.5, -0.5))
for p, label in enumerate(labels):
    halo = [withStroke(linewidth=2, foreground="white")] if p >= text_len else []
    axis.text(p % G, p // G, label, ha="center", va="center", fontsize=7, path_effects=halo)
axis.axhline(text_len / G - 0.5, color="black")
axis.set(xticks=range(G), yticks=range(len(labels) // G), yticklabels=range(0, len(labels), G))
axis.set(xlabel="plus this", ylabel="position of the first in the row")
plt.show()

# %% [markdown]
# The stream, folded into rows of eight. Above the line stand the words and the spaces of the caption (␣), then grey
# pads, then [SEP] at position 31. Below it is the picture, and on it the code of each patch. Because `text_len` is a
# multiple of G, a row of the picture is a row here. At full size it is the same with 8 + 32 rows of 32.

# %% [markdown]
# ## A number becomes a vector
#
# A network cannot compute with "token 283". It needs a vector, of C numbers. So it keeps a **table** with one row for
# each token, (V, C), and looks up row 283. That is all an *embedding* is. The rows are learned like any other weight.
#
# Is that enough? Take two captions with the same words in another order.

# %%
table = model.embed.text_token.weight.detach()  # (V, C)
place = model.embed.text_position.weight.detach()  # (text_len, C)
one = table[torch.tensor(tokens)]  # (19, C)
other = table[torch.tensor(bpe.encode("a photo of a blue square above a red circle"))]  # (19, C)


def as_set(vectors):
    return {tuple(vector.tolist()) for vector in vectors}


print("the same set of vectors:", as_set(one) == as_set(other))
one, other = one + place[:19], other + place[:19]
print("and with places added:  ", as_set(one) == as_set(other))
print("vectors in common then: ", len(as_set(one) & as_set(other)), "of 19")

# %% [markdown]
# To a network that looks at a *set* of vectors, the two captions are one. Attention, in lesson 06, takes weighted
# means over such a set, and a mean knows no order. (That a position sees only earlier ones tells it a little, but
# that is no address.)
#
# So each position gets a vector of its own, from a second table, (text_len, C), and it is *added* to the token's.
# "Circle at position 10" and "circle at position 18" are now two things. With places, the captions share only the
# words that did not move.

# %% [markdown]
# ## What a pad looks like
#
# A pad has no token, so it has no row in the token's table. One could hide pads from all others. The paper does not:
# it learns a **padding embedding for each position**, text_len in all, and puts it where a token's vector would be
# (section 2.2). The place is added as everywhere.
#
# [SEP] is in our code the padding embedding of the last position, which no token ever takes (our own choice).

# %% [markdown]
# ## What a code looks like
#
# A cell has a code and a place. 1,024 places could have 1,024 vectors. The paper has 32 + 32 instead: one for each
# **row** and one for each **column**, both added to the code's (appendix B.1).
#
# That is cheaper, but this is not the point. Two cells of one column now share a vector, whatever their rows. "What
# is straight above me?" is easy to ask. With 1,024 unrelated vectors, each pair of neighbours would have to be
# learned by itself.

# %% [markdown]
# ## One position at a time
#
# Now all is said. Here is the vector of one position of the stream, as plainly as it can be written. `e` holds the
# six tables.


# %%
def vector(e, text, codes, p):
    """text (text_len,), codes (G * G,) -> (C,), what the transformer reads at position p."""
    if p >= len(text):  # the picture
        cell = p - len(text)
        r, c = cell // G, cell % G
        return e.image_token.weight[codes[cell]] + e.image_row.weight[r] + e.image_column.weight[c]
    if text[p] == -1:  # a pad, or [SEP]
        return e.text_pad.weight[p] + e.text_position.weight[p]
    return e.text_token.weight[text[p]] + e.text_position.weight[p]


T = text_len + G * G
by_hand = torch.stack([vector(model.embed, text[0], codes.flatten(), p) for p in range(T)])  # (T, C)
print(tuple(by_hand.shape))

# %% [markdown]
# ## Exercise 2: embed the text
#
# The same for a batch, without a loop over positions. Beware of −1: PyTorch takes `table[-1]` for the last row and
# does not complain.


# %%
def embed_text(text, token_table, pad_table, position_table):
    """text (B, text_len) int64, -1 = no token; token_table (V, C), the other two (text_len, C) -> (B, text_len, C)."""
    raise NotImplementedError  # your code


# %%
from checks.lesson05 import check_embed_text

check_embed_text(embed_text)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Make `is_pad = (text == -1)` first, with a last dimension of 1. Look up `text.clamp(min=0)`, which is wrong only
# where it does not matter. Then `torch.where(is_pad, ..., ...)` picks the pad's row or the token's. Both broadcast to
# (B, text_len, C).
# </details>

# %% [markdown]
# ## Exercise 3: embed the picture
#
# The codes of the first n cells in reading order, n not always the whole picture: while it is drawn, only its start
# is known. The grid need not be square either: emoji in this project have more rows than columns.


# %%
def embed_image(codes, token_table, row_table, column_table):
    """codes (B, n) int64; token_table (K, C), row_table (rows, C), column_table (G, C) -> (B, n, C)."""
    raise NotImplementedError  # your code


# %%
from checks.lesson05 import check_embed_image

check_embed_image(embed_image)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `cell = torch.arange(n)`. A row has G cells, G being the length of `column_table`. Whole division by G counts full
# rows, the remainder says how far into the row the cell is.
# </details>

# %% [markdown]
# ## The real thing
#
# `StreamEmbedding` holds the six tables and does both exercises. All 96 positions must be what we computed one by
# one.

# %%
embed = model.embed
real = torch.cat([embed.text(text), embed.image(codes.flatten(1))], dim=1)[0]  # (T, C)
print("largest difference:", (real - by_hand).abs().max().item())
assert torch.allclose(real, by_hand, atol=1e-6)
for name, weight in embed.named_parameters():
    print(f"{name:22} {tuple(weight.shape)}")

# %% [markdown]
# ## The paper's figure 10, asked of the live model
#
# Which tables add up where? We need not take anybody's word for it. If a vector was made with row k of a table, then
# it changes when that row does: its gradient there is not zero. So we ask, for each position and each table, which
# row has a gradient.


# %%
def rows_read(table):
    """Which row of `table` (n, C) each position was made with: 0 is its first, 1 its last, NaN none."""
    read = torch.full((T,), float("nan"))
    for p in range(T):
        gradient = torch.autograd.grad(real[p].sum(), table, retain_graph=True, allow_unused=True)[0]
        if gradient is not None and gradient.any():
            read[p] = gradient.any(dim=1).nonzero().item() / (len(table) - 1)  # .item(): never two rows of a table
    return read


tables = dict(embed.named_parameters())
read = torch.stack([rows_read(table) for table in tables.values()])  # (6, T)
figure, axis = plt.subplots(figsize=(9, 2.5), layout="constrained")
shown = axis.imshow(read, cmap="cividis", aspect="auto", interpolation="nearest")
axis.axvline(text_len - 0.5, color="black")
axis.hlines(torch.arange(5) + 0.5, -0.5, T - 0.5, color="white", linewidth=2)
axis.set_yticks(range(6), [name.removesuffix(".weight").replace("_", " ") for name in tables])
axis.set(xticks=[0, 19, 31, *range(40, T, 8)], xlabel="position in the stream")
figure.colorbar(shown, ticks=[0, 1], label="row of the table").ax.set_yticklabels(["first", "last"])
plt.show()
print("tables that add up at a position:", sorted(set((~read.isnan()).sum(dim=0).tolist())))

# %% [markdown]
# Six strips, one for each table, over the 96 positions; white means that the table is not used there. The first 19
# positions read a token and a text position. Positions 19 to 31 read a pad and a text position, and each its own pad:
# the colour moves on. From 32 on a position reads three tables: the code, a row that steps up every eight positions,
# and a column that runs from first to last eight times.

# %% [markdown]
# ## What the tables have learned
#
# Nobody told the tables that column 3 lies between 2 and 4: at the start all rows are random numbers. Compare them
# now, by the cosine between any two: 1 is the same direction, 0 is unrelated, below 0 is opposed.

# %%
rows, columns = (F.normalize(w.detach(), dim=1) for w in (embed.image_row.weight, embed.image_column.weight))
places = (embed.image_row.weight[:, None] + embed.image_column.weight).detach()  # (rows, G, C)
likeness = [rows @ rows.T, columns @ columns.T, F.cosine_similarity(places, places[3, 2], dim=2)]
titles = ["row with row", "column with column", "cell (3, 2) with all"]
names = [("row", "row"), ("column", "column"), ("column", "row")]

figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.7), layout="constrained")
for axis, values, title, (across, down) in zip(axes, likeness, titles, names):
    shown = axis.imshow(values, cmap="PuOr", vmin=-1, vmax=1)
    axis.set(title=title, xlabel=across, ylabel=down, xticks=range(G), yticks=range(G))
figure.colorbar(shown, ax=axes, label="cosine")
plt.show()
for name, table in (("rows", likeness[0]), ("columns", likeness[1])):
    off = table - 2 * torch.eye(len(table))  # so that none is its own nearest
    nearest = off.max(dim=1)
    print(f"nearest to {name:7} 0 … 7: {nearest.indices.tolist()}, cosines {nearest.values.numpy().round(2)}")

# %% [markdown]
# Three tables of cosines, purple where alike, orange where opposed. On the diagonal of the first two stands 1. Right
# beside it neighbours are alike too. The printed lines say more. For columns the nearest is always a neighbour, though
# for the last by a hair (0.01). For rows only in five of eight: rows 2 and 6 are more alike than either and its
# neighbours, and row 5 is nearest to row 1.
#
# The third shows the place of cell (3, 2) against all places. The cell itself stands out. Its whole column is alike,
# above 0.7, its row hardly: the column vectors are more than twice as long as the row vectors here, and weigh more in
# the sum.
#
# So the columns show a layout, learned from nothing but "which code comes next". The rows show only part of one.

# %% [markdown]
# ## What goes wrong without
#
# Finally, break one table at a time: give all its rows their mean, so that they say nothing about which is which.
# Then draw with the same seeds, and measure the loss of the picture on 64 captions that the model was not trained on.

# %%
import copy
import random

from minidalle.sample import generate

tested = random.Random(0).sample(scenes.captions("captions"), 64)
test_codes = dvae.encode(scenes.draw(tested, np.random.default_rng(0)) / 255).flatten(1)  # (64, 64)
test_text = tokenize(bpe, tested, text_len)  # (64, 32)
rows = []
for name in (None, "text_pad", "text_position", "image_row", "image_column"):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        if name:
            weight = getattr(broken.embed, name).weight
            weight[:] = weight.mean(dim=0)
        loss = broken.loss(test_text, test_codes).image
    print(f"{name or 'as trained':14} {loss:.2f} nats per code")
    drawn = generate(broken, text, n=6, seeds=range(6), **vars(preset.sample))
    rows.append(dvae.decode(drawn))
pictures(rows, labels=["as trained", "pads alike", "text positions alike", "rows alike", "columns alike"], size=0.9)

# %% [markdown]
# Five rows of six drawings of our caption. As trained: a red circle above a blue square. Pads alike, and [SEP] is one
# of these rows too: much the same, and the loss is hardly higher. In this small world the model does not need its pads
# to differ. Text positions alike: some squares come out round, for which shape goes with which colour is said by the
# order of the words. Rows alike: things run on downwards, as the model no longer knows how far down it is. Columns
# alike: everything is smeared sideways.
#
# The model was trained with all tables. So this shows what it has come to rely on, not what another model could do
# without.
#
# **Read now:** [`minidalle/sequence.py`](../minidalle/sequence.py), all of it: `pack_text`, `unpack_text` and
# `StreamEmbedding`. It is one page.

# %% [markdown]
# ## What to remember
#
# 1. The stream is 256 text positions, then 1,024 picture positions; cell (r, c) is always at 256 + 32 r + c.
# 2. A pad is a position without a token, never an id: 0 is a real token.
# 3. Each text position has a padding embedding of its own; the last one is [SEP], "the picture starts here".
# 4. A vector of the stream is a sum: token or pad + position in the text; code + row + column in the picture.
# 5. Text and picture have separate tables and vocabularies: token 5 and code 5 have nothing in common.
#
# **References.** Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, section 2.2 (pads), appendix B.1 and
# figure 10 (rows and columns). Vaswani et al. 2017, *Attention Is All You Need*, section 3.5, for embeddings of
# positions.
