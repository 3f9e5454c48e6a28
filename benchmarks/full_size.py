"""What of the full size can be measured on a small machine: counts, bytes, shards, and several processes.

    python benchmarks/full_size.py

Printed: the parameters of each of the paper's sizes, counted by PyTorch on the meta device, beside the planner's formula; seconds
and peak memory of encoding one picture of 256 x 256 with a dVAE of the released size (random weights: the released
files are not part of this project); what the planner says that the forward pass of small models keeps, beside what PyTorch keeps;
pictures a second read from tar shards of JPEGs of 64 x 64, by one process alone and with one and two workers; and 20 updates
of a tiny transformer by one process, by two, and begun by two and ended by one after SIGTERM: the largest difference of their
losses and gradient norms, relative. All on the CPU.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import side_by_side
from side_by_side import ROOT

QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
SHARDS, EACH, SIDE, BATCH = 8, 1_000, 64, 64


def count():
    import torch

    from minidalle.config import PAPER
    from minidalle.scale.plan import parameters
    from minidalle.transformer import DALLE

    print("| preset | parameters, PyTorch | planner | of these in the blocks |\n|---|---|---|---|")
    for preset in PAPER:
        with torch.device("meta"):
            model = DALLE(preset.transformer)
        parts = parameters(preset.transformer)
        ours, blocks = sum(parts.values()), next(n for name, n in parts.items() if name.startswith("blocks"))
        print(f"| {preset.name} | {sum(p.numel() for p in model.parameters()):,} | {ours:,} | {blocks:,} |")


def encode():
    import torch

    from minidalle.config import DVAEConfig
    from minidalle.dvae import DVAE

    torch.manual_seed(0)
    dvae, image = DVAE(DVAEConfig()).eval(), torch.rand(1, 3, 256, 256)
    started = time.perf_counter()
    codes = dvae.encode(image)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\nfull-size dVAE, one picture to {tuple(codes.shape[1:])} codes: {seconds:.1f} s, peak of the process {peak:,.0f} MB"
    )


def keep():
    """Bytes between forward and backward, of each stream: PyTorch's and the planner's."""
    from dataclasses import replace

    import torch
    from small import counted

    from minidalle.config import load_preset
    from minidalle.scale.plan import kept_numbers
    from minidalle.transformer import DALLE

    print("\n| layers, width, positions, masks | PyTorch keeps, bytes a stream | planner | ratio |\n|---|---|---|---|")
    for n_layer, n_embd, text_len, side, masks in (
        (3, 64, 16, 8, "dalle"),
        (4, 128, 64, 16, "dalle"),
        (4, 128, 64, 16, "causal"),
    ):
        c = replace(
            load_preset("tiny").transformer, n_layer=n_layer, n_head=4, n_embd=n_embd, text_len=text_len, rows=side, grid=side,
            vocab_size=300, codebook_size=90, masks=masks,
        )  # fmt: skip
        model = DALLE(c)

        def loss_of(n, c=c, model=model):
            text = torch.cat([torch.randint(c.vocab_size, (n, c.text_len - 1)), torch.full((n, 1), -1)], dim=1)
            return model.loss(text, torch.randint(c.codebook_size, (n, c.n_image))).total, model

        kept = counted(loss_of, 3)[1] - counted(loss_of, 2)[1]
        ours = 4 * kept_numbers(c, recompute=False)
        shape = f"{n_layer}, {n_embd}, {text_len} + {side} × {side}, {masks}"
        print(f"| {shape} | {kept:,} | {ours:,} | {ours / kept:.3f} |")


def processes(folder: Path):
    """The same 20 updates by one process, by two, and by two and then one."""
    import numpy as np
    from PIL import Image

    from minidalle.data import scenes

    captions = scenes.captions("train")[::40]
    (folder / "pictures").mkdir()
    for k, image in enumerate(scenes.draw(captions, np.random.default_rng(0))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"pictures/{k:04d}.png")
        (folder / f"pictures/{k:04d}.txt").write_text(captions[k])
    weights, python = str(ROOT / "lessons/weights"), [sys.executable, "-m", "minidalle"]
    size = ["--preset", "tiny", "--data.height=32", "--data.width=32", "--device", "cpu"]
    run([*python, "shards", f"{folder}/pictures", f"{folder}/tars", "--per-shard", "20"])
    run([*python, "encode", *size, "--shards", f"{folder}/tars/*.tar", "--dvae", weights, f"{folder}/codes"])
    stage = {"muon_lr": 0, "batch_size": 8, "updates": 20, "lr_updates": 20, "warmup": 4}
    train = [
        "-m", "minidalle", "train", *size, "--shards", f"{folder}/codes/*.tar", "--dvae", weights, "--transformer.text_len=48",
        "--train.log_every=1", "--train.save_every=7", *(f"--train.transformer.{key}={n}" for key, n in stage.items()),
    ]  # fmt: skip
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([sys.executable, *train, "--out", f"{folder}/one"])
    run([*many, *train, "--out", f"{folder}/two"])
    begun = subprocess.Popen([*many, *train, "--out", f"{folder}/both"], cwd=ROOT, env=QUIET, stderr=subprocess.DEVNULL)
    while not (folder / "both/state/000000007").exists() and begun.poll() is None:
        time.sleep(0.01)
    begun.send_signal(signal.SIGTERM)
    begun.wait()
    stopped = len(losses(folder / "both"))
    run([sys.executable, *train, "--out", f"{folder}/both", "--resume"])
    one = losses(folder / "one")
    for name, what in (("two", "two processes"), ("both", f"two, stopped after {stopped} updates, then one")):
        other = losses(folder / name)
        worst = max(abs(a - b) / abs(a) for x, y in zip(one, other) for a, b in zip(x, y))
        print(f"{what}: {len(other)} updates, largest difference from one process {worst:.1e}")


def run(command: list[str]):
    subprocess.run(command, cwd=ROOT, env=QUIET, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def losses(folder: Path) -> list[tuple[float, ...]]:
    """(text, image, gradient's norm) of every update."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["text"], r["image"], r["gradient"]) for r in records]


def read(folder: Path):
    """Pictures a second, from JPEGs with the detail of photographs: noise, enlarged."""
    import numpy as np
    from PIL import Image
    from webdataset import TarWriter

    from minidalle.scale import shards

    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for k in range(EACH):
                file, noise = io.BytesIO(), rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                tar.write({"__key__": f"{shard}{k:06d}", "jpg": file.getvalue(), "txt": b"noise"})
    size = sum(path.stat().st_size for path in folder.iterdir()) / SHARDS / EACH
    print(f"\n{SHARDS} shards of {EACH} JPEGs of {SIDE} x {SIDE}, {size:.0f} bytes of tar each")

    def picture(sample, rng):
        return shards.image_of(sample, SIDE, SIDE, rng)

    for workers in (0, 1, 2):
        stream = shards.Stream(shards.find(f"{folder}/*.tar"), BATCH, picture, 0, 0, 1, {})
        reader = shards.batches(stream, workers)
        next(reader)
        started, n = time.perf_counter(), 6 * EACH // BATCH
        for _ in range(n):
            next(reader)
        print(f"{workers} workers: {n * BATCH / (time.perf_counter() - started):,.0f} pictures a second")


if __name__ == "__main__":
    print(f"{side_by_side.machine()}\n")
    count()
    encode()
    keep()
    for part in (read, processes):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
