# %% [markdown]
# # 02 · BPE
#
# **Where do 16,384 words come from?**
#
# A transformer reads numbers from a fixed list. So a caption must be written in numbers, and so must a caption with a
# word that nobody has used before. This lesson makes such a list by nothing but counting. The method is called
# *byte-pair encoding*, **BPE**.
#
# *Before:* in lesson 01 caption and picture became one stream of tokens. Its six words we numbered by hand.
# *Next:* lesson 03 begins with the tokens of the picture: it learns to choose one of K codes.

# %% [markdown]
# ## Two bad lists
#
# We need captions by people. The package `emoji` has a name for every emoji, and this project learns to draw them from
# these names (`minidalle/data/openmoji.py`). A tenth of the names we set aside: they are the captions still to come.

# %%
import sys

sys.path[:0] = [".."]  # the repository, seen from lessons/

import re
import zlib
from collections import Counter

import emoji
import matplotlib.pyplot as plt
from drawing import BLUE, GREY, ORANGE, strip

from minidalle.data.openmoji import kept_name

complete = {s: entry for s, entry in emoji.EMOJI_DATA.items() if entry["status"] == emoji.STATUS["fully_qualified"]}
names = sorted({kept_name(s, entry) for s, entry in complete.items()} - {None})
ahead = [name for name in names if zlib.crc32(name.encode()) % 10 == 0]  # still to come
corpus = [name for name in names if name not in ahead]  # to learn from

list_of_words = set(" ".join(corpus).split())
unknown = [name for name in ahead if not list_of_words.issuperset(name.split())]
print(f"{len(corpus)} names, such as {', '.join(corpus[300:1200:300])}")
print(f"in letters: {sum(map(len, corpus)) / len(corpus):.1f} tokens per name")
print(f"in words:   {sum(len(name.split()) for name in corpus) / len(corpus):.1f}, from a list of {len(list_of_words)}")
print(f"new names with a word not on the list: {len(unknown)} of {len(ahead)}, such as {', '.join(unknown[:60:20])}")

# %% [markdown]
# **Letters** can spell everything, but names become long. A long stream is expensive, and what belongs together stands
# far apart.
#
# **Words** make names short. But the list grows with the corpus: some 1300 words for some 1400 names. And still more
# than half of the new names hold a word that is not on it. For that word there is no number at all.
#
# BPE stands between. It starts with letters, and joins the most frequent pair of neighbours into a new token, again and
# again. Frequent words end as one token and rare words as a few pieces. A new word is spelled in pieces, and in single
# letters if need be.

# %% [markdown]
# ## Start from bytes
#
# Which letters, of which script? UTF-8 settles it. It writes every character as one to four **bytes**, numbers from 0
# to 255.

# %%
for text in ["fox", "piñata", "狐", "🦊"]:
    print(text, list(text.encode("utf-8")))

# %% [markdown]
# The letters a–z are one byte each, 97 to 122. `ñ` takes two, the Chinese character three, the emoji four. So 256 ids
# spell every text there is, and no text can be unknown. They are the first 256 of our list.
#
# All of them are in use, 0 as well. So no id is free to mean "no word here". Programs that take id 0 for padding
# confuse it with a real token. Here a pad is not an id at all: lesson 05.

# %% [markdown]
# ## Which pair?
#
# Now the merging. We keep a word as a Python string with one character per token. At first these are its letters. A
# merge replaces two neighbours by one new character: `chr(256)`, then `chr(257)`, and so on. Whatever it looks like
# when printed, it stands for token 256. `str.replace` does the work.
#
# We take the few names with "fire" in them, note each word with how often it occurs, and count the pairs.


# %%
def words_of(texts):
    """Runs of the letters a-z, and how often each occurs."""
    return Counter(re.findall("[a-z]+", " ".join(texts).lower()))


