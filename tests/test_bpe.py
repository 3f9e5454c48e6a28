"""minidalle/bpe.py against a brute force that follows the written rules and nothing else."""

import collections
import inspect
import itertools
import json
import os
import random
import re
import textwrap
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.bpe import BPE

EXAMPLE = ["Lull a gull, lull a seagull."]
PEN = BPE.train(["an open pen, a penny, ten hens; open ten pens"], 266)
STDLIB = [
    line
    for module in (collections, json, random, re, textwrap)
    for thing in (module, *vars(module).values())
    for line in (inspect.getdoc(thing) or "").splitlines()
]


# The oracle. Rules: count a pair as often as one pass from the left, without overlap, would merge it; merge the pair
# with the highest count, of equal counts the smallest (id, id); apply the merges in the order learned.


def merge_once(word, pair, new):
    """(word with pair merged in one pass from the left, how often)."""
    out, i, n = [], 0, 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            out, i, n = out + [new], i + 2, n + 1
        else:
            out, i = out + [word[i]], i + 1
    return out, n


def brute_train(texts, n_merges):
    words = collections.Counter(re.findall("[a-z]+", " ".join(texts).lower()))
    words = [(list(word.encode()), n) for word, n in words.items()]
    merges = []
    while len(merges) < n_merges:
        counts = collections.Counter()
        for word, n in words:
            for pair in set(zip(word, word[1:])):
                counts[pair] += n * merge_once(word, pair, 0)[1]
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [(merge_once(word, best, 256 + len(merges))[0], n) for word, n in words]
        merges.append(best)
    return merges


def brute_encode(merges, text):
    ids = []
    for letter_run, other in re.findall("([a-z]+)|([^a-z])", text.lower()):
        word = list((letter_run or other).encode())
        for rank, pair in enumerate(merges if letter_run else []):
            word = merge_once(word, pair, 256 + rank)[0]
        ids += word
    return ids


def train_quietly(texts, vocab_size):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BPE.train(texts, vocab_size)


# Training


def test_worked_example():
    bpe = BPE.train(EXAMPLE, 260)
    assert bpe.merges == [(108, 108), (117, 256), (103, 257), (108, 257)]
    assert bpe.encode("Lull, sea!") == [259, 44, 32, 115, 101, 97, 33]
    assert [bpe.decode([i]) for i in range(256, 260)] == ["ll", "ull", "gull", "lull"]
    assert len(bpe) == 260


@pytest.mark.parametrize(
    "texts",
    [
        ["ab ba cd dc ef fe"],  # every pair ties
        ["zy yx xw zy yx xw", "ab"],  # ties that a first-come rule would break the other way
        ["a aa aaa aaaa aaaaa aaaaaa aaaaaaaaaaa"],  # runs
        ["aaab baaa aabaa abab babab aaabaaab", "bbbb"],
        ["banana bandana ananas", "Nana, BANANA!"],
        ["abcabcabc bcabca cabcab xabcx", "abc ab bc ca"],  # merges that take other pairs apart
    ],
)
def test_training_equals_brute_force_where_many_pairs_tie(texts):
    assert train_quietly(texts, 300).merges == brute_train(texts, 44)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.lists(st.text("abAB c", max_size=12), max_size=8).filter(any), st.integers(0, 30))
def test_training_and_encoding_equal_brute_force_on_random_words(texts, n_merges):
    bpe = train_quietly(texts, 256 + n_merges)
    assert bpe.merges == brute_train(texts, n_merges)
    for text in [*texts, "aaaaaaa", "abcabcbac", "ca b"]:
        assert bpe.encode(text) == brute_encode(bpe.merges, text)


def test_training_and_encoding_equal_brute_force_on_real_text():
    assert len(set(re.findall("[a-z]+", " ".join(STDLIB).lower()))) > 300
    bpe = BPE.train(STDLIB, 376)
    assert bpe.merges == brute_train(STDLIB, 120)
    for line in STDLIB[:60]:
        assert bpe.encode(line) == brute_encode(bpe.merges, line)


