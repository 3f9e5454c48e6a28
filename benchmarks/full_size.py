"""What of the full size can be measured on a small machine: counts, the released dVAE's encoder, reading tar shards.

    python benchmarks/full_size.py

Printed: the parameters of each of the paper's sizes, counted by PyTorch on the meta device, beside the planner's formula; seconds
and peak memory of encoding one picture of 256 x 256 with a dVAE of the released size (random weights: the released
files are not part of this project); pictures a second read from tar shards of JPEGs of 64 x 64, by one process alone and with
one and two workers. All on the CPU.
"""

import io
import resource
import tempfile
import time
from pathlib import Path

import side_by_side

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
    with tempfile.TemporaryDirectory() as folder:
        read(Path(folder))
