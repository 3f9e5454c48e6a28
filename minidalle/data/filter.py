"""Which captions are worth learning from: not too short, in Latin letters, not boilerplate, nothing on a list of your own.

Enters: a caption, and the size of its picture if known. Leaves: None, or the reason against it, one of `REASONS`.

Why: pictures from the web come with file names, dates and "click here" for captions, from which a model learns to draw
nothing. DALL-E's data were filtered so: captions too short, not English or boilerplate, and pictures beyond an aspect
ratio of 1:2, were dropped (SPEC 7, P C). The numbers and the phrases below are our own (O).

What it is not. Latin letters stand in for English here: "un renard dans la neige" passes, where the paper asks a
classifier of languages. A blocklist finds the words that are on it, whole, however they are spelled in Unicode; it does
not know what a picture shows. Filtering moves a data set, too: whoever writes in another script is dropped altogether.
"""

import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import regex  # it knows scripts, as \p{Latin}; the library's own `re` does not

LARGEST = 2**20  # bytes of a blocklist
REASONS = (
    "too long",
    "not Latin",
    "boilerplate",
    "too short",
    "blocklist",
    "aspect ratio",
)  # in the order of the checks

MONTH = r"(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)[a-z]*\.?"
DAY = r"\d{1,2}(?:st|nd|rd|th)?"
DATE = rf"(?:\d{{1,4}}[-./]\d{{1,2}}[-./]\d{{1,4}}|(?:{DAY} )?{MONTH},? (?:{DAY},? )?\d{{4}}|(?:19|20)\d\d)"
BOILERPLATE = (  # for a caption in small letters, on one line
    r"^[^\p{L}]+$",  # digits and signs alone
    r"\bhttps?://\S+|\bwww\.\S+|\b[a-z0-9-]+\.(?:com|net|org)\b\S*",
    r"\S+\.(?:jpe?g|png|gif|webp|tiff?|bmp|heic|svg)\b",  # fox_final_2.jpg
    r"\b(?:img|dsc[nf]?|pict|pxl|gopr|mvi|screenshot|scan)[-_ ]?\d[-_\d]*\b",  # IMG_1234
    r"\b(?:image|photo|picture|figure|fig\.|slide|page) (?:no\. ?|# ?)?\d+(?: (?:of|/) \d+)?\b",  # image 3 of 12
    r"\buntitled\b|\bno (?:title|caption|description|image)(?: available)?\b|\b(?:image|photo) (?:coming soon|not available)\b",
    r"\bclick (?:here|below|image|photo|on (?:the )?(?:image|photo|picture))\b|\b(?:click )?(?:for|to) (?:enlarge|zoom|a larger (?:image|view)|full size)\b",
    r"\b(?:read|view|learn|see) more\b|\b(?:sign|log) (?:in|up)\b|\bsubscribe(?: now)?\b|\bbuy now\b|\badd to cart\b|\bfree shipping\b",
    r"\broyalty[- ]free\b|\bstock (?:photos?|photography|images?|pictures?|illustrations?|vectors?|footage)\b",
    r"\ball rights reserved\b|(?:©|\(c\)|\bcopyright\b) ?(?:19|20)?(?:\d\d)?",
    rf"\b(?:photographed|taken|posted|uploaded|added|published|updated|captured) (?:on|in) {DATE}|^{DATE}$",
)


@dataclass(frozen=True)
class CaptionRules:
    """What is kept. All bounds are O but for the aspect ratio (P C)."""

    min_words: int = 2
    max_chars: int = 700  # 255 tokens, of which every second is a space, hold no more of English
    min_latin: float = 0.9  # share of Latin letters among the letters
    boilerplate: tuple = BOILERPLATE  # regular expressions, of the package `regex`
    blocklist: tuple = ()  # words or phrases, see `load_blocklist`
    aspect: tuple = (0.5, 2.0)  # width / height

    def __post_init__(self):
        """Raises ValueError for bounds that nothing can meet."""
        low, high = self.aspect
        if not 0 <= self.min_latin <= 1 or not 0 <= low <= high or self.min_words < 0 or self.max_chars < 1:
            raise ValueError(
                f"no caption can be kept by {self.min_words} words or more, {self.max_chars} characters or fewer, "
                f"{self.min_latin} of Latin letters, width / height in {self.aspect}: expected a share in [0, 1] and low <= high"
            )


