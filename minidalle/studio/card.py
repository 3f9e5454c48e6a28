"""The model card of a run, `model_card.md`: what was trained on what, what it reaches, and what only its author can say.

Enters: a run folder. Leaves: a page in Markdown. Every figure in it is read from the run's own records (`records.py`), and
what is not recorded is said to be missing.

What records cannot tell (what the model is for, whom it may harm) stands in sections for the author, between two comments:

    <!-- author: misuse -->  …  <!-- end of author -->

These are kept, to the letter, when the card is written again; all the rest is written anew.

Why: "Model Cards for Model Reporting" (Mitchell et al. 2019) asks for such a page; DALL-E's released dVAE came with a short
one. All of this is O.
"""

import argparse
import re
from pathlib import Path

from minidalle.checkpoint import replacing
from minidalle.studio.records import CLASSES, Records, read

FILE = "model_card.md"
NUMBER = re.compile(r"-?[\d,]*\.?\d*")  # or nothing
AUTHOR = re.compile(r"<!-- author: ([^\n]*?) -->\n(.*?)<!-- end of author -->", re.DOTALL)
HEAD = (
    "<!-- Written by `python -m minidalle card` from the records of this folder. Running it again keeps what stands between "
    "the comments `author` and `end of author`, and writes all the rest anew. -->"
)

MIT = "The pictures are drawn by the code itself, under its licence: nobody else's rights attach to them, and no person is in them."
OPENMOJI = (
    "The emoji are by the [OpenMoji](https://openmoji.org) project, under "
    "[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/). Changes made: rendered small; line art made by leaving "
    "out all colours but black; encoded, decoded and drawn by this model. The same attribution goes with these weights, and with "
    "pictures drawn with them."
)
THEIRS = "The pictures and captions are the author's, or others': see \"Data and rights\" below."
KINDS = {  # data -> (in a few words, what the pictures and captions are, whose they are, a caption to begin with)
    "shapes": (
        "drawn shapes", "One shape each, drawn by rules; captions: a photo|sketch of a small|large COLOUR SHAPE [on black], in "
        "six colours and four shapes. Held out: whole combinations of colour and shape (`pairs`, and `tuning`, on which choices "
        "were made), and a tenth of the other captions (`captions`).", MIT, "a photo of a large red circle",
    ),
    "scenes": (
        "drawn scenes", "Two shapes each, drawn by rules; captions say their colours, shapes and where they are, or that one is a "
        "sketch of the other. Held out: whole combinations of colour and shape (`pairs`, and `tuning`, on which choices were "
        "made), and a tenth of the other captions (`captions`).", MIT, "a photo of a red circle above a blue square",
    ),
    "openmoji": (
        "emoji and their line art", "Emoji, drawn from OpenMoji's font, above their line art; captions: the exact same NAME on the top as a sketch on the "
        "bottom. Held out: whole families of emoji (`families`, and `tuning`, on which choices were made).", OPENMOJI,
        "the exact same fox on the top as a sketch on the bottom",
    ),
    "folder": (
        "a folder of pictures", "Pictures and captions of the author's choice. Held out: about a tenth of the pictures "
        "(`held_out`), of which near copies may have been learned.", THEIRS, "CAPTION",
    ),
    "shards": (
        "tar shards", "Pictures and captions in tar shards. Nothing is held out: `train` reads all of them.", THEIRS, "CAPTION",
    ),
}  # fmt: skip
FIGURES = {  # of results.json, as evaluate.py defines them
    "psnr": "held-out pictures through the dVAE and back, in dB",
    "reconstruction": "held-out pictures through the dVAE and back: right",
    "codes_used": "codes that held-out pictures use", "perplexity": "the same, weighed by how often each is used",
    "seen": "drawn from captions that were trained on: right", "captions": "drawn from held-out captions: right",
    "pairs": "drawn from held-out combinations: right", "tuning": "drawn from the split that choices were made on: right",
    "completed": "the sketch drawn below a held-out photo: right",
    "line_iou": "lines drawn below an unseen emoji, agreement with the artist's",
    "dvae_bound": "lines of the dVAE's reconstruction, agreement", "chance": "lines of another emoji, agreement",
    "captions_best_of_16": "held-out captions, of 16 drawings the one that CLIP prefers: right",
    "captions_mean_of_16": "held-out captions, all 16 drawings: right", "captions_gain_of_16": "held-out captions, the difference",
    "pairs_best_of_16": "held-out combinations, of 16 drawings the one that CLIP prefers: right",
    "pairs_mean_of_16": "held-out combinations, all 16 drawings: right", "pairs_gain_of_16": "held-out combinations, the difference",
    "clip_seen": "new pictures of trained captions that find their own among 128",
    "clip_captions": "pictures of held-out captions that find their own among 128",
    "clip_pairs": "pictures of held-out combinations that find their own among 128",
    "clip_seen_swap": "own caption preferred to the one with objects swapped, trained captions",
    "clip_captions_swap": "own caption preferred to the one with objects swapped, held-out captions",
    "clip_pairs_swap": "own caption preferred to the one with objects swapped, held-out combinations",
}  # fmt: skip
ALSO = {"_clean": ", and cleanly drawn", "_1px": ", up to a pixel's distance"}  # endings of their names
COUNTED = ("codes_used", "perplexity")  # without an interval
LIMITS = {  # a sentence for each figure that a run has
    "psnr": "A picture comes back from its codes with {value:.3f} dB: what is lost there, no drawing can show.",
    "pairs": "Of its drawings of combinations never seen together {value:.3f} are right (95 % interval {low:.3f} to {high:.3f}); "
    "the others do not show what the caption says.",
    "pairs_clean": "Right and cleanly drawn are {value:.3f} of them ({low:.3f} to {high:.3f}).",
    "line_iou": "The lines that it draws below an emoji of a family never seen agree with the artist's by {value:.3f} "
    "({low:.3f} to {high:.3f}) of 1.",
}  # fmt: skip
QUESTIONS = {  # sections for the author: title -> two questions
    "Intended use": ("What is this model for, and who is meant to use it?", "Which uses are out of scope, even if they work?"),
    "Misuse": (
        "How could its pictures deceive, harass or harm somebody, and how easily?",
        "What is done against it (access, terms, the mark below each picture, filters), and where are complaints to be sent?",
    ),
    "Bias": (
        "Who and what is in the pictures and captions too often, too rarely or only in one role, and what did the filter change?",
        "For which captions was this looked for in its drawings, and what was found?",
    ),
    "Data and rights": (
        "Where do the pictures and captions come from, under which licence, and did the people in them agree?",
        "May the weights and drawings be passed on, under which licence, and whom do they have to name?",
    ),
}  # fmt: skip

