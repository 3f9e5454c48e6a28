"""What a run is worth in numbers: shares of right drawings with their intervals, ranking, finished halves, PSNR.

In: a trained tokenizer, dVAE, transformer and CLIP, and the splits of the data. Out: the figures of results.json, each
with a 95 % bootstrap interval, and the pictures that show them. Drawn worlds are marked by `oracle.py`; for real
pictures there is no such judge: there the dVAE's reconstructions are measured, and how well the lines of a finished
sketch agree with the artist's (the paper asks people, and measures FID: P 3).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from minidalle import failures
from minidalle.bpe import BPE
from minidalle.clip import CLIP
from minidalle.config import DRAWN, TWICE, Preset
from minidalle.data import SOURCES, scenes
from minidalle.data.pictures import Pictures
from minidalle.dvae import DVAE, usage
from minidalle.oracle import as_float, judge
from minidalle.sample import generate, in_batches
from minidalle.sequence import tokenize
from minidalle.train import decode_all, encode_all
from minidalle.transformer import DALLE

WORLDS = {name: SOURCES[name] for name in DRAWN}  # the data that the oracle can read
UNSEEN = {"shapes": "pairs", "scenes": "pairs", "openmoji": "families", "folder": "held_out"}  # the headline's split
DRAWINGS = 520  # for each split: 4 of each of the 130 captions that shapes are trained on
CANDIDATES = 16  # drawings of a caption that CLIP chooses from
RANKED = 128  # captions of a split for which it does
CAPTIONS = 128  # among which CLIP has to find a picture's own
DARK = 0.6  # a pixel whose mean over the colours, in [0, 1], is below this belongs to a line. A stroke 0.9 pixels wide that
# falls evenly on two leaves both at 0.55, so at a threshold of 0.5 it would not be there.
LABELS = {  # headings of samples.png
    "train": "seen: captions that were trained on",
    "captions": "captions: never seen, of known pairs",
    "pairs": "pairs: colour and shape never seen together",
    "families": "families: names never seen",
    "held_out": "held out: pictures and captions never seen",
}


class Models(NamedTuple):
    """All that a run has trained, where it is, and how it draws."""

    preset: Preset
    bpe: BPE
    dvae: DVAE
    dalle: DALLE | None
    clip: CLIP | None
    device: torch.device

    def text(self, captions: list[str]) -> torch.Tensor:
        """captions -> (N, text_len) int64, -1 = no token."""
        return tokenize(self.bpe, captions, self.dalle.config.text_len)

    def draw(self, captions: list[str], seeds: Sequence[int], prefix: torch.Tensor | None = None) -> torch.Tensor:
        """A picture of each caption with the preset's sampling: (N, 3, height, width) in [0, 1], on the CPU.
        prefix: None, or codes (N, r, grid) of the top rows, which are kept."""
        text, parts = self.text(captions), []
        how = self.preset.sample if prefix is None else self.preset.edit
        for k in map(list, in_batches(len(captions), self.dalle.config)):
            top = None if prefix is None else prefix[k]
            codes = generate(self.dalle, text[k], len(k), [seeds[i] for i in k], prefix=top, **vars(how))
            parts.append(self.dvae.decode(codes).cpu())
        return torch.cat(parts)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images (N, 3, height, width) uint8 -> codes (N, rows, grid) int64, on the CPU."""
        return encode_all(self.dvae, images, self.device)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """images (N, 3, height, width) uint8, through the codes and back: float32 in [0, 1], on the CPU."""
        return decode_all(self.dvae, self.encode(images), self.device)


def measure(models: Models, splits: dict[str, Pictures], n: int = DRAWINGS) -> tuple[dict, dict]:
    """The figures of results.json, and the pictures "reconstructions", "samples", "rerank" and "editing" for plots.py.

    What each figure means stands with the function that measures it; n: drawings for each split. Without a CLIP, nothing
    is ranked.
    """
    results, pictures = {}, {}
    with_clip = (measure_ranking, measure_clip) if models.clip else ()
    for part in (measure_dvae, measure_drawings, *with_clip, measure_editing):
        figures, shown = part(models, splits, n)
        results |= figures
        pictures |= shown
    return results, pictures


