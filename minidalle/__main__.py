"""python -m minidalle <verb>: draw with a run that `train_tiny.py` has made, and what a larger one takes.

python -m minidalle generate "a photo of a large red circle" --run runs/shapes-tiny --rerank 32
python -m minidalle edit "the exact same fox on the top as a sketch on the bottom" --image fox.png --run runs/openmoji-tiny
python -m minidalle rank "a photo of a large red circle" one.png two.png --run runs/shapes-tiny
python -m minidalle plan --preset dalle-12b --gpus 64 --gpu h100-80gb
python -m minidalle shards my-pictures shards                               (a folder of pictures, as tar shards)
python -m minidalle encode --shards 'shards/*.tar' --dvae released:dall-e codes
torchrun --nproc-per-node 8 -m minidalle train --preset dalle-12b --shards 'codes/*.tar' --dvae released:dall-e --out runs/12b
"""

import argparse
import re
import warnings
from pathlib import Path

from minidalle.cli import parse_with_settings, positive, run_command
from minidalle.config import TWICE, nearest


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m minidalle", description="Draw with a trained model.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--run", type=Path, help="the folder that train_tiny.py wrote")
    every.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    every.add_argument(
        "--clip",
        help="what ranks: released:FILE or openclip:FILE, ViT-B/32 as safetensors (default: the run's own CLIP)",
    )
    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument("-n", type=positive(int), default=9, help="pictures for each caption (default 9)")
    drawing.add_argument("--seed", type=int, default=0, help="picture k has seed SEED + k, whatever n is (default 0)")
    drawing.add_argument("--temperature", type=float, help="0 is greedy (default: as the run)")
    drawing.add_argument("--top-k", type=int, help="keep the k likeliest codes, 0 all (default: as the run)")
    drawing.add_argument("--top-p", type=float, help="keep the likeliest codes up to this probability")
    drawing.add_argument("--guidance", type=float, help="1 is off (default: as the run)")
    drawing.add_argument(
        "--rerank", type=positive(int), help="draw so many, keep the n that CLIP likes best (default: off)"
    )
    drawing.add_argument("--out", type=Path, help="folder for the PNGs (default RUN/generated or RUN/edited)")
    drawing.add_argument("--upscale", type=positive(int), default=1, help="pixels as so many by so many (default 1)")
    drawing.add_argument("--gif", action="store_true", help="also save how each picture was drawn, code by code")
    drawing.add_argument("--no-mark", action="store_true", help="leave out the strip that says it was generated")
    drawing.add_argument("--key", type=Path, help="an Ed25519 private key (PEM) to sign the pictures with")

    generate = verbs.add_parser("generate", parents=[every, drawing], help="draw pictures from captions")
    generate.add_argument("captions", nargs="+", metavar="CAPTION")
    edit = verbs.add_parser("edit", parents=[every, drawing], help="keep the top of a picture and draw the rest")
    edit.add_argument("captions", nargs=1, metavar="CAPTION")
    edit.add_argument(
        "--image",
        type=Path,
        required=True,
        help="the picture: of the shape that the run draws, or only what is to be kept of it",
    )
    edit.add_argument(
        "--rows", type=int, help="rows of codes to keep (default 15/32 of them; half in a run on openmoji or scenes)"
    )
    rank = verbs.add_parser(
        "rank",
        parents=[every],
        help="order pictures by how well a caption fits them",
        description="Prints a line for each picture, best first: CLIP's score, then the file. A score is a cosine, at "
        "most 1; compare the scores of one caption, not of two.",
    )
    rank.add_argument("captions", nargs=1, metavar="CAPTION", help="of the kind that the run was trained on")
    rank.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="pictures of the shape that the run draws, of any size"
    )
    checking = verbs.add_parser(
        "verify",
        help="is a picture as minidalle wrote it?",
        description="Prints one sentence. Exit code 0: intact, 1: altered, 2: that cannot be said.",
    )
    checking.add_argument("image", type=Path, metavar="IMAGE")
    checking.add_argument("--public-key", help="64 hexadecimal digits: the key that it has to be signed with")
    at_scale(verbs)
    args, unknown = parser.parse_known_args(argv)
    settings = {}
    if args.verb in WITH_SETTINGS:
        args, settings = parse_with_settings(parser, argv)
    elif unknown:
        known = re.findall("--[a-z-]+", verbs.choices[args.verb].format_help())
        hint = nearest(unknown[0].partition("=")[0], known)
        parser.error(
            f"unknown argument {unknown[0]!r}{hint}: python -m minidalle {args.verb} --help lists what there is"
        )
    if args.verb in ("generate", "edit", "rank") and not args.run and not (args.verb == "rank" and args.clip):
        parser.error(f"{args.verb} needs --run, the folder that train_tiny.py wrote")
    if args.verb in ("generate", "edit") and args.rerank and args.rerank < args.n:
        parser.error(f"--rerank {args.rerank} is fewer than the {args.n} pictures wanted: draw more, or lower -n")
    verb = VERBS[args.verb]
    run_command(lambda: verb(args, settings) if args.verb in WITH_SETTINGS else verb(args))


