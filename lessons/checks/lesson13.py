"""Checks of lesson 13."""

import math

import numpy as np

from checks import exercise, expect, expect_number
from minidalle.studio.provenance import pixels_sha256, words_sha256


@exercise
def check_wilson(fn):
    for k, n, z in ((270, 300, 1.96), (5, 10, 1.96), (300, 300, 1.96), (0, 24, 1.96), (1, 1, 1.96), (30, 40, 1.0)):
        got = fn(k, n) if z == 1.96 else fn(k, n, z)
        pair = isinstance(got, (tuple, list)) and len(got) == 2
        expect(pair, f"expected two numbers, low and high, got {type(got).__name__} ({got!r:.60})")
        for end, value, wanted in zip(("low", "high"), got, _roots(k, n, z)):
            expect_number(f"the {end} end for {k} of {n}, z = {z}", value, wanted)


def _roots(k, n, z):
    """Where (k/n - p)² = z² p (1 - p) / n."""
    a, b, c = 1 + z * z / n, -(2 * k / n + z * z / n), (k / n) ** 2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


SIFTED = (  # captions, blocklist, their fates: a reason, or "" for one that is kept
    (["a cross", "Fox", "a fox"], ["cross"], ["blocklist", "too short", ""]),
    (["Do NOT Cross!", "a line across the page", "crosses in a row"], ["cross"], ["blocklist", "", ""]),
    (["Pâté à l'été", "лиса в снегу", "a fox, лиса", "fox лис"], [], ["", "not Latin", "not Latin", "not Latin"]),
    (["", "2021", "12 34", "...", "fox"], ["34"], ["too short", "too short", "blocklist", "too short", "too short"]),
    (["cross", "лиса cross", "two words", "a fox", "a fox"], ["cross", "fox"], ["too short", "not Latin", "", *["blocklist"] * 2]),
    (["abcdefghi я", "abcdefgh я"], [], ["", "not Latin"]),
    ([], ["cross"], []),
)  # fmt: skip


@exercise
def check_sift(fn):
    for captions, blocklist, fates in SIFTED:
        given = list(captions)
        got = fn(given, list(blocklist))
        pair = isinstance(got, (tuple, list)) and len(got) == 2 and isinstance(got[1], dict)
        expect(pair, f"expected a list and a dict of counts, got {type(got).__name__} ({got!r:.60})")
        expect(given == captions, f"the list of captions was changed: it was {captions}, and is now {given}")
        kept = [caption for caption, fate in zip(captions, fates) if not fate]
        where = f"of {captions} with the blocklist {blocklist}"
        expect(list(got[0]) == kept, f"{where}: expected to keep {kept}, got {got[0]!r:.200}")
        for reason in ("not Latin", "too short", "blocklist"):
            dropped = [caption for caption, fate in zip(captions, fates) if fate == reason]
            count = got[1].get(reason, 0)
            expect(count == len(dropped), f"{where}: expected {len(dropped)} × {reason!r} ({dropped}), got {count!r}")
        expect(
            sum(got[1].values()) == len(captions) - len(kept), f"{where}: unexpected reasons in {dict(got[1])!r:.120}"
        )


@exercise
def check_intact(fn):
    picture = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    words = {"prompt": "a red circle", "seed": 3, "pixels_sha256": pixels_sha256(picture)}
    words["sha256"] = words_sha256(words)
    changed = picture.copy()
    changed[5, 3, 2] ^= 1
    other = words | {"pixels_sha256": pixels_sha256(changed)}  # the pixels' hash mended, that of the words not
    told = words | {"prompt": "a blue square"}
    told |= {"sha256": words_sha256(told)}  # a forger's work is intact, as no hash can tell who wrote it
    cases = (
        ("nothing was changed", picture, words, True),
        ("one pixel was changed by one", changed, words, False),
        ("the same bytes in rows of another length", picture.reshape(4, 6, 3), words, False),
        ("another prompt", picture, words | {"prompt": "a blue square"}, False),
        ("a word more", picture, words | {"model": "x"}, False),
        ("another picture with its own hash, under the old hash of the words", changed, other, False),
        ("words without hashes", picture, {"prompt": "a red circle", "seed": 3}, False),
        ("words without `pixels_sha256`", picture, _without(words, "pixels_sha256"), False),
        ("words without `sha256`", picture, _without(words, "sha256"), False),
        ("all was written anew, as it should be", picture, told, True),
    )
    for what, pixels, given, wanted in cases:
        handed = dict(given)
        got = fn(pixels.copy(), handed)
        expect(
            isinstance(got, (bool, np.bool_)), f"{what}: expected True or False, got {type(got).__name__} ({got!r:.60})"
        )
        expect(bool(got) == wanted, f"{what}: expected {wanted}, got {bool(got)}")
        expect(handed == given, f"{what}: the words were changed; compare, and write nothing")


def _without(words, name):
    """The words without one of them; those that remain are hashed anew if that can be."""
    left = {key: value for key, value in words.items() if key != name}
    return left | ({"sha256": words_sha256(left)} if name != "sha256" else {})