def count_pairs(words):
    """Two neighbours, as a string of two characters -> how often they could be merged."""
    counts = Counter()
    for word, n in words.items():
        for pair in {a + b for a, b in zip(word, word[1:])}:
            counts[pair] += n * word.count(pair)
    return counts


fire = [name for name in names if "fire" in name]
print(words_of(fire))
print(sorted(count_pairs(words_of(fire)).items(), key=lambda item: (-item[1], item[0]))[:5])

# %% [markdown]
# `fi` is the most frequent: it stands twice in each *firefighter*. It becomes token 256.
#
# Two cases need a rule. The paper states none, so these are our own choice, not the paper's.
#
# - A pair counts as often as it would be *merged*, from the left and without overlap. `aaa` holds `aa` once. This is
#   how `str.count` counts.
# - Of equally frequent pairs, the one with the smallest ids goes first. Without a rule, the order would come from
#   whatever Python looked at first. Two runs could then number their tokens differently, and a model trained with one
#   list would misread the other.


# %%
def learn(texts, n_merges):
    """The merges, in order, and for each its count and how many pairs had that count."""
    words, merges, notes = words_of(texts), [], []
    while len(merges) < n_merges:
        counts = count_pairs(words)
        if not counts:
            break  # every word is one token
        pair = min(counts, key=lambda p: (-counts[p], p))  # the highest count, then the smallest ids
        notes.append((counts[pair], list(counts.values()).count(counts[pair])))
        new = chr(256 + len(merges))
        words = {word.replace(pair, new): n for word, n in words.items()}
        merges.append(pair)
    return merges, notes


def spell(token, merges):
    """The letters that a token, one character, stands for."""
    return token if ord(token) < 256 else "".join(spell(part, merges) for part in merges[ord(token) - 256])


# %%
merges, notes = learn(fire, 14)
for number, (pair, (count, tied)) in enumerate(zip(merges, notes), start=256):
    a, b = (spell(token, merges) for token in pair)
    print(f"{number}: {a} + {b} = {a + b}".ljust(36), f"{count:2} ×", f"(tied with {tied - 1})" * (tied > 1))

# %% [markdown]
# This is all of BPE. Behind each merge stands how often its pair occurred. Look for three things.
#
# - A merge may take what an earlier one made: 258 is `fi` + `re`, two tokens that are themselves merges.
# - Nobody said what a syllable is. Still `fire`, `er`, `an` and `man` come out, because they recur.
# - The counts fall quickly, and soon many pairs tie. Then the rule for ties decides what the vocabulary is.

# %% [markdown]
# ## Exercise 1: merge
#
# `str.replace` did the merge for us. Write it yourself, for a word that is a list of ids. Go from the left; what is
# merged is used up. The list that you are given must stay as it is.


# %%
def merge(ids, pair, new):
    """ids: list of int, pair: two ids, new: the id of the merged pair -> a new list.

    merge([5, 6, 7, 5, 6], (5, 6), 300) -> [300, 7, 300]     merge([5, 5, 5], (5, 5), 300) -> [300, 5]
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson02 import check_merge

check_merge(merge)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A `for` loop cannot skip a place, but a `while` loop over `i` can: add `new` and go on by two, or add `ids[i]` and go
# on by one. `(ids[i], ids[i + 1]) == pair` must not look past the end; a slice `ids[i : i + 2]` never does.
# </details>

# %% [markdown]
# ## Encoding: the same merges, in the same order
#
# A new word goes through what the corpus went through: every merge, in the order in which it was learned. Whatever is
# not a run of a–z stays bytes.


# %%
def encode(text, merges):
    ids = []
    for piece in re.findall("[a-z]+|[^a-z]+", text.lower()):
        if piece.isascii() and piece.isalpha():
            for number, pair in enumerate(merges, start=256):
                piece = piece.replace(pair, chr(number))
            ids += [ord(token) for token in piece]
        else:
            ids += piece.encode("utf-8")
    return ids


for text in ["fire", "firefighter", "Rapid fire!"]:
    print(text.ljust(12), [spell(chr(i), merges) for i in encode(text, merges)])

# %% [markdown]
# *Rapid* was not in the corpus, and it is spelled in letters.
#
# Why not simply take the longest known piece from the left? Because the corpus was not cut that way. The transformer
# learned from words as the merges cut them. The same word cut otherwise is, to it, a spelling it has not seen. We shall
# meet such a word below.

# %% [markdown]
# ## Exercise 2: encode by rank
#
# Our `encode` goes through all merges for each word: up to 16,128 with 16,384 tokens. A word has only a few pairs. So
# ask the other way around. Of all the pairs that the word has *now*, merge the one with the lowest **rank**, the number
# of its merge. Repeat until none of its pairs is a merge.
#
# The merge with rank r makes token 256 + r.


# %%
def encode_by_rank(ids, rank):
    """ids: list of bytes of one word; rank: dict, pair of ids -> number of its merge, from 0 -> list of ids.

    encode_by_rank([102, 105, 114], {(105, 114): 0, (102, 105): 1}) -> [102, 256]
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson02 import check_encode_by_rank

