"""python -m minidalle <verb>: what can be done with a run that `train_tiny.py` has made.

python -m minidalle generate "a photo of a large red circle" --run runs/shapes-tiny
"""

import argparse
import re
import warnings
from pathlib import Path

from minidalle.cli import parse_with_settings, positive, run_command


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m minidalle", description="Draw with a trained model.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    draw = verbs.add_parser("generate", help="draw pictures from captions")
    draw.add_argument("captions", nargs="+", metavar="CAPTION")
    draw.add_argument("--run", type=Path, required=True, help="the folder that train_tiny.py wrote")
    draw.add_argument("-n", type=positive(int), default=9, help="pictures for each caption (default 9)")
    draw.add_argument("--seed", type=int, default=0, help="picture k has the seed SEED + k, whatever n is (default 0)")
    draw.add_argument("--temperature", type=float, help="0 is greedy (default: as the run)")
    draw.add_argument("--top-k", type=int, help="keep the k likeliest codes, 0 all (default: as the run)")
    draw.add_argument(
        "--top-p", type=float, help="keep the likeliest codes up to this probability (default: as the run)"
    )
    draw.add_argument("--guidance", type=float, help="1 is off (default: as the run)")
    draw.add_argument("--out", type=Path, help="folder for the PNGs (default: RUN/generated)")
    draw.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    args, settings = parse_with_settings(parser, argv)
    if settings:
        parser.error(f"{args.verb} takes no settings, got {', '.join(settings)}")
    run_command(lambda: generate(args))


def generate(args: argparse.Namespace):
    """Draw n pictures for every caption: one PNG each, and a sheet of all."""
    import torch
    from tqdm import tqdm

    from minidalle import plots, sample
    from minidalle.checkpoint import load_run
    from minidalle.sequence import tokenize
    from minidalle.train import pick_device

    for caption in args.captions:
        if not caption.strip():
            raise ValueError("a caption is empty: say what to draw, such as 'a photo of a large red circle'")
        if not caption.isascii():
            warnings.warn(
                f"{caption!r} is not plain ASCII: the model reads such characters as bytes that it hardly knows",
                stacklevel=1,
            )
    device, out = pick_device(args.device), args.out or args.run / "generated"
    preset, bpe, dvae, model = load_run(args.run)
    dvae, model = dvae.to(device), model.to(device)
    options = {
        name: getattr(preset.sample, name) if getattr(args, name) is None else getattr(args, name)
        for name in ("temperature", "top_k", "top_p", "guidance")
    }
    seeds = range(args.seed, args.seed + args.n)
    rows = []
    with tqdm(total=len(args.captions) * args.n * model.config.n_image, unit="token", desc="draw") as bar:
        for number, caption in enumerate(args.captions, start=1):
            text = tokenize(bpe, [caption], model.config.text_len)[0]
            images = []
            for k in sample.in_batches(args.n, model.config):
                count = lambda cell, codes: bar.update(len(codes))  # noqa: E731
                codes = sample.generate(model, text, len(k), [seeds[i] for i in k], on_token=count, **options)
                images.append(dvae.decode(codes))
            images = torch.cat(images)
            rows.append((caption, images))
            slug = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60]
            for seed, image in zip(seeds, images):
                plots.save_png(out / f"{number:02d}-{slug}-seed{seed}.png", image)
    note = ", ".join(f"{name} {value}" for name, value in options.items())
    plots.save_samples(out / "sheet.png", {f"{args.run}, seeds {seeds[0]} … {seeds[-1]}": rows}, note)
    print(f"{len(args.captions) * args.n} pictures and sheet.png in {out} ({note})")


if __name__ == "__main__":
    main()