def measure_dvae(models: Models, splits: dict[str, Pictures], n: int) -> tuple[dict, dict]:
    """reconstruction: pictures of the unseen split through the dVAE and back, read by the oracle; psnr, in dB, of the
    same. codes_used, perplexity: of the codes of all held-out pictures; counted, so without an interval."""
    unseen = splits[UNSEEN[models.preset.data.name]]
    chosen = spaced(range(len(unseen.captions)), n)
    images, texts = unseen.images[chosen], [unseen.captions[i] for i in chosen]
    rebuilt = models.reconstruct(images)
    results = {"psnr": interval(psnr(images, rebuilt), texts)}
    if models.preset.data.name in WORLDS:
        add_verdict(results, "reconstruction", rebuilt, texts)
    codes = models.encode(torch.cat([splits[name].images for name in splits if name != "train"]))
    for name, value in usage(codes, models.preset.dvae.codebook_size).items():
        results[name] = {"value": value, "low": value, "high": value, "n": len(codes)}
    some, train = spaced(range(len(images)), 16), splits["train"].images[:16]
    shown = {"seen": (train, models.reconstruct(train)), "never seen": (images[some], rebuilt[some])}
    return results, {"reconstructions": shown}


def measure_drawings(models: Models, splits: dict[str, Pictures], n: int) -> tuple[dict, dict]:
    """seen, captions, pairs: n drawings over the captions of the split, picture k with seed k; "_clean" as in `judge`.
    tuning: the same for the split that choices are made on, so it flatters. Drawn worlds only, and there of the unseen
    split what went wrong; for all data, a gallery: 8 captions of a split with 4 drawings each."""
    results, samples, shown = {}, {}, {}
    for split, pictures in splits.items():
        different = sorted(set(pictures.captions))
        if models.preset.data.name in WORLDS:
            texts = np.resize(spaced(different, n), n).tolist()  # round and round
            drawn = models.draw(texts, range(n))
            add_verdict(results, "seen" if split == "train" else split, drawn, texts)
            if split == UNSEEN[models.preset.data.name]:
                shown["failures"] = what_failed(drawn, texts)
        if split in LABELS:
            samples[LABELS[split]] = [
                (caption, models.draw([caption] * 4, range(4))) for caption in spaced(different, 8)
            ]
    return results, {"samples": samples, **shown}


def what_failed(drawn: torch.Tensor, captions: list[str]) -> tuple[dict, list]:
    """For plots.save_failures: confusions by attribute, and an example of each of the most frequent failures."""
    findings = failures.find(drawn, captions)
    examples = [
        (captions[i], drawn[i], f"{reason}: {n} of {len(drawn)}") for i, reason, n in failures.typical(findings)
    ]
    return failures.confusions(findings), examples


def measure_ranking(models: Models, splits: dict[str, Pictures], n: int) -> tuple[dict, dict]:
    """Does choosing by CLIP help? 16 drawings of each caption: best_of_16, the share of captions whose drawing that
    CLIP scores highest is right; mean_of_16, the share of all drawings that are; gain_of_16, the difference caption by
    caption. For "captions" and for "pairs". Only the oracle's verdict comes after the choice; it takes no part in it."""
    name = models.preset.data.name
    results, shown = {}, []
    for split in ("captions", "pairs") if name in WORLDS else (UNSEEN[name],):
        different = spaced(sorted(set(splits[split].captions)), min(RANKED, n) if name in WORLDS else 4)
        texts = [caption for caption in different for _ in range(CANDIDATES)]
        drawn = models.draw(texts, range(len(texts)))
        tokens = models.text(different).to(models.device)
        candidates = drawn.unflatten(0, (-1, CANDIDATES))  # (captions, 16, 3, height, width)
        scores = torch.stack([models.clip.rank(t, c.to(models.device)) for t, c in zip(tokens, candidates)]).cpu()
        right = None
        if name in WORLDS:
            right = judge(drawn, texts)[0].reshape(scores.shape)  # (captions, 16)
            best, mean = right[range(len(right)), scores.argmax(dim=1)], right.mean(axis=1)  # (captions,)
            for figure, values in (("best", best), ("mean", mean), ("gain", best - mean)):
                results[f"{split}_{figure}_of_{CANDIDATES}"] = interval(values, different)
        for i in spaced(range(len(different)), 4):
            order = scores[i].argsort(descending=True)
            verdicts = None if right is None else right[i, order]
            shown.append((different[i], candidates[i, order], scores[i, order], verdicts))
    return results, {"rerank": shown}


