"""Solutions of lesson 07."""

import torch.nn.functional as F


def block(x, ln_1, attend, ln_2, think):
    x = x + attend(ln_1(x))
    return x + think(ln_2(x))


def text_targets(text):
    targets = text[:, 1:-1]
    return targets, targets != -1


def weighted_loss(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    real = targets != -1
    text = F.cross_entropy(text_logits[real], targets[real]) if real.any() else text_logits.new_zeros(())
    image = F.cross_entropy(image_logits.flatten(0, 1), codes.flatten())
    return text_weight * text + (1 - text_weight) * image, text, image
