"""The captions filter: each rule by a table, the share of Latin letters by names of characters, and its counts in a folder."""

import dataclasses
import tarfile
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minidalle import data
from minidalle.__main__ import main
from minidalle.config import DataConfig
from minidalle.data import folder
from minidalle.data.filter import REASONS, CaptionRules, folded, is_blocked, latin_share, load_blocklist, reason, words

ODD = "ᴯᴻᵎℲⅎↃ𐞀"  # Latin letters whose names do not begin with LATIN


@pytest.mark.parametrize("caption", [
    "a fox in the snow", "red circle", "un renard dans la neige", "Ein Fuchs, 3 Jahre alt", "a café in Århus", "ｆｏｘ ｉｎ ｓｎｏｗ",
    "a photo of a man who clicks here and there, stock photo", "a sign that says no title", "the year 2019 in a calendar",
    "two foxes" + " and a fox" * 69, "a poster of example.com on a red wall", "a fox taken on a walk",
])  # fmt: skip
def test_captions_that_are_kept(caption):
    assert reason(caption) is None


@pytest.mark.parametrize("expected, captions", {
    "too short": ["", " ", "fox", "fox!", "f-"],
    "too long": ["two foxes" + " and a fox" * 70, "x" * 701],
    "not Latin": ["лиса в снегу", "狐狸在雪中", "ثعلب في الثلج", "fox 狐狸", "a лиса", "αλεπού"],
    "boilerplate": [
        "IMG_1234.JPG", "img 1234", "DSC00012", "DSCN_0012", "Screenshot_2019-05-03-12", "fox_final-2.jpeg", "https://x.y/z?a=1",
        "www.example.com", "example.com", "12345", "🦊 🦊", "- - -", "\x00", "2019-05-03", "3.5.2019", "May 2019",
        "photographed on 12 May 2019", "Photographed on May 12th, 2019", "uploaded on 2019/05/03", "Untitled", "untitled (2)",
        "No description available", "image coming soon", "click here", "Click on the image to enlarge", "click for a larger view",
        "read more", "sign up", "Buy now!", "add to cart", "Royalty-free stock photo", "fox stock photo", "Stock vector fox",
        "image 3 of 12", "Figure 7", "fig. 7", "Photo #12", "page 12", "All rights reserved", "© 2019 Fox", "(c) Fox",
    ],
}.items())  # fmt: skip
def test_captions_that_are_dropped(expected, captions):
    assert {caption: reason(caption) for caption in captions} == dict.fromkeys(captions, expected)


@pytest.mark.parametrize("field, value, caption, expected", [
    ("min_words", 5, "a fox in snow", "too short"), ("min_words", 4, "a fox in snow", None), ("min_words", 1, "fox", None),
    ("max_chars", 5, "a fox.", "too long"), ("max_chars", 6, "a fox.", None), ("min_latin", 0.75, "fox лf", None),
    ("min_latin", 0.76, "fox лf b", None), ("min_latin", 0.9, "fox лf b", "not Latin"), ("min_latin", 0, "лиса в снегу", None),
    ("boilerplate", (), "IMG_1234.JPG", None), ("boilerplate", (r"\bfox\b",), "a fox", "boilerplate"),
    ("boilerplate", (r"\bfox\b",), "a foxy fox", None),
])  # fmt: skip
def test_each_bound_is_where_it_says(field, value, caption, expected):
    assert reason(caption, None, CaptionRules(**{field: value})) == expected


@pytest.mark.parametrize("size, kept", [
    ((100, 100), True), ((50, 100), True), ((200, 100), True), ((49, 100), False), ((201, 100), False), ((1, 1), True),
    ((20_000, 10), False), ((0, 10), False), ((10, 0), False),
])  # fmt: skip
def test_the_aspect_ratio_is_within_one_half_and_two(size, kept):
    assert reason("a fox in the snow", size) == (None if kept else "aspect ratio")