def test_order_of_texts_and_kind_of_iterable_do_not_matter():
    shuffled = random.Random(0).sample(STDLIB, len(STDLIB))
    assert BPE.train(iter(shuffled), 400).merges == BPE.train(tuple(STDLIB), 400).merges


def test_small_corpus_stops_early_and_says_so():
    with pytest.warns(UserWarning, match="learned 7 of the 744 merges.* vocab_size of 263"):
        bpe = BPE.train(EXAMPLE, 1000)
    assert len(bpe) == 263 and bpe.merges[:4] == BPE.train(EXAMPLE, 260).merges
    with pytest.warns(UserWarning, match="learned 0 of the 4 merges"):
        assert BPE.train(["1 狐"], 260).encode("狐") == list("狐".encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(BPE.train(EXAMPLE, 263)) == 263 and len(BPE.train(EXAMPLE, 256)) == 256


@pytest.mark.parametrize(
    "texts, vocab_size, error, says",
    [
        (EXAMPLE, 255, ValueError, "vocab_size is 255"),
        (EXAMPLE, 300.0, ValueError, "300.0"),
        (EXAMPLE, True, ValueError, "True"),
        (EXAMPLE, 2_000_000, ValueError, "1114112"),
        ([], 300, ValueError, "no text"),
        (["", ""], 300, ValueError, "no text"),
        ("a single str", 300, TypeError, "came as str"),
        ([b"bytes"], 300, TypeError, "b'bytes'"),
        (["text", None], 300, TypeError, "None"),
        (b"bytes", 300, TypeError, "came as bytes"),
    ],
)
def test_training_refuses(texts, vocab_size, error, says):
    with pytest.raises(error, match=says) as caught:
        BPE.train(texts, vocab_size)
    assert "\n" not in str(caught.value)


def test_merges_and_hash():
    bpe = BPE.train(EXAMPLE, 260)
    bpe.merges.clear()
    assert len(bpe.merges) == 4  # a copy: the tokenizer itself cannot be changed through it
    with pytest.raises(AttributeError):
        bpe.merges = []
    assert BPE(bpe.merges).hash == bpe.hash and BPE(bpe.merges[:3]).hash != bpe.hash
    # printf '[[108,108],[117,256],[103,257],[108,257]]' | sha256sum
    assert bpe.hash == "13dfbfabbcc7316fa799ccc46c6090dc5c0866253a392003efaaf6f55ba35b12"


@pytest.mark.parametrize(
    "merges",
    [
        [(97, 98), (97, 98)],
        [(97, 256)],
        [(97, 98), (257, 97)],
        [(32, 97)],
        [(65, 66)],
        [(97, 123)],
        [(97,)],
        [(97, 98, 99)],
        [(97, True)],
        [(97, 98), (True, 256)],
        [(97, 98.0)],
        [("a", "b")],
        [(-1, 97)],
        ["ab"],
        [[[97], [98]]],
    ],
)
def test_impossible_merges_are_refused(merges):
    with pytest.raises(ValueError, match=f"merge {len(merges) - 1} is "):
        BPE(merges)


# Text to ids and back


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from([0, 0.1, 0.5, 1]), st.integers(0, 9))
def test_all_of_unicode_survives(text, dropout, seed):
    ids = PEN.encode(text + "open pens", dropout, random.Random(seed))
    assert PEN.decode(ids) == (text + "open pens").lower()
    assert all(type(i) is int and 0 <= i < len(PEN) for i in ids)


@pytest.mark.parametrize(
    "text", ["", "İstanbul ΣΑΣ", "\u212aelvin", "e\u0301 é ß ſ", "🦊 狐\x00\r\n\x7f", "a1b2", "PEN-pen"]
)
def test_chosen_unicode_survives(text):
    assert PEN.decode(PEN.encode(text)) == text.lower()
    assert PEN.encode(text) == brute_encode(PEN.merges, text)


def test_only_letters_merge():
    bpe = BPE.train(["  11,, éé ab  11,, éé ab"], 257)
    assert bpe.merges == [(97, 98)]
    assert bpe.encode("  11 éab") == [32, 32, 49, 49, 32, *"é".encode(), 256]


