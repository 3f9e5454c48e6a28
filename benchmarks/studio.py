"""Drawing with a run, as its verbs do it: how long, the same again, and is what was kept kept?

    python benchmarks/studio.py --run lessons/weights [--repeats 5] [--threads 1 2] [--pictures 64]

Seconds and tokens/s: each time a process of its own; seconds are those of the whole command after its imports, from loading
the run to the last file; median (least–most). The rest is counted, for captions of two objects, `CAPTIONS`:
- files of two processes with the same seeds, byte by byte;
- codes of every picture drawn by itself, against the same in batches of nine, in other company and in reverse order; and by
  how much the logits of batches of one and of nine differ, in float64, in which `LoadedRun` draws, and in float32;
- codes of the kept rows, in drawings finished from the top of other drawings;
- a PNG with one value of one pixel changed by one, for every pixel of a picture, each of which `verify` should call altered.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side
from minidalle.cli import positive, run_command

CAPTIONS = (
    "a photo of a red circle above a blue square", "a sketch of a green triangle left of a yellow cross",
    "a photo of a purple cross right of a cyan circle", "a sketch of a blue square below a red triangle",
    "a photo of a yellow circle on top and the same as a sketch below", "a photo of a green square left of a purple triangle",
    "a sketch of a cyan cross above a red circle", "a photo of a blue triangle on top and the same as a sketch below",
)  # fmt: skip
BATCH = 9


def work(run: str, n: int, out: str):
    """In the child: import, then draw n pictures as the command does, and print what that took as JSON."""
    from minidalle.__main__ import main
    from minidalle.studio import draw  # noqa: F401, so that it is not timed

    said, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(said):
        main(["generate", CAPTIONS[0], "--run", run, "-n", str(n), "--out", out])
    rate = said.getvalue().split()[-2].replace(",", "")
    print(json.dumps({"seconds": time.perf_counter() - started, "tokens/s": float(rate)}))


def child(run: Path, n: int, threads: int, out: Path) -> dict:
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(run), str(n), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_seconds(run: Path, threads: list[int], repeats: int, folder: Path):
    print("| pictures | threads | seconds | tokens/s, drawing alone |\n| --- | --- | --- | --- |")
    for n in (1, BATCH, 64):
        for count in threads:
            took = [child(run, n, count, folder / f"{count}-{k}" / str(n)) for k in range(repeats)]
            seconds, rate = (
                side_by_side.middle([t[key] for t in took], d) for key, d in (("seconds", 2), ("tokens/s", 0))
            )
            print(f"| {n} | {count} | {seconds} | {rate} |")
    names = sorted(path.relative_to(folder / f"{threads[0]}-0") for path in folder.glob(f"{threads[0]}-0/*/*.png"))
    first, *others = ([(folder / f"{threads[0]}-{k}" / name).read_bytes() for name in names] for k in range(repeats))
    same = sum(a == b for other in others for a, b in zip(first, other))
    print(f"\nthe same seeds in another process: {same} of {len(names) * len(others)} files have the same bytes")


def print_codes(run, pictures: int):
    """Batches of one, of nine, and of nine in reverse order: codes that differ."""
    import torch

    options, seeds = run.options(), range(pictures)
    codes = alone = 0
    differ = {"in batches of nine": [0, 0], "in reverse order": [0, 0]}
    for caption in CAPTIONS:
        alone = torch.cat([run.draw(caption, [seed], options) for seed in seeds])
        nine = torch.cat([run.draw(caption, seeds[k : k + BATCH], options) for k in range(0, pictures, BATCH)])
        back = torch.cat([run.draw(caption, seeds[::-1][k : k + 7], options) for k in range(0, pictures, 7)]).flip(0)
        codes += alone.numel()
        for name, other in zip(differ, (nine, back)):
            wrong = (alone != other).flatten(1)
            differ[name][0] += wrong.sum().item()
            differ[name][1] += wrong.any(dim=1).sum().item()
    print(f"{len(CAPTIONS) * pictures} pictures of {len(CAPTIONS)} captions, each drawn by itself, against the same")
    for name, (wrong, drawings) in differ.items():
        print(f"  {name}: {wrong} of {codes:,} codes differ, in {drawings} pictures")


def print_logits(run):
    """The largest difference of a logit between batches of one and of nine that are given the same codes."""
    import torch

    from minidalle.cache import new_cache

    codes = run.draw(CAPTIONS[0], range(BATCH), run.options()).flatten(1)  # (9, rows * grid)
    text = run.text(CAPTIONS[0])[None]

    @torch.no_grad()
    def logits(model, codes):
        cache = new_cache(model, text, len(codes), codes[:, :0])
        steps = [cache.logits.clone()]
        return torch.stack(steps + [cache.step(codes[:, k], k).clone() for k in range(codes.shape[1] - 1)], dim=1)

    for dtype in (run.model.image_head.weight.dtype, torch.float32):
        model = run.model.to(dtype)
        alone = torch.cat([logits(model, codes[k : k + 1]) for k in range(BATCH)])
        largest = (alone - logits(model, codes)).abs().max()
        print(f"largest difference of a logit between batches of one and of nine, {dtype}: {largest:.1e}")


def print_kept(run, pictures: int, folder: Path):
    """Codes of the top rows, in drawings that continue the top of other drawings."""
    from minidalle.studio.draw import save

    kept = total = drawn = 0
    for k, caption in enumerate(CAPTIONS):
        picture = run.paint(run.draw(caption, [k], run.options()))[0]
        save(folder / f"{k}.png", run, picture, caption, k, {}, "generate")
        top = run.top_rows(folder / f"{k}.png")
        codes = run.draw(CAPTIONS[k - 1], range(pictures // len(CAPTIONS)), run.options(editing=True), top)
        same = codes[:, : len(top)] == top
        kept, total, drawn = kept + same.sum().item(), total + same.numel(), drawn + len(codes)
    print(f"edit: {kept:,} of {total:,} kept codes are as they were, in {drawn} drawings")


def print_altered(run, folder: Path):
    """Every pixel of one PNG, changed by one in one channel, its metadata as they were."""
    import numpy as np
    from PIL import Image, PngImagePlugin

    from minidalle.studio import provenance
    from minidalle.studio.draw import save

    path = folder / "one.png"
    save(path, run, run.paint(run.draw(CAPTIONS[0], [0], run.options()))[0], CAPTIONS[0], 0, {}, "generate")
    with Image.open(path) as image:
        pixels, info = np.asarray(image).copy(), PngImagePlugin.PngInfo()
        info.add_itxt("minidalle", image.info["minidalle"])
    altered = 0
    for k in range(pixels.shape[0] * pixels.shape[1]):
        row, column = divmod(k, pixels.shape[1])
        pixels[row, column, k % 3] ^= 1
        Image.fromarray(pixels).save(path, pnginfo=info, compress_level=0)
        altered += provenance.verify(path)[0] == 1
        pixels[row, column, k % 3] ^= 1
    Image.fromarray(pixels).save(path, pnginfo=info)
    print(
        f"one pixel changed by one: {altered:,} of {k + 1:,} reported as altered; unchanged: {provenance.verify(path)[0]}"
    )


def measure(args: argparse.Namespace):
    import torch

    from minidalle.studio.draw import LoadedRun

    print(f"{side_by_side.machine()} · {args.run}\n")
    torch.set_num_threads(args.threads[0])
    with tempfile.TemporaryDirectory() as folder:
        print_seconds(args.run, args.threads, args.repeats, Path(folder))
        run = LoadedRun(args.run, "cpu")
        print_codes(run, args.pictures)
        print_kept(run, args.pictures, Path(folder))
        print_altered(run, Path(folder))
        print_logits(run)


if __name__ == "__main__":
    if "--work" in sys.argv:
        work(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        parser = argparse.ArgumentParser(
            description="Drawing with a run: seconds, and whether what should be equal is."
        )
        parser.add_argument("--run", type=Path, default=Path("lessons/weights"), help="a run on scenes")
        parser.add_argument("--repeats", type=positive(int), default=5, help="processes of each kind (default 5)")
        parser.add_argument("--threads", type=positive(int), nargs="+", default=sorted({1, os.cpu_count()}))
        parser.add_argument("--pictures", type=positive(int), default=64, help="of each of 8 captions (default 64)")
        args = parser.parse_args()
        run_command(lambda: measure(args))
