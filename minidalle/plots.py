"""The pictures that a run leaves: curves, reconstructions, samples, ranked candidates, finished halves, the four masks.

In: tensors and records of a run. Out: PNG files, written aside and renamed. Colours are safe for colour-blind readers.
"""

import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from kernels.reference import MASKS, dense_mask
from minidalle.checkpoint import Run, read_records, replacing
from minidalle.config import TransformerConfig
from minidalle.train import to_array

BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#BBBBBB"  # of Okabe and Ito's palette


def save_run(run: Run, config: TransformerConfig, pictures: dict, sampling: dict):
    """All pictures of a finished run, from what `evaluate.measure` returned and the run's metrics."""
    how = ", ".join(f"{name} {value}" for name, value in sampling.items())
    note = f"evenly spaced captions and their first seeds, not chosen. {how}"
    save_curves(run.folder / "curves.png", list(read_records(run.metrics)))
    save_reconstructions(run.folder / "reconstructions.png", pictures["reconstructions"])
    save_samples(run.folder / "samples.png", pictures["samples"], note)
    if "rerank" in pictures:
        save_rerank(run.folder / "rerank.png", pictures["rerank"])
    save_editing(run.folder / "editing.png", *pictures["editing"])
    if "failures" in pictures:
        save_failures(run.folder / "failures.png", *pictures["failures"])
    save_masks(run.folder / "masks.png", config.text_len, config.grid, config.kernel_size, config.rows)


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
            lines = (textwrap.shorten(line, 100, placeholder=" …") for line in caption.split("\n"))
            label = "\n".join(part for line in lines for part in textwrap.wrap(line, 52))
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


def save_rerank(path: Path, rows: list[tuple[str, torch.Tensor, torch.Tensor, np.ndarray | None]]):
    """For each caption its candidates (n, 3, height, width) with their scores (n,), best first; where an oracle has read
    them, right (n,) bool, its verdict stands above each."""
    n = max(len(row[1]) for row in rows)
    tall = 0.75 * rows[0][1].shape[2] / rows[0][1].shape[3]
    figure = Figure(figsize=(0.75 * n, (0.55 + tall) * len(rows) + 0.3), layout="constrained")
    for part, (caption, images, scores, right) in zip(figure.subfigures(len(rows), squeeze=False)[:, 0], rows):
        part.suptitle(textwrap.shorten(caption, 120, placeholder=" …"), fontsize=9, x=0.01, ha="left", parse_math=False)
        for k, axis in enumerate(part.subplots(1, n)):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(GREY)
            if k >= len(images):
                axis.axis("off")
                continue
            axis.imshow(to_array(images[k : k + 1])[0], interpolation="nearest")
            verdict = "" if right is None else "  right" if right[k] else "  wrong"
            colour = "black" if right is None else BLUE if right[k] else VERMILION
            axis.set_title(f"{scores[k]:.2f}{verdict}", fontsize=7, color=colour, pad=2)
    figure.suptitle(
        "best first: CLIP's score, and what the oracle says" if rows[0][3] is not None else "best first", fontsize=9
    )
    save_figure(path, figure)


def save_editing(path: Path, captions: list[str], truth: torch.Tensor, drawn: torch.Tensor):
    """A column for each caption: the given top half of truth (n, 3, height, width), the same finished as drawn, and truth."""
    given = truth.clone()
    given[:, :, truth.shape[2] // 2 :] = 0.85  # what is to be drawn
    figure = Figure(figsize=(1.15 * len(captions), 1 + 3.2 * truth.shape[2] / truth.shape[3]), layout="constrained")
    axes = figure.subplots(3, len(captions), squeeze=False)
    for row, (label, images) in zip(axes, {"given": given, "drawn": drawn, "truth": truth}.items()):
        for axis, picture in zip(row, to_array(images)):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(GREY)
        row[0].set_ylabel(label, fontsize=10)
    for axis, caption in zip(axes[0], captions):
        axis.set_title(
            "\n".join(textwrap.wrap(textwrap.shorten(caption, 90, placeholder=" …"), 18)), fontsize=6, parse_math=False
        )
    save_figure(path, figure)


def save_failures(path: Path, counts: dict[str, Counter], examples: list[tuple[str, torch.Tensor, str]]):
    """Above, for each attribute how often what was asked (down) was read as what (across), in percent of a row; below,
    drawings (3, height, width) of the most frequent failures with their captions and what is wrong with them."""
    figure = Figure(figsize=(12, 4.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    for axis, (name, count) in zip(above.subplots(1, len(counts), squeeze=False)[0], counts.items()):
        rows = sorted({wanted for wanted, _ in count})
        columns = rows + sorted({seen for _, seen in count} - {*rows})
        table = np.array([[count[wanted, seen] for seen in columns] for wanted in rows], float)
        table *= 100 / table.sum(axis=1, keepdims=True)
        axis.imshow(table, cmap="Blues", vmin=0, vmax=100)
        for (i, j), value in np.ndenumerate(table):
            if value:
                text = f"{value:.0f}" if value >= 1 else "<1"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if value > 60 else "black")
        axis.set_xticks(range(len(columns)), columns, rotation=60, fontsize=7)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set_title(name, fontsize=9)
    above.suptitle(
        "asked (down) and read by the oracle (across), percent; none: another number of objects than asked", fontsize=9
    )
    for axis, (caption, image, reason) in zip(below.subplots(1, 5), examples):
        axis.imshow(to_array(image[None])[0], interpolation="nearest")
        axis.set_title("\n".join(textwrap.wrap(caption, 26)), fontsize=8, parse_math=False)
        axis.set_xlabel("\n".join(textwrap.wrap(reason, 30)), fontsize=8, color=VERMILION, parse_math=False)
    for axis in below.axes:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(bool(axis.images))
    save_figure(path, figure)


def save_curves(path: Path, records: list[dict]):
    """The losses of every stage over its updates, from metrics.jsonl; thin as logged, thick smoothed."""
    stages = {"dvae": ["nll", "codes_used"], "transformer": ["image", "text"], "clip": ["loss", "accuracy"]}
    present = [stage for stage in stages if any(r["stage"] == stage for r in records)]
    figure = Figure(figsize=(9, 2.6 * len(present)), layout="constrained")
    for row, stage in zip(figure.subplots(len(present), 2, squeeze=False), present):
        mine = [r for r in records if r["stage"] == stage]
        for axis, key, colour in zip(row, stages[stage], (BLUE, ORANGE)):
            known = [r for r in mine if r[key] is not None]  # the loss of a skipped update may be no number
            steps, values = [r["step"] for r in known], [r[key] for r in known]
            axis.plot(steps, values, color=GREY, linewidth=0.8, label="as logged")
            axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label="smoothed")
            axis.legend(frameon=False, fontsize=8)
            units = {"codes_used": "codes in one batch", "nll": "nats per pixel value", "loss": "nats per pair"}
            unit = units.get(key, "share of a batch" if key == "accuracy" else "nats per token")
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