check_encode_by_rank(encode_by_rank)

# %% [markdown]
# <details><summary>Hint</summary>
#
# In a `while` loop, list `(rank[pair], i)` for every place i whose `pair = (ids[i], ids[i + 1])` is in `rank`. `min` of
# that list is the merge to make, and of equal ranks the leftmost. An empty list ends the loop.
# </details>

# %% [markdown]
# ## The real thing
#
# `BPE.train` gives a tokenizer with `encode` and `decode`. It should learn the same merges as our loop, and give the
# same ids to every name, new ones included.

# %%
import time

from minidalle.bpe import BPE

started = time.perf_counter()
merges, notes = learn(corpus, 1024 - 256)
halfway = time.perf_counter()
bpe = BPE.train(corpus, vocab_size=1024)
ended = time.perf_counter()

assert bpe.merges == [(ord(a), ord(b)) for a, b in merges]
assert all(bpe.encode(name) == encode(name, merges) for name in names)
assert all(bpe.decode(bpe.encode(name)) == name for name in names)
print(f"{len(bpe)} tokens, the same merges; {len(names)} names, the same ids, and back to the same names")
print(f"by hand {halfway - started:.2f} s, BPE.train {ended - halfway:.2f} s")
print(f"merges that were tied with others: {sum(tied > 1 for _, tied in notes) / len(notes):.0%}")
pieces = {bpe.decode([i]) for i in range(len(bpe))}
print("angel is", [bpe.decode([i]) for i in bpe.encode("angel")], "although 'ange' is a token:", "ange" in pieces)

# %% [markdown]
# The same, and many times faster. Our loop counts all words anew for each merge. But a merge changes only the few words
# that hold its pair. The real one remembers, for each pair, which words these are, and corrects the counts.
#
# Most merges were tied with others, so it is the rule for ties that decides most of this vocabulary.
#
# *angel* is the word promised above. Its longest known piece is `ange`. But `el` and `ang` were merged earlier, and
# took its letters apart.

# %% [markdown]
# ## A word is a tree
#
# A token is made of two, each of which may be made of two. Here are two words: one from the corpus, and one that it
# does not have.


# %%
def tree(axis, token, left):
    """Draw what `token` was merged from, beginning at x = left; returns where its own box stands."""
    text = bpe.decode([token])
    x, y = left, 0
    if token >= 256:
        a, b = bpe.merges[token - 256]
        parts = [tree(axis, a, left), tree(axis, b, left + len(bpe.decode([a])))]
        x, y = sum(x for x, _ in parts) / 2, 1 + max(y for _, y in parts)
        for part in parts:
            axis.plot([x, part[0]], [y, part[1]], color=GREY, zorder=0)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": BLUE}
    axis.text(x, y, text if y == 0 else f"{text}\n{token}", ha="center", va="center", fontsize=8, bbox=box)
    return x, y


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", sharey=True)
for axis, word in zip(axes, ["firefighter", "snowboarder"]):
    left = 0
    for token in bpe.encode(word):
        tree(axis, token, left)
        left += len(bpe.decode([token]))
    known = "in" if word in list_of_words else "not in"
    axis.set(xlim=(-0.7, len(word) - 0.3), ylim=(-0.5, 4.5), yticks=range(5), xticks=[])
    axis.set(title=f"{word}: {known} the corpus", xlabel="letters of the word")
