"""python -m minidalle <verb>: draw with a run that `train_tiny.py` has made (studio/draw.py, web.py), and the full size (scale/verbs.py).

python -m minidalle generate "a photo of a large red circle" --run runs/shapes-tiny --rerank 32
python -m minidalle edit "the exact same fox on the top as a sketch on the bottom" --image fox.png --run runs/openmoji-tiny
python -m minidalle rank "a photo of a large red circle" one.png two.png --run runs/shapes-tiny
python -m minidalle verify runs/shapes-tiny/generated/sheet.png
python -m minidalle card --run runs/shapes-tiny                             (its model card, from its records)
python -m minidalle serve --run runs/shapes-tiny                           (the same in a browser)
python -m minidalle plan --preset dalle-12b --gpus 64 --gpu h100-80gb
python -m minidalle shards my-pictures shards                               (a folder of pictures, as tar shards)
python -m minidalle encode --shards 'shards/*.tar' --dvae released:dall-e codes
torchrun --nproc-per-node 8 -m minidalle train --preset dalle-12b --shards 'codes/*.tar' --dvae released:dall-e --out runs/12b
"""

import argparse
import importlib
import re
from pathlib import Path

from minidalle.cli import parse_with_settings, positive, run_command
from minidalle.config import nearest


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m minidalle", description="Draw with a trained model.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    with_a_run(verbs)
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
    given = [p for value in vars(args).values() for p in (value if isinstance(value, list) else [value])]
    if any(isinstance(p, Path) and "\0" in str(p) for p in given):
        parser.error("a path holds a NUL byte, which no file's name can: check how it was made")
    if args.verb in ("generate", "edit", "rank", "serve") and not args.run and not (args.verb == "rank" and args.clip):
        parser.error(f"{args.verb} needs --run, the folder that train_tiny.py wrote")
    if args.verb in ("generate", "edit") and args.rerank and args.rerank < args.n:
        parser.error(f"--rerank {args.rerank} is fewer than the {args.n} pictures wanted: draw more, or lower -n")
    if args.verb in ("generate", "edit") and args.clip and not args.rerank:
        parser.error("--clip ranks drawings: say how many to draw with --rerank, or leave it out")

    def verb():
        module, _, name = VERBS[args.verb].partition(":")
        function = getattr(importlib.import_module(f"minidalle.{module}"), name)
        return function(args, settings) if args.verb in WITH_SETTINGS else function(args)

    run_command(verb)


def with_a_run(verbs):
    """The verbs that draw with a run, or look at what it has made."""
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--run", type=Path, help="the folder that train_tiny.py wrote")
    every.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    every.add_argument(
        "--clip",
        help="what ranks: released:FILE or openclip:FILE, ViT-B/32 as safetensors (default: the run's own CLIP)",
    )
    every.add_argument(
        "--dvae",
        help="the dVAE: a run's folder or released:FOLDER with OpenAI's two files (default: the run's own; for rank: none)",
    )
    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument("-n", type=positive(int), default=9, help="pictures for each caption (default 9)")
    drawing.add_argument("--seed", type=int, default=0, help="picture k has seed SEED + k, whatever n is (default 0)")
    drawing.add_argument("--temperature", type=float, help="0 is greedy (default: as the run)")
    drawing.add_argument("--top-k", type=int, help="keep the k likeliest codes, 0 all (default: as the run)")
    drawing.add_argument("--top-p", type=float, help="keep the likeliest codes up to this probability")
    drawing.add_argument("--guidance", type=float, help="1 is off (default: as the run)")
    drawing.add_argument(
        "--rerank",
        type=positive(int),
        help="draw so many, keep the n that CLIP likes best, and print their scores (default: off)",
    )
    drawing.add_argument(
        "--out",
        type=Path,
        help="folder for the PNGs and sheet.png, all of them on a page (default RUN/generated or RUN/edited)",
    )
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
    serving = verbs.add_parser("serve", parents=[every], help="draw and edit in a browser, on this machine alone")
    serving.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets every machine of the network draw (default 127.0.0.1)"
    )
    serving.add_argument("--port", type=int, default=7860, help="0 takes any that is free (default 7860)")
    serving.add_argument("--queue", type=positive(int), default=20, help="so many drawings may wait (default 20)")
    checking = verbs.add_parser(
        "verify",
        help="is a picture as minidalle wrote it?",
        description="Prints a sentence for each. Exit code 0: intact, 1: altered, 2: that cannot be said; the highest of several.",
    )
    checking.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    checking.add_argument("--public-key", help="64 hexadecimal digits: the key that it has to be signed with")
    describing = verbs.add_parser(
        "card",
        help="write a run's model card from its records",
        description="Writes RUN/model_card.md from what the run has recorded. What its author has filled in stays.",
    )
    describing.add_argument("--run", type=Path, required=True, help="the folder that train_tiny.py or train wrote")