def at_scale(verbs):
    """The verbs of `scale/`: plan, shards, encode, train."""
    planning = verbs.add_parser("plan", help="what a preset costs on many GPUs: parameters, operations, bytes, days")
    planning.add_argument("--preset", default="dalle-12b", help="dalle-2.8b, dalle-5.6b, dalle-12b (default) or small")
    planning.add_argument("--gpus", type=positive(int), default=64, help="how many (default 64)")
    planning.add_argument(
        "--gpu", default="h100-80gb",
        help="a100-80gb, h100-80gb (default), h200-141gb, rtx-4090, or custom:FLOPS,BYTES,BANDWIDTH",
    )  # fmt: skip
    planning.add_argument("--utilisation", type=positive(float), default=0.4, help="share of its rate (default 0.4)")

    pictures = verbs.add_parser("shards", help="write a folder of pictures with captions as tar shards")
    pictures.add_argument(
        "folder", type=Path, help="with fox.jpg (.png, .webp) and its caption in fox.txt, at any depth"
    )
    pictures.add_argument("out", type=Path, help="folder for the shards")
    pictures.add_argument("--per-shard", type=positive(int), default=1000, help="pictures in a shard (default 1000)")

    sharded = argparse.ArgumentParser(add_help=False)
    sharded.add_argument("--shards", required=True, help="such as 'data/shard-{00000..00099}.tar' or 'data/*.tar'")
    sharded.add_argument("--dvae", required=True, help="a run's folder, or released:FOLDER with OpenAI's two files")
    sharded.add_argument("--preset", default="dalle-12b", help="default dalle-12b")
    sharded.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    encoding = verbs.add_parser("encode", parents=[sharded], help="compute the dVAE's codes once, as shards of codes")
    encoding.add_argument("out", type=Path, help="folder for the shards of codes; those that are there are kept")
    training = verbs.add_parser(
        "train", parents=[sharded], help="train the transformer on tar shards; under torchrun, on many GPUs"
    )
    training.add_argument("--out", type=Path, required=True, help="folder of the run")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--budget", type=positive(float), default=1.0, help="multiplies the number of updates")
    training.add_argument("--bpe", type=Path, help="a bpe.json (default: learned from the shards' captions)")
    training.add_argument("--streams", type=positive(int), help="pictures at a time in a process (default: all of its)")
    training.add_argument("--no-recompute", action="store_true", help="keep everything for the backward pass")
    training.add_argument("--workers", type=int, default=0, help="processes that read for each process (default 0)")
    training.add_argument("--resume", action="store_true", help="go on with the run in --out")