@pytest.mark.parametrize("aspect, size, kept", [((0.9, 3), (3, 1), True), ((0.9, 3), (1, 3), False)])
def test_width_stands_above_height(aspect, size, kept):
    assert reason("a fox in the snow", size, CaptionRules(aspect=aspect)) == (None if kept else "aspect ratio")


@pytest.mark.parametrize("bad", [{"min_latin": 1.1}, {"aspect": (2, 1)}, {"min_words": -1}, {"max_chars": 0}])
def test_rules_that_nothing_can_meet(bad):
    with pytest.raises(ValueError, match="no caption can be kept"):
        CaptionRules(**bad)


@given(st.text(st.characters(categories=["L", "N", "P", "Zs", "M"]).filter(lambda c: c not in ODD), max_size=30))
@example("aлβ狐é1 !")
@example("ﬁﬂ Åℬ ａ")
def test_the_latin_share_is_that_of_the_names(text):
    text = unicodedata.normalize("NFKC", text)
    letters = [c for c in text if unicodedata.category(c)[0] == "L" and c not in ODD]
    latin = [c for c in letters if unicodedata.name(c, "").startswith("LATIN")]
    if not set(text) & set(ODD):
        assert latin_share(text) == (len(latin) / len(letters) if letters else 1)


@given(st.text(max_size=60))
@example("ß" * 3 + "ﬀ\u00adx")
def test_one_spelling_is_the_end_of_it_and_reasons_are_known(text):
    assert folded(folded(text)) == folded(text)
    assert reason(text) in (None, *REASONS)


@given(
    st.lists(st.sampled_from("ab"), max_size=6),
    st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), max_size=3),
)
def test_phrases_are_found_as_by_brute_force(caption, phrases):
    spaced = f" {' '.join(caption)} "
    expected = any(f" {' '.join(phrase)} " in spaced for phrase in phrases)
    assert is_blocked(caption, tuple(" ".join(phrase) for phrase in phrases)) == expected


@pytest.mark.parametrize("caption, blocked", [
    ("an ass in a field", True), ("a class of children", False), ("An ASS!", True), ("an ass-like thing", True),
    ("Scunthorpe in the snow", False), ("an a\u00adss, hidden", True), ("ａｓｓ in full width", True), ("a Straße in Rome", True),
    ("a STRASSE in Rome", True), ("a cafe\u0301 noir there", True), ("a café, noir", True), ("a noir café", False),
    ("the café  NOIR", True), ("under_score", True), ("scored high", False),
])  # fmt: skip
def test_the_blocklist_finds_whole_words_however_they_are_spelled(tmp_path, caption, blocked):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# not wanted\r\nass\r\n\r\n  straße  \r\ncafé noir\r\n   # indented\r\nscore\r\n".encode())
    rules = CaptionRules(blocklist=load_blocklist(path))
    assert rules.blocklist == ("ass", "straße", "café noir", "score")
    assert reason(caption, None, rules) == ("blocklist" if blocked else None)


@pytest.mark.parametrize("content, sentence", [
    (None, "cannot be read"), (b"\xff\xfe\x00", "cannot be read"), (b"", "names no word"), (b"# only this\n", "names no word"),
    (b"fox\n\n!!!\n", "line 3: '!!!' has no letter"),
])  # fmt: skip
def test_a_blocklist_that_cannot_be_used_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="blocklist") as error:
        load_blocklist(path)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_words_are_runs_of_letters_accents_and_digits():
    assert words("a fox's_den, 2 cafe\u0301s") == ["a", "fox", "s", "den", "2", "cafe\u0301s"]


# --- in a folder ---------------------------------------------------------------------------------------------------

CAPTIONS = [
    "a fox in the snow",
    "an owl at night",
    "two cats asleep",
    "a red house",
    "fox",
    "IMG_0001.JPG",
    "лиса в снегу",
    "a bad word",
]
COUNTS = dict.fromkeys((*REASONS, "unusable"), 1) | {"kept": 4, "too long": 0}


