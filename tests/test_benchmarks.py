"""What the benchmarks print is what they measured: ratios within a turn, the table, the chart, the fair start."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RUNS = {
    "ours": [{"wall": 1.0, "cpu": 2.0, "peak": 10.0}, {"wall": 3.0, "cpu": 3.0, "peak": 12.0}],
    "theirs": [{"wall": 2.0, "cpu": 4.0, "peak": 20.0}, {"wall": 2.0, "cpu": 2.0, "peak": 20.0}],
}


@pytest.fixture(scope="module")
def side_by_side():
    sys.path.insert(0, str(BENCHMARKS))
    import side_by_side

    yield side_by_side
    sys.path.remove(str(BENCHMARKS))


def test_ratios_are_taken_within_a_turn(side_by_side):
    assert side_by_side.ratios(RUNS, "ours", "theirs", "cpu") == [0.5, 1.5]
    assert side_by_side.ratios(RUNS, "ours", "theirs", "wall") == [0.5, 1.5]
    assert side_by_side.ratios(RUNS, "theirs", "theirs", "cpu") == [1, 1]


def test_the_table_shows_medians_ranges_and_the_largest_peak(side_by_side):
    more = {"per s": lambda name, run: 6 / run["wall"] if name == "ours" else None}
    _, _, ours, theirs = side_by_side.table(RUNS, "theirs", 1, more)
    assert ours == "| ours | 2.00 (1.00–3.00) | 2.50 (2.00–3.00) | 1.00 (0.50–1.50) | 12 | 4.0 (2.0–6.0) |"
    assert theirs == "| theirs | 2.00 | 3.00 (2.00–4.00) | 1.00 | 20 |  |"


def test_a_run_is_a_process_of_its_own_with_its_threads(side_by_side, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import os, side_by_side\n"
        "def case(n): return lambda: {'n': n, 'threads': os.environ['OMP_NUM_THREADS']}\n"
        "side_by_side.work({'case': case}, sys.argv[2:])\n"
    )
    run = side_by_side.run(str(script), "case", (5,), 3)
    assert run["n"] == 5 and run["threads"] == "3" and run["wall"] >= 0 and run["peak"] > 1
    with pytest.raises(SystemExit, match="other failed: KeyError: 'other'"):
        side_by_side.run(str(script), "other", (), 1)


def test_the_chart_is_a_picture(side_by_side, tmp_path):
    side_by_side.chart(tmp_path / "c.png", {"1 thread": {"minidalle": [0.4, 0.5], "other": [2.0, 3.0]}}, "x", "title")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_the_corpus_is_distinct_lines_of_words(side_by_side):
    from benchmarks.tokenizer import corpus

    lines = corpus(0.05)
    assert len(set(lines)) == len(lines) and all(3 <= len(line.split()) <= 40 for line in lines)
    assert sum(len(line.encode()) for line in lines) >= 5e4


def test_bytes_are_shown_as_tokenizers_shows_them(side_by_side):
    """Against the rule in GPT-2's published encoder: bytes that print as themselves, the others from U+0100 on."""
    from benchmarks.tokenizer import shown_bytes

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    shown = shown_bytes(sorted(alphabet))
    assert [shown[b] for b in printable] == [chr(b) for b in printable]
    assert shown[0] == "Ā" and shown[32] == "Ġ" and shown[10] == "Ċ" and len(set(shown)) == 256


def test_an_ablation_is_compared_with_the_run_of_the_same_seed(side_by_side):
    from benchmarks.ablations import CAPTIONS, FIGURES, table

    def line(change, seed, share, **seconds):
        return {"change": change, "seed": seed, "seconds": seconds, **dict.fromkeys(FIGURES, [share] * 2 * CAPTIONS)}

    change = "transformer: causal masks"
    lines = [line("as it is", 0, 0, dvae=70, transformer=30), line("as it is", 1, 1, dvae=70, transformer=50)]
    lines += [line(change, 0, 1, transformer=15), line(change, 1, 1, transformer=45)]
    lines += [line(change, 2, 0, transformer=9)]  # has nothing beside it
    _, _, base, changed = (row.split(" | ") for row in table(lines))
    assert base[0] == "| as it is" and base[1] == "0.50 (0.00 … 1.00)" and base[-2:] == ["110", "0, 1 |"]
    assert changed[0] == f"| {change}" and changed[-2:] == ["× 0.75", "0, 1 |"]
    assert changed[1] == "+0.50 (+0.00 … +1.00)"  # captions that agree do not make up for seeds that do not
    assert changed[3] == "" and changed[4] == changed[1]  # of what it was not trained for, nothing is said


def test_the_interval_of_an_ablation_knows_captions_from_seeds(side_by_side):
    import numpy as np

    from benchmarks.ablations import interval

    captions = np.tile(np.repeat([0.0, 1.0], 8), (3, 1))  # all seeds agree, half of 16 captions gains: like 16 coins
    mean, low, high = (float(x) for x in interval(captions).translate(str.maketrans("", "", "(…)")).split())
    assert mean == 0.5 and 0.2 <= low <= 0.3 and 0.7 <= high <= 0.8


def test_an_ablation_trains_what_it_concerns_and_keeps_the_rest(side_by_side, tmp_path, monkeypatch):
    """Two updates of everything, then of another transformer: the dVAE and CLIP stay, and are judged with it."""
    from benchmarks import ablations
    from benchmarks.ablations import CAPTIONS, measure, settings, train

    monkeypatch.setattr(ablations, "settings", lambda change, seed: settings(change, seed) | {"data.pool": 200})
    monkeypatch.setattr(ablations, "DRAWN", 2)
    base = train("as it is", 0, 2 / 8500, tmp_path / "base")
    assert base[0].preset.data.fold and sorted(base[2]) == ["clip", "dvae", "transformer"]
    models, codes, seconds = train("transformer: causal masks", 0, 2 / 8500, tmp_path / "other", base)
    assert list(seconds) == ["transformer"] and models.preset.transformer.masks == "causal"
    assert models.dvae is base[0].dvae and models.clip is base[0].clip and codes is base[1]
    assert models.dalle.config.masks == "causal" and base[0].dalle.config.masks == "dalle"
    assert train("dVAE: 32 codes", 0, 2 / 8500, tmp_path / "third", base)[0].clip is None
    figures = measure(models)
    assert {len(values) for values in figures.values()} == {CAPTIONS, CAPTIONS * 2}
    again = train("as it is", 0, 2 / 8500, tmp_path / "base")  # from its folder
    assert again[2] == base[2] and measure(again[0]) == measure(base[0])