axes[0].set_ylabel("merges above the letters")
plt.show()

# %% [markdown]
# Two trees over letters. The letters stand at the bottom, each merge above the two that it joins, with the number of
# its token. The boxes with nothing above them are the tokens of the word. *firefighter* is `fire`, `fight`, `er`.
# *snowboarder* is `snow`, `board`, `er`, although the corpus lacks it: its pieces are known from other words.

# %% [markdown]
# ## How large a list?
#
# One number is ours to choose: how many merges. Train once with as many as there are. The first n of them are just what
# a smaller training would have found, so one run gives all sizes.

# %%
import warnings

with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    full = BPE.train(corpus, vocab_size=16_384)
print(warned[0].message)


def mean_length(bpe, texts):
    return sum(len(bpe.encode(text)) for text in texts) / len(texts)


sizes = [n for n in (256, 272, 288, 320, 384, 512, 768, 1024, 1536, 2048) if n < len(full)] + [len(full)]
smaller = [BPE(full.merges[: n - 256]) for n in sizes]
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(sizes, [mean_length(b, corpus) for b in smaller], "o-", color=BLUE, label="names learned from")
axis.plot(sizes, [mean_length(b, ahead) for b in smaller], "s--", color=ORANGE, label="new names")
words = sum(2 * len(name.split()) - 1 for name in corpus) / len(corpus)
axis.axhline(words, color=GREY, label="each word and each space one token")
marks = [256, 512, 1024, 2048]
axis.set(xscale="log", xticks=marks, xticklabels=marks, ylim=(0, None))
axis.set(xlabel="size of the vocabulary", ylabel="mean tokens per name")
axis.minorticks_off()
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# Two falling lines over the size of the vocabulary. With 256 entries, the bytes, a name is more than twelve tokens
# long. The first hundred merges save the most, on learned and new names alike. Then the lines part. That of the learned
# names ends where each word is one token. That of the new names stays above: late merges are whole rare words, of use
# to no other.
#
# So a vocabulary is large enough when more of it saves little. And each entry must still occur often enough to be
# learned. DALL-E stops at 16,384, for the captions of 250 million pictures. In our numbering these are 256 bytes and
# 16,128 merges. Our corpus cannot fill that. `BPE.train` stops when no pair is left and says so. The model's table of
# words has `len(bpe)` rows, not the number asked for.

# %% [markdown]
# ## What may merge
#
# Only runs of a–z merge. A space, a digit, a comma is a token of its own, whatever its count. And the text is
# lower-cased first. Both are DALL-E's: the second is in the paper (section 2.2), the first in the release's issue
# tracker (no. 22). Here are two texts in the 1024 tokens that we learned from the emoji names.

# %%
for text in ["Fox, fox and FOX", "10 piñatas"]:
    print(f"{text:17}", [bpe.decode([i]) for i in bpe.encode(text)])

# %% [markdown]
# - *Why lower case.* `Fox`, `fox` and `FOX` are the same tokens here. Otherwise each would be learned apart, from its
#   own examples. The price: `decode` gives back lower case.
# - *What it does to other scripts.* The `ñ` is no letter a–z, so it stays two bytes, and splits its word. A caption in
#   another script is all bytes.
#
# And the spaces? Here is a caption with the vocabulary of the model of lesson 01, trained on the captions of drawn
# scenes.