# --- the page ------------------------------------------------------------------------------------------------------


def write(run: Path) -> Path:
    """Write RUN/model_card.md, keeping what its author wrote; returns its path. Raises ValueError as `read` does, and where
    the file that is there has lost its comments, so that the author's text cannot be told from ours."""
    path = Path(run) / FILE
    kept = author_sections(path)
    records = read(run)
    try:
        sections = [about(records), parts(records), data(records), training(records), results(records), limits(records)]
        sections += [use(records), licences(records)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the records in {run} are not as this version writes them ({error!r}): restore them"
        ) from None
    for title, questions in QUESTIONS.items():
        if title != "Data and rights" or records.preset.data.name in ("folder", "shards"):
            text = kept.pop(title.lower(), "")
            sections.append(f"## {title}\n{block(title, text if text.strip() else to_fill_in(questions))}")
    sections += [block(title, text) for title, text in kept.items()]  # whatever else the author has marked as theirs
    with replacing(path) as aside:
        aside.write_text("\n\n".join([HEAD, *sections]) + "\n", encoding="utf-8")
    return path


def author_sections(path: Path) -> dict[str, str]:
    """What the author wrote, by section; nothing if there is no card yet."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(
            f"{path} is there and cannot be read as UTF-8: move it away, and the card is written anew"
        ) from None
    found = AUTHOR.findall(text)
    marks = {text.count("<!-- author: "), text.count("<!-- end of author -->"), len(found), len(dict(found))}
    if marks == {0} or len(marks) > 1:  # none, or some without their counterparts or twice
        raise ValueError(
            f"{path} is there, but the comments around its author's sections are not: put back '<!-- author: … -->' and "
            "'<!-- end of author -->', or move the file away"
        )
    return dict(found)


def block(title: str, text: str) -> str:
    return f"<!-- author: {title.lower()} -->\n{text}<!-- end of author -->"


def to_fill_in(questions: tuple[str, str]) -> str:
    return "> **TO FILL IN BY THE AUTHOR:**\n" + "".join(f"> - {question}\n" for question in questions)


def table(head: tuple, rows: list[tuple]) -> str:
    """A table in Markdown, columns of numbers to the right."""
    columns = list(zip(*[map(cell, row) for row in rows]))
    sides = ["---:" if all(NUMBER.fullmatch(text) for text in column) else "---" for column in columns]
    lines = [map(plain, head), sides, *zip(*columns)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value) -> str:
    """Whole numbers with commas, others to three places."""
    return f"{round(value, 3):,}" if isinstance(value, (int, float)) else plain(value)


def three(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def plain(value) -> str:
    """Of a record, such as a folder's name, nothing that Markdown would read as its own."""
    return re.sub(r"([|<>])", r"\\\1", " ".join(str(value).split()))


