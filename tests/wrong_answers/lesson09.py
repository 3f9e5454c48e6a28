"""Plausible wrong answers to the exercises of lesson 09: each must fail its check."""

import torch
import torch.nn.functional as F


def clip_loss_rows_only(image, text, logit_scale):
    return _rows(_logits(image, text, logit_scale))


def clip_loss_columns_only(image, text, logit_scale):
    return _rows(_logits(image, text, logit_scale).T)


def clip_loss_not_halved(image, text, logit_scale):
    logits = _logits(image, text, logit_scale)
    return _rows(logits) + _rows(logits.T)


def clip_loss_summed_over_the_batch(image, text, logit_scale):
    return len(image) * _both(_logits(image, text, logit_scale))


def clip_loss_not_normalised(image, text, logit_scale):
    return _both(logit_scale.exp().clamp(max=100) * image @ text.T)


def clip_loss_normalised_along_the_batch(image, text, logit_scale):
    return _both(logit_scale.exp().clamp(max=100) * F.normalize(image, dim=0) @ F.normalize(text, dim=0).T)


def clip_loss_only_pictures_normalised(image, text, logit_scale):
    return _both(logit_scale.exp().clamp(max=100) * F.normalize(image, dim=1) @ text.T)


def clip_loss_scale_not_raised(image, text, logit_scale):
    return _both(logit_scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T)


def clip_loss_divided_by_the_scale(image, text, logit_scale):
    return _both(F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / logit_scale.exp())


def clip_loss_without_scale(image, text, logit_scale):
    return _both(F.normalize(image, dim=1) @ F.normalize(text, dim=1).T)


def clip_loss_without_cap(image, text, logit_scale):
    return _both(logit_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T)


def clip_loss_cap_on_the_logarithm(image, text, logit_scale):
    return _both(logit_scale.clamp(max=100).exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T)


def clip_loss_softmax_twice(image, text, logit_scale):
    logits = _logits(image, text, logit_scale)
    return (_rows(logits.softmax(dim=1)) + _rows(logits.T.softmax(dim=1))) / 2


def clip_loss_wrong_sign(image, text, logit_scale):
    return -_both(_logits(image, text, logit_scale))


def clip_loss_overflows(image, text, logit_scale):  # e to the 100 is no float32
    logits = _logits(image, text, logit_scale)
    rows, columns = (table - table.exp().sum(dim=1, keepdim=True).log() for table in (logits, logits.T))
    return -(rows.diagonal().mean() + columns.diagonal().mean()) / 2


def clip_loss_only_the_diagonal(image, text, logit_scale):
    return -_logits(image, text, logit_scale).diagonal().mean()


def best_first_worst_first(images, caption):
    return (F.normalize(images, dim=1) @ caption).argsort()


def best_first_not_normalised(images, caption):
    return (images @ caption).argsort(descending=True)


def best_first_normalised_along_the_batch(images, caption):
    return (F.normalize(images, dim=0) @ F.normalize(caption, dim=0)).argsort(descending=True)


def best_first_places_instead_of_numbers(images, caption):
    return (F.normalize(images, dim=1) @ caption).argsort(descending=True).argsort()


def best_first_scores(images, caption):
    return F.normalize(images, dim=1) @ F.normalize(caption, dim=0)


def best_first_best_only(images, caption):
    return (F.normalize(images, dim=1) @ caption).argmax()


def best_first_by_size_of_the_cosine(images, caption):
    return (F.normalize(images, dim=1) @ caption).abs().argsort(descending=True)


def best_first_by_distance_of_raw_vectors(images, caption):
    return (images - caption).norm(dim=1).argsort()


def _logits(image, text, logit_scale):  # to build wrong ones on
    return logit_scale.exp().clamp(max=100) * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T


def _rows(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def _both(logits):
    return (_rows(logits) + _rows(logits.T)) / 2
