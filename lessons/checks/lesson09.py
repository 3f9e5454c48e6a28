"""Checks of lesson 09."""

import math

import torch

from checks import exercise, expect, expect_number, expect_tensor


def _clip_loss(image, text, logit_scale):
    """By loops, in float64."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    scale = min(math.exp(logit_scale), 100.0)
    logits = [[scale * cosine(a, b) for b in text] for a in image]
    total = 0.0
    for table in (logits, list(zip(*logits))):
        for i, row in enumerate(table):
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[i]
    return total / (2 * len(image))


@exercise
def check_clip_loss(fn):
    cases = [  # what; image; text; the logarithm of the scale
        ("two pairs that fit", [[3.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 5.0]], 1.0),
        ("pairs the wrong way round", [[3.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [5.0, 0.0]], 0.5),
        ("one pair", [[1.0, 2.0, 3.0]], [[-1.0, 0.5, 1.0]], 2.0),
    ]
    alike = [[1.0, 0.0], [2.0, 0.1], [5.0, -0.4]]
    cases.append(("three pairs, all cosines near 1", alike, [[3.0, 0.1], [1.0, 0.1], [1.0, 0.0]], math.log(100)))
    for B, E, log_scale in ((3, 5, 0.0), (4, 2, math.log(1 / 0.07)), (6, 3, 4.0), (5, 8, 6.0)):
        image, text = (torch.randn(B, E) * torch.rand(B, 1) * 4, torch.randn(B, E) * 3)
        cases.append((f"{B} random pairs, E {E}", image.tolist(), text.tolist(), log_scale))
    for what, image, text, log_scale in cases:
        wanted = _clip_loss(image, text, log_scale)
        got = fn(torch.tensor(image), torch.tensor(text), torch.tensor(log_scale))
        what = f"{what}, logit_scale {log_scale:.2f} (scale {math.exp(log_scale):.0f})"
        infinite = isinstance(got, torch.Tensor) and got.dim() == 0 and not got.isfinite()
        expect(
            not infinite,
            f"{what}: expected {wanted:.6g}, got {got}; does it need exp of a number above 88? In float32 that is infinite. "
            "logsumexp and cross_entropy take the largest out first",
        )
        expect_number(what, got, wanted, 1e-4)


@exercise
def check_best_first(fn):
    caption = torch.tensor([2.0, 0.0])
    images = torch.tensor([[0.0, 9.0], [1.0, 1.0], [-4.0, 0.5], [0.5, 0.0], [10.0, 20.0]])
    order = torch.tensor([3, 1, 4, 0, 2])  # cosines 0, .71, -.99, 1, .45
    expect_tensor(f"images {images.tolist()}, caption [2, 0]", fn(images.clone(), caption.clone()), order)
    for n, E in ((1, 3), (4, 2), (9, 6)):
        images, caption = torch.randn(n, E) * (0.2 + 5 * torch.rand(n, 1)), torch.randn(E) * 3
        cosines = torch.stack([a @ caption / a.norm() for a in images])
        order = torch.tensor(sorted(range(n), key=lambda k: -cosines[k].item()))
        scores = (cosines / caption.norm()).tolist()
        what = f"images whose cosines with the caption are {[round(score, 2) for score in scores]}"
        expect_tensor(what, fn(images.clone(), caption.clone()), order)
        shuffled = torch.randperm(n)
        place = shuffled.argsort()  # where each picture is now
        what = f"the same images shuffled, cosines {[round(scores[k], 2) for k in shuffled]}"
        expect_tensor(what, fn(images[shuffled], caption.clone()), place[order])
