"""What of the full size can be measured on a small machine: counts, bytes, shards, and several processes.

    python benchmarks/full_size.py

Printed: the parameters of each of the paper's sizes, counted by PyTorch on the meta device, beside the planner's formula; seconds
and peak memory of encoding one picture of 256 x 256 with a dVAE of the released size (random weights: the released
files are not part of this project); how far such a dVAE, read from stand-ins for the released files, is from the layer formula computed
without our classes; how many of the files of tests/hostile.py are refused; what the planner says that the forward pass of small models keeps, beside what PyTorch keeps;
pictures a second read from tar shards of JPEGs of 64 x 64, by one process alone and with one and two workers; and 20 updates
of a tiny transformer by one process, by two, and begun by two and ended by one after SIGTERM, and the other way round: the
largest difference of their losses and gradient norms, relative. All on the CPU.
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


def compare(folder: Path):
    """Stand-ins for encoder.pkl and decoder.pkl, read by `load_dvae`, against the formula."""
    import torch

    from minidalle.scale.released import load_dvae
    from tests.stand_ins import differences, make_dvae_files

    tensors, image = make_dvae_files(folder), torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    apart = differences(load_dvae(folder), tensors, image)
    print(
        f"stand-ins for the released dVAE, read from pickles, against the layer formula: logits {apart['logits']:.1e} of the "
        f"largest, pixels {apart['pixels']:.1e}, {apart['codes']} of 1024 codes others (asked: 1e-5)"
    )


def refuse():
    command = [sys.executable, "-m", "tests.hostile"]
    print(subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True).stdout.strip())


def streams_of(c, n: int):
    """n random streams for a transformer of these settings: text (n, text_len) without pads, codes (n, rows * grid)."""
    import torch

    text = torch.cat([torch.randint(c.vocab_size, (n, c.text_len - 1)), torch.full((n, 1), -1)], dim=1)
    return text, torch.randint(c.codebook_size, (n, c.n_image))


def kept_for_backward(c, recompute: bool, half: bool) -> float:
    """Bytes that PyTorch keeps between forward and backward for each stream, the model as in sharded training: what six
    streams keep more than two, a quarter of it, so that weights and heads' gradients do not count."""
    import torch

    from minidalle.scale import sharded
    from minidalle.transformer import DALLE

    def once(n):
        kept = {}  # address of a storage -> bytes

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model.loss(*streams_of(c, n))
        return sum(storage.nbytes() for storage in kept.values())

    with sharded.processes("cpu"):
        model = sharded.shard(DALLE(c), recompute, half)
        return (once(6) - once(2)) / 4


def keep():
    """Bytes between forward and backward, of each stream: PyTorch's and the planner's."""
    from dataclasses import replace

    from minidalle.config import load_preset
    from minidalle.scale.plan import kept_bytes

    print("\n| layers, width, positions, masks | blocks | PyTorch keeps, bytes a stream | planner | ratio |")
    print("|---|---|---|---|---|")
    for n_layer, n_embd, text_len, side, masks in (
        (3, 64, 16, 8, "dalle"),
        (4, 128, 64, 16, "dalle"),
        (4, 128, 64, 16, "causal"),
    ):
        c = replace(
            load_preset("tiny").transformer, n_layer=n_layer, n_head=4, n_embd=n_embd, text_len=text_len, rows=side, grid=side,
            vocab_size=300, codebook_size=90, masks=masks,
        )  # fmt: skip
        for recompute, half in ((False, False), (False, True), (True, False), (True, True)):
            kept = kept_for_backward(c, recompute, half)
            ours = kept_bytes(c, recompute, half) - recompute * kept_bytes(replace(c, n_layer=1), False, half)
            if recompute:  # in the forward pass no block is whole yet, and the ends were taken away with it
                ours += 4 * 2 * (c.text_len + c.n_image) * c.n_embd
            how = f"{'computed again' if recompute else 'kept'}, {'bfloat16' if half else 'float32'}"
            shape = f"{n_layer}, {n_embd}, {text_len} + {side} × {side}, {masks}"
            print(f"| {shape} | {how} | {kept:,.0f} | {ours:,} | {ours / kept:.3f} |")


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
    size = ["--preset", "tiny", "--data.height=32", "--data.width=32", "--dvae.codebook_size=64", "--device", "cpu"]
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
    begun = {"two": "two processes"}
    for name, first, then, words in (
        ("2to1", [*many, *train], [sys.executable, *train], "two, stopped after {} updates, then one"),
        ("1to2", [sys.executable, *train], [*many, *train], "one, stopped after {} updates, then two"),
    ):
        begun[name] = words.format(stop_and_go_on(folder / name, first, then))
    one = losses(folder / "one")
    for name, what in begun.items():
        other = losses(folder / name)
        worst = max(abs(a - b) / abs(a) for x, y in zip(one, other) for a, b in zip(x, y))
        print(f"{what}: {len(other)} updates, largest difference from one process {worst:.1e}")


def stop_and_go_on(out: Path, first: list[str], then: list[str]) -> int:
    """Begin a run with one command, stop it by SIGTERM after its first saved state, end it with the other. Returns the
    update after which it stopped."""
    begun = subprocess.Popen(
        [*first, "--out", str(out)], cwd=ROOT, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (out / "state/000000007").exists() and begun.poll() is None:
        time.sleep(0.01)
    begun.send_signal(signal.SIGTERM)
    begun.wait()
    stopped = len(losses(out))
    run([*then, "--out", str(out), "--resume"])
    return stopped


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
    refuse()
    keep()
    for part in (compare, read, processes):
        with tempfile.TemporaryDirectory() as folder:
            part(Path(folder))
