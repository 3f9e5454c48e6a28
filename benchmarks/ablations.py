"""What each choice in the tiny recipe is worth: shapes at a short budget, one change at a time, the same seeds for all.

    python benchmarks/ablations.py [--budget 0.2] [--seeds 1 2 3] [--only TEXT] [--folder runs/ablations]

Seeds 1, 2 and 3 train in the folds 1, 2 and 3 of the world (`shapes.held_out`), and are judged by the combinations that are
held out there, "pairs" and "tuning", of which the README reports on none. A change trains what it concerns
and the transformer above it; the rest, such as the dVAE below another transformer, is that of the same seed's run as it is.
Every finished run is a line of FOLDER/log.jsonl and is not done again, so this can be stopped at any time; a log of other
settings is refused.

The table shows the recipe as it is, then what each change adds: the mean difference to the runs of the same seeds without
it, plus or minus two standard errors. Two or three seeds alone would not tell that error; so it is pooled: how far a change's
effect differs between seeds, over all changes of the dVAE, and over all others. Of twenty such intervals one misses by chance,
and all lean on the same runs as they are. Then CPU seconds of training the changed stages, as a multiple of what they take as
they are (least to greatest of the seeds); less than a tenth is noise: a text weight changes no computation.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import side_by_side
from minidalle.cli import positive, run_command
from side_by_side import ROOT

CHANGES = {  # what is changed: the settings for train_tiny.py. Before the colon stands the stage that they concern.
    "as it is": {},
    "dVAE: no logit normalisation": {"dvae.normalize_logits": False},
    "dVAE: logit-Laplace likelihood": {"dvae.likelihood": "logit_laplace"},
    "dVAE: squared error": {"dvae.likelihood": "gaussian"},
    "dVAE: KL weight 6.6": {"train.dvae.kl_weight": 6.6, "train.dvae.kl_updates": 500},
    "dVAE: logit-Laplace and KL weight 1.65": {  # of a pixel value as much as 6.6 with codes of 8 x 8
        "dvae.likelihood": "logit_laplace",
        "train.dvae.kl_weight": 1.65,
        "train.dvae.kl_updates": 2500,
    },
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
DRAWN = 16  # pictures of each caption
FIGURES = {  # heading: what it is the share of
    "right": "drawings with all attributes right",
    "clean": "drawings that also look like the ideal one",
    "rebuilt": "pictures that are clean after the dVAE",
    "best of 16": "captions for which the drawing that CLIP scores highest is right",
    "CLIP": "pictures for which CLIP finds their caption among these and those of training",
}
ALTERED = {  # by a change of this stage; a changed dVAE is given no CLIP
    "as it is": [*FIGURES],
    "dVAE": ["right", "clean", "rebuilt"],
    "transformer": ["right", "clean", "best of 16"],
    "drawing": ["right", "clean", "best of 16"],
    "CLIP": ["best of 16", "CLIP"],
}


def train(change: str, seed: int, budget: float, folder: Path, base=None):
    """(Models, codes, CPU seconds of each stage that was trained). What `change` does not concern is taken from `base`, what
    this returned for "as it is", which itself and a change of the dVAE need none."""
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
    stage, text_len, seconds = stage_of(change), preset.transformer.text_len, {}

    def timed(name, function, *arguments):
        before = time.process_time()
        model = function(run, preset, *arguments, seed, device)
        seconds[name] = time.process_time() - before
        return model

    if stage in ("as it is", "dVAE"):
        dvae = timed("dvae", stages.train_dvae, pictures.images)
        codes, clip = stages.encode_all(dvae, pictures.images, device), None
    else:
        (_, _, dvae, dalle, clip, _), codes, _ = base
    if stage in ("as it is", "dVAE", "transformer"):
        dalle = timed("transformer", stages.train_transformer, bpe, dvae, pictures.captions, codes, text_len)
    if stage in ("as it is", "CLIP"):
        clip = timed("clip", stages.train_clip, bpe, dvae, pictures, codes, text_len)
    return Models(preset, bpe, dvae, dalle, clip, device), codes, seconds


def measure(models) -> dict[str, list[int]]:
    """For each of FIGURES a 0 or 1 for every picture or caption, in the same order for all runs of a seed."""
    import numpy as np
    import torch

    from minidalle.data import shapes
    from minidalle.oracle import as_float, judge

    fold = models.preset.data.fold
    captions = shapes.captions("pairs", fold) + shapes.captions("tuning", fold)
    texts = captions * DRAWN
    images = shapes.draw(texts, np.random.default_rng(0), models.preset.data.width)
    drawn = models.draw(texts, range(len(texts)))
    right, clean = judge(drawn, texts)
    lists = {"right": right, "clean": clean, "rebuilt": judge(models.reconstruct(images), texts)[1]}
    if models.clip:
        best = []
        for i, text in enumerate(models.text(captions)):
            own = range(i, len(texts), len(captions))  # the drawings of this caption
            best.append(right[own[models.clip.rank(text, drawn[own]).argmax()]])
        with torch.no_grad():
            every = models.clip.encode_text(models.text(captions + shapes.captions("train", fold)))
            scores = torch.cat([models.clip.encode_image(part) for part in as_float(images).split(64)]) @ every.T
        lists |= {"best of 16": best, "CLIP": scores.argmax(dim=1).numpy() == np.arange(len(texts)) % len(captions)}
    return {name: [int(value) for value in values] for name, values in lists.items()}


def table(lines: list[dict]) -> list[str]:
    """Markdown: the recipe as it is, then differences. A change is shown for the seeds that both have run, with the
    figures that it can alter."""
    runs = {(line["change"], line["seed"]): line for line in lines}
    shares = {
        (*key, figure): statistics.mean(line[figure])
        for key, line in runs.items()
        for figure in FIGURES
        if figure in line
    }
    seeds = {change: sorted(s for c, s in runs if c == change and ("as it is", s) in runs) for change in CHANGES}

    def differences(change, figure):
        return [shares[change, seed, figure] - shares["as it is", seed, figure] for seed in seeds[change]]

    rows = ["| change | " + " | ".join(FIGURES) + " | CPU seconds | seeds |", "|---" * (3 + len(FIGURES)) + "|"]

    def error(change, figure):
        """Two standard errors of the mean difference, or None where no change of this kind has two seeds."""
        alike = [
            differences(other, figure)
            for other in CHANGES
            if other != "as it is" and figure in ALTERED[stage_of(other)] and len(seeds[other]) > 1
            and (stage_of(other) == "dVAE") == (stage_of(change) == "dVAE")
        ]  # fmt: skip
        if alike and len(seeds[change]) > 1:
            return 2 * (statistics.mean(map(statistics.variance, alike)) / len(seeds[change])) ** 0.5

    for change in CHANGES:
        if not seeds[change]:
            continue
        cells = []
        for figure in FIGURES:
            if figure not in ALTERED[stage_of(change)]:
                cells.append("")
            elif change == "as it is":
                each = [shares[change, seed, figure] for seed in seeds[change]]
                cells.append(f"{statistics.mean(each):.3f} ({', '.join(f'{share:.3f}' for share in each)})")
            else:
                cell = f"{statistics.mean(differences(change, figure)):+.3f}".replace("-", "−")
                cells.append(cell if error(change, figure) is None else f"{cell} ± {error(change, figure):.3f}")
        times, ratios = [runs[change, seed]["seconds"] for seed in seeds[change]], []
        for seed, mine in zip(seeds[change], times):
            as_it_is = sum(runs["as it is", seed]["seconds"][name] for name in mine)
            ratios += [sum(mine.values()) / as_it_is] if mine else []
        took = f"× {side_by_side.middle(ratios)}" if ratios else ""
        if change == "as it is":
            took = f"{statistics.mean(sum(mine.values()) for mine in times):.0f}"
        rows.append(f"| {change} | {' | '.join(cells)} | {took} | {', '.join(map(str, seeds[change]))} |")
    return rows


def stage_of(change: str) -> str:
    return change.partition(":")[0]


def settings(change: str, seed: int) -> dict:
    return {"data.fold": 1 + (seed - 1) % 3, **CHANGES[change]}


def recipe(change: str, seed: int, budget: float) -> str:
    """A hash of all settings of a run and of its judging: what a line of the log was made with."""
    from minidalle.config import load_preset

    preset = load_preset("tiny", overrides=settings(change, seed), budget=budget)
    return hashlib.sha256(repr((preset, DRAWN)).encode()).hexdigest()[:12]


def main():
    parser = argparse.ArgumentParser(description="What each choice in the tiny recipe is worth.")
    parser.add_argument("--budget", type=positive(float), default=0.2, help="of the preset's updates (default 0.2)")
    parser.add_argument("--seeds", type=positive(int), nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", default="", help="run the changes whose name holds this text")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "ablations", help="for the log and runs as they are"
    )
    args = parser.parse_args()
    chosen = [change for change in CHANGES if args.only in change and change != "as it is"]
    if not chosen:
        parser.error(f"no change holds {args.only!r}; there are: {'; '.join([*CHANGES][1:])}")
    run_command(lambda: compare(chosen, args.seeds, args.budget, args.folder), "; the same command goes on")


def compare(chosen: list[str], seeds: list[int], budget: float, folder: Path):
    """Run what is missing in the log, then print the table of all that is in it."""
    from minidalle.checkpoint import replacing

    log = folder / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for line in lines:
        if line["change"] not in CHANGES or line["recipe"] != recipe(line["change"], line["seed"], budget):
            raise ValueError(f"{log} holds {line['change']!r} with other settings: give another --folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)

    def add(change, seed, models, seconds):
        line = {"change": change, "seed": seed, "recipe": recipe(change, seed, budget), "seconds": seconds}
        lines.append(line | measure(models))
        with replacing(log) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines))

    for seed in seeds:
        done = [line["change"] for line in lines if line["seed"] == seed]
        left = [change for change in chosen if change not in done]
        if not left:
            continue
        if "as it is" not in done:  # what is in its folder was not timed to the end
            shutil.rmtree(folder / f"seed{seed}", ignore_errors=True)
        base = train("as it is", seed, budget, folder / f"seed{seed}")
        if "as it is" not in done:
            add("as it is", seed, base[0], base[2])
        for change in left:
            print(f"\r\033[K{change}, seed {seed}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as aside:
                models, _, seconds = train(change, seed, budget, Path(aside, "run"), base)
                add(change, seed, models, seconds)
    print(f"{side_by_side.machine()}\n\nbudget {budget}; shares, of what is held out in the fold of each seed:")
    print("\n".join(f"- {name}: {what}" for name, what in FIGURES.items()), "\n")
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
