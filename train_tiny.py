"""DALL-E on one page: learn a tokenizer, a dVAE and a transformer from captioned pictures, then draw captions.

    python train_tiny.py                       drawn shapes, a few minutes on two CPU cores
    python train_tiny.py --data scenes         two objects and where they are
    python train_tiny.py --data openmoji       real drawings by real artists, each with its line art
    python train_tiny.py --data FOLDER         your own pictures: name.png with its caption in name.txt
    python train_tiny.py --until tuning=0.90   a race: only until it draws so well; no CLIP

Every step below is one module of `minidalle/`, in the order in which it is best read. What a run leaves is in --out.
"""

import argparse
import dataclasses
import os
import platform
import time
from pathlib import Path

import torch

from minidalle import data, evaluate, plots
from minidalle.bpe import BPE
from minidalle.checkpoint import Run, read_json, write_json
from minidalle.cli import parse_with_settings, positive, run_command
from minidalle.config import load_preset
from minidalle.data.filter import in_words
from minidalle.race import Race, clock, goal
from minidalle.sequence import fit_text_len
from minidalle.studio import card
from minidalle.train import encode_all, pick_device, train_clip, train_dvae, train_transformer
from minidalle.watch import check_space, weights_of


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, dict]:
    parser = argparse.ArgumentParser(
        description="Learn to draw captions. Any setting of the preset can be changed, as in --transformer.n_layer=4."
    )
    parser.add_argument("--data", default="shapes", help="shapes (default), scenes, openmoji, or a folder")
    parser.add_argument("--preset", default="tiny", help="tiny (default) or small")
    parser.add_argument("--out", type=Path, help="folder of the run (default runs/DATA-PRESET)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--budget", type=positive(float), default=1.0, help="multiplies every stage's number of updates"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--until",
        type=goal,
        metavar="tuning=SHARE",
        help="a race: stop once so many drawings of the tuning pairs are right",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args, settings = parse_with_settings(parser, argv)
    race = "-race" if args.until else ""
    args.out = args.out or Path("runs") / f"{Path(args.data).resolve().name}-{args.preset}{race}"
    return args, settings


def train_tiny(args: argparse.Namespace, settings: dict):
    started = clock()
    device = pick_device(args.device)
    preset = load_preset(args.preset, args.data, settings, args.budget)
    if preset.name.startswith("dalle"):
        raise ValueError(
            f"--preset {preset.name} is for many GPUs: python -m minidalle train takes it, this program tiny or small"
        )
    if args.until and preset.data.name not in evaluate.WORLDS:
        raise ValueError(f"--until needs drawings that the oracle can read: --data shapes or scenes, got {args.data}")
    if args.until and (args.resume or (args.out.is_dir() and any(args.out.iterdir()))):
        raise ValueError(f"--until starts from nothing: leave out --resume, and choose another --out than {args.out}")

    # 1. Pictures with captions; the splits other than "train" are never trained on.
    filtered = {}
    splits = data.load(preset.data, args.seed, filtered)
    train = splits["train"]
    if filtered:
        say(in_words(filtered))
    kind = "crops of pictures" if preset.data.name == "folder" else "pictures"
    say(f"{len(train.captions)} {kind} of {args.data}, for example {train.captions[0]!r}; device {device}")

    # 2. Text becomes tokens: a byte-pair vocabulary learned from the captions.
    bpe = BPE.train(train.captions, preset.data.vocab_size)
    everything = [caption for split in splits.values() for caption in split.captions]
    text_len = preset.transformer.text_len or fit_text_len(bpe, everything)
    check_space(args.out, weights_of(preset, len(bpe), text_len))
    run = Run(args.out, {"budget": args.budget, "preset": dataclasses.asdict(preset), "seed": args.seed}, args.resume)
    bpe.save(run.folder / "bpe.json")
    say(f"vocabulary of {len(bpe)}: {train.captions[0]!r} is {len(bpe.encode(train.captions[0]))} tokens of {text_len}")

    # 3. Pictures become codes: the dVAE learns a visual alphabet and how to paint from it.
    dvae = train_dvae(run, preset, train.images, args.seed, device)
    codes = encode_all(dvae, train.images, device)
    say(f"a picture is now {codes.shape[1]} x {codes.shape[2]} codes of {preset.dvae.codebook_size}")

    # 4. One stream: the transformer learns to continue a caption with the codes of its picture.
    models = evaluate.Models(preset, bpe, dvae, None, None, device)
    race = Race(args.until, models, splits["tuning"], started) if args.until else None
    model = train_transformer(run, preset, bpe, dvae, train.captions, codes, text_len, args.seed, device, race)

    # 5. CLIP learns which caption belongs to which picture, to choose among the drawings.
    clip = None if race else train_clip(run, preset, bpe, dvae, train, codes, text_len, args.seed, device)

    # 6. Draw, rank, finish what is half drawn; and measure, by an oracle that took no part in the training.
    measured = time.perf_counter()
    results, pictures = evaluate.measure(models._replace(dalle=model, clip=clip), splits)
    seconds = {name: round(stage["seconds"], 1) for name, stage in run.stages.items()}
    seconds["measure"] = round(time.perf_counter() - measured, 1)
    if not args.resume:
        total = time.perf_counter() - started[0]
        seconds |= {"rest": round(total - sum(seconds.values()), 1), "all": round(total, 1)}  # rest: loading, encoding

    # 7. Leave pictures and numbers.
    sampling, editing = dataclasses.asdict(preset.sample), dataclasses.asdict(preset.edit)
    plots.save_run(run, model.config, pictures, sampling)
    about = {"splits": {name: len(split.captions) for name, split in splits.items()}}
    about |= {"filter": filtered} if filtered else {}
    if skipped := {name: stage["skipped"] for name, stage in run.stages.items() if stage.get("skipped")}:
        about |= {"skipped_updates": skipped}
        say(f"skipped updates, whose loss or gradient was not a finite number: {skipped}")
    about |= {"seconds": seconds, "sampling": sampling, "editing": editing, **conditions(args, device)}
    path = run.folder / "results.json"
    before = read_json(path) if path.exists() else {}  # a race that is now made a whole run keeps its record
    raced = {"race": race.results()} if race else {"race": before["race"]} if "race" in before else {}
    write_json(path, {"results": results, **raced, **about})
    report(results, seconds, run.folder)
    if race:
        say(f"race: {race}")
    say(f"model card: {card.write(run.folder)}, with sections for you to fill in")


def conditions(args: argparse.Namespace, device: torch.device) -> dict:
    """On what the run ran."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "machine": f"{platform.system()}, {name}, {os.cpu_count()} cores", "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seed": args.seed, "budget": args.budget, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def report(results: dict, seconds: dict, folder: Path):
    """A short table on the terminal."""
    say(f"\n{'':28}  value    95 % interval      n")
    labels = {"psnr": "psnr, dB", "tuning": "tuning (choices made on it)"}
    for name, r in results.items():
        counted = r["low"] == r["high"] == r["value"] and name in ("codes_used", "perplexity")
        bounds = " " * 15 if counted else f"{r['low']:6.3f} … {r['high']:6.3f}"
        say(f"{labels.get(name, name):28} {r['value']:6.3f}   {bounds}  {r['n']:5}")
    say("seconds: " + ", ".join(f"{name} {value}" for name, value in seconds.items()))
    say(f"pictures in {folder}: {', '.join(sorted(path.name for path in folder.glob('*.png')))}")
    say(f'draw more: python -m minidalle generate "a caption" --run {folder}')


def say(line: str):
    print(line, flush=True)


if __name__ == "__main__":
    arguments = parse()
    without = " instead of --until, and its --out" if arguments[0].until else ""
    run_command(lambda: train_tiny(*arguments), f"; go on with the same command and --resume{without}")