def measure_clip(models: Models, splits: dict[str, Pictures], n: int) -> tuple[dict, dict]:
    """clip_seen, clip_captions, clip_pairs: share of new pictures of a split that find their own caption among 128, those
    of the split first. clip_…_swap: share of two-object pictures whose own caption scores above the one with the objects
    swapped ("B above A" for "A above B"); .5 is chance. Drawn worlds only."""
    name_of_data, size, results = models.preset.data.name, models.preset.data.width, {}
    if name_of_data not in WORLDS:
        return {}, {}
    train = in_one_wording(sorted(set(splits["train"].captions)))
    for split, name in (("train", "seen"), ("captions", "captions"), ("pairs", "pairs")):
        own = spaced(in_one_wording(sorted(set(splits[split].captions))), CAPTIONS)
        others = spaced([c for c in train if c not in own], CAPTIONS - len(own))
        texts = np.resize(own, CAPTIONS).tolist()
        images = as_float(WORLDS[name_of_data].draw(texts, np.random.default_rng(0), size)).to(models.device)
        image = torch.cat([models.clip.encode_image(part) for part in images.split(64)])  # (128, E)
        text = models.clip.encode_text(models.text(own + others).to(models.device))  # (128, E)
        scores = image @ text.T  # (128, 128)
        at = torch.arange(CAPTIONS, device=scores.device)
        results[f"clip_{name}"] = interval((scores.argmax(dim=1) == at % len(own)).cpu().numpy(), texts)
        if two := [i for i, caption in enumerate(own) if name_of_data == "scenes" and " same " not in caption]:
            wrong = models.text([scenes.parse(own[i]).swapped.caption for i in two]).to(models.device)
            better = scores[two, two] > (image[two] * models.clip.encode_text(wrong)).sum(dim=1)
            results[f"clip_{name}_swap"] = interval(better.cpu().numpy(), [own[i] for i in two])
    return results, {}


def in_one_wording(captions: list[str]) -> list[str]:
    """Of two captions of the same scene, "A above B" and "B below A", only the first."""
    return [caption for caption in captions if " below a " not in caption and " right of " not in caption]


def measure_editing(models: Models, splits: dict[str, Pictures], n: int) -> tuple[dict, dict]:
    """Unseen pictures of which the top half is given and the bottom half drawn (P 3.3).

    Where the bottom shows the same thing as a sketch: line_iou, how the drawn lines agree with the true ones;
    dvae_bound, what the dVAE's own reconstruction of the true picture reaches; chance, the sketch of another picture
    (openmoji); "_1px", the same where lines that lie a pixel apart agree; completed, all attributes right (scenes).
    """
    name = models.preset.data.name
    unseen = splits[UNSEEN[name]]
    twice = [i for i, caption in enumerate(unseen.captions) if name in TWICE and " same " in caption]
    rows = np.random.default_rng(0).permutation(twice or len(unseen.captions))
    rows = np.resize(rows, n) if twice else rows[:10]
    truth, texts = unseen.images[rows], [unseen.captions[i] for i in rows]
    codes = models.encode(truth)
    drawn = models.draw(texts, range(len(rows)), codes[:, : codes.shape[1] // 2])
    results = {}
    if name == "openmoji":
        rebuilt, other = decode_all(models.dvae, codes, models.device), truth.roll(1, 0)
        for figure, images in (("line_iou", drawn), ("dvae_bound", rebuilt), ("chance", other)):
            for suffix, tolerance in (("", 0), ("_1px", 1)):
                results[figure + suffix] = interval(line_iou(images, truth, tolerance), texts)
    elif twice:
        add_verdict(results, "completed", drawn, texts)
    return results, {"editing": (texts[:10], as_float(truth[:10]), drawn[:10])}


def line_iou(images: torch.Tensor, truth: torch.Tensor, tolerance: int = 0) -> np.ndarray:
    """(N,) agreement of the lines in the bottom halves of images and truth (N, 3, height, width), in [0, 1].

    Lines are the pixels darker than `DARK`. A pixel is met if the other picture has a line within `tolerance` pixels;
    the figure is met / (met + not met), met being the mean of both directions: without tolerance, intersection over union.
    """
    halves = [as_float(x)[:, :, x.shape[2] // 2 :].mean(dim=1, keepdim=True) < DARK for x in (images, truth)]
    wide = [F.max_pool2d(x.float(), 2 * tolerance + 1, 1, tolerance) > 0 for x in halves]  # (N, 1, height / 2, width)
    met = sum((line & near).flatten(1).sum(1) for line, near in zip(halves, wide[::-1])) / 2
    missed = sum((line & ~near).flatten(1).sum(1) for line, near in zip(halves, wide[::-1]))
    return (met / (met + missed).clamp(min=1)).double().numpy()


def add_verdict(results: dict, name: str, images: torch.Tensor, captions: list[str]):
    right, clean = judge(images, captions)
    results[name], results[f"{name}_clean"] = interval(right, captions), interval(clean, captions)


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
