"""Plausible wrong answers to the exercises of lesson 13: each must fail its check."""

import re
import unicodedata
from collections import Counter

from minidalle.studio.provenance import pixels_sha256, words_sha256


def wilson_shortcut(k, n, z=1.96):
    p = k / n
    half = z * (p * (1 - p) / n) ** 0.5
    return p - half, p + half


def wilson_shortcut_cut_off(k, n, z=1.96):
    low, high = wilson_shortcut(k, n, z)
    return max(low, 0.0), min(high, 1.0)


def wilson_only_middle_divided(k, n, z=1.96):
    p = k / n
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    return middle - half, middle + half


def wilson_half_not_squared(k, n, z=1.96):
    p = k / n
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n)) ** 0.5
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def wilson_z_forgotten(k, n, z=1.96):
    return _wilson(k, n, 1.96)


def wilson_high_first(k, n, z=1.96):
    return _wilson(k, n, z)[::-1]


def sift_finds_parts_of_words(captions, blocklist=()):
    return _sift(captions, lambda caption: any(entry in caption.lower() for entry in blocklist))


def sift_minds_capitals(captions, blocklist=()):
    return _sift(captions, lambda caption: any(word in blocklist for word in re.findall(r"\w+", caption)))


def sift_splits_at_spaces(captions, blocklist=()):
    return _sift(captions, lambda caption: any(word in blocklist for word in caption.lower().split()))


def sift_ascii_alone(captions, blocklist=()):
    return _sift(captions, _listed(blocklist), is_latin=str.isascii)


def sift_any_latin_letter_will_do(captions, blocklist=()):
    return _sift(captions, _listed(blocklist), least=1e-9)


def sift_three_words_or_more(captions, blocklist=()):
    return _sift(captions, _listed(blocklist), fewest=3)


def sift_counts_every_reason(captions, blocklist=()):
    kept, reasons = _sift(captions, _listed(blocklist))
    for caption in captions:
        if len(caption.split()) < 2 and _listed(blocklist)(caption):
            reasons["blocklist"] += 1
    return kept, reasons


def sift_blocklist_first(captions, blocklist=()):
    kept, reasons = _sift([c for c in captions if not _listed(blocklist)(c)], lambda caption: False)
    reasons["blocklist"] = sum(map(_listed(blocklist), captions))
    return kept, reasons


def sift_returns_small_letters(captions, blocklist=()):
    kept, reasons = _sift(captions, _listed(blocklist))
    return [caption.lower() for caption in kept], reasons


def sift_keeps_each_once(captions, blocklist=()):
    return _sift(list(dict.fromkeys(captions)), _listed(blocklist))


def sift_removes_from_the_list(captions, blocklist=()):
    kept, reasons = _sift(captions, _listed(blocklist))
    captions[:] = kept
    return captions, reasons


def intact_pixels_alone(picture, words):
    return words.get("pixels_sha256") == pixels_sha256(picture)


def intact_words_alone(picture, words):
    return words.get("sha256") == words_sha256(words)


def intact_either(picture, words):
    return intact_pixels_alone(picture, words) or intact_words_alone(picture, words)


def intact_raises_without_hashes(picture, words):
    return words["pixels_sha256"] == pixels_sha256(picture) and words["sha256"] == words_sha256(words)


def intact_absent_is_fine(picture, words):
    return words.get("pixels_sha256", pixels_sha256(picture)) == pixels_sha256(picture) and words.get(
        "sha256"
    ) == words_sha256(words)


def intact_writes_the_hashes(picture, words):
    words["pixels_sha256"] = pixels_sha256(picture)
    words["sha256"] = words_sha256(words)
    return True


def intact_always(picture, words):
    return True


def intact_turned_round(picture, words):
    return not (intact_pixels_alone(picture, words) and intact_words_alone(picture, words))


def _wilson(k, n, z):  # to build wrong ones on
    p = k / n
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def _listed(blocklist):
    return lambda caption: any(word.lower() in blocklist for word in re.findall(r"\w+", caption))


def _is_latin(letter):
    return unicodedata.name(letter, "").startswith("LATIN")


def _sift(captions, listed, is_latin=_is_latin, least=0.9, fewest=2):
    kept, reasons = [], Counter()
    for caption in captions:
        letters = [c for c in caption if c.isalpha()]
        if sum(map(is_latin, letters)) < least * len(letters):
            reasons["not Latin"] += 1
        elif len(re.findall(r"\w+", caption)) < fewest:
            reasons["too short"] += 1
        elif listed(caption):
            reasons["blocklist"] += 1
        else:
            kept.append(caption)
    return kept, reasons