# %%
scenes = BPE.load("weights/bpe.json")
caption = "a photo of a red circle above a blue square"
shown = [scenes.decode([i]).replace(" ", "␣") for i in scenes.encode(caption)]
print(f"{caption!r} is {len(shown)} tokens, of a vocabulary of {len(scenes)}")
strip([token == "␣" for token in shown], ["#FFFFFF", "#DDDDDD"], shown)

# %% [markdown]
# A strip of 19 cells: ten words, one token each, and between them nine grey cells, the spaces.
#
# If spaces and commas merged, `fox`, `fox,` and `fox` after a space would be three tokens, each to be learned by
# itself. The price for keeping them apart: the spaces take nearly half of this stream.

# %% [markdown]
# ## Exercise 3: decode
#
# Back to text, for any list of ids. Replace each merged id by its two parts, until only bytes are left. Then read the
# bytes as UTF-8. A model may also write bytes that are no UTF-8, say the first two of the emoji's four: these must
# become the replacement character � and not an error.


# %%
def decode(ids, merges):
    """ids: list of int; merges: list of pairs of ids, where number r made id 256 + r -> str.

    decode([256, 33], [(104, 105)]) -> "hi!"     decode(list("狐".encode()), []) -> "狐"     decode([240], []) -> "�"
    """
    raise NotImplementedError  # your code


# %%
from checks.lesson02 import check_decode

check_decode(decode)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A stack: take an id from its front; a byte goes to the output, a merged id puts its two parts back on the front.
# `bytes(list)` makes bytes of numbers, and `.decode("utf-8", errors="replace")` reads them. Do it once, at the end: one
# character's bytes may lie in several ids.
# </details>

# %% [markdown]
# ## Many spellings of one word
#
# A frequent word is always one token. In the full vocabulary *firefighter* is one, and so the model never sees that it
# begins as *fireworks* does. The cure is **BPE dropout**. While training, each possible merge is passed over with a
# probability of 10 %, anew each time a caption is read. So the same word is spelled now whole and now in pieces.

# %%
import random

for dropout in (0.1, 0.5):
    for seed in range(3):
        ids = full.encode("firefighter", dropout=dropout, rng=random.Random(seed))
        assert full.decode(ids) == "firefighter"
        print(dropout, [full.decode([i]) for i in ids])

rng = random.Random(0)
for dropout in (0.0, 0.1, 0.5, 1.0):
    lengths = [len(full.encode(name, dropout, rng)) for name in corpus]
    print(f"dropout {dropout:.0%}: {sum(lengths) / len(lengths):.1f} tokens per name, {max(lengths)} at most")

# %% [markdown]
# Every spelling decodes to the same word. What changes is the length: at 100 % nothing merges, and only bytes are left.
#
# Dropout is for training alone. A caption that we want drawn is encoded without it. And the longer spellings need room
# in the stream.
#
# The model of lesson 01 was trained without dropout, because its captions are few words put together by one rule. That
# is our own choice, not the paper's.
#
# **Read now:** `_merge` and `_learn` in [`minidalle/bpe.py`](../minidalle/bpe.py). The worked example in its docstring
# can be followed with a pencil.

# %% [markdown]
# ## What to remember
#
# 1. The first 256 tokens are the bytes. They spell every text, so nothing is unknown; and no id is free to be a pad.
# 2. Every other token is a merge: the most frequent pair of neighbours, again and again. Ties need a rule.
# 3. To encode is to replay the merges, the earliest learned first. Another cut of the same word is another text.
# 4. Only a–z merges, in lower case: one word is one spelling, wherever it stands. Every space costs a token.
# 5. Dropout shows a word in many spellings while training, so that its pieces are learned too.
#
# **References.** Sennrich, Haddow and Birch 2016, *Neural Machine Translation of Rare Words with Subword Units*.
# Provilkov, Emelianenko and Voita 2020, *BPE-Dropout*. Gage 1994, *A New Algorithm for Data Compression*, where the
# pairs come from. Ramesh et al. 2021, *Zero-Shot Text-to-Image Generation*, section 2.2.