# --- its sections --------------------------------------------------------------------------------------------------


def about(r: Records) -> str:
    size, step = r.preset.data, r.preset.dvae.downsample
    across, down = size.width // step, size.height // step
    rows = [
        ("preset", r.preset.name),
        ("pictures, width × height", f"{size.width} × {size.height} pixels"),
        ("their codes, across × down", f"{across} × {down}, each one of {r.preset.dvae.codebook_size:,}"),
        ("text vocabulary", len(r.bpe) if r.bpe else "not recorded here"),
    ]
    if "transformer" in r.weights:
        c = r.weights["transformer"].config
        rows.append(("positions", f"{c.text_len} of text and {c.n_image} of codes"))
        rows.append(("transformer", f"{c.n_layer} layers, {c.n_head} heads, width {c.n_embd}"))
    known = {"seed": r.config["seed"], "budget": r.config.get("budget"), "date": r.results.get("date")}
    rows += [(name, value) for name, value in known.items() if value is not None]
    ranks = "; CLIP ranks the drawings" if "clip" in r.weights else ""
    return (
        f"# Model card: minidalle, trained on {KINDS[size.name][0]}\n\nA DALL-E (v1): a transformer continues a caption with the "
        f"codes of a picture, and a dVAE paints them{ranks}.\n\n{table(('', ''), rows)}"
    )


def parts(r: Records) -> str:
    counts = [(name, part, n) for name, w in r.weights.items() for part, n in w.parameters.items()]
    counts += [("all", "", sum(n for _, _, n in counts))]
    files = [(f"`{name}.safetensors`", w.size, w.stored, f"`{w.sha256}`") for name, w in r.weights.items()]
    files += [("`bpe.json`", "", "", f"`{r.bpe.hash}`")] if r.bpe else []
    missing = [f"`{name}.safetensors`" for name in CLASSES if name not in r.weights]
    without = f"Not in this folder: {', '.join(missing)}.\n\n" if missing else ""
    return (
        f"## Models\n{without}{table(('model', 'part', 'parameters'), counts)}\n\nThe hashes below are of names, shapes and values "
        "(of `bpe.json`, of its merges). A picture names that of the transformer which drew it.\n\n"
        f"{table(('file', 'bytes', 'stored as', 'SHA-256'), files)}"
    )


def data(r: Records) -> str:
    settings, text = r.preset.data, KINDS[r.preset.data.name][1]
    if settings.name == "shards":
        names = r.config["shards"]
        text += f" There are {len(names)}: {plain(', '.join(names[:8]))}{', …' if len(names) > 8 else ''}."
        return f"## Data\n{text} Whether their captions were filtered is not recorded here."
    crops = ", each a random crop of one that is not held out" if settings.name == "folder" else ""
    text += f" The training pool holds {settings.pool:,} pictures{crops}."
    if settings.name == "folder" and "filter" not in r.results:
        text += f" The captions filter was {'on; what it did is not recorded here' if settings.filter else 'off'}."
    if "splits" in r.results:
        text += "\n\n" + table(("split", "pictures"), list(r.results["splits"].items()))
    else:
        text += " The sizes of the splits are not recorded here."
    if counts := r.results.get("filter"):
        with_list = ", with a blocklist" if settings.blocklist else ""
        text += (
            f"\n\nThe captions filter was on{with_list}:\n\n{table(('what it did', 'pictures'), list(counts.items()))}"
        )
    return f"## Data\n{text}"


def training(r: Records) -> str:
    text = "No metrics are recorded here."
    if r.last:
        planned = {name: getattr(r.preset.train, name) for name in r.last}
        head = ("stage", "updates", "planned", "batch", "last loss, nats", "seconds")
        text = table(head, [
            (name, m["step"], planned[name].updates, planned[name].batch_size, three(m["loss"]) if m["loss"] is not None else "no number", round(m["seconds"], 1))
            for name, m in r.last.items()
        ])  # fmt: skip
    if seconds := r.results.get("seconds"):
        text += f"\n\nSeconds in all, by part:\n\n{table(tuple(seconds), [tuple(seconds.values())])}"
    if race := r.results.get("race"):
        reached = "reached" if race["reached"] else "not reached"
        text += (
            f"\n\nA race to {race['goal']:.3f} of the tuning split: {reached}, with {race['tuning']:.3f} after "
            f"{race['updates']:,} updates of the transformer, {race['seconds']} seconds and {race['cpu_seconds']} CPU seconds."
        )
    if "machine" not in r.results:
        return f"## Training\n{text}\n\nMachine and versions are not recorded here."
    on = [
        r.results["machine"],
        f"{r.results['threads']} thread{'s' if r.results['threads'] != 1 else ''}",
        *map(" ".join, r.results["versions"].items()),
    ]
    return f"## Training\n{text}\n\nOn: {plain('; '.join(on))}."


