"""What each choice in the tiny recipe is worth: shapes at a short budget, one change at a time, the same seeds for all.

    python benchmarks/ablations.py [--budget 0.25] [--seeds 0 1 2] [--only TEXT] [--log runs/ablations.jsonl]

A run is `train_tiny.py` with one setting changed. It is judged by drawings, reconstructions and CLIP's choices for the
tuning pairs, two combinations of colour and shape that no stage trains on and that choices are made on; the held-out
splits are not looked at. Every finished run is a line of the log and is not done again, so this can be stopped at any
time, and the log of another length or preset cannot be mixed in.

The table shows the recipe as it is, then what each change adds: the mean difference to the runs of the same seeds without
it, drawing by drawing, with a 95 % interval by bootstrap over captions and seeds; and seconds as a multiple.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import side_by_side
from side_by_side import ROOT

CHANGES = {  # what is changed: the settings for train_tiny.py
    "as it is": [],
    "dVAE: no logit normalisation": ["--dvae.normalize_logits=false"],
    "dVAE: logit-Laplace likelihood": ["--dvae.likelihood=logit_laplace"],
    "dVAE: KL weight 6.6": ["--train.dvae.kl_weight=6.6", "--train.dvae.kl_updates=500"],
    "dVAE: temperature to 1/16": ["--train.dvae.tau_end=0.0625"],
    "dVAE: full Gumbel noise from the start": ["--train.dvae.noise_updates=0"],
    "dVAE: 512 codes": ["--dvae.codebook_size=512"],
    "dVAE: ÷8 instead of ÷4": ["--dvae.n_group=3"],
    "dVAE: a stem of full resolution": ["--dvae.patch=1", "--dvae.n_group=3"],
    "transformer: half as wide": ["--transformer.n_embd=48"],
    "transformer: twice as wide": ["--transformer.n_embd=192", "--transformer.n_head=6"],
    "transformer: 6 layers": ["--transformer.n_layer=6"],
    "transformer: half the rates": ["--train.transformer.lr=1e-3", "--train.transformer.muon_lr=0.01"],
    "transformer: AdamW, no Muon": ["--train.transformer.muon_lr=0"],
    "transformer: no average of weights": ["--train.transformer.ema_decay=0"],
    "transformer: text weight 1/8": ["--train.transformer.text_weight=0.125"],
    "transformer: causal masks": ["--transformer.masks=causal"],
    "drawing: from all codes": ["--sample.top_p=1"],
    "drawing: no guidance": ["--sample.guidance=1"],
    "CLIP: no hard negatives": ["--train.clip.alike=1"],
    "CLIP: original pictures only": ["--train.clip.reconstructed=0"],
}
DRAWN, CANDIDATES = 32, 16  # pictures of each of the 16 captions, and of those that CLIP chooses among
FIGURES = {  # heading: what it is the share of
    "right": "drawings with all attributes right",
    "clean": "drawings that also look like the ideal one",
    "rebuilt": "pictures that are clean after the dVAE",
    "best of 16": "captions for which the drawing that CLIP scores highest is right",
    "CLIP": "pictures for which CLIP finds their caption among those of training and tuning",
}


def measure(folder: Path) -> dict[str, list[int]]:
    """For each of FIGURES a 0 or 1 for every picture or caption, in the same order for all runs."""
    import numpy as np
    import torch

    from minidalle.checkpoint import load_clip, load_run
    from minidalle.data import shapes
    from minidalle.evaluate import Models
    from minidalle.oracle import as_float, judge

    preset, bpe, dvae, dalle = load_run(folder)
    models = Models(preset, bpe, dvae, dalle, load_clip(folder)[1], torch.device("cpu"))
    captions = shapes.captions("tuning")
    texts = captions * DRAWN
    images = shapes.draw(texts, np.random.default_rng(0), preset.data.width)
    drawn = models.draw(texts, range(len(texts)))
    right, clean = judge(drawn, texts)
    best = []
    for i, text in enumerate(models.text(captions)):
        own = range(i, len(captions) * CANDIDATES, len(captions))  # the first drawings of this caption
        best.append(right[own[models.clip.rank(text, drawn[own]).argmax()]])
    with torch.no_grad():
        known = models.clip.encode_text(models.text(captions + shapes.captions("train")))
        found = torch.cat([models.clip.encode_image(part) for part in as_float(images).split(64)]) @ known.T
    lists = {
        "right": right, "clean": clean, "rebuilt": judge(models.reconstruct(images), texts)[1], "best of 16": best,
        "CLIP": found.argmax(dim=1).numpy() == np.arange(len(texts)) % len(captions),
    }  # fmt: skip
    return {name: [int(value) for value in values] for name, values in lists.items()}


def run(change: str, seed: int, budget: float) -> dict:
    """One line of the log."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "train_tiny.py",
            "--budget",
            str(budget),
            "--seed",
            str(seed),
            "--out",
            f"{folder}/run",
        ]
        done = subprocess.run([*command, *CHANGES[change]], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{change!r} failed: {done.stderr.strip().splitlines()[-1]}")
        seconds = json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))["seconds"]
        return {
            "change": change,
            "seed": seed,
            "seconds": seconds["all"] - seconds["measure"],
            **measure(Path(folder, "run")),
        }


