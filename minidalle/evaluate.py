"""What a run is worth in numbers: shares of right drawings with their intervals, PSNR, use of the codebook.

In: a trained tokenizer, dVAE and transformer, and the splits of the data. Out: the figures of results.json, each with
a 95 % bootstrap interval, and the pictures that show them. Drawn shapes are marked by `oracle.py`; for real pictures
there is no such judge, and only the dVAE's reconstructions are measured (the paper asks people, and measures FID: P 3).
"""

import numpy as np
import torch

from minidalle.config import Preset
from minidalle.data.pictures import Pictures
from minidalle.dvae import usage
from minidalle.oracle import as_float, judge
from minidalle.sample import generate, in_batches
from minidalle.sequence import tokenize
from minidalle.train import encode_all, split_to_fit

UNSEEN = {"shapes": "pairs", "openmoji": "families"}  # the split that the headline figures are about
DRAWINGS = 520  # for each split: 4 of each of the 130 captions that shapes are trained on
LABELS = {  # headings of samples.png
    "train": "seen: captions that were trained on",
    "captions": "captions: never seen, of known pairs",
    "pairs": "pairs: colour and shape never seen together",
    "families": "families: names never seen",
}


def measure(
    preset: Preset, bpe, dvae, model, splits: dict[str, Pictures], device, n: int = DRAWINGS
) -> tuple[dict, dict]:
    """The figures of results.json and pictures to look at: {"reconstructions", "samples"}.

    reconstruction: pictures of the unseen split through the dVAE and back; psnr is of them too, in dB.
    codes_used, perplexity: of the codes of all held-out pictures; counted, so without an interval.
    seen, captions, pairs: n drawings over all captions of the split, picture k with seed k. "_clean" as in `judge`.
    tuning: the same for the split that choices are made on, so it flatters.
    """
    with_oracle = preset.data.name == "shapes"
    results, reconstructions = measure_dvae(preset, dvae, splits, device, n)
    samples = {}
    for split in splits:
        different = sorted(set(splits[split].captions))
        different = different if with_oracle else spaced(different, 8)
        texts = [different[i % len(different)] for i in range(n if with_oracle else 32)]
        drawn = draw(preset, bpe, dvae, model, texts, device)
        if with_oracle:
            add_verdict(results, "seen" if split == "train" else split, drawn, texts)
        if split in LABELS:
            samples[LABELS[split]] = gallery(texts, drawn)
    return results, {"reconstructions": reconstructions, "samples": samples}


def measure_dvae(preset: Preset, dvae, splits: dict[str, Pictures], device, n: int) -> tuple[dict, dict]:
    """The dVAE's part of `measure`: figures, and {heading: (pictures, reconstructions)}."""
    unseen = splits[UNSEEN[preset.data.name]]
    images, texts = as_float(unseen.images[:n]), unseen.captions[:n]
    rebuilt = reconstruct(dvae, images, device)
    results = {"psnr": interval(psnr(images, rebuilt), texts)}
    if preset.data.name == "shapes":
        add_verdict(results, "reconstruction", rebuilt, texts)
    held_out = torch.cat([splits[name].images for name in splits if name != "train"])
    codes = encode_all(dvae, held_out, device)
    for name, value in usage(codes, preset.dvae.codebook_size).items():
        results[name] = {"value": value, "low": value, "high": value, "n": len(codes)}
    some, train = spaced(range(len(images)), 16), as_float(splits["train"].images[:16])
    return results, {"seen": (train, reconstruct(dvae, train, device)), "never seen": (images[some], rebuilt[some])}


def reconstruct(dvae, images: torch.Tensor, device) -> torch.Tensor:
    """images (N, 3, height, width) in [0, 1] through the codes and back, on the CPU."""
    return torch.cat([dvae.decode(dvae.encode(part.to(device))).cpu() for part in split_to_fit(images)])


def draw(preset: Preset, bpe, dvae, model, captions: list[str], device) -> torch.Tensor:
    """A picture of each caption, (N, 3, height, width) on the CPU, with the preset's sampling; picture k has seed k."""
    text = tokenize(bpe, captions, model.config.text_len)
    options = vars(preset.sample)
    parts = []
    for k in in_batches(len(captions), model.config):
        codes = generate(model, text[list(k)], len(k), k, **options)
        parts.append(dvae.decode(codes).cpu())
    return torch.cat(parts)


def add_verdict(results: dict, name: str, images: torch.Tensor, captions: list[str]):
    right, clean = judge(images, captions)
    results[name], results[f"{name}_clean"] = interval(right, captions), interval(clean, captions)


def gallery(
    captions: list[str], images: torch.Tensor, rows: int = 8, columns: int = 4
) -> list[tuple[str, torch.Tensor]]:
    """`rows` captions, evenly spaced and not chosen, each with its first `columns` drawings."""
    chosen = spaced(sorted(set(captions)), rows)
    return [
        (caption, images[[i for i, other in enumerate(captions) if other == caption][:columns]]) for caption in chosen
    ]


def spaced(items, count: int) -> list:
    """At most `count` of the items, evenly spaced from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def interval(values, groups: list[str], seed: int = 0, resamples: int = 1000) -> dict:
    """Mean of values (N,) with a 95 % bootstrap interval: {"value", "low", "high", "n"}, n the number of drawings.

    Whole groups (captions) are drawn with replacement, because drawings of one caption succeed or fail together:
    counting each as independent would make the interval too narrow. With equal means in all groups it has no width.
    Raises ValueError for no values, values that are not finite, or another number of groups.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or len(values) != len(groups):
        raise ValueError(
            f"values of shape {values.shape} and {len(groups)} groups: give one group per value, and at least one value"
        )
    if not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity: leave those drawings out, and say how many")
    names, member = np.unique(groups, return_inverse=True)
    total = np.bincount(member, values)  # (groups,)
    count = np.bincount(member)
    chosen = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    means = total[chosen].sum(axis=1) / count[chosen].sum(axis=1)  # (resamples,)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def psnr(images: torch.Tensor, reconstructions: torch.Tensor) -> np.ndarray:
    """(N,) float64, −10 log₁₀ of the mean squared error of each picture, in dB; infinite where the two are equal."""
    if images.shape != reconstructions.shape:
        raise ValueError(
            f"images {tuple(images.shape)} but reconstructions {tuple(reconstructions.shape)}: give one for each"
        )
    error = (as_float(images).double() - as_float(reconstructions).double()).square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).numpy()
