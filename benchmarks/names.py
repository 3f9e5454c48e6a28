"""Is an emoji recognisable that was drawn from its name alone? Top-1 among 64 names, by a classifier trained apart.

    python benchmarks/names.py runs/openmoji-tiny [--drawings 8] [--part 0] [--seed 0] [--sheet names.png]

The 64 names are of the training families, one of each; a hash of the family chooses them. The classifier, a small
convolutional network, is trained on real pictures only: the two panels of these 64 emoji, scaled, moved and mirrored as the
run's own pool is, some blurred or noisy, never anything that a dVAE painted. Printed, with a 95 % interval by bootstrap over
names: how many pictures it names rightly, of other variants than it was trained on; of these after the run's dVAE; and of the
drawings. Chance is 1/64. The run learns nothing from this; how it draws is chosen by other 64 names (--part 1).
"""

import argparse
import hashlib
from pathlib import Path

import side_by_side
from minidalle.cli import positive, run_command

NAMES = 64
KNOWN = 60  # variants of an emoji that the classifier is trained on; about 140 or, where it may be mirrored, 280 exist
UPDATES, BATCH = 1_500, 128  # of the classifier


def chosen_drawings(part: int) -> list:
    """One drawing of each of 64 families that are trained on: the family's first, families by their hash."""
    from minidalle.data import openmoji

    first = {}
    for drawing in openmoji.drawings():
        if openmoji.split_of(drawing.family) == "train":
            first.setdefault(drawing.family, drawing)
    by_hash = sorted(first, key=lambda family: hashlib.sha256(f"names {family}".encode()).hexdigest())
    return [first[family] for family in by_hash[NAMES * part : NAMES * (part + 1)]]


def real_pictures(drawings: list, each: tuple[int, int], width: int, seed: int):
    """Variants of every drawing, `each[0]` to train on and `each[1]` others, none of them twice: for both
    (images (N, 3, 2 · width, width) uint8, labels (N,) int64)."""
    import numpy as np
    import torch

    from minidalle.data import openmoji

    rng, parts = np.random.default_rng(seed), ([], [])
    for drawing in drawings:
        variants = {}  # in the order in which they came
        while len(variants) < sum(each):
            variants[openmoji.variant(drawing, width, rng)] = None
        parts[0].extend([*variants][: each[0]])
        parts[1].extend([*variants][each[0] :])
    labels = torch.arange(len(drawings))
    return [(openmoji.render(part, width).images, labels.repeat_interleave(n)) for part, n in zip(parts, each)]


def train_classifier(images, labels, seed: int):
    """images (N, 3, 2 · width, width) uint8 -> a network from such pictures in [0, 1] to logits (B, NAMES)."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from tqdm import tqdm

    torch.manual_seed(seed)
    layers, n_in = [], 3
    for n_out in (32, 64, 96, 128):  # halved four times
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]
        n_in = n_out
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d((4, 2)), nn.Flatten(), nn.Dropout(0.3), nn.Linear(n_in * 8, NAMES)
    )
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, UPDATES)
    for _ in tqdm(range(UPDATES), desc="classifier", leave=False):
        rows = torch.randint(len(images), (BATCH,))
        x = images[rows].float() / 255
        blurred, noise = torch.rand(BATCH, 1, 1, 1) < 0.5, 0.1 * torch.rand(BATCH, 1, 1, 1)
        x = torch.where(blurred, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1), x)
        x = (x + noise * torch.randn(x.shape)).clamp(0, 1)
        F.cross_entropy(model(x), labels[rows], label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def sheet(path: Path, names: list[str], drawn, said: list[list[int]]):
    """At most four drawings (NAMES, n, 3, height, width) for each of the first 16 names, and under each what the classifier
    takes it for, if it is not the name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = min(4, drawn.shape[1])
    figure, axes = plt.subplots(n, 16, figsize=(20, 2.3 * n), layout="constrained", squeeze=False)
    for (k, name), axis in zip(((k, name) for k in range(n) for name in range(16)), axes.flat):
        axis.imshow(drawn[name, k].permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
        if said[name][k] != name:
            axis.set_xlabel(names[said[name][k]][:18], fontsize=8, color="#aa0000")
        if k == 0:
            axis.set_title(names[name][:18], fontsize=8)
    figure.savefig(path, dpi=80)


def name_them(folder: Path, n: int, part: int, seed: int, path: Path | None):
    """Print the three shares for the run in `folder`, from n pictures of each name."""
    import torch

    from minidalle.checkpoint import load_run
    from minidalle.data import openmoji
    from minidalle.evaluate import Models, interval
    from minidalle.oracle import as_float

    preset, bpe, dvae, dalle = load_run(folder)
    if preset.data.name != "openmoji":
        raise ValueError(f"{folder} is a run on {preset.data.name}, expected one on openmoji")
    models = Models(preset, bpe, dvae, dalle, None, torch.device("cpu"))
    drawings = chosen_drawings(part)
    names = [drawing.name for drawing in drawings]
    known, (real, labels) = real_pictures(drawings, (KNOWN, n), preset.data.width, seed)
    model = train_classifier(*known, seed)
    drawn = models.draw([openmoji.caption(names[label]) for label in labels], range(len(labels)))
    print(f"{side_by_side.machine()} · {folder.name} · part {part}, classifier's seed {seed}\n")
    for what, images in (
        ("real pictures", as_float(real)), ("the same after the dVAE", models.reconstruct(real)), ("drawings", drawn),
    ):  # fmt: skip
        with torch.no_grad():
            said = model(images).argmax(dim=1)  # of the drawings in the end
        share = interval((said == labels).numpy(), [names[label] for label in labels])
        print(f"{what:24} {share['value']:.3f} ({share['low']:.3f}–{share['high']:.3f}), n = {share['n']}")
    if path:
        sheet(path, names, drawn.unflatten(0, (NAMES, n)), said.reshape(NAMES, n).tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Top-1 among 64 names of emoji drawn from their names alone.")
    parser.add_argument("run", type=Path, help="folder of a run on openmoji")
    parser.add_argument("--drawings", type=positive(int), default=8, help="of each name (default 8)")
    parser.add_argument("--part", type=int, choices=[0, 1], default=0, help="1: other names, to choose settings by")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier")
    parser.add_argument("--sheet", type=Path, help="write some of the drawings to this PNG")
    args = parser.parse_args()
    run_command(lambda: name_them(args.run, args.drawings, args.part, args.seed, args.sheet))
