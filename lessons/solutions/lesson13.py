"""Solutions of lesson 13."""

import re
import unicodedata
from collections import Counter

from minidalle.studio.provenance import pixels_sha256, words_sha256


def wilson(k, n, z=1.96):
    p = k / n
    middle = p + z**2 / (2 * n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def sift(captions, blocklist=()):
    kept, reasons = [], Counter()
    for caption in captions:
        letters = [c for c in caption if c.isalpha()]
        latin = sum(unicodedata.name(c, "").startswith("LATIN") for c in letters)
        words = re.findall(r"\w+", caption)
        if 10 * latin < 9 * len(letters):
            reasons["not Latin"] += 1
        elif len(words) < 2:
            reasons["too short"] += 1
        elif any(word.lower() in blocklist for word in words):
            reasons["blocklist"] += 1
        else:
            kept.append(caption)
    return kept, reasons


def intact(picture, words):
    return words.get("pixels_sha256") == pixels_sha256(picture) and words.get("sha256") == words_sha256(words)
