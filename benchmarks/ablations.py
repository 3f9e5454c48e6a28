"""What each choice in the tiny recipe is worth: shapes at a short budget, one change at a time, the same seeds for all.

    python benchmarks/ablations.py [--budget 0.2] [--seeds 0 1 2] [--only TEXT] [--folder runs/ablations]

Every seed has a fold of the world of its own (`shapes.held_out`), none with a combination that the README's figures are of.
So a run can be judged by all that its fold holds out, 62 captions, and the recipe is not chosen by what it is reported with.
A change trains what it concerns and what is built on that; the rest, such as the dVAE below another transformer, is that of
the same seed's run as it is. Every finished run is a line of FOLDER/log.jsonl and is not done again, so this can be stopped
at any time; a log of other settings is refused.

The tables show the recipe as it is, then what each change adds: the mean difference to the runs of the same seeds without
it, with a 95 % interval by bootstrap over seeds and over captions; and the seconds of the changed stages' training as a
multiple of what they take as they are. Of a hundred such intervals five miss by chance alone.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

import side_by_side
from side_by_side import ROOT

CHANGES = {  # what is changed: the settings for train_tiny.py. Before the colon stands the stage that they concern.
    "as it is": {},
    "dVAE: no logit normalisation": {"dvae.normalize_logits": False},
    "dVAE: logit-Laplace likelihood": {"dvae.likelihood": "logit_laplace"},
    "dVAE: squared error": {"dvae.likelihood": "gaussian"},
    "dVAE: KL weight 6.6": {"train.dvae.kl_weight": 6.6, "train.dvae.kl_updates": 500},
    "dVAE: temperature to 1/16": {"train.dvae.tau_end": 1 / 16},
    "dVAE: full Gumbel noise from the start": {"train.dvae.noise_updates": 0},
    "dVAE: 32 codes": {"dvae.codebook_size": 32},
    "dVAE: 512 codes": {"dvae.codebook_size": 512},
    "dVAE: ÷8 instead of ÷4": {"dvae.n_group": 3},
    "dVAE: a stem of full resolution": {"dvae.patch": 1, "dvae.n_group": 3},
    "dVAE: no average of weights": {"train.dvae.ema_decay": 0},
    "transformer: half as wide": {"transformer.n_embd": 48},
    "transformer: twice as wide": {"transformer.n_embd": 192, "transformer.n_head": 6},
    "transformer: 6 layers": {"transformer.n_layer": 6},
    "transformer: half the rates": {"train.transformer.lr": 1e-3, "train.transformer.muon_lr": 0.01},
    "transformer: AdamW, no Muon": {"train.transformer.muon_lr": 0},
    "transformer: no average of weights": {"train.transformer.ema_decay": 0},
    "transformer: text weight 1/8": {"train.transformer.text_weight": 0.125},
    "transformer: causal masks": {"transformer.masks": "causal"},
    "transformer: image tokens start as any other": {"train.transformer.codebook_std": 0},
    "drawing: from all codes": {"sample.top_p": 1},
    "drawing: no guidance": {"sample.guidance": 1},
    "CLIP: no hard negatives": {"train.clip.alike": 1},
    "CLIP: original pictures only": {"train.clip.reconstructed": 0},
    "CLIP: reconstructed pictures only": {"train.clip.reconstructed": 1},
}
FOLDS = (1, 2, 4, 5)  # of seed 0, 1, 2, 3, 4 and so on; none shares a held-out combination with fold 0
CAPTIONS, DRAWN = 62, 16  # all that a fold holds out; pictures of each
FIGURES = {  # heading: what it is the share of
    "right": "drawings with all attributes right",
    "clean": "drawings that also look like the ideal one",
    "rebuilt": "pictures that are clean after the dVAE",
    "best of 16": "captions for which the drawing that CLIP scores highest is right",
    "CLIP": "pictures for which CLIP finds their caption among all 192",
}


def train(change: str, seed: int, budget: float, folder: Path, base=None):
    """The run of `base` (Models, codes, seconds) with what `change` concerns trained anew: (Models, codes, seconds).
    Without `base`, everything is; a dVAE that is changed is not given a CLIP."""
    import torch

    from minidalle import data
    from minidalle import train as stages
    from minidalle.bpe import BPE
    from minidalle.checkpoint import Run
    from minidalle.config import load_preset
    from minidalle.evaluate import Models

    preset = load_preset("tiny", overrides=settings(change, seed), budget=budget)
    pictures, device = data.load(preset.data, seed)["train"], torch.device("cpu")
    bpe = BPE.train(pictures.captions, preset.data.vocab_size)
    run = Run(folder, {"preset": dataclasses.asdict(preset), "seed": seed}, resume=folder.exists())
    bpe.save(run.folder / "bpe.json")
    stage, text_len = change.partition(":")[0], preset.transformer.text_len
    models, codes, _ = base or (Models(preset, bpe, None, None, None, device), None, None)
    dvae, dalle, clip = models.dvae, models.dalle, models.clip
    if stage in ("as it is", "dVAE"):
        dvae, clip = stages.train_dvae(run, preset, pictures.images, seed, device), None
        codes = stages.encode_all(dvae, pictures.images, device)
    if stage in ("as it is", "dVAE", "transformer"):
        dalle = stages.train_transformer(run, preset, bpe, dvae, pictures.captions, codes, text_len, seed, device)
    if stage in ("as it is", "CLIP"):
        clip = stages.train_clip(run, preset, bpe, dvae, pictures, codes, text_len, seed, device)
    seconds = {name: taken["seconds"] for name, taken in run.stages.items()}
    return Models(preset, bpe, dvae, dalle, clip, device), codes, seconds


def measure(models) -> dict[str, list[int]]:
    """For each of FIGURES a 0 or 1 for every picture or caption, in the same order for all runs of a seed."""
    import numpy as np
    import torch

    from minidalle.data import shapes
    from minidalle.oracle import as_float, judge

    fold = models.preset.data.fold
    captions = [caption for split in shapes.HELD_OUT_SPLITS for caption in shapes.captions(split, fold)]
    texts = captions * DRAWN
    images = shapes.draw(texts, np.random.default_rng(0), models.preset.data.width)
    drawn = models.draw(texts, range(len(texts)))
    right, clean = judge(drawn, texts)
    lists = {"right": right, "clean": clean, "rebuilt": judge(models.reconstruct(images), texts)[1]}
    if models.clip:
        best = []
        for i, text in enumerate(models.text(captions)):
            own = range(i, len(texts), CAPTIONS)  # the drawings of this caption
            best.append(right[own[models.clip.rank(text, drawn[own]).argmax()]])
        with torch.no_grad():
            every = models.clip.encode_text(models.text(captions + shapes.captions("train", fold)))  # (192, E)
            scores = torch.cat([models.clip.encode_image(part) for part in as_float(images).split(64)]) @ every.T
        lists |= {"best of 16": best, "CLIP": scores.argmax(dim=1).numpy() == np.arange(len(texts)) % CAPTIONS}
    return {name: [int(value) for value in values] for name, values in lists.items()}


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
    """Markdown: the recipe as it is, then differences. A change is shown for the seeds that both have run, with the
    figures that it can alter."""
    import numpy as np

    runs = {(line["change"], line["seed"]): line for line in lines}
    rows = ["| change | " + " | ".join(FIGURES) + " | seconds | seeds |", "|---" * (3 + len(FIGURES)) + "|"]
    for change in CHANGES:
        seeds = [seed for name, seed in runs if name == change and ("as it is", seed) in runs]
        if not seeds:
            continue
        changed, plain = ([runs[name, seed] for seed in seeds] for name in (change, "as it is"))
        stage, cells = change.partition(":")[0], []
        for figure in FIGURES:  # (seeds, captions): means over the drawings of a caption, which come round and round
            kept = {
                "transformer": ("rebuilt", "CLIP"),
                "drawing": ("rebuilt", "CLIP"),
                "CLIP": ("right", "clean", "rebuilt"),
            }
            if figure not in changed[0] or figure in kept.get(stage, ()):
                cells.append("")
                continue
            mine, base = (
                np.array([np.reshape(line[figure], (-1, CAPTIONS)).mean(axis=0) for line in some])
                for some in (changed, plain)
            )
            cells.append(interval(mine).replace("+", "") if change == "as it is" else interval(mine - base))
        mine = [sum(line["seconds"].values()) for line in changed]
        base = [sum(line["seconds"][name] for name in other["seconds"]) for line, other in zip(plain, changed)]
        ratio = f"× {sum(mine) / sum(base):.2f}" if sum(base) else ""
        took = f"{statistics.mean(mine):.0f}" if change == "as it is" else ratio
        rows.append(f"| {change} | {' | '.join(cells)} | {took} | {', '.join(map(str, sorted(seeds)))} |")
    return rows


def settings(change: str, seed: int) -> dict:
    return {"data.fold": FOLDS[seed % len(FOLDS)], **CHANGES[change]}


def recipe(change: str, seed: int, budget: float) -> str:
    """A hash of all settings of a run: what a line of the log was made with."""
    from minidalle.config import load_preset

    preset = load_preset("tiny", overrides=settings(change, seed), budget=budget)
    return hashlib.sha256(repr(preset).encode()).hexdigest()[:12]


def main():
    parser = argparse.ArgumentParser(description="What each choice in the tiny recipe is worth.")
    parser.add_argument("--budget", type=float, default=0.2, help="of the preset's updates (default 0.2)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="run the changes whose name holds this text")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "ablations", help="for the log and runs as they are"
    )
    args = parser.parse_args()
    log = args.folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for line in lines:
        if line["change"] not in CHANGES or line["recipe"] != recipe(line["change"], line["seed"], args.budget):
            parser.error(f"{log} holds {line['change']!r} with other settings: give another --folder")
    args.folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        done = [line["change"] for line in lines if line["seed"] == seed]
        left = [c for c in CHANGES if c not in done and (args.only in c or c == "as it is")]
        if not left:
            continue
        base = train("as it is", seed, args.budget, args.folder / f"seed{seed}")  # from its folder, if it is there
        for change in left:
            print(f"\r\033[K{change}, seed {seed}", file=sys.stderr, flush=True)
            with contextlib.nullcontext() if change == "as it is" else tempfile.TemporaryDirectory() as folder:
                models, _, seconds = (
                    base if folder is None else train(change, seed, args.budget, Path(folder, "run"), base)
                )
                line = {"change": change, "seed": seed, "recipe": recipe(change, seed, args.budget), "seconds": seconds}
                lines.append(line | measure(models))
            with log.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(f"{side_by_side.machine()}\n\nbudget {args.budget}; shares, of what the fold of each seed holds out:")
    print("\n".join(f"- {name}: {what}" for name, what in FIGURES.items()), "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