def results(r: Records) -> str:
    figures = r.results.get("results", {})
    if not figures:
        return "## Results\n**Not recorded in this folder:** what this model draws has not been measured, or not here."
    rows = []
    for name, x in figures.items():
        bounds = ("", "") if name in COUNTED else (three(x["low"]), three(x["high"]))
        rows.append((f"`{name}`", three(x["value"]), *bounds, x["n"], meaning(name)))
    judged = (
        " Right: an oracle without any learned part reads every captioned attribute back from the pixels, and no other object; "
        "cleanly drawn: each object also looks like its ideal drawing."
    )
    return (
        "## Results\nOf pictures and captions that no stage learned from, unless it says trained. low, high: a 95 % interval by "
        f"bootstrap over captions; n: how many pictures, drawings or (of 16) captions.{judged if 'seen' in figures else ''}\n\n"
        f"{table(('figure', 'value', 'low', 'high', 'n', 'what it is'), rows)}"
    )


def meaning(name: str) -> str:
    for ending, words in ALSO.items():
        if name.endswith(ending):
            return FIGURES.get(name.removesuffix(ending), "") + words
    return FIGURES.get(name, "")


def limits(r: Records) -> str:
    figures, name = r.results.get("results", {}), r.preset.data.name
    known = (
        "the captions of its own drawn world" if name in ("shapes", "scenes") else "captions such as it was trained on"
    )
    lines = [f"It knows {known}. How it answers to any other text or picture has not been measured."]
    lines += [text.format(**figures[key]) for key, text in LIMITS.items() if key in figures]
    if few := [f"`{key}` ({x['n']})" for key, x in figures.items() if x["n"] < 100]:
        lines.append(f"Few captions or pictures stand behind {', '.join(few)}: read the interval.")
    if name not in ("shapes", "scenes"):
        lines.append(
            "Whether its drawings show what the caption says has not been measured: nobody, person or program, judged them."
        )
    if "tuning" in figures:
        lines.append("`tuning` flatters: choices were made on it.")
    for stage, m in r.last.items():
        if m["step"] < (planned := getattr(r.preset.train, stage).updates):
            lines.append(f"The training of the {stage} ended after {m['step']:,} of {planned:,} updates.")
    if r.last.get("clip", {}).get("accuracy", 1) < 0.5:
        lines.append(
            f"CLIP found the captions of {r.last['clip']['accuracy']:.3f} of its last {r.preset.train.clip.batch_size} training "
            "pictures among as many: its ranking means little."
        )
    if "16" in " ".join(w.stored for w in r.weights.values()):
        lines.append("Weights are stored in 16 bits; the results may be those of the run before they were rounded.")
    lines.append(
        f"One run, seed {r.config['seed']}: another seed, machine or number of threads gives other weights and other figures."
    )
    return "## Limits\n" + "\n".join(f"- {line}" for line in lines)


def use(r: Records) -> str:
    rows = [(name, value, getattr(r.preset.edit, name)) for name, value in vars(r.preset.sample).items()]
    return (
        "## Use and check\nWith the code of minidalle; RUN is the path of this folder. Nine drawings; is one of them as it was written, "
        "and what drew it; this page again, hashes and all, from the files:\n\n"
        f'```bash\npython -m minidalle generate "{KINDS[r.preset.data.name][3]}" --run RUN -n 9\n'
        "python -m minidalle verify RUN/generated/PICTURE.png\npython -m minidalle card --run RUN\n```\n\n"
        f"Unless told otherwise it draws with:\n\n{table(('setting', 'drawing', 'editing'), rows)}"
    )


def licences(r: Records) -> str:
    return f"## Licences\nThe code of minidalle is under the MIT licence. {KINDS[r.preset.data.name][2]}"


def write_card(args: argparse.Namespace):
    """The verb `card`."""
    path = write(args.run)
    left = path.read_text(encoding="utf-8").count("TO FILL IN BY THE AUTHOR")
    print(f"{path}{f': {left} sections are left for its author to fill in' if left else ''}")
