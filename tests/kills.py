"""Kills a real run at random moments, resumes it, and compares it with one that nobody stopped, bit for bit.

    python tests/kills.py                 20 runs of train_tiny.py, each killed once or more
    python tests/kills.py --program train 20 runs of `minidalle train`, of one process
    python tests/kills.py --kills 2       fewer, as the test does

Each run is a process of its own, forked from this one, which has imported everything. Half of the kills come at a random time,
from outside; the others from within a save, at a random call of what writes, renames, flushes or deletes, some in the middle
of a file. After each kill the newest state has to open. Then three runs end otherwise: by Ctrl-C, by SIGTERM, and where the disk takes
no more (a limit on the size of files); each has to say so in one sentence.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

os.environ["TQDM_DISABLE"] = "1"  # read at its import
sys.path.insert(0, str(Path(__file__).parent.parent))
import train_tiny
from minidalle import checkpoint, evaluate
from minidalle.__main__ import main as minidalle_main
from minidalle.checkpoint import load_tensors
from minidalle.config import DVAEConfig
from minidalle.data import shapes
from minidalle.dvae import DVAE
from minidalle.scale import packing, run, shards  # noqa: F401  (imported once, here, and not after each fork)
from tests.same_run import contents

SETTINGS = {
    "data.pool": 64, "dvae.n_hid": 8, "dvae.n_init": 8, "dvae.codebook_size": 16, "transformer.n_embd": 24,
    "train.dvae.updates": 30, "train.transformer.updates": 30, "train.clip.updates": 20, "train.save_every": 6,
    "train.log_every": 2, "train.dvae.batch_size": 4, "train.transformer.batch_size": 4, "train.clip.batch_size": 6,
    "clip.image_width": 24, "clip.text_width": 24, "clip.embed_dim": 8,
}  # fmt: skip
SHARDED = {
    "train.transformer.updates": 30, "train.save_every": 6, "train.log_every": 2, "train.transformer.batch_size": 8,
    "train.transformer.muon_lr": 0, "data.height": 24, "data.width": 24, "data.vocab_size": 280, "transformer.text_len": 48,
    "transformer.n_layer": 2, "transformer.n_head": 2, "transformer.n_embd": 32,
}  # fmt: skip
CALLS = [(os, "replace"), (os, "fsync"), (checkpoint, "save_file"), (shutil, "copy"), (shutil, "rmtree"), (os, "rmdir")]


def train(folder: Path, resume: bool, prepare=lambda: None) -> int:
    """Start a run in a process of its own; returns its id. prepare: called there first."""
    child = os.fork()
    if child:
        return child
    with (folder.parent / "stderr").open("w") as said:
        os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        prepare()
        code = 0
        try:
            (sharded if (folder.parent / "codes").exists() else tiny)(folder, ["--resume"] if resume else [])
        except SystemExit as stop:
            code = stop.code
        os._exit(code)


def tiny(folder: Path, more: list[str]):
    """train_tiny.py, up to the end of its training."""
    evaluate.measure = lambda *_: sys.exit(0)
    parsed = train_tiny.parse(["--out", str(folder), *(f"--{key}={value}" for key, value in SETTINGS.items()), *more])
    train_tiny.run_command(lambda: train_tiny.train_tiny(*parsed), "; go on")


def sharded(folder: Path, more: list[str]):
    """The verb `train`, on the shards beside its folder."""
    settings = [f"--{key}={value}" for key, value in SHARDED.items()]
    d = folder.parent
    files = [
        "--preset",
        "tiny",
        "--dvae.codebook_size=20",
        "--shards",
        f"{d}/codes/*.tar",
        "--dvae",
        str(d / "dvae"),
        "--device",
        "cpu",
    ]
    minidalle_main(["train", *files, "--out", str(folder), *settings, *more])


def make_shards(d: Path):
    """Four shards of codes, and the dVAE that they are of, not trained."""
    captions = [f"a photo of a {size} {colour} circle" for size in ("small", "large") for colour in shapes.COLOURS] * 3
    (d / "pictures").mkdir()
    for k, (image, caption) in enumerate(zip(shapes.draw(captions, np.random.default_rng(0), 24), captions)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(d / f"pictures/{k}.png")
        (d / f"pictures/{k}.txt").write_text(caption)
    torch.manual_seed(0)
    dvae = DVAE(DVAEConfig(codebook_size=20, n_hid=8, n_init=4, n_group=2, n_block=1, input_kernel=3, patch=2)).eval()
    checkpoint.save_model(d / "dvae/dvae.safetensors", dvae, dvae.state_dict())
    packing.write(d / "pictures", d / "tars", per_shard=9)
    packing.encode(shards.find(f"{d}/tars/*.tar"), d / "codes", dvae, 24, 24, torch.device("cpu"))


def ended(child: int) -> int:
    """Wait for it; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(call: int, share: float, count=None):
    """From now on this process kills itself at the n-th call of `CALLS`: before it, or, of a file, after a share of its bytes.
    count: instead, a file to write the number of calls into."""
    calls = [0]

    def watched(real):
        def function(*arguments, **options):
            calls[0] += 1
            if count:
                count.write_text(str(calls[0]))
            elif calls[0] == call:
                if real is SAVE_FILE:
                    real(*arguments, **options)
                    os.truncate(arguments[1], int(share * os.path.getsize(arguments[1])))
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return function

    for module, name in CALLS:
        setattr(module, name, watched(getattr(module, name)))


