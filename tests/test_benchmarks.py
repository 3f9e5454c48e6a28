"""What the benchmarks print is what they measured: ratios within a turn, the table, the chart, the fair start."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
    from benchmarks.ablations import FIGURES, table

    def line(change, seed, share, **seconds):
        return {
            "change": change,
            "seed": seed,
            "seconds": seconds,
            **{f: [1] * share + [0] * (20 - share) for f in FIGURES},
        }

    lines = [line("as it is", 1, 10, dvae=70, transformer=30), line("as it is", 2, 20, dvae=70, transformer=50)]
    lines += [
        line("transformer: causal masks", 1, 13, transformer=15),
        line("transformer: causal masks", 2, 19, transformer=45),
    ]
    lines += [line("transformer: causal masks", 3, 0, transformer=9)]  # has nothing beside it
    lines += [line("drawing: no guidance", 1, 2), line("drawing: no guidance", 2, 12)]
    lines += [line("CLIP: no hard negatives", 1, 10, clip=5)]
    lines[0]["seconds"]["clip"] = lines[1]["seconds"]["clip"] = 10
    _, _, base, masks, drawing, clip = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table(lines))
    assert base[:2] == ["as it is", "0.750 (0.500, 1.000)"] and base[-2:] == ["120", "1, 2"]
    # differences .15 and −.05, variance .02; −.4 and −.4, variance 0: pooled .01, of two seeds 2 · √(.01 / 2) = .141
    assert masks == [
        "transformer: causal masks",
        "+0.050 ± 0.141",
        "+0.050 ± 0.141",
        "",
        "+0.050 ± 0.141",
        "",
        "× 0.70 (0.50–0.90)",
        "1, 2",
    ]
    assert drawing == ["drawing: no guidance", "−0.400 ± 0.141", "−0.400 ± 0.141", "", "−0.400 ± 0.141", "", "", "1, 2"]
    assert clip == ["CLIP: no hard negatives", "", "", "", "+0.000", "+0.000", "× 0.50", "1"]


@pytest.fixture
def short(side_by_side, monkeypatch):
    """The ablations with 200 pictures to learn from and two drawings of a caption."""
    from benchmarks import ablations

    settings = ablations.settings
    monkeypatch.setattr(ablations, "settings", lambda change, seed: settings(change, seed) | {"data.pool": 200})
    monkeypatch.setattr(ablations, "DRAWN", 2)
    return ablations


BUDGET = 2 / 8500  # two updates of the dVAE, one of the others


def test_an_ablation_trains_what_it_concerns_and_keeps_the_rest(short, tmp_path):
    base = short.train("as it is", 2, BUDGET, tmp_path / "base")
    assert base[0].preset.data.fold == 2 and sorted(base[2]) == ["clip", "dvae", "transformer"]
    models, codes, seconds = short.train("transformer: causal masks", 2, BUDGET, tmp_path / "other", base)
    assert list(seconds) == ["transformer"] and models.preset.transformer.masks == "causal"
    assert models.dvae is base[0].dvae and models.clip is base[0].clip and codes is base[1]
    assert models.dalle.config.masks == "causal" and base[0].dalle.config.masks == "dalle"
    drawn = short.train("drawing: no guidance", 2, BUDGET, tmp_path / "third", base)[0]
    assert drawn.dalle is base[0].dalle and drawn.preset.sample.guidance == 1
    assert short.train("dVAE: 32 codes", 2, BUDGET, tmp_path / "fourth")[0].clip is None
    again = short.train("as it is", 2, BUDGET, tmp_path / "base")  # from its folder
    assert short.measure(again[0]) == short.measure(base[0])


def test_figures_belong_to_their_captions(short, monkeypatch):
    """Of the fold's captions the third is drawn right, the second time only; CLIP knows, and finds only the fifth."""
    from minidalle.data import shapes

    captions = shapes.captions("pairs", 1) + shapes.captions("tuning", 1)
    texts = captions * 2

    class Models:
        preset = type("P", (), {"data": type("D", (), {"fold": 1, "width": 24})})
        device = torch.device("cpu")

        def draw(self, asked, seeds):
            assert asked == texts and list(seeds) == list(range(len(texts)))
            wrong = captions[1:] + captions[:1]
            return (
                shapes.draw(
                    [c if k == 48 + 2 else wrong[k % 48] for k, c in enumerate(texts)], np.random.default_rng(0)
                )
                / 255
            )

        def reconstruct(self, images):
            return images / 255

        def text(self, some):
            return torch.tensor([[captions.index(c) if c in captions else 99] for c in some])

        class clip:
            @staticmethod
            def rank(text, images):
                assert len(images) == 2
                return torch.tensor([0.0, 1.0])

            @staticmethod
            def encode_text(text):
                return torch.nn.functional.one_hot(text[:, 0], 100).float()

            @staticmethod
            def encode_image(images):
                return torch.nn.functional.one_hot(torch.full((len(images),), 4), 100).float()

    found = short.measure(Models())
    assert (
        [k for k, value in enumerate(found["right"]) if value] == [50] == [k for k, v in enumerate(found["clean"]) if v]
    )
    assert found["rebuilt"] == [1] * 96 and [k for k, value in enumerate(found["best of 16"]) if value] == [2]
    assert [k for k, value in enumerate(found["CLIP"]) if value] == [4, 52]