def test_lone_surrogates_are_replaced():
    assert PEN.decode(PEN.encode("pen \ud800 \udfff pen")) == "pen ? ? pen"
    assert train_quietly(["\ud800 ab"], 300).merges == [(97, 98)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.integers(0, len(PEN) - 1)))
def test_any_valid_ids_decode(ids):
    assert isinstance(PEN.decode(ids), str)


def test_broken_utf8_becomes_the_replacement_character():
    assert PEN.decode([0xF0, 0x9F, 112, 0xFF]) == "\ufffdp\ufffd"
    assert PEN.decode([]) == ""


def test_decode_takes_what_can_be_read_only_once():
    assert PEN.decode(iter([112, 101])) == "pe"


@pytest.mark.parametrize("bad", [-1, len(PEN), 10**30, True, 1.0, "a", None])
def test_decode_refuses(bad):
    with pytest.raises(ValueError, match=f"id {bad!r} is no int from 0 to {len(PEN) - 1}") as caught:
        PEN.decode([112, bad])
    assert "\n" not in str(caught.value)


def test_encode_refuses():
    for text in (None, b"pen", ["pen"]):
        with pytest.raises(TypeError, match="one str"):
            PEN.encode(text)
    for dropout in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=re.escape("[0, 1]")):
            PEN.encode("pen", dropout, random.Random(0))
    with pytest.raises(ValueError, match="rng"):
        PEN.encode("pen", 0.1)


def test_cache_is_bounded_and_does_not_change_results():
    first = PEN.encode("open")
    assert PEN.encode("open") == first
    first.append(0)  # the caller's own list
    assert PEN.encode("open") == first[:-1]
    bpe = BPE([(97, 98)])
    for letters in itertools.islice(itertools.product("habcdefg", repeat=6), 70_000):
        bpe.encode("".join(letters))
    assert bpe.encode("ab" * 500) == [256] * 500
    assert 1000 < len(bpe._cache) <= 65_536 and max(map(len, bpe._cache)) <= 64
    assert bpe.encode("habab") == [104, 256, 256] and bpe.encode("gab") == [103, 256]


# Dropout


def test_dropout_one_gives_bytes_and_zero_changes_nothing():
    text = "An open pen, ten hens"
    assert PEN.encode(text, 1.0, random.Random(0)) == list(text.lower().encode())
    assert PEN.encode(text, 0.0, random.Random(0)) == PEN.encode(text) == PEN.encode(text, 0)
    assert len(PEN.encode(text)) < len(text)


def test_dropout_repeats_with_its_seed_and_leaves_no_trace_in_the_cache():
    texts = ["an open pen", "ten hens", "penny"] * 20
    drops = [[PEN.encode(text, 0.3, rng) for text in texts] for rng in map(random.Random, (1, 1, 2))]
    assert drops[0] == drops[1] != drops[2]
    assert [PEN.encode(text) for text in texts] == [brute_encode(PEN.merges, text) for text in texts]
    bpe = BPE(PEN.merges)  # nothing in its cache yet
    assert bpe.encode("penny", 1.0, random.Random(0)) != bpe.encode("penny") == PEN.encode("penny")


def test_ten_percent_dropout_changes_a_plausible_share():
    rng, texts = random.Random(0), ["open", "pen", "ten", "penny"] * 500
    drops = [PEN.encode(text, 0.1, rng) for text in texts]
    assert [PEN.decode(ids) for ids in drops] == texts
    changed = sum(ids != PEN.encode(text) for ids, text in zip(drops, texts)) / len(texts)
    assert 0.08 < changed < 0.4  # at least one merge each, at most four


def law(merges, word, dropout):
    """Exact probability of each outcome of BPE dropout: at each step, go through every subset of candidates dropped."""
    candidates = [(merges.index(pair), i) for i, pair in enumerate(zip(word, word[1:])) if pair in merges]
    outcomes = collections.Counter()
    for kept in itertools.product([False, True], repeat=len(candidates)):
        weight = dropout ** kept.count(False) * (1 - dropout) ** kept.count(True)
        left = [candidate for candidate, keep in zip(candidates, kept) if keep]
        if not left:
            outcomes[word] += weight
        else:
            rank, i = min(left)
            for outcome, p in law(merges, word[:i] + (256 + rank,) + word[i + 2 :], dropout).items():
                outcomes[outcome] += weight * p
    return outcomes


