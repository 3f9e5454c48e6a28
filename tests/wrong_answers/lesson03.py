"""Plausible wrong answers to the exercises of lesson 03: each must fail its check."""

import torch
import torch.nn.functional as F


def relaxed_choice_without_clamp(logits, u, tau):
    return torch.softmax((logits - torch.log(-torch.log(u))) / tau, dim=1)


def relaxed_choice_clamped_to_one(logits, u, tau):  # 1 - 1e-9 is 1 in 32 bits
    return torch.softmax((logits + _gumbel(u.clamp(1e-9, 1 - 1e-9))) / tau, dim=1)


def relaxed_choice_clamped_too_early(logits, u, tau):
    return torch.softmax((logits + _gumbel(u.clamp(1e-3, 1 - 1e-3))) / tau, dim=1)


def relaxed_choice_clamped_too_early_below(logits, u, tau):
    return torch.softmax((logits + _gumbel(u.clamp(1e-3, 1 - 1e-7))) / tau, dim=1)


def relaxed_choice_clamped_too_early_above(logits, u, tau):
    return torch.softmax((logits + _gumbel(u.clamp(1e-9, 1 - 1e-3))) / tau, dim=1)


def relaxed_choice_noise_of_the_wrong_sign(logits, u, tau):
    return torch.softmax((logits - _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=1)


def relaxed_choice_one_logarithm(logits, u, tau):
    return torch.softmax((logits - torch.log(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=1)


def relaxed_choice_tau_on_the_logits_only(logits, u, tau):
    return torch.softmax(logits / tau + _gumbel(u.clamp(1e-9, 1 - 1e-7)), dim=1)


def relaxed_choice_times_tau(logits, u, tau):
    return torch.softmax((logits + _gumbel(u.clamp(1e-9, 1 - 1e-7))) * tau, dim=1)


def relaxed_choice_over_the_batch(logits, u, tau):
    return torch.softmax((logits + _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=0)


def relaxed_choice_noise_on_probabilities(logits, u, tau):
    return torch.softmax((logits.softmax(1) + _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=1)


def relaxed_choice_exponentials_overflow(logits, u, tau):
    weights = torch.exp((logits + _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau)
    return weights / weights.sum(1, keepdim=True)


def relaxed_choice_without_noise(logits, u, tau):
    return torch.softmax(logits / tau, dim=1)


def relaxed_choice_gradient_cut(logits, u, tau):
    return torch.softmax((logits.detach() + _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=1)


def relaxed_choice_hard(logits, u, tau):
    z = torch.softmax((logits + _gumbel(u.clamp(1e-9, 1 - 1e-7))) / tau, dim=1)
    return F.one_hot(z.argmax(1), z.shape[1]).float() + z - z.detach()


def straight_through_hard_only(soft):
    return F.one_hot(soft.argmax(1), soft.shape[1]).float()


def straight_through_soft_only(soft):
    return soft


def straight_through_sum(soft):
    return straight_through_hard_only(soft) + soft


def straight_through_wrong_sign(soft):
    return straight_through_hard_only(soft) - soft + soft.detach()


def straight_through_all_detached(soft):
    return straight_through_hard_only(soft) + (soft - soft).detach()


def straight_through_over_the_batch(soft):
    return F.one_hot(soft.argmax(0), soft.shape[0]).T.float() + soft - soft.detach()


def straight_through_above_a_half(soft):
    return (soft > 0.5).float() + soft - soft.detach()


def straight_through_product(soft):  # one-hot values, but only the chosen weight gets a gradient
    return straight_through_hard_only(soft) * soft / soft.detach()


def _gumbel(u):
    return -torch.log(-torch.log(u))