def at_scale(verbs):
    """The verbs of `scale/`: plan, shards, encode, train."""
    planning = verbs.add_parser("plan", help="what a preset costs on many GPUs: parameters, operations, bytes, days")
    planning.add_argument("--preset", default="dalle-12b", help="dalle-2.8b, dalle-5.6b, dalle-12b (default) or small")
    planning.add_argument("--gpus", type=positive(int), default=64, help="how many (default 64)")
    planning.add_argument(
        "--gpu", default="h100-80gb",
        help="a100-80gb, h100-80gb (default), h200-141gb, rtx-4090, or custom:FLOPS,BYTES,BANDWIDTH: operations a second, "
        "bytes of memory, bytes a second between GPUs, as in custom:312e12,80e9,300e9",
    )  # fmt: skip
    planning.add_argument("--utilisation", type=positive(float), default=0.4, help="share of its rate (default 0.4)")

    filtering = argparse.ArgumentParser(add_help=False)
    filtering.add_argument(
        "--filter", action="store_true",
        help="leave out captions that are too short or long, not in Latin letters, or boilerplate; the counts are printed",
    )  # fmt: skip
    filtering.add_argument(
        "--blocklist", type=Path, help="with --filter: a file of words, one a line, to leave out as well"
    )
    pictures = verbs.add_parser(
        "shards", parents=[filtering], help="write a folder of pictures with captions as tar shards"
    )
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
    encoding = verbs.add_parser(
        "encode", parents=[sharded, filtering], help="compute the dVAE's codes once, as shards of codes"
    )
    encoding.add_argument("out", type=Path, help="folder for the shards of codes; those that are there are kept")
    training = verbs.add_parser(
        "train", parents=[sharded], help="train the transformer on tar shards; under torchrun, on many GPUs"
    )
    training.add_argument("--out", type=Path, required=True, help="folder of the run")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--budget", type=positive(float), default=1.0, help="multiplies the number of updates")
    training.add_argument("--bpe", type=Path, help="a bpe.json (default: learned from the shards' captions)")
    training.add_argument(
        "--clip",
        help="what will rank this run's pictures: released:FILE or openclip:FILE, ViT-B/32 as safetensors (default: none)",
    )
    training.add_argument("--streams", type=positive(int), help="pictures at a time in a process (default: all of its)")
    training.add_argument("--no-recompute", action="store_true", help="keep everything for the backward pass")
    training.add_argument(
        "--workers", type=positive(int), default=0, help="processes that read for each process (default 0)"
    )
    training.add_argument("--resume", action="store_true", help="go on with the run in --out")


VERBS = {  # the function that does it, imported when it is asked for, so that --help needs no torch
    "generate": "studio.draw:draw", "edit": "studio.draw:draw", "rank": "studio.draw:rank_images",
    "verify": "studio.draw:verify_picture", "card": "studio.card:write_card", "serve": "studio.web:serve",
    "plan": "scale.verbs:print_plan", "shards": "scale.verbs:write_shards", "encode": "scale.verbs:encode_shards",
    "train": "scale.verbs:train_sharded",
}  # fmt: skip
WITH_SETTINGS = ("plan", "encode", "train")  # these take --transformer.n_layer=4 and the like


if __name__ == "__main__":
    main()
