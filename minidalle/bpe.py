"""Text to tokens: byte-pair encoding (BPE). In: a caption, any str. Out: a list of token ids, and back again.

Why it exists. A transformer reads ids from a fixed vocabulary. One id per letter makes captions long; one id per word
cannot spell a new word. BPE stands between: start from the 256 bytes, which spell everything, and join the most
frequent pair of neighbours into a new token, again and again. DALL-E lower-cases, has 16,384 entries, trains with 10 %
BPE dropout (P 2.2), and merges only runs of a-z: a space, a digit or a comma is a token of its own (A 22). The marks P,
A and O (our decision) are those of SPEC.md, section 3. The rules:

    ids    0 ... 255 are the bytes, merge number r makes id 256 + r; there are no special tokens
    pair   two neighbours in a word, counted as they merge: from the left, without overlap ("aaa" has one) (O)
    next   the pair with the highest count, of equal counts the smallest (id, id) (O), until full or no pair is left

Worked example, `BPE.train(["Lull a gull, lull a seagull."], 260)`; the words are lull x2, a x2, gull x1, seagull x1:

    256   (l, l) and (u, l) occur 4 times each; l = 108 is below u = 117: (l, l)    lu<ll>   gu<ll>   seagu<ll>
    257   (u, <ll>) occurs 4 times                                                  l<ull>   g<ull>   seag<ull>
    258   (g, <ull>) and (l, <ull>) occur 2 times each; g = 103 is below l = 108    l<ull>   <gull>   sea<gull>
    259   (l, <ull>) occurs 2 times                                                 <lull>   <gull>   sea<gull>
    encode("Lull, sea!") -> [259, 44, 32, 115, 101, 97, 33]: the word lull, then the bytes of ", sea!"
"""

import hashlib
import json
import os
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heappop, heappush
from operator import add
from pathlib import Path

LARGEST = 2**24  # bytes of a file, and of all that its tokens spell: merges of merges could double them without end


