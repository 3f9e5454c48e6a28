"""Solutions of lesson 09."""

import torch
import torch.nn.functional as F


def clip_loss(image, text, logit_scale):
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    logits = logit_scale.exp().clamp(max=100) * image @ text.T  # (B, B)
    own = torch.arange(len(image))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def best_first(images, caption):
    scores = F.normalize(images, dim=1) @ F.normalize(caption, dim=0)  # (n,)
    return scores.argsort(descending=True)
