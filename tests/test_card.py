"""The model card: every figure in it is the record's, what is missing is said, and what its author wrote stays."""

import json
import re
import shutil
from pathlib import Path

import pytest

from minidalle.__main__ import main
from minidalle.checkpoint import fingerprint, load_clip, load_run, save_model
from minidalle.evaluate import LABELS, UNSEEN
from minidalle.studio import card

WEIGHTS = Path(__file__).parent.parent / "lessons" / "weights"


def change(path: Path, **values):
    """Other values of a JSON file; keys such as preset__data__name."""
    record = json.loads(path.read_text())
    for key, value in values.items():
        *groups, last = key.split("__")
        inner = record
        for group in groups:
            inner = inner[group]
        inner[last] = value
    path.write_text(json.dumps(record))


@pytest.fixture
def run(tmp_path):
    """The small run of the lessons, with all that a run may record."""
    shutil.copytree(WEIGHTS, tmp_path / "run")
    lines = [
        {"stage": "dvae", "step": 1, "loss": 0.7, "seconds": 0.1},
        {"stage": "dvae", "step": 7000, "loss": 0.36271, "seconds": 241.378},
        {"stage": "transformer", "step": 1900, "loss": 1234.5678, "seconds": 69.04},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "cl'
    )
    race = {
        "goal": 0.9,
        "reached": True,
        "tuning": 0.91015625,
        "updates": 1900,
        "seconds": 225.8,
        "cpu_seconds": 448.0,
        "looks": [],
    }
    splits = {"train": 30000, "tuning": 12, "pairs": 345}
    change(
        tmp_path / "run" / "results.json",
        race=race,
        splits=splits,
        filter={"kept": 1234, "too short": 5, "unusable": 0},
    )
    change(tmp_path / "run" / "config.json", preset__edit__top_p=0.4, preset__edit__top_k=12)
    change(tmp_path / "run" / "results.json", editing__top_p=0.4, editing__top_k=12)
    return tmp_path / "run"


def written(run: Path) -> str:
    return card.write(run).read_text(encoding="utf-8")


def tables(text: str) -> list[tuple[list[str], list[list[str]]]]:
    """(head, rows) of all tables."""
    found = []
    for lines in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        head, sides, *rows = [
            [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines.strip().split("\n")
        ]
        assert all(len(row) == len(head) for row in rows) and all(re.fullmatch("---:?", side) for side in sides)
        found.append((head, rows))
    return found


def number(text: str) -> float:
    return float(text.replace(",", ""))


def rows_of(text: str, *head: str) -> list[list[str]]:
    (rows,) = [rows for h, rows in tables(text) if h == [*head]]
    return rows


def test_every_figure_of_the_results_is_the_records(run):
    text, record = written(run), json.loads((run / "results.json").read_text())
    rows = rows_of(text, "figure", "value", "low", "high", "n", "what it is")
    assert [row[0] for row in rows] == [f"`{name}`" for name in record["results"]]
    for row, x in zip(rows, record["results"].values()):
        counted = row[0] in ("`codes_used`", "`perplexity`")
        assert abs(number(row[1]) - x["value"]) <= 0.0005 and number(row[4]) == x["n"] and row[5]
        if counted:
            assert row[2:4] == ["", ""]
        else:
            assert abs(number(row[2]) - x["low"]) <= 0.0005 and abs(number(row[3]) - x["high"]) <= 0.0005
    pairs, clean = record["results"]["pairs"], record["results"]["pairs_clean"]
    assert f"{pairs['value']:.3f} are right (95 % interval {pairs['low']:.3f} to {pairs['high']:.3f})" in text
    assert f"cleanly drawn are {clean['value']:.3f} of them ({clean['low']:.3f} to {clean['high']:.3f})" in text
    assert [{k: number(v) for k, v in zip(h, rows[0])} for h, rows in tables(text) if h == [*record["seconds"]]] == [
        record["seconds"]
    ]
    assert {k: number(v) for k, v in rows_of(text, "split", "pictures")} == record["splits"]
    assert {k: number(v) for k, v in rows_of(text, "what it did", "pictures")} == record["filter"]
    assert {k: number(v) for k, v, _ in rows_of(text, "setting", "drawing", "editing")} == record["sampling"]
    assert {k: number(v) for k, _, v in rows_of(text, "setting", "drawing", "editing")} == record["editing"]
    for words in (
        "race to 0.900",
        "reached, with 0.910 after 1,900",
        "225.8 seconds and 448.0 CPU seconds",
        "2 threads",
        "torch 2.13.0+cpu",
    ):
        assert words in text, words
    assert rows_of(text, "stage", "updates", "planned", "batch", "last loss, nats", "seconds") == [
        ["dvae", "7,000", "7,000", "32", "0.363", "241.4"], ["transformer", "1,900", "7,000", "32", "1234.568", "69.0"],
    ]  # fmt: skip
    assert (
        "training of the transformer ended after 1,900 of 7,000 updates" in text and "training of the dvae" not in text
    )


def test_parameters_and_hashes_are_those_of_the_models(run):
    text = written(run)
    _, bpe, dvae, dalle = load_run(run)
    clip = load_clip(run)[1]
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    heads = (dalle.ln_f, dalle.text_head, dalle.image_head)
    expected = [
        count(dvae.encoder), count(dvae.decoder), count(dalle.embed), count(dalle.blocks), sum(map(count, heads)),
        count(clip.visual), count(clip) - count(clip.visual), count(dvae) + count(dalle) + count(clip),
    ]  # fmt: skip
    assert [number(row[2]) for row in rows_of(text, "model", "part", "parameters")] == expected
    files = {row[0].strip("`"): row[1:] for row in rows_of(text, "file", "bytes", "stored as", "SHA-256")}
    for name, model in (("dvae", dvae), ("transformer", dalle), ("clip", clip)):
        size, stored, digest = files[f"{name}.safetensors"]
        assert number(size) == (run / f"{name}.safetensors").stat().st_size and stored == "F16"
        assert digest == f"`{fingerprint(model.state_dict())}`"  # for the transformer, what a picture's metadata name
    assert files["bpe.json"][2] == f"`{bpe.hash}`" and "stored in 16 bits" in text
    facts = dict(row for head, rows in tables(text) if head == ["", ""] for row in rows)
    c = dalle.config
    assert facts["transformer"] == f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}"
    assert facts["positions"] == f"{c.text_len} of text and {c.rows * c.grid} of codes"
    assert facts["their codes, across × down"] == f"{c.grid} × {c.rows}, each one of {c.codebook_size}"
    assert number(facts["text vocabulary"]) == len(bpe) and facts["pictures, width × height"] == "32 × 32 pixels"