def draw(args: argparse.Namespace):
    """`generate` and `edit`: n pictures for every caption, one PNG each, and a sheet of all."""
    import torch

    from minidalle import plots
    from minidalle.checkpoint import fingerprint, load_run
    from minidalle.sequence import tokenize
    from minidalle.studio import provenance
    from minidalle.train import decode_all, pick_device

    device = pick_device(args.device)
    preset, bpe, dvae, model = load_run(args.run)
    check_captions(args.captions, bpe)
    score = scorer(args, device) if args.rerank else None
    dvae, model = dvae.to(device), model.to(device)
    prefix = top_rows(args, preset, dvae, model.config, device) if args.verb == "edit" else None
    usual = preset.edit if args.verb == "edit" else preset.sample
    options = {
        name: getattr(usual, name) if getattr(args, name) is None else getattr(args, name)
        for name in ("temperature", "top_k", "top_p", "guidance")
    }
    model_hash = fingerprint(model.state_dict())
    out = args.out or args.run / ("edited" if args.verb == "edit" else "generated")
    seeds, rows = range(args.seed, args.seed + (args.rerank or args.n)), []
    for number, caption in enumerate(args.captions, start=1):
        text = tokenize(bpe, [caption], model.config.text_len)[0]
        codes = codes_of(model, text, seeds, prefix, options)
        images = decode_all(dvae, codes, device)
        order, scores = range(len(seeds)), None
        if score is not None:
            scores = score(caption, images)
            order = scores.argsort(descending=True)[: args.n].tolist()
        slug = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60]
        label = ""
        for k in order:
            path = out / f"{number:02d}-{slug}-seed{seeds[k]}.png"
            facts = {"prompt": caption, "seed": seeds[k], "options": options, "verb": args.verb, "model": model_hash}
            provenance.save(path, images[k], facts, not args.no_mark, args.upscale, args.key)
            if args.gif:
                given = 0 if prefix is None else len(prefix)
                plots.save_gif(path.with_suffix(".gif"), frames_of(dvae, codes[k], given), args.upscale)
            if scores is not None:
                print(f"{scores[k]:6.3f}  {path}")
        if scores is not None:
            label = f"\nseed (score): {', '.join(f'{seeds[k]} ({scores[k]:.2f})' for k in order)}"
        rows.append((caption + label, images[torch.tensor(order)]))
    note = ", ".join(f"{name} {value}" for name, value in options.items())
    plots.save_samples(out / "sheet.png", {f"{args.run}, {args.n} of seeds {seeds[0]} … {seeds[-1]}": rows}, note)
    count = len(args.captions) * args.n
    print(f"{count} picture{'' if count == 1 else 's'} and sheet.png in {out} ({note})")


def codes_of(model, text, seeds, prefix, options):
    """Codes (len(seeds), rows, grid) for one caption, drawn in batches under a progress bar."""
    import torch
    from tqdm import tqdm

    from minidalle import sample

    cells = model.config.n_image - (0 if prefix is None else prefix.numel())
    parts = []
    with tqdm(total=len(seeds) * cells, unit="token", desc="draw") as bar:
        for k in sample.in_batches(len(seeds), model.config):
            parts.append(sample.generate(
                model, text, len(k), [seeds[i] for i in k], prefix=prefix,
                on_token=lambda cell, codes: bar.update(len(codes)), **options,
            ))  # fmt: skip
    return torch.cat(parts)