def test_ablations_go_on_where_they_stopped_and_refuse_a_log_of_other_settings(short, tmp_path, capsys, monkeypatch):
    chosen = ["drawing: no guidance", "drawing: from all codes"]
    short.compare(chosen[:1], [1], BUDGET, tmp_path / "a")
    log = tmp_path / "a" / "log.jsonl"
    first = log.read_text()
    assert [json.loads(line)["change"] for line in first.splitlines()] == ["as it is", chosen[0]]
    replace = os.replace
    with monkeypatch.context() as broken:  # a kill while the next line is written
        broken.setattr(os, "replace", lambda a, b: 1 / 0 if b == log else replace(a, b))
        with pytest.raises(ZeroDivisionError):
            short.compare(chosen, [1], BUDGET, tmp_path / "a")
    assert log.read_text() == first
    short.compare(chosen, [1], BUDGET, tmp_path / "a")
    assert log.read_text().startswith(first) and len(log.read_text().splitlines()) == 3
    capsys.readouterr()
    monkeypatch.setattr(short, "train", None)  # nothing is left to train
    short.compare(chosen, [1], BUDGET, tmp_path / "a")
    assert capsys.readouterr().out.count("| drawing: ") == 2
    with pytest.raises(ValueError, match="holds 'as it is' with other settings"):
        short.compare(chosen, [1], 2 * BUDGET, tmp_path / "a")


def test_operations_and_bytes_of_a_plan_by_hand(side_by_side):
    from benchmarks.small import counted

    linear = torch.nn.Linear(8, 4, bias=False)

    def loss_of(n):
        return (linear(torch.ones(n, 8)).sum() + 3 * linear.weight.sum()), linear

    # forward and the weight's gradient, 2 · n · 8 · 4 each; kept are the n · 8 inputs of 4 bytes, and no weights
    assert counted(loss_of, 1) == (128, 32) and counted(loss_of, 5) == (640, 160)


def test_a_plan_counts_the_preset_that_it_is_asked_for(side_by_side):
    from benchmarks.small import stages
    from minidalle.config import load_preset

    preset = load_preset("small", overrides={"data.height": 16, "data.width": 16, "data.vocab_size": 300,
                                             "transformer.text_len": 8, "transformer.n_layer": 2})  # fmt: skip
    (_, dvae, _), (stage, dalle, loss_of), (_, clip, _) = stages(preset).values()
    assert (dalle.config.n_image, dalle.config.vocab_size, dalle.config.codebook_size) == (4, 300, 2048)
    assert stage is preset.train.transformer and dvae.config == preset.dvae and clip.config.context == 8
    assert loss_of(2)[0].isfinite() and loss_of(2)[1] is dalle


