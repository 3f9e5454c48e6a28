"""Plausible wrong answers to the exercises of lesson 12: each must fail its check."""

import math


def _count(c, block=None, rows=None, end=None):  # to build wrong ones on
    C = c.n_embd
    block = 12 * C**2 + 13 * C if block is None else block
    every = 2 * c.vocab_size + 2 * c.codebook_size + 2 * c.text_len + c.rows + c.grid
    return (every if rows is None else rows) * C + c.n_layer * block + (2 * C if end is None else end)


def count_parameters_without_biases(c):
    return _count(c, block=12 * c.n_embd**2 + 4 * c.n_embd)


def count_parameters_without_norms(c):
    return _count(c, block=12 * c.n_embd**2 + 9 * c.n_embd, end=0)


def count_parameters_without_last_norm(c):
    return _count(c, end=0)


def count_parameters_norms_with_scales_alone(c):
    return _count(c, block=12 * c.n_embd**2 + 11 * c.n_embd, end=c.n_embd)


def count_parameters_with_tied_heads(c):
    return _count(c, rows=c.vocab_size + c.codebook_size + 2 * c.text_len + c.rows + c.grid)


def count_parameters_heads_with_biases(c):
    return _count(c) + c.vocab_size + c.codebook_size


def count_parameters_without_pads(c):
    return _count(c, rows=2 * c.vocab_size + 2 * c.codebook_size + c.text_len + c.rows + c.grid)


def count_parameters_square_pictures(c):
    return _count(c, rows=2 * c.vocab_size + 2 * c.codebook_size + 2 * c.text_len + 2 * c.grid)


def count_parameters_a_vector_for_each_cell(c):
    return _count(c, rows=2 * c.vocab_size + 2 * c.codebook_size + 2 * c.text_len + c.rows * c.grid)


def count_parameters_blocks_alone(c):
    return c.n_layer * (12 * c.n_embd**2 + 13 * c.n_embd)


def count_parameters_rule_of_thumb(c):
    return 12 * c.n_layer * c.n_embd**2


def count_parameters_as_a_float(c):
    return float(_count(c))


def largest_share_an_even_part(shapes, n):
    return 20 * sum(math.prod(shape) for shape in shapes) // n


def largest_share_rounded_down(shapes, n):
    return 20 * sum(shape[0] // n * math.prod(shape[1:]) for shape in shapes)


def largest_share_rows_and_one_more(shapes, n):
    return 20 * sum((shape[0] // n + 1) * math.prod(shape[1:]) for shape in shapes)


def largest_share_of_single_numbers(shapes, n):
    return 20 * sum(-(-math.prod(shape) // n) for shape in shapes)


def largest_share_of_columns(shapes, n):
    return 20 * sum(math.prod(shape[:-1]) * -(-shape[-1] // n) for shape in shapes)


def largest_share_weights_alone(shapes, n):
    return 4 * sum(-(-shape[0] // n) * math.prod(shape[1:]) for shape in shapes)


def largest_share_without_average(shapes, n):
    return 16 * sum(-(-shape[0] // n) * math.prod(shape[1:]) for shape in shapes)


def largest_share_in_numbers(shapes, n):
    return 5 * sum(-(-shape[0] // n) * math.prod(shape[1:]) for shape in shapes)


def largest_share_vectors_whole(shapes, n):
    cut = sum(-(-shape[0] // n) * math.prod(shape[1:]) for shape in shapes if len(shape) > 1)
    return 20 * (cut + sum(shape[0] for shape in shapes if len(shape) == 1))


def saved_for_eight_always(r, d, m):
    return 1 - 5 * r / (8 * d)


def saved_what_is_sent(r, d, m):
    return r * (m + 2) / (2 * d * m)


def saved_whole_rank_in_every_shard(r, d, m):
    return 1 - r * (m + 2) / (2 * d)


def saved_without_sharding(r, d, m):
    return 1 - 4 * r / (3 * d)


def saved_p_alone(r, d, m):
    return 1 - (5 * d * r / m + 4 * d * r / m**2) / (12 * d * d / m)


def saved_second_mlp_matrix_cut_like_the_first(r, d, m):
    return 1 - (9 * d * r / m + 9 * d * r / m**2) / (12 * d * d / m)


def saved_qkv_as_one_matrix(r, d, m):
    p = 3 * d * r / m + 4 * d * r / m**2
    q = 8 * d * r / m**2 + d * r / m
    return 1 - (p + q) / (12 * d * d / m)


def saved_mean_of_the_rates(r, d, m):
    square = (d + d / m) * r / m / (d * d / m)
    long = (d + 4 * d / m) * r / m / (4 * d * d / m)
    return 1 - (4 * square + 2 * long) / 6