def reason(caption: str, size: tuple[int, int] | None = None, rules: CaptionRules = CaptionRules()) -> str | None:  # noqa: B008
    """None for a caption to keep, else the first of `REASONS` that speaks against it. size: (width, height) in pixels."""
    if len(caption) > rules.max_chars:
        return "too long"
    if latin_share(caption) < rules.min_latin:
        return "not Latin"
    text = " ".join(folded(caption).split())
    rest = functools.reduce(lambda left, pattern: regex.sub(pattern, " ", left), rules.boilerplate, text)
    if rest != text and len(words(rest)) < rules.min_words:  # little is left without it
        return "boilerplate"
    if len(words(text)) < rules.min_words:
        return "too short"
    if is_blocked(words(text), rules.blocklist):
        return "blocklist"
    if size is not None and not fits(size, rules.aspect):
        return "aspect ratio"
    return None


def check(caption: str, size: tuple[int, int] | None, rules: CaptionRules | None):
    """Raise ValueError with the reason against a caption; with no rules, do nothing."""
    if rules is not None and (why := reason(caption, size, rules)):
        raise ValueError(why)


def latin_share(text: str) -> float:
    """Share of Latin letters among all letters, in [0, 1]; 1 for a text without letters, against which other rules speak."""
    letters = regex.findall(r"\p{L}", unicodedata.normalize("NFKC", text))
    latin = regex.findall(r"\p{Latin}", "".join(letters))
    return len(latin) / len(letters) if letters else 1.0


def folded(text: str) -> str:
    """The one spelling of texts that differ in Unicode alone: "ＦＯＸ", "Fox" and "fo", soft hyphen, "x" are all "fox"."""
    text = unicodedata.normalize("NFKC", regex.sub(r"\p{Cf}", "", text))
    return unicodedata.normalize("NFKC", text.casefold())


def words(text: str) -> list[str]:
    """Runs of letters, their accents, and digits: "a fox's_den, 2" -> a, fox, s, den, 2."""
    return regex.findall(r"[\p{L}\p{M}\p{N}]+", text)


def is_blocked(caption: list[str], blocklist: tuple) -> bool:
    """Does a word or phrase of the list stand in the caption's words, as whole words?"""
    phrases = as_words(tuple(blocklist))
    longest = max(map(len, phrases), default=0)
    starts = range(len(caption))
    return any(tuple(caption[i : i + n]) in phrases for n in range(1, longest + 1) for i in starts)


@functools.lru_cache(maxsize=8)
def as_words(blocklist: tuple) -> frozenset:
    """Its entries as tuples of folded words."""
    return frozenset(tuple(words(folded(entry))) for entry in blocklist)


def fits(size: tuple[int, int], aspect: tuple[float, float]) -> bool:
    width, height = size
    return width > 0 and height > 0 and aspect[0] * height <= width <= aspect[1] * height


def load_blocklist(path: Path | str) -> tuple[str, ...]:
    """The words and phrases of a UTF-8 file, one a line; lines that start with # are comments.

    Raises ValueError, naming the file, where it cannot be read, holds an entry without letter or digit, or none at all.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ValueError(f"blocklist {path} is larger than {LARGEST >> 20} MB: expected a word or phrase a line")
        lines = text.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ValueError(
            f"blocklist {path} cannot be read: expected a UTF-8 text file, a word or phrase a line"
        ) from None
    entries = [
        (n, line.strip()) for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")
    ]
    for n, entry in entries:
        if not words(folded(entry)):
            raise ValueError(
                f"blocklist {path}, line {n}: {entry!r} has no letter or digit, so it is no word: remove it"
            )
    if not entries:
        raise ValueError(f"blocklist {path} names no word: write one a line, or leave the blocklist out")
    return tuple(entry for _, entry in entries)


def in_words(counts: dict[str, int]) -> str:
    """ "captions filter: 14 kept, 3 too short, 1 boilerplate"."""
    return f"captions filter: {', '.join(f'{n} {name}' for name, n in counts.items() if n)}"


def rules_for(on: bool, blocklist: Path | str | None) -> CaptionRules | None:
    """The rules that a command asks for; None: no filter. Raises ValueError for a blocklist without the filter."""
    if blocklist and not on:
        raise ValueError(
            f"blocklist {blocklist} is a part of the captions filter, which is off: turn the filter on, too"
        )
    return CaptionRules(blocklist=load_blocklist(blocklist) if blocklist else ()) if on else None
