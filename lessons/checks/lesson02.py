"""Checks of lesson 02."""

from checks import Wrong, exercise, expect


def _ask(what: str, fn, *args):
    """fn(*args); where it raises, the sentence begins with `what`, which names the arguments."""
    try:
        return fn(*args)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Wrong(f"{what}: your function raised {type(error).__name__}: {error}") from None


def _expect_ids(what: str, got, wanted: list[int]):
    """`got` must be the list `wanted`; the first place that differs is named."""
    expect(isinstance(got, list), f"{what}: expected a list, got {type(got).__name__} ({got!r:.60})")
    for i, (a, b) in enumerate(zip(got, wanted)):
        expect(a == b, f"{what}: expected {b} at place {i} of {wanted}, got {a!r} in {got}")
    expect(len(got) == len(wanted), f"{what}: expected {wanted}, got {got}")


@exercise
def check_merge(fn):
    for ids, pair, new, wanted in (
        ([5, 6, 7, 5, 6], (5, 6), 300, [300, 7, 300]),
        ([5, 5, 5], (5, 5), 300, [300, 5]),
        ([9, 5, 5, 5, 5, 9], (5, 5), 256, [9, 256, 256, 9]),
        ([6, 5, 6, 6, 5], (5, 6), 257, [6, 257, 6, 5]),  # (6, 5) is another pair
        ([15, 6, 5, 61], (5, 6), 300, [15, 6, 5, 61]),  # no pair, though "15 6 5 61" holds "5 6"
        ([97, 256, 98, 97, 256], (97, 256), 260, [260, 98, 260]),
        ([5, 6, 6], (5, 6), 5, [5, 6]),  # what a merge made is not merged again
        ([7], (7, 7), 300, [7]),
        ([], (5, 6), 300, []),
    ):
        given, what = list(ids), f"merge({ids}, {pair}, {new})"
        _expect_ids(what, _ask(what, fn, given, pair, new), wanted)
        expect(given == ids, f"{what} must leave its list as it is, but it is now {given}")


@exercise
def check_encode_by_rank(fn):
    # ranks 0 … 6: el, an, ng, ang (an + g), ange (ang + e), ll, lle (ll + e)
    angel = [(101, 108), (97, 110), (110, 103), (257, 103), (259, 101), (108, 108), (261, 101)]
    for word, pairs, wanted in (
        ("fir", [(105, 114), (102, 105)], [102, 256]),  # not the leftmost pair
        ("angel", angel, [259, 256]),  # not the longest piece
        ("ange", angel, [260]),
        ("ngan", angel, [258, 257]),
        ("angelangel", angel, [259, 256, 259, 256]),
        ("bell", angel, [98, 256, 108]),
        ("allele", angel, [97, 261, 256, 101]),
        ("lll", angel, [261, 108]),  # of equal ranks the leftmost
        ("xyz", angel, [120, 121, 122]),
        ("a", angel, [97]),
        ("", angel, []),
        ("angel", [], [97, 110, 103, 101, 108]),
    ):
        rank = {pair: number for number, pair in enumerate(pairs)}
        what = f"the word {word!r}, with the ranks {rank}"
        _expect_ids(what, _ask(what, fn, list(word.encode()), dict(rank)), wanted)


@exercise
def check_decode(fn):
    lull = [(108, 108), (117, 256), (103, 257), (108, 257)]  # ll, ull, gull, lull
    cases = [([256, 33], [(104, 105)]), ([259, 44, 32, 115, 101, 97, 258], lull), ([97, 256, 97], lull), ([], lull)]
    texts = ["fox", "piñata", "狐 kitsune", "🦊", "👩‍🚀 in space", "\x00 and \x7f", "ß ﬀ İ", "e\u0301", "Ā ā ÿ", "\n\t"]
    cases += [(list(text.encode()), lull) for text in texts]
    cases += [([240, 159], lull), ([97, 255, 98], lull), ([*"🦊".encode()[:3], 256], lull), ([241], [])]
    for ids, merges in cases:
        spelled = [bytes([i]) for i in range(256)]
        for a, b in merges:
            spelled.append(spelled[a] + spelled[b])
        wanted = b"".join(spelled[i] for i in ids).decode("utf-8", errors="replace")
        what = f"decode({ids}, {merges})"
        got = _ask(what, fn, list(ids), list(merges))
        expect(isinstance(got, str), f"{what}: expected a str, got {type(got).__name__} ({got!r:.60})")
        expect(got == wanted, f"{what}: expected {wanted!a}, got {got!a:.80}")