def test_what_the_author_wrote_stays_to_the_letter_and_the_rest_is_written_anew(run):
    text = written(run)
    assert text.count("TO FILL IN BY THE AUTHOR") == 3 and written(run) == text
    for title in ("Intended use", "Misuse", "Bias"):
        (section,) = re.findall(
            rf"## {title}\n<!-- author: {title.lower()} -->\n(.*?)<!-- end of author -->", text, re.DOTALL
        )
        assert "TO FILL IN BY THE AUTHOR" in section and len(re.findall(r"^> - .*\?$", section, re.MULTILINE)) == 2
    mine = "For **lessons**; \\1 | 漢字 🦊\n\n- a list\n\n```\ncode\n```\n  "
    filled = re.sub(r"(<!-- author: misuse -->\n).*?(<!-- end)", lambda m: m[1] + mine + m[2], text, flags=re.DOTALL)
    more = filled + "\n<!-- author: thanks -->\nto all\n<!-- end of author -->\n"
    (run / "model_card.md").write_text(more.replace("0.862", "0.999"), encoding="utf-8")
    change(run / "results.json", results__seen__value=0.5)
    again = written(run)
    assert f"<!-- author: misuse -->\n{mine}<!-- end of author -->" in again and again.count("TO FILL IN") == 2
    assert "<!-- author: thanks -->\nto all\n<!-- end of author -->" in again
    assert "0.999" not in again and "| `seen` | 0.500 |" in again and written(run) == again


def test_an_emptied_section_asks_again(run):
    text = re.sub(r"(<!-- author: bias -->\n).*?(<!-- end)", r"\1\n\2", written(run), flags=re.DOTALL)
    (run / "model_card.md").write_text(text, encoding="utf-8")
    assert written(run).count("TO FILL IN") == 3


@pytest.mark.parametrize("damage", [
    lambda text: "# my own card\n", lambda text: text.replace("<!-- end of author -->", "", 1),
    lambda text: text.replace("<!-- author: bias -->", ""), lambda text: text.replace("author: bias", "author: misuse"),
])  # fmt: skip
def test_a_card_whose_comments_are_gone_is_left_alone(run, capsys, damage):
    text = damage(written(run))
    (run / "model_card.md").write_text(text, encoding="utf-8")
    assert refused(run, capsys, "comments around its author's sections are not")
    assert (run / "model_card.md").read_text(encoding="utf-8") == text


def test_what_is_not_recorded_is_said(run):
    for name in (
        "results.json",
        "metrics.jsonl",
        "bpe.json",
        "dvae.safetensors",
        "transformer.safetensors",
        "clip.safetensors",
    ):
        (run / name).unlink()
    text = written(run)
    for words in (
        "Not in this folder: `dvae.safetensors`, `transformer.safetensors`, `clip.safetensors`", "No metrics are recorded here",
        "Machine and versions are not recorded here", "sizes of the splits are not recorded here", "Results\n**Not recorded in this folder",
        "| text vocabulary | not recorded here |",
    ):  # fmt: skip
        assert words in text, words
    assert "MIT licence" in text and text.count("TO FILL IN") == 3