@pytest.mark.parametrize(
    "merges, word",
    [
        ([(97, 98)], "ab"),
        ([(97, 98), (98, 99)], "abc"),
        ([(97, 97), (256, 256)], "aaaaa"),
        ([(97, 98), (99, 100), (256, 257)], "abcd"),
        ([(97, 98), (256, 99)], "abcabc"),
    ],
)
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_follows_its_exact_law(merges, word, dropout):
    bpe, rng, n = BPE(merges), random.Random(0), 4000
    seen = collections.Counter(tuple(bpe.encode(word, dropout, rng)) for _ in range(n))
    expected = law(merges, tuple(word.encode()), dropout)
    assert abs(sum(expected.values()) - 1) < 1e-9 and set(seen) <= set(expected)
    for outcome, p in expected.items():
        assert abs(seen[outcome] / n - p) <= 4.5 * (p * (1 - p) / n) ** 0.5 + 1e-9, outcome


# Files


def test_saved_and_loaded_is_the_same(tmp_path):
    for bpe in (PEN, BPE([]), BPE.train(STDLIB, 500)):
        bpe.save(tmp_path / "bpe.json")
        loaded = BPE.load(str(tmp_path / "bpe.json"))
        assert (loaded.merges, loaded.hash, len(loaded)) == (bpe.merges, bpe.hash, len(bpe))
        assert loaded.encode("An open pen") == bpe.encode("An open pen")
    assert os.listdir(tmp_path) == ["bpe.json"]


def test_file_is_for_people(tmp_path):
    BPE.train(EXAMPLE, 260).save(tmp_path / "bpe.json")
    assert (tmp_path / "bpe.json").read_text().splitlines() == [
        '{"format": "minidalle-bpe", "version": 1, "vocab_size": 260, "merges": [',
        '[108, 108, "ll"],',
        '[117, 256, "ull"],',
        '[103, 257, "gull"],',
        '[108, 257, "lull"]]}',
    ]


@pytest.mark.parametrize("function", ["os.fsync", "os.replace", "json.dumps"])
def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function):
    PEN.save(tmp_path / "bpe.json")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="disk full"):
        BPE([]).save(tmp_path / "bpe.json")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["bpe.json"] and BPE.load(tmp_path / "bpe.json").merges == PEN.merges


GOOD = {"format": "minidalle-bpe", "version": 1, "vocab_size": 258, "merges": [[97, 98, "ab"], [256, 99, "abc"]]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"3",
        json.dumps(GOOD).encode()[:-20],
        *(
            json.dumps(GOOD | change).encode()
            for change in (
                {"format": "other"},
                {"version": 2},
                {"version": None},
                {"vocab_size": 259},
                {"more": 1},
                {"merges": None},
                {"merges": 3},
                {"merges": {"a": 1}},
                {"merges": "ab"},
                {"merges": []},
                {"merges": [[97, 98, "ab"]]},
                *(
                    {"merges": [[97, 98, "ab"], row]}
                    for row in (
                        [97, 98, "ab"],
                        [256, 99, "abd"],
                        [256, 99],
                        [256, 99, "abc", 0],
                        [257, 99, "abc"],
                        [256, True, "abc"],
                        [256, 99.0, "abc"],
                        [256, "c", "abc"],
                        [256, -1, "abc"],
                        [256, 32, "ab "],
                        [256, 10**40, "abc"],
                        [],
                        None,
                        "abc",
                        3,
                        {"a": 1},
                        [[256], [99], "abc"],
                    )
                ),
            )
        ),
        *(json.dumps({key: GOOD[key] for key in GOOD if key != gone}).encode() for gone in GOOD),
    ],
)
def test_corrupted_file_is_refused_in_one_sentence(tmp_path, content):
    path = tmp_path / "bpe.json"
    path.write_text(json.dumps(GOOD))
    assert BPE.load(path).merges == [(97, 98), (256, 99)]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bpe\.json was not written by BPE\.save \(.+\): restore it or") as caught:
        BPE.load(path)
    assert "\n" not in str(caught.value)
