"""What each choice in the tiny recipe is worth: shapes at a short budget, one change at a time, the same seeds for all.

    python benchmarks/ablations.py [--budget 0.25] [--seeds 0 1 2] [--only TEXT] [--log runs/ablations.jsonl]

A run is `train_tiny.py` with one setting changed. It is judged by drawings, reconstructions and CLIP's choices for the
tuning pairs, two combinations of colour and shape that no stage trains on and that choices are made on; the held-out
splits are not looked at. Every finished run is a line of the log and is not done again, so this can be stopped at any
time; a log of other settings is refused.

The table shows the recipe as it is, then what each change adds: the mean difference to the runs of the same seeds without
it, with a 95 % interval by bootstrap over seeds and over captions; and CPU seconds as a multiple. Three seeds and sixteen
captions make rough intervals, and of a hundred of them five miss by chance alone.
"""

import argparse
import hashlib
import json
import os
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
    "transformer: image tokens start as any other": ["--train.transformer.codebook_std=0"],
    "drawing: from all codes": ["--sample.top_p=1"],
    "drawing: no guidance": ["--sample.guidance=1"],
    "CLIP: no hard negatives": ["--train.clip.alike=1"],
    "CLIP: original pictures only": ["--train.clip.reconstructed=0"],
}
CAPTIONS, DRAWN, CANDIDATES = 16, 32, 16  # of the tuning pairs; pictures of each; of those, the ones CLIP chooses among
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


def cpu_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def run(change: str, seed: int, budget: float) -> dict:
    """Train and measure: one line of the log. "seconds" are CPU seconds, those of train_tiny.py's measuring included."""
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
        before = cpu_seconds()
        done = subprocess.run([*command, *CHANGES[change]], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{change!r} failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}")
        return {"change": change, "seed": seed, "seconds": cpu_seconds() - before, **measure(Path(folder, "run"))}


def interval(differences) -> str:
    """differences (seeds, captions) -> "mean (low … high)": seeds and captions are drawn with replacement, each for itself,
    as all captions of a seed share one training."""
    import numpy as np

    rng, (seeds, captions) = np.random.default_rng(0), differences.shape
    rows = rng.integers(seeds, size=(1000, seeds, 1))
    columns = rng.integers(captions, size=(1000, 1, captions))
    low, high = np.percentile(differences[rows, columns].mean(axis=(1, 2)), [2.5, 97.5])
    return f"{differences.mean():+.2f} ({low:+.2f} … {high:+.2f})".replace("-", "−")


def table(lines: list[dict]) -> list[str]:
    """Markdown: the recipe as it is, then differences. A change is shown for the seeds that both have run."""
    import numpy as np

    runs = {(line["change"], line["seed"]): line for line in lines}
    rows = ["| change | " + " | ".join(FIGURES) + " | CPU seconds | seeds |", "|---" * (3 + len(FIGURES)) + "|"]
    for change in CHANGES:
        seeds = [seed for name, seed in runs if name == change and ("as it is", seed) in runs]
        if not seeds:
            continue
        changed, plain = ([runs[name, seed] for seed in seeds] for name in (change, "as it is"))
        cells = []
        for figure in FIGURES:  # (seeds, captions): means over the drawings of a caption, which come round and round
            mine, base = (
                np.array([np.reshape(line[figure], (-1, CAPTIONS)).mean(axis=0) for line in some])
                for some in (changed, plain)
            )
            cells.append(interval(mine) if change == "as it is" else interval(mine - base))
        mine, base = (statistics.mean(line["seconds"] for line in some) for some in (changed, plain))
        took = f"{mine:.0f}" if change == "as it is" else f"× {mine / base:.2f}"
        row = f"| {change} | {' | '.join(cells)} | {took} | {', '.join(map(str, sorted(seeds)))} |"
        rows.append(row.replace("+", "") if change == "as it is" else row)
    return rows


def recipe(change: str, budget: float) -> str:
    """A hash of all settings of a run: what a line of the log was made with."""
    from minidalle.config import load_preset

    return hashlib.sha256(repr((load_preset("tiny", budget=budget), CHANGES[change])).encode()).hexdigest()[:12]


def main():
    parser = argparse.ArgumentParser(description="What each choice in the tiny recipe is worth.")
    parser.add_argument("--budget", type=float, default=0.25, help="of the preset's updates (default 0.25)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run the changes whose name holds this text")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "ablations.jsonl", help="finished runs, one a line")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.log.read_text().splitlines()] if args.log.exists() else []
    for line in lines:
        if line["change"] not in CHANGES or line["recipe"] != recipe(line["change"], args.budget):
            parser.error(f"{args.log} holds {line['change']!r} with other settings: give another --log")
    args.log.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for change in CHANGES:
            done = any((line["change"], line["seed"]) == (change, seed) for line in lines)
            if done or (args.only not in change and change != "as it is"):
                continue
            print(f"\r\033[K{change}, seed {seed}", end="", file=sys.stderr, flush=True)
            lines.append({"recipe": recipe(change, args.budget), **run(change, seed, args.budget)})
            with args.log.open("a") as log:
                log.write(json.dumps(lines[-1]) + "\n")
    print("\r\033[K", end="", file=sys.stderr)
    print(f"{side_by_side.machine()}\n\nbudget {args.budget}, tuning pairs; shares of:")
    print("\n".join(f"- {name}: {what}" for name, what in FIGURES.items()), "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