SAVE_FILE = checkpoint.save_file


def newest_state_opens(folder: Path, before: int) -> bool:
    """Is there a state, at least as new as that before, and are all its files whole?"""
    states = sorted((folder / "state").glob("[0-9]*"))
    if not states:
        return before == 0
    for path in states[-1].glob("*.safetensors"):
        load_tensors(path)
    return checkpoint.read_json(states[-1] / "state.json")["step"] > 0 and int(states[-1].name) >= before


def killed(folder: Path, rng: random.Random, inside: bool, calls: int, seconds: float) -> bool:
    """A run that is killed one to three times, then left to end. Returns whether a state opened after each kill."""
    fine, newest, resume = True, 0, False
    for _ in range(rng.choice((1, 1, 2, 3))):
        if inside:
            at, share = rng.randint(1, calls), rng.random()
            code = ended(train(folder, resume, lambda at=at, share=share: die_at(at, share)))
        else:
            child = train(folder, resume)
            time.sleep(rng.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            code = ended(child)
        fine &= code in (0, -signal.SIGKILL) and newest_state_opens(folder, newest)
        newest = max((int(path.name) for path in (folder / "state").glob("[0-9]*")), default=0)
        resume = True
    return ended(train(folder, resume=True)) == 0 and fine


def stopped(folder: Path, how: str) -> str:
    """A run that is asked to stop, or finds the disk full, and then goes on; returns what it said."""
    if how == "full disk":
        code = ended(train(folder, False, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2)))
    else:
        child = train(folder, False)
        while not any((folder / "state").glob("[0-9]*")):
            time.sleep(0.01)
        os.kill(child, signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
        code = ended(child)
    said = [line for line in (folder.parent / "stderr").read_text().splitlines() if line.strip() and "%|" not in line]
    assert code == 1 and len(said) == 1, (code, said)
    assert ended(train(folder, resume=True)) == 0, (folder.parent / "stderr").read_text()
    return said[0]


def main(program: str, kills: int, seed: int) -> int:
    torch.set_num_threads(1)
    rng, good = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        if program == "train":
            make_shards(d)
        started = time.monotonic()
        assert ended(train(d / "whole", False, lambda: die_at(0, 0, d / "calls"))) == 0, (d / "stderr").read_text()
        seconds, calls, whole = time.monotonic() - started, int((d / "calls").read_text()), contents(d / "whole")
        for k in range(kills):
            fine = killed(d / "run", rng, k % 2 == 1, calls, seconds)
            same = fine and contents(d / "run") == whole
            good += same
            if not same:
                print(f"kill {k + 1} was not resumed as it should: {(d / 'stderr').read_text()[-300:]}")
            shutil.rmtree(d / "run")
        for how in ("Ctrl-C", "SIGTERM", "full disk"):
            said = stopped(d / "run", how)
            same = contents(d / "run") == whole
            good -= not same
            print(f"{how}: {said!r}, and resumed {'bitwise' if same else 'DIFFERENTLY'}")
            shutil.rmtree(d / "run")
    print(f"{good} of {kills} kills resumed bitwise")
    return good != kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--program", choices=["train_tiny", "train"], default="train_tiny")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(main(**vars(parser.parse_args())))