def test_what_happens_to_pictures_is_what_the_table_says(side_by_side, tmp_path):
    import io

    from PIL import Image

    from benchmarks.survives import CHANGES, share, smooth, stripes
    from minidalle.studio import provenance

    assert share(0, 10) == "0.000 (0.000–0.278)" and share(10, 10) == "1.000 (0.722–1.000)"  # z² / (n + z²)
    assert share(5, 10) == "0.500 (0.237–0.763)"
    provenance.save(tmp_path / "a.png", torch.rand(3, 32, 32), {}, upscale=2)  # 64 x 72
    with Image.open(tmp_path / "a.png") as image:
        changed = {name: Image.open(io.BytesIO(change(image))) for name, change in CHANGES.items()}
        pixels = np.asarray(image).astype(int)
    other = {"resized × 0.5": (32, 36), "resized × 1.5": (96, 108), "resized × 2": (128, 144), "the strip cropped off": (64, 64),
             "5 % cropped off each side": (58, 64), "the same, cut out exactly": (80, 90),
             "a screenshot with the desktop around it": (360, 380)}  # fmt: skip
    assert {name: p.size for name, p in changed.items() if p.size != (64, 72)} == other
    kept = {name for name, p in changed.items() if "minidalle" in p.info}
    assert kept == {"nothing", "one pixel changed"}
    wrong = {
        name: np.abs(np.asarray(p.convert("RGB")) - pixels).sum() for name, p in changed.items() if name not in other
    }
    assert (
        wrong["nothing"] == wrong["saved as PNG by a program that drops metadata"] == 0
        and wrong["one pixel changed"] == 1
    )
    assert 0 < wrong["JPEG, quality 95"] < wrong["JPEG, quality 75"] < wrong["JPEG, quality 25"]
    rng = np.random.default_rng(0)
    assert smooth(rng, 17).shape == (17, 17, 3) and stripes(rng).shape == (144, 128, 3)


def test_what_is_kept_is_counted_in_the_drawings_themselves(side_by_side, tmp_path, capsys, monkeypatch):
    from benchmarks.studio import print_kept, work
    from minidalle.studio.draw import LoadedRun

    run = LoadedRun(Path("lessons/weights"), "cpu")
    print_kept(run, 8, tmp_path)
    assert "edit: 256 of 256 kept codes are as they were, in 8 drawings" in capsys.readouterr().out  # 4 rows of 8
    real = run.draw
    monkeypatch.setattr(run, "draw", lambda *a: (real(*a) + 1) % 64)
    print_kept(run, 8, tmp_path)
    assert "edit: 0 of 256 kept codes" in capsys.readouterr().out
    work("lessons/weights", 2, str(tmp_path / "out"))
    took = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        took["seconds"] > 0
        and 0 < 128 / took["tokens/s"] < took["seconds"]
        and len([*(tmp_path / "out").iterdir()]) == 3
    )


def test_the_classifier_of_names_is_judged_by_other_pictures_than_it_knows(side_by_side):
    from benchmarks.names import chosen_drawings, real_pictures
    from minidalle.data import openmoji

    parts = chosen_drawings(0), chosen_drawings(1)
    assert [len({d.family for d in part}) for part in parts] == [64, 64] and not {*parts[0]} & {*parts[1]}
    assert all(openmoji.split_of(d.family) == "train" for part in parts for d in part)
    (known, names), (new, again) = real_pictures(parts[0][:3], (20, 4), 32, 0)
    assert known.shape == (60, 3, 64, 32) and names.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert again.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    flat = [*known.flatten(1).tolist(), *new.flatten(1).tolist()]
    assert len({tuple(picture) for picture in flat}) == 72