def frames_of(dvae, codes, given: int):
    """A picture (rows, grid) as it is drawn, code after code behind the first `given` rows: (frames, 3, height, width). What is not yet drawn
    is grey, and the decoder does not know it."""
    import torch
    import torch.nn.functional as F

    step, grid = dvae.config.downsample, codes.shape[1]
    one_hot = F.one_hot(codes, dvae.config.codebook_size).permute(2, 0, 1).float()  # (K, rows, grid)
    every, frames = max(1, codes.numel() // 128), []  # at most about 128 frames
    for n in [*range(given * grid, codes.numel(), every), codes.numel()]:
        known = (torch.arange(codes.numel(), device=codes.device) < n).view_as(codes)  # (rows, grid)
        with torch.no_grad():
            picture = dvae.paint((one_hot * known)[None])[0]
        seen = known.repeat_interleave(step, 0).repeat_interleave(step, 1)
        frames.append(torch.where(seen, picture, 0.85).cpu())
    return torch.stack(frames)


def verify_picture(args: argparse.Namespace):
    """`verify`: see studio/provenance.py."""
    from minidalle.studio import provenance

    code, sentence = provenance.verify(args.image, args.public_key)
    print(sentence)
    raise SystemExit(code)


def top_rows(args: argparse.Namespace, preset, dvae, config, device):
    """The codes (rows, grid) of the top of the picture that is to be edited."""
    import torch.nn.functional as F

    usual = config.rows // 2 if preset.data.name in TWICE else max(1, config.rows * 15 // 32)  # P 3.3
    rows = usual if args.rows is None else args.rows
    if not 0 < rows < config.rows:
        raise ValueError(f"--rows must lie in 1 … {config.rows - 1}, as this run draws {config.rows} rows, got {rows}")
    kept, size = (rows * dvae.config.downsample, preset.data.width), (preset.data.height, preset.data.width)
    image = read_picture(args.image, device, size, kept)
    below = (0, 0, 0, size[0] - image.shape[1])  # what is not there is white
    return dvae.encode(F.pad(image, below, value=1.0)[None])[0, :rows]


def scorer(args: argparse.Namespace, device):
    """What ranks: a function (caption, images (n, 3, height, width) in [0, 1]) -> scores (n,)."""
    import torch.nn.functional as F

    from minidalle.checkpoint import load_clip
    from minidalle.scale import released
    from minidalle.sequence import tokenize

    if args.clip is None:
        bpe, clip = load_clip(args.run)
        check_captions(args.captions, bpe)
        clip = clip.to(device)
        return lambda caption, images: clip.rank(tokenize(bpe, [caption], clip.config.context)[0].to(device), images)
    kind, _, file = args.clip.partition(":")
    if kind not in ("released", "openclip") or not file:
        raise ValueError(f"--clip must be released:FILE or openclip:FILE, got {args.clip!r}")
    clip, tokens = released.load_clip(file, Path(file).parent / "tokenizer.json", quick_gelu=kind == "released")
    clip, size = clip.to(device), (clip.config.height, clip.config.width)

    def score(caption, images):
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        return clip.rank(tokens([caption])[0].to(device), images)

    return score


def rank_images(args: argparse.Namespace):
    """`rank`: the files with their scores, best first."""
    import torch

    from minidalle.checkpoint import load_preset_of
    from minidalle.train import pick_device

    device = pick_device(args.device)
    score = scorer(args, device)
    if args.run:
        drawn = load_preset_of(args.run).data
        images = [read_picture(path, device, (drawn.height, drawn.width)) for path in args.images]
    else:
        images = [read_middle(path, device) for path in args.images]
    scores = score(args.captions[0], torch.stack(images)).tolist()
    for score, path in sorted(zip(scores, args.images), key=lambda pair: -pair[0]):
        print(f"{score:6.3f}  {path}")


def print_plan(args: argparse.Namespace, settings: dict):
    """`plan`: see scale/plan.py."""
    from minidalle.config import load_preset
    from minidalle.scale.plan import plan

    preset = load_preset(args.preset, overrides=settings)
    print("\n".join(plan(preset, args.gpus, args.gpu, args.utilisation)))


def write_shards(args: argparse.Namespace):
    """`shards`: see scale/shards.py."""
    from minidalle.scale import shards

    count, skipped = shards.write(args.folder, args.out, args.per_shard)
    if skipped:
        warnings.warn(f"skipped {skipped}", stacklevel=1)
    print(f"{count} pictures in {len(list(args.out.glob('*.tar')))} shards in {args.out}")


def encode_shards(args: argparse.Namespace, settings: dict):
    """`encode`: see scale/shards.py."""
    from minidalle.config import load_preset
    from minidalle.scale import shards
    from minidalle.train import pick_device

    device, preset = pick_device(args.device), load_preset(args.preset, overrides=settings)
    dvae = dvae_from(args.dvae).to(device)
    size = preset.data.height, preset.data.width
    done, skipped = shards.encode(shards.find(args.shards), args.out, dvae, *size, device)
    if skipped:
        named = ", ".join(f"{name} ({reason})" for name, reason in skipped[:10])
        warnings.warn(f"skipped {len(skipped)}: {named}{', …' if len(skipped) > 10 else ''}", stacklevel=1)
    print(f"encoded {done} pictures into {args.out}")


def train_sharded(args: argparse.Namespace, settings: dict):
    """`train`: see scale/sharded.py."""
    import dataclasses

    from minidalle.bpe import BPE
    from minidalle.config import load_preset
    from minidalle.scale import sharded

    preset = load_preset(args.preset, overrides=settings, budget=args.budget)
    dvae = dvae_from(args.dvae)
    make_bpe = (lambda: BPE.load(args.bpe)) if args.bpe else None
    sharded.train(
        dataclasses.replace(preset, dvae=dvae.config), args.shards, dvae, args.out, args.seed, args.device, args.resume,
        args.streams or 0, not args.no_recompute, args.workers, make_bpe,
    )  # fmt: skip


def dvae_from(source: str):
    """The dVAE of a run's folder, or of "released:FOLDER"."""
    from minidalle.checkpoint import load_dvae
    from minidalle.scale import released

    kind, _, folder = source.partition(":")
    return released.load_dvae(folder) if kind == "released" else load_dvae(Path(source))


def read_picture(path: Path, device, *sizes: tuple[int, int]):
    """(3, height, width) float32 in [0, 1], without our mark, resized to the one of the sizes (height, width) whose shape it has."""
    import torch

    from minidalle.data.folder import read
    from minidalle.studio.provenance import without_mark
    from minidalle.train import to_float

    return to_float(torch.from_numpy(read(path, *sizes, prepare=without_mark)).to(device))


def read_middle(path: Path, device, side: int = 224):
    """(3, side, side) float32 in [0, 1], the largest square in the middle of the picture, averaged down or enlarged."""
    import torch

    from minidalle.data import folder
    from minidalle.studio.provenance import without_mark
    from minidalle.train import to_float

    try:
        folder.check_header(path, aspect=float("inf"))
        picture = without_mark(folder.decode(path, least=side))
    except ValueError as reason:
        raise ValueError(f"{path}: {reason}; expected a JPEG, PNG or WebP picture") from None
    middle = folder.view_box(picture.size, side, side, None)
    return to_float(torch.from_numpy(folder.cut(picture, middle, side, side)).to(device))


def check_captions(captions: list[str], bpe):
    """Raise ValueError for an empty caption; warn of words that the run cannot know well."""
    for caption in captions:
        if not caption.strip():
            raise ValueError("a caption is empty: say what to draw, such as 'a photo of a large red circle'")
        words = dict.fromkeys(re.findall(r"\w+", caption.lower()))  # each once
        if strange := [word for word in words if len(bpe.encode(word)) > 1]:
            warnings.warn(
                f"the model reads {', '.join(map(repr, strange))} in pieces, because such words were rare or not there in "
                "its captions: what it draws may not show them",
                stacklevel=1,
            )


VERBS = {
    "generate": draw, "edit": draw, "rank": rank_images, "verify": verify_picture,
    "plan": print_plan, "shards": write_shards, "encode": encode_shards, "train": train_sharded,
}  # fmt: skip
WITH_SETTINGS = ("plan", "encode", "train")  # these take --transformer.n_layer=4 and the like


if __name__ == "__main__":
    main()