def table(lines: list[dict]) -> list[str]:
    """Markdown: the recipe as it is, then differences. A change is shown for the seeds that both have run."""
    from minidalle.evaluate import interval

    runs = {(line["change"], line["seed"]): line for line in lines}
    rows = ["| change | " + " | ".join(FIGURES) + " | seconds | seeds |", "|---" * (3 + len(FIGURES)) + "|"]
    for change in CHANGES:
        seeds = [seed for name, seed in runs if name == change and ("as it is", seed) in runs]
        if not seeds:
            continue
        cells = []
        for name in FIGURES:
            values, groups = [], []
            for seed in seeds:
                mine, base = (runs[which, seed][name] for which in (change, "as it is"))
                values += mine if change == "as it is" else [a - b for a, b in zip(mine, base)]
                groups += [f"{seed} {i % 16}" for i in range(len(mine))]  # the captions come round and round
            v, sign = interval(values, groups), "" if change == "as it is" else "+"
            cells.append(f"{v['value']:{sign}.2f} ({v['low']:{sign}.2f} … {v['high']:{sign}.2f})".replace("-", "−"))
        mine, base = ([runs[which, seed]["seconds"] for seed in seeds] for which in (change, "as it is"))
        took = f"{statistics.mean(mine):.0f}" if change == "as it is" else f"× {sum(mine) / sum(base):.2f}"
        rows.append(f"| {change} | {' | '.join(cells)} | {took} | {', '.join(map(str, sorted(seeds)))} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description="What each choice in the tiny recipe is worth.")
    parser.add_argument("--budget", type=float, default=0.25, help="of the preset's updates (default 0.25)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run the changes whose name holds this text")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "ablations.jsonl", help="finished runs, one a line")
    args = parser.parse_args()
    from minidalle.config import load_preset

    recipe = hashlib.sha256(repr(load_preset("tiny", budget=args.budget)).encode()).hexdigest()[:12]
    lines = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    if other := [line for line in lines if line["recipe"] != recipe]:
        parser.error(f"{args.log} holds runs of another budget or preset ({other[0]['change']!r}): give another --log")
    args.log.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for change in CHANGES:
            done = any((line["change"], line["seed"]) == (change, seed) for line in lines)
            if done or (args.only not in change and change != "as it is"):
                continue
            print(f"\r\033[K{change}, seed {seed}", end="", file=sys.stderr, flush=True)
            lines.append({"recipe": recipe, **run(change, seed, args.budget)})
            with args.log.open("a") as log:
                log.write(json.dumps(lines[-1]) + "\n")
    print("\r\033[K", end="", file=sys.stderr)
    print(f"{side_by_side.machine()}\n\nbudget {args.budget}, tuning pairs; shares of:")
    print("\n".join(f"- {name}: {what}" for name, what in FIGURES.items()), "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
