"""The verbs of the full size: `plan`, `shards`, `encode`, `train`, each a few lines around the module of its name."""

import argparse
import warnings
from collections import Counter

from minidalle.config import load_preset
from minidalle.data.filter import in_words, rules_for
from minidalle.scale import packing, released, run, shards
from minidalle.scale.plan import plan, plural
from minidalle.train import pick_device


def print_plan(args: argparse.Namespace, settings: dict):
    """`plan`: see scale/plan.py."""
    preset = load_preset(args.preset, overrides=settings)
    print("\n".join(plan(preset, args.gpus, args.gpu, args.utilisation)))


def write_shards(args: argparse.Namespace):
    """`shards`: see scale/packing.py."""
    counts, skipped = packing.write(args.folder, args.out, args.per_shard, rules_for(args.filter, args.blocklist))
    if skipped:
        warnings.warn(f"skipped {skipped}", stacklevel=1)
    if args.filter:
        print(in_words(counts))
    written = plural(len(list(args.out.glob("*.tar"))), "shard")
    print(f"{plural(counts['kept'], 'picture')} in {written} in {args.out}")


def encode_shards(args: argparse.Namespace, settings: dict):
    """`encode`: see scale/packing.py."""
    device, preset = pick_device(args.device), load_preset(args.preset, overrides=settings)
    dvae = released.dvae_from(args.dvae).to(device)
    size = preset.data.height, preset.data.width
    rules = rules_for(args.filter, args.blocklist)
    paths = shards.find(args.shards)
    there = sum((args.out / path.name).exists() for path in paths)
    done, skipped = packing.encode(paths, args.out, dvae, *size, device, rules)
    if skipped:
        named = ", ".join(f"{name} ({reason})" for name, reason in skipped[:10])
        warnings.warn(f"skipped {len(skipped)}: {named}{', …' if len(skipped) > 10 else ''}", stacklevel=1)
    if rules:
        print(in_words({"kept": done, **Counter(reason for _, reason in skipped)}))
    print(f"encoded {plural(done, 'picture')} into {args.out}; {there} of {len(paths)} shards were there already")


def train_sharded(args: argparse.Namespace, settings: dict):
    """`train`: see scale/run.py."""
    preset = load_preset(args.preset, overrides=settings, budget=args.budget)
    dvae = released.dvae_from(args.dvae)
    run.train(
        preset, args.shards, dvae, args.out, args.seed, args.device, args.resume, args.streams or 0, not args.no_recompute,
        args.workers, args.bpe, args.clip,
    )  # fmt: skip
