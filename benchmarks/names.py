"""Is an emoji recognisable that was drawn from its name alone? Top-1 among 64 names, by a classifier trained apart.

    python benchmarks/names.py runs/openmoji-tiny [--drawings 8] [--seed 0] [--sheet names.png]

The 64 names were all trained on, one of a family; a hash of the family chooses them. The classifier, a small convolutional
network, has seen real pictures only: the two panels of these 64 emoji, scaled, moved and mirrored as the run's own pool is,
some blurred or noisy, never anything that a dVAE painted. Printed, with a 95 % interval by bootstrap over names: how many of
the real pictures it names that it did not train on; of these after the run's dVAE, which no drawing can well exceed; and of
the drawings. Chance is 1/64. The run itself learns nothing from any of this.
"""

import argparse
import hashlib
from pathlib import Path

import side_by_side

NAMES = 64
UPDATES, BATCH = 1_500, 128  # of the classifier


def chosen_names() -> list:
    """One drawing of each of 64 families that are trained on: the family's first, families by their hash."""
    from minidalle.data import openmoji

    first = {}
    for drawing in openmoji.drawings():
        if openmoji.split_of(drawing.family) == "train":
            first.setdefault(drawing.family, drawing)
    by_hash = sorted(first, key=lambda family: hashlib.sha256(f"names {family}".encode()).hexdigest())
    return [first[family] for family in by_hash[:NAMES]]


def real_pictures(drawings: list, each: int, width: int, seed: int):
    """`each` variants of every drawing: images (N, 3, 2 · width, width) uint8, labels (N,) int64."""
    import numpy as np
    import torch

    from minidalle.data import openmoji

    rng = np.random.default_rng(seed)
    placements = [openmoji.variant(drawing, width, rng) for drawing in drawings for _ in range(each)]
    return openmoji.render(placements, width).images, torch.arange(len(drawings)).repeat_interleave(each)


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


def sheet(path: Path, names: list[str], drawn, read: list[list[str]]):
    """Four drawings for each of the first 16 names, under each what the classifier says where it is not the name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 16, figsize=(20, 9), layout="constrained")
    for at, axis in enumerate(axes.T.flat):
        name, k = divmod(at, 4)
        axis.imshow(drawn[name][k].permute(1, 2, 0))
        axis.set_xticks([])
        axis.set_yticks([])
        said = read[name][k]
        axis.set_xlabel("" if said == names[name] else said[:16], fontsize=7, color="#aa0000")
        if k == 0:
            axis.set_title(names[name][:18], fontsize=8)
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description="Top-1 among 64 names of emoji drawn from their names alone.")
    parser.add_argument("run", type=Path, help="folder of a run on openmoji")
    parser.add_argument("--drawings", type=int, default=8, help="of each name (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the classifier")
    parser.add_argument("--sheet", type=Path, help="write some of the drawings to this PNG")
    args = parser.parse_args()

    import torch

    from minidalle.checkpoint import load_run
    from minidalle.data import openmoji
    from minidalle.evaluate import Models, interval
    from minidalle.oracle import as_float

    preset, bpe, dvae, dalle = load_run(args.run)
    if preset.data.name != "openmoji":
        parser.error(f"{args.run} is a run on {preset.data.name}, expected one on openmoji")
    models = Models(preset, bpe, dvae, dalle, None, torch.device("cpu"))
    drawings = chosen_names()
    names = [drawing.name for drawing in drawings]
    model = train_classifier(*real_pictures(drawings, 120, preset.data.width, args.seed), args.seed)
    real, labels = real_pictures(drawings, args.drawings, preset.data.width, args.seed + 1)
    drawn = models.draw([openmoji.caption(names[label]) for label in labels], range(len(labels)))
    print(f"{side_by_side.machine()} · {args.run.name} · classifier's seed {args.seed}\n")
    for what, images in (
        ("real pictures", as_float(real)), ("the same after the dVAE", models.reconstruct(real)), ("drawings", drawn),
    ):  # fmt: skip
        with torch.no_grad():
            said = model(images).argmax(dim=1)
        share = interval((said == labels).numpy(), [names[label] for label in labels])
        print(f"{what:24} {share['value']:.3f} ({share['low']:.3f}–{share['high']:.3f}), n = {share['n']}")
    if args.sheet:
        said = [names[label] for label in said]
        rows = range(0, len(labels), args.drawings)
        sheet(args.sheet, names, drawn.unflatten(0, (NAMES, -1)), [said[row : row + args.drawings] for row in rows])


if __name__ == "__main__":
    main()