class BPE:
    """A trained tokenizer, made by `BPE.train` or `BPE.load`; `len(bpe)` is its vocabulary size."""

    def __init__(self, merges: Iterable[tuple[int, int]]):
        """merges: pairs of ids in the order learned. Raises ValueError if one cannot be merged, or not again."""
        self._rank = {}  # pair -> number of its merge, in order
        self._bytes = [bytes([i]) for i in range(256)]  # id -> what it spells
        self._cache = {}  # piece of text -> its ids without dropout
        total = 0
        for pair in map(tuple, merges):
            known = [type(i) is int and (97 <= i <= 122 or 256 <= i < len(self)) for i in pair]
            if known != [True, True] or pair in self._rank:
                raise ValueError(f"merge {len(self) - 256} is {pair!r:.60}, no new pair of letters or earlier merges")
            total += len(self._bytes[pair[0]]) + len(self._bytes[pair[1]])
            if total > LARGEST:
                raise ValueError(f"its first {len(self) - 256} merges already spell {LARGEST:,} bytes")
            self._rank[pair] = len(self._rank)
            self._bytes.append(self._bytes[pair[0]] + self._bytes[pair[1]])

    def __len__(self) -> int:
        return len(self._bytes)

    @property
    def merges(self) -> list[tuple[int, int]]:
        """The merges in order, as a copy: number r joins two ids into id 256 + r."""
        return list(self._rank)

    @property
    def hash(self) -> str:
        """Identity of the tokenizer: SHA-256, in hex, of its merges as JSON without spaces."""
        return hashlib.sha256(json.dumps(self.merges, separators=(",", ":")).encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPE":
        """Learn vocab_size - 256 merges from many texts, whose order does not matter (Sennrich et al. 2016; SPEC 3).

        Warns if it runs out of pairs. ValueError: vocab_size below 256, no text at all; TypeError: no iterable of str.
        """
        if type(vocab_size) is not int or not 256 <= vocab_size <= 0x110000:
            raise ValueError(f"vocab_size is {vocab_size!r}, but must be an int from 256 (the bytes) to 1114112")
        bpe = cls(_learn(_count_words(texts), vocab_size - 256))
        if len(bpe) < vocab_size:
            warnings.warn(
                f"BPE learned {len(bpe) - 256} of the {vocab_size - 256} merges wanted, as no pair is left: "
                f"train on more text, or ask for a vocab_size of {len(bpe)} (in a run, --data.vocab_size)",
                stacklevel=2,
            )
        return bpe

    def encode(self, text: str, dropout: float = 0.0, rng: random.Random | None = None) -> list[int]:
        """Text to ids in 0 ... len(self) - 1; a lone surrogate, which UTF-8 cannot spell, becomes "?".

        dropout in [0, 1] is the probability that a possible merge is passed over, drawn from rng (P 2.2). Raises
        ValueError for another dropout, or one above 0 without rng, and TypeError for a text that is no str.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes one str, but got {type(text).__name__}: call it once per caption")
        if not 0 <= dropout <= 1 or (dropout and rng is None):
            raise ValueError(f"dropout is {dropout!r}, but must be in [0, 1], and above 0 needs rng=random.Random(0)")
        ids, cache = [], {} if dropout else self._cache
        for piece in re.findall("[a-z]+|[^a-z]+", text.lower()):
            ids += cache.get(piece) or self._merge(piece, dropout, rng)
        return ids

    def _merge(self, piece: str, dropout: float, rng: random.Random | None) -> list[int]:
        """Ids of a run of letters, merged, or of a run of other characters, whose bytes are in no merge.

        Each step merges one place: the earliest learned of the possible merges, of equal ones the leftmost. Dropout
        passes over each possible merge anew in each step (Provilkov et al. 2020, Algorithm 1).
        """
        ids = list(piece.encode("utf-8", errors="replace"))
        while possible := [
            (self._rank[pair], i)
            for i, pair in enumerate(zip(ids, ids[1:]))
            if pair in self._rank and (not dropout or rng.random() >= dropout)
        ]:
            rank, i = min(possible)
            ids[i : i + 2] = [256 + rank]
        if not dropout and len(piece) <= 64 and len(self._cache) < 65_536:  # so that the cache stays bounded
            self._cache[piece] = ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text, broken UTF-8 as U+FFFD; decode(encode(t)) == t.lower(). Raises ValueError for what is no id."""
        ids = list(ids)
        if wrong := [i for i in ids if type(i) is not int or not 0 <= i < len(self)]:
            raise ValueError(f"id {wrong[0]!r} is no int from 0 to {len(self) - 1}: drop pads, .tolist() a tensor")
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", errors="replace")

    def _as_json(self) -> dict:
        return {
            "format": "minidalle-bpe",
            "version": 1,
            "vocab_size": len(self),
            "merges": [[a, b, token.decode()] for (a, b), token in zip(self._rank, self._bytes[256:])],
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write JSON, one [id, id, "text"] per line; whatever happens, path is the old file or the whole new one."""
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(self._as_json()).replace("[[", "[\n[").replace("], [", "],\n[") + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # still there only if something failed

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BPE":
        """Read a file that `save` wrote. Raises ValueError with the file's name and the first thing wrong with it."""
        try:
            with open(path, "rb") as file:
                text = file.read(LARGEST + 1)
            if len(text) > LARGEST:
                raise ValueError(f"it is larger than {LARGEST >> 20} MB")
            data = json.loads(text.decode("utf-8"))
            if not isinstance(data, dict) or (data.get("format"), data.get("version")) != ("minidalle-bpe", 1):
                raise ValueError('expected "format": "minidalle-bpe" and "version": 1')
            bpe = cls(row[:2] if isinstance(row, list) else [row] for row in data.get("merges", ()))
            if data != bpe._as_json():
                raise ValueError("its vocab_size, merges and their texts contradict each other")
            return bpe
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} was not written by BPE.save ({error}): restore it or train anew") from None


# Training. A word is a str with one character per token, chr(id): letters already are their own ids, and str.replace
# is just what a merge is, from the left and without overlap. Two such characters, a pair, sort as (id, id) does.
def _count_words(texts: Iterable[str]) -> Counter:
    words, characters = Counter(), 0
    for text in texts:
        if isinstance(texts, str) or not isinstance(text, str):
            raise TypeError(f"texts must be a list of str, but came as {type(texts).__name__} holding {text!r:.40}")
        words.update(re.findall("[a-z]+", text.lower()))
        characters += len(text)
    if not characters:
        raise ValueError("texts hold no text to learn from: check where the captions come from")
    return words


def _pairs(word: str) -> list[str]:
    """The pairs of a word, from the left and without overlap: "xaaay" -> ["xa", "aa", "ay"]."""
    pairs, previous = [], None
    for pair in map(add, word, word[1:]):
        previous = pair if pair != previous else None  # equal only in a run such as "aaa", whose middle a is taken
        if previous:
            pairs.append(pair)
    return pairs


def _learn(counted: Counter, wanted: int) -> list[tuple[int, int]]:
    """At most `wanted` merges of the words counted: each merge looks only at words that may hold its pair."""
    words, weights, merges = list(counted), list(counted.values()), []
    count, where = Counter(), defaultdict(list)  # pair -> its occurrences; pair -> the words that may hold it
    for i, word in enumerate(words):
        for pair in _pairs(word):
            count[pair] += weights[i]
            where[pair].append(i)
    heap = sorted((-n, pair) for pair, n in count.items())
    while heap and len(merges) < wanted:
        n, pair = heappop(heap)
        if count[pair] != -n:
            continue  # stale: the count has changed since, and a newer entry holds it
        merges.append((ord(pair[0]), ord(pair[1])))
        for changed, by in _replace(pair, chr(255 + len(merges)), words, weights, where).items():
            count[changed] += by
            if by and count[changed]:
                heappush(heap, (-count[changed], changed))
    return merges


def _replace(pair: str, token: str, words: list[str], weights: list[int], where: dict) -> dict[str, int]:
    """Replace pair by token in the words that hold it, and return by how much this changes the count of each pair."""
    changes = defaultdict(int)
    for i in where.pop(pair):
        for old in _pairs(words[i]):
            changes[old] -= weights[i]
        words[i] = words[i].replace(pair, token)  # no change if an earlier merge took the pair apart here
        for new in _pairs(words[i]):
            changes[new] += weights[i]
            if token in new:
                where[new].append(i)
    return changes