def test_a_race_has_no_clip(run):
    (run / "clip.safetensors").unlink()
    text = written(run)
    assert "Not in this folder: `clip.safetensors`" in text and "CLIP ranks" not in text and "A race to" in text


def test_a_sharded_run(run):
    (run / "results.json").unlink()
    names = [f"shard-{k:05d}|x.tar" for k in range(9)]
    change(
        run / "config.json",
        preset__data__name="shards",
        preset__data__folder="s-{0..8}.tar",
        shards=names,
        dvae="0" * 64,
    )
    text = written(run)
    assert (
        "There are 9: shard-00000\\|x.tar" in text
        and "shard-00007\\|x.tar, …." in text
        and "Nothing is held out" in text
    )
    assert text.count("TO FILL IN") == 4 and "## Data and rights" in text and "budget" in text


def test_a_folder_run_and_openmoji(run):
    change(
        run / "config.json",
        preset__data__name="folder",
        preset__data__folder="/home/me/<b>private</b>",
        preset__data__filter=True,
    )
    text = written(run)
    assert "/home/me" not in text and "captions filter was on:" in text and "## Data and rights" in text
    record = json.loads((run / "results.json").read_text())
    del record["filter"]
    (run / "results.json").write_text(json.dumps(record))
    assert "filter was on; what it did is not recorded here" in written(run)
    change(run / "config.json", preset__data__filter=False)
    assert "filter was off" in written(run)
    change(run / "config.json", preset__data__name="openmoji")
    text = written(run)
    assert (
        "https://openmoji.org" in text
        and "https://creativecommons.org/licenses/by-sa/4.0/" in text
        and "attribution" in text
    )
    assert "filter" not in text.split("## Data\n")[1].split("\n## ")[0]


def test_a_weak_clip_and_few_captions_are_said(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"stage": "clip", "step": 800, "loss": 3.45, "seconds": 21, "accuracy": 0.109375}\n')
    assert refused_text(run)  # the line before was cut off in the middle of the file
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    change(run / "results.json", results__completed__n=4)
    text = written(run)
    assert (
        "CLIP found the captions of 0.109 of its last 64" in text
        and "Few captions or pictures stand behind `completed` (4)" in text
    )


def test_every_kind_of_data_and_figure_has_its_words():
    assert {*UNSEEN, "shards"} == {*card.KINDS}
    for name in json.loads((WEIGHTS / "results.json").read_text())["results"]:
        assert card.meaning(name), name
    assert {*LABELS} - {"train"} <= {word.strip("`(),") for kind in card.KINDS.values() for word in kind[1].split()}


# --- bad input -----------------------------------------------------------------------------------------------------


def refused_text(run) -> str:
    with pytest.raises(ValueError) as error:
        card.write(run)
    return str(error.value)


def refused(run, capsys, sentence: str) -> bool:
    with pytest.raises(SystemExit) as stop:
        main(["card", "--run", str(run)])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.err.count("\n") == 1 and printed.out == "", printed
    assert sentence in printed.err, printed.err
    return True


def test_no_run_folder(tmp_path, capsys):
    assert refused(tmp_path / "nowhere", capsys, "is") and not (tmp_path / "nowhere").exists()
    assert refused(tmp_path, capsys, "config.json does not exist")


@pytest.mark.parametrize("name, content, sentence", [
    ("config.json", "{", "is not JSON"), ("config.json", "[]", "names no preset"), ("config.json", '{"preset": {}}', "not as this version"),
    ("config.json", '{"preset": {"colour": 1}, "seed": 0}', "another version"), ("results.json", "{", "is not JSON"),
    ("results.json", "[]", "results.json is not as a run writes it"), ("results.json", '{"results": {"seen": {}}}', "not as this version"),
    ("results.json", '{"results": {"seen": {"value": "high", "low": 0, "high": 1, "n": 5}}}', "not as this version"),
    ("metrics.jsonl", "{\n{}\n", "line 1 is no record"), ("metrics.jsonl", '{"stage": "gan"}\n', "is no record of an update"),
    ("dvae.safetensors", "half", "not a whole safetensors file"), ("bpe.json", "{}", ""), ("model_card.md", b"\xff\xfe", "UTF-8"),
])  # fmt: skip
def test_damaged_records_are_one_sentence(run, capsys, name, content, sentence):
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(run, capsys, sentence)
    assert name == "model_card.md" or not (run / "model_card.md").exists()


def test_weights_of_another_run_are_one_sentence(run, capsys):
    _, _, dvae, _ = load_run(run)
    tensors = {key: value + 1 if value.is_floating_point() else value for key, value in dvae.state_dict().items()}
    save_model(run / "dvae.safetensors", dvae, tensors)
    assert refused(run, capsys, "was trained with another dvae")


def test_the_verb_says_where_it_is(run, capsys):
    main(["card", "--run", str(run)])
    assert capsys.readouterr().out == f"{run / 'model_card.md'}: 3 sections are left for its author to fill in\n"
