"""Plausible wrong answers to the exercises of lesson 04: each must fail its check."""

import math

import torch
import torch.nn.functional as F


def logit_laplace_without_slope(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b


def logit_laplace_slope_the_wrong_way(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b - torch.log(x * (1 - x))


def logit_laplace_without_two(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + ln_b + torch.log(x * (1 - x))


def logit_laplace_without_width(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + torch.log(x * (1 - x))


def logit_laplace_times_b(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() * torch.exp(ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def logit_laplace_takes_ln_b_for_b(x, mu, ln_b):
    return (torch.logit(x) - mu).abs() / ln_b + torch.log(2 * ln_b.abs() * x * (1 - x))


def logit_laplace_no_absolute(x, mu, ln_b):
    return (torch.logit(x) - mu) * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def logit_laplace_without_logit(x, mu, ln_b):
    return (x - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def logit_laplace_normal(x, mu, ln_b):  # squared, not absolute
    return (torch.logit(x) - mu).square() * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def logit_laplace_sigmoid_for_logit(x, mu, ln_b):
    return (torch.sigmoid(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def logit_laplace_wrong_sign(x, mu, ln_b):
    return -_right_price(x, mu, ln_b)


def logit_laplace_density(x, mu, ln_b):
    return torch.exp(-_right_price(x, mu, ln_b))


def logit_laplace_through_the_density(x, mu, ln_b):  # underflows far from mu
    b = torch.exp(ln_b)
    return -torch.log(torch.exp(-(torch.logit(x) - mu).abs() / b) / (2 * b * x * (1 - x)))


def logit_laplace_mean(x, mu, ln_b):
    return _right_price(x, mu, ln_b).mean()


def logit_laplace_maps_once_more(x, mu, ln_b):
    return _right_price(0.8 * x + 0.1, mu, ln_b)


def kl_to_prior_without_ln_k(logits):
    ln_q = F.log_softmax(logits, dim=1)
    return (ln_q.exp() * ln_q).sum(dim=1)


def kl_to_prior_entropy(logits):
    ln_q = F.log_softmax(logits, dim=1)
    return -(ln_q.exp() * ln_q).sum(dim=1)


def kl_to_prior_turned_round(logits):  # KL(uniform || q)
    return -F.log_softmax(logits, dim=1).mean(dim=1) - math.log(logits.shape[1])


def kl_to_prior_zero_times_infinity(logits):
    q = logits.softmax(dim=1)
    return (q * q.log()).sum(dim=1) + math.log(logits.shape[1])


def kl_to_prior_over_columns(logits):
    ln_q = F.log_softmax(logits, dim=-1)
    return (ln_q.exp() * ln_q).sum(dim=-1) + math.log(logits.shape[-1])


def kl_to_prior_softmax_over_columns(logits):
    ln_q = F.log_softmax(logits, dim=-1)
    return (ln_q.exp() * ln_q).sum(dim=1) + math.log(logits.shape[1])


def kl_to_prior_k_of_the_lesson(logits):
    ln_q = F.log_softmax(logits, dim=1)
    return (ln_q.exp() * ln_q).sum(dim=1) + math.log(32)


def kl_to_prior_in_bits(logits):
    return _right_kl(logits) / math.log(2)


def kl_to_prior_mean_over_codes(logits):
    ln_q = F.log_softmax(logits, dim=1)
    return (ln_q.exp() * ln_q).mean(dim=1) + math.log(logits.shape[1])


def kl_to_prior_of_the_batch(logits):
    return _right_kl(logits).mean()


def kl_to_prior_of_the_mean(logits):  # the mean distribution first, then its KL
    q = logits.softmax(1).mean(0, keepdim=True)
    return torch.special.xlogy(q, q).sum(1) + math.log(logits.shape[1])


def kl_to_prior_small_epsilon(logits):  # ln(q + eps) in place of log_softmax
    q = logits.softmax(dim=1)
    return (q * (q + 1e-3).log()).sum(dim=1) + math.log(logits.shape[1])


def kl_to_prior_keeps_dimension(logits):
    return _right_kl(logits)[:, None]


def kl_to_prior_unsoftened(logits):  # the logits taken for ln q
    return (logits.exp() * logits).sum(dim=1) + math.log(logits.shape[1])


def _right_price(x, mu, ln_b):  # to build wrong ones on
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def _right_kl(logits):
    ln_q = F.log_softmax(logits, dim=1)
    return (ln_q.exp() * ln_q).sum(dim=1) + math.log(logits.shape[1])
