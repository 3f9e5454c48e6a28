"""What each thing that tiny models need beyond the paper (marks O in config.py) is worth: one change a run, on shapes.

    python benchmarks/ablations.py [--budget 0.25] [--seed 0] [--only NAME]

Every run is `train_tiny.py` with one setting put back to the paper's way and everything else as in the preset `tiny`,
except that CLIP, on which none of these figures depends, is left as it starts.
right and clean are of the tuning pairs, which are the ones that choices are made on; psnr is of the held-out pairs, and
codes in use of all held-out pictures. Prints a Markdown table.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHANGES = {
    "the preset as it is": [],
    "no logit normalisation": ["--dvae.normalize_logits=false"],
    "logit-Laplace likelihood": ["--dvae.likelihood=logit_laplace"],
    "KL weight 6.6": ["--train.dvae.kl_weight=6.6", "--train.dvae.kl_updates=500"],
    "full Gumbel noise from the start": ["--train.dvae.noise_updates=0"],
    "AdamW, no Muon": ["--train.transformer.muon_lr=0"],
    "BPE dropout 0.1": ["--train.transformer.bpe_dropout=0.1"],
    "text weight 1/8": ["--train.transformer.text_weight=0.125"],
    "no guidance (captions never dropped)": ["--train.transformer.caption_dropout=0", "--sample.guidance=1"],
    "sampling from all codes": ["--sample.top_p=1"],
    "causal masks in all layers": ["--transformer.masks=causal"],
}


def run(change: list[str], budget: float, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "train_tiny.py",
            "--budget",
            str(budget),
            "--seed",
            str(seed),
            "--train.clip.updates=1",
            "--out",
            f"{folder}/run",
        ]
        subprocess.run([*command, *change], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(folder, "run", "results.json").read_text(encoding="utf-8"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="run the changes whose name holds this text")
    args = parser.parse_args()
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()} CPU, budget {args.budget}, seed {args.seed}, tuning pairs\n"
    )
    print(
        "| change | right | clean | psnr | codes used | seconds |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name, change in CHANGES.items():
        if args.only and args.only not in name:
            continue
        about = run(change, args.budget, args.seed)
        r = {key: value["value"] for key, value in about["results"].items()}
        low, high = about["results"]["tuning"]["low"], about["results"]["tuning"]["high"]
        print(
            f"| {name} | {r['tuning']:.2f} ({low:.2f}–{high:.2f}) | {r['tuning_clean']:.2f} | {r['psnr']:.1f} dB "
            f"| {r['codes_used']:.0f} | {about['seconds']['all']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
