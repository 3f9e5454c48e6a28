"""The pictures that a run leaves: loss curves, reconstructions, samples with their captions, the four masks.

In: tensors and records of a run. Out: PNG files, written aside and renamed. Colours are safe for colour-blind readers.
"""

import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from kernels.reference import MASKS, dense_mask
from minidalle.checkpoint import replacing

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#BBBBBB"  # of Okabe and Ito's palette


def to_array(images: torch.Tensor) -> np.ndarray:
    """images (N, 3, height, width), uint8 or float in [0, 1] -> (N, height, width, 3) uint8."""
    if images.is_floating_point():
        images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).cpu().numpy()


def save_png(path: Path, image: torch.Tensor):
    """One picture (3, height, width) as a PNG of its own size."""
    with replacing(path) as aside:
        Image.fromarray(to_array(image[None])[0]).save(aside)


def strip(images: torch.Tensor, gap: int = 2) -> np.ndarray:
    """images (N, 3, height, width) side by side with a grey gap between them, (height, about N * width, 3) uint8."""
    tiles = np.pad(to_array(images), ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=187)
    return np.concatenate(list(tiles), axis=1)[:, :-gap]


def save_figure(path: Path, figure: Figure):
    with replacing(path) as aside:
        figure.savefig(aside, dpi=110, format="png", facecolor="white", bbox_inches="tight")


def save_samples(path: Path, columns: dict[str, list[tuple[str, torch.Tensor]]], note: str = ""):
    """A column for each heading; in it, one strip of drawings (n, 3, height, width) under each caption."""
    rows = max(len(entries) for entries in columns.values())
    figure = Figure(figsize=(4.6 * len(columns), 1.15 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for c, (heading, entries) in enumerate(columns.items()):
        for r, (caption, images) in enumerate(entries):
            axes[r, c].imshow(strip(images), interpolation="nearest")
            label = "\n".join(textwrap.wrap(textwrap.shorten(caption, 100, placeholder=" …"), 52))
            axes[r, c].set_title(f"{heading}\n\n{label}" if r == 0 else label, fontsize=8, loc="left", parse_math=False)
    figure.suptitle(note, fontsize=8, parse_math=False)
    save_figure(path, figure)


def save_reconstructions(path: Path, sections: dict[str, tuple[torch.Tensor, torch.Tensor]]):
    """For each heading, pictures (n, 3, height, width) above what the dVAE makes of them."""
    figure = Figure(figsize=(9, 1.5 * len(sections)), layout="constrained")
    for axis, (heading, (pictures, rebuilt)) in zip(
        figure.subplots(len(sections), squeeze=False)[:, 0], sections.items()
    ):
        above, below = strip(pictures), strip(rebuilt)
        line = np.full((3, above.shape[1], 3), 255, np.uint8)
        axis.imshow(np.concatenate([above, line, below]), interpolation="nearest")
        axis.set_title(f"{heading}: originals above, reconstructions below", fontsize=9, loc="left")
        axis.axis("off")
    save_figure(path, figure)


def save_curves(path: Path, records: list[dict]):
    """The losses of every stage over its updates, from metrics.jsonl; thin as logged, thick smoothed."""
    stages = {"dvae": ["nll", "codes_used"], "transformer": ["image", "text"]}
    present = [stage for stage in stages if any(r["stage"] == stage for r in records)]
    figure = Figure(figsize=(9, 2.6 * len(present)), layout="constrained")
    for row, stage in zip(figure.subplots(len(present), 2, squeeze=False), present):
        mine = [r for r in records if r["stage"] == stage]
        for axis, key, colour in zip(row, stages[stage], (BLUE, ORANGE)):
            steps, values = [r["step"] for r in mine], [r[key] for r in mine]
            axis.plot(steps, values, color=GREY, linewidth=0.8, label="as logged")
            axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label="smoothed")
            axis.legend(frameon=False, fontsize=8)
            unit = {"codes_used": "codes in one batch", "nll": "nats per pixel value"}.get(key, "nats per token")
            axis.set(title=f"{stage}: {key}", xlabel="update", ylabel=unit)
            axis.grid(alpha=0.3)
    save_figure(path, figure)


def smooth(values: list[float], decay: float = 0.6) -> list[float]:
    """The running mean sum_i decay^(n-i) v_i / sum_i decay^(n-i)."""
    total = weight = 0.0
    out = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        out.append(total / weight)
    return out


def save_masks(path: Path, text_len: int = 16, grid: int = 8, kernel_size: int = 3, rows: int | None = None):
    """The four masks over one small stream: who (down) looks at whom (across)."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    colours = ListedColormap(["white", ORANGE, BLUE])
    for axis, kind in zip(figure.subplots(1, len(MASKS)), MASKS):
        mask = dense_mask(kind, text_len, grid, rows, kernel_size).int()
        mask[:, text_len:] *= 2  # looking at the image, not at the text
        axis.imshow(mask, cmap=colours, interpolation="nearest")
        axis.axhline(text_len - 0.5, color="black", linewidth=0.6)
        axis.axvline(text_len - 0.5, color="black", linewidth=0.6)
        axis.set(title=kind if kind != "conv" else f"conv {kernel_size}x{kernel_size}", xlabel="looked at")
    figure.axes[0].set_ylabel("position that looks")
    figure.suptitle(
        f"{text_len} text positions, then {rows or grid} x {grid} image cells: text in orange, image in blue",
        fontsize=9,
    )
    save_figure(path, figure)