@pytest.fixture
def pictures(tmp_path):
    """Eight pictures with these captions, one too wide, and one without a caption; and a list of words."""
    where = tmp_path / "pictures"
    where.mkdir()
    for i, caption in enumerate([*CAPTIONS, "a wide landscape", None]):
        Image.new("RGB", (101 if caption == "a wide landscape" else 40, 50), (i, i, i)).save(where / f"{i}.png")
        if caption is not None:
            (where / f"{i}.txt").write_text(caption, encoding="utf-8")
    Image.new("RGB", (101, 50)).save(where / "8.png")
    (tmp_path / "words.txt").write_text("bad\n")
    return where


def load(where, **settings):
    counts = {}
    with pytest.warns(UserWarning):
        config = DataConfig(name="folder", folder=str(where), height=16, width=16, pool=20, **settings)
        splits = data.load(config, 0, counts)
    return {caption for split in splits.values() for caption in split.captions}, counts


def test_a_folder_is_filtered_on_request_alone(pictures):
    everything, none = load(pictures)
    assert everything == {*CAPTIONS} and none == {}
    kept, counts = load(pictures, filter=True, blocklist=str(pictures.parent / "words.txt"))
    assert kept == {*CAPTIONS[:4]} and counts == COUNTS and sum(counts.values()) == 10


def test_what_the_filter_kept_it_keeps_again(pictures, tmp_path):
    kept, counts = load(pictures, filter=True)
    assert "a bad word" in kept and counts["blocklist"] == 0
    for path in pictures.glob("*.txt"):
        if path.read_text(encoding="utf-8") not in kept:
            path.unlink()
            path.with_suffix(".png").unlink()
    (pictures / "9.png").unlink()
    found = folder.find(pictures)
    captions, skipped = folder.sort_out(found, CaptionRules())
    assert {*captions.values()} == kept and skipped == {}


def test_the_filter_may_drop_more_than_half_but_not_all(pictures):
    for i in range(1, 4):
        (pictures / f"{i}.txt").write_text("fox")
    (pictures / "9.png").unlink()
    kept, counts = load(pictures, filter=True)
    assert len(kept) == 2 and counts["too short"] == 4
    (pictures / "0.txt").write_text("fox")
    with pytest.raises(ValueError, match="only 1 usable picture in .*left out are 8 of 9 pictures: 5 × too short"):
        folder.load(pictures, 16, 16, 20, 0, CaptionRules())


@pytest.mark.parametrize("settings, sentence", [
    ({"name": "shapes", "filter": True}, "are for a folder"), ({"name": "folder", "folder": ".", "blocklist": "x"}, "is off"),
    ({"name": "folder", "folder": ".", "filter": True, "blocklist": "nowhere.txt"}, "cannot be read"),
])  # fmt: skip
def test_settings_that_do_not_fit(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.load(dataclasses.replace(DataConfig(), **settings), 0)


def test_shards_are_filtered_and_counted(pictures, tmp_path, capsys):
    arguments = [
        "shards",
        str(pictures),
        str(tmp_path / "tars"),
        "--filter",
        "--blocklist",
        str(tmp_path / "words.txt"),
    ]
    main(arguments)
    printed = capsys.readouterr().out
    assert (
        "captions filter: 4 kept, 1 not Latin, 1 boilerplate, 1 too short, 1 blocklist, 1 aspect ratio, 1 unusable"
        in printed
    )
    with tarfile.open(tmp_path / "tars" / "shard-00000.tar") as tar:
        captions = {tar.extractfile(m).read().decode() for m in tar.getmembers() if m.name.endswith(".txt")}
    assert captions == {*CAPTIONS[:4]}
    with pytest.raises(SystemExit) as stop:
        main([*arguments[:3], "--blocklist", str(tmp_path / "words.txt")])
    assert stop.value.code == 2 and "filter, which is off" in capsys.readouterr().err
