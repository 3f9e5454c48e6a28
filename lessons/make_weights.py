"""The weights that the lessons draw with: a finished run of the drawn scenes, rounded to 16 bits.

    python train_tiny.py --data scenes --out runs/scenes-tiny
    python lessons/make_weights.py runs/scenes-tiny

writes lessons/weights, a run folder like any other, half as large. Trained on drawn scenes alone, so no licence of a
picture attaches to it. Seed, date, machine and the run's own figures are in lessons/weights/results.json.
"""

import argparse
import shutil
import sys
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
sys.path.insert(0, str(WEIGHTS.parent.parent))

from minidalle.checkpoint import fingerprint, load_clip, load_run, save_model  # noqa: E402
from minidalle.cli import run_command  # noqa: E402


def make_weights(run: Path, out: Path = WEIGHTS):
    """Copy the run folder `run` to `out`, every weight in 16 bits, without what only training needs."""
    _, bpe, dvae, dalle = load_run(run)
    _, clip = load_clip(run)
    out.mkdir(exist_ok=True)
    for name in ("config.json", "bpe.json", "results.json"):
        shutil.copy(run / name, out / name)
    for name, model in (("dvae", dvae), ("transformer", dalle), ("clip", clip)):
        halved = {key: t.half() if t.is_floating_point() else t for key, t in model.state_dict().items()}
        model.load_state_dict(halved)  # what a reader of the file will have, which the hash is taken of
        hashes = {} if name == "dvae" else {"tokenizer": bpe.hash}
        if name == "transformer":
            hashes["dvae"] = fingerprint(dvae.state_dict())
        save_model(out / f"{name}.safetensors", model, halved, **hashes)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()):,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run, with its CLIP")
    args = parser.parse_args()
    run_command(lambda: make_weights(args.run))
