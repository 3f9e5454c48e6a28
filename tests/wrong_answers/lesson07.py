"""Plausible wrong answers to the exercises of lesson 07: each must fail its check."""

import torch
import torch.nn.functional as F


def block_without_sums(x, ln_1, attend, ln_2, think):
    return think(ln_2(attend(ln_1(x))))


def block_post_norm(x, ln_1, attend, ln_2, think):
    x = ln_1(x + attend(x))
    return ln_2(x + think(x))


def block_norm_on_the_main_road(x, ln_1, attend, ln_2, think):
    x = ln_1(x)
    x = x + attend(x)
    x = ln_2(x)
    return x + think(x)


def block_both_read_x(x, ln_1, attend, ln_2, think):
    return x + attend(ln_1(x)) + think(ln_2(x))


def block_forgets_attention(x, ln_1, attend, ln_2, think):
    half = x + attend(ln_1(x))
    return x + think(ln_2(half))


def block_second_without_sum(x, ln_1, attend, ln_2, think):
    x = x + attend(ln_1(x))
    return think(ln_2(x))


def block_one_norm_for_both(x, ln_1, attend, ln_2, think):
    x = x + attend(ln_1(x))
    return x + think(ln_1(x))


def block_mlp_first(x, ln_1, attend, ln_2, think):
    x = x + think(ln_2(x))
    return x + attend(ln_1(x))


def block_in_place(x, ln_1, attend, ln_2, think):
    x += attend(ln_1(x))
    x += think(ln_2(x))
    return x


def text_targets_not_shifted(text):
    targets = text[:, :-2]
    return targets, targets != -1


def text_targets_shifted_twice(text):
    targets = text[:, 2:]
    return targets, targets != -1


def text_targets_with_sep(text):
    targets = text[:, 1:]
    return targets, targets != -1


def text_targets_id_0_is_a_pad(text):
    targets = text[:, 1:-1]
    return targets, targets > 0


def text_targets_all_real(text):
    targets = text[:, 1:-1]
    return targets, torch.ones_like(targets, dtype=torch.bool)


def text_targets_pads_marked(text):
    targets = text[:, 1:-1]
    return targets, targets == -1


def text_targets_real_of_the_position_itself(text):
    return text[:, 1:-1], text[:, :-2] != -1


def text_targets_only_first_caption(text):
    targets = text[:, 1:-1]
    return targets, (targets[0] != -1).expand(targets.shape)


def text_targets_real_as_numbers(text):
    targets = text[:, 1:-1]
    return targets, (targets != -1).long()


def weighted_loss_not_weighted(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    _, text, image = _right_loss(text_logits, image_logits, targets, codes)
    return text + image, text, image


def weighted_loss_weights_swapped(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    _, text, image = _right_loss(text_logits, image_logits, targets, codes)
    return (1 - text_weight) * text + text_weight * image, text, image


def weighted_loss_always_an_eighth(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    return _right_loss(text_logits, image_logits, targets, codes)


def weighted_loss_image_at_full_weight(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    _, text, image = _right_loss(text_logits, image_logits, targets, codes)
    return text_weight * text + image, text, image


def weighted_loss_one_mean_over_all(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    _, text, image = _right_loss(text_logits, image_logits, targets, codes)
    n, m = (targets != -1).sum(), codes.numel()
    return (n * text + m * image) / (n + m), text, image


def weighted_loss_pads_are_token_0(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    return _right_loss(text_logits, image_logits, targets.clamp(min=0), codes, text_weight)


def weighted_loss_divides_by_pads_too(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    text = F.cross_entropy(text_logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    text, image = text / targets.numel(), _right_loss(text_logits, image_logits, targets, codes)[2]
    return text_weight * text + (1 - text_weight) * image, text, image


def weighted_loss_mean_of_the_captions_means(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    means = [
        F.cross_entropy(logits[row != -1], row[row != -1])
        for logits, row in zip(text_logits, targets)
        if (row != -1).any()
    ]
    text = torch.stack(means).mean() if means else text_logits.new_zeros(())
    image = _right_loss(text_logits, image_logits, targets, codes)[2]
    return text_weight * text + (1 - text_weight) * image, text, image


def weighted_loss_nan_without_text(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    text = F.cross_entropy(text_logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
    image = F.cross_entropy(image_logits.flatten(0, 1), codes.flatten())
    return text_weight * text + (1 - text_weight) * image, text, image


def weighted_loss_id_0_is_a_pad(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    return _right_loss(text_logits, image_logits, targets.masked_fill(targets == 0, -1), codes, text_weight)


def weighted_loss_sums(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    _, text, image = _right_loss(text_logits, image_logits, targets, codes)
    text, image = text * (targets != -1).sum(), image * codes.numel()
    return text_weight * text + (1 - text_weight) * image, text, image


def weighted_loss_without_gradient(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    return tuple(loss.item() for loss in _right_loss(text_logits, image_logits, targets, codes, text_weight))


def weighted_loss_total_only(text_logits, image_logits, targets, codes, text_weight=1 / 8):
    return _right_loss(text_logits, image_logits, targets, codes, text_weight)[0]


def _right_loss(text_logits, image_logits, targets, codes, text_weight=1 / 8):  # to build wrong ones on
    real = targets != -1
    text = F.cross_entropy(text_logits[real], targets[real]) if real.any() else text_logits.new_zeros(())
    image = F.cross_entropy(image_logits.flatten(0, 1), codes.flatten())
    return text_weight * text + (1 - text_weight) * image, text, image
