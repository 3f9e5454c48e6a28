"""Plausible wrong answers to the exercises of lesson 06: each must fail its check."""

import torch


def leaks_only_the_last_position(f, T, C):
    return [pair for pair in _leaks(f, T, C) if pair[0] == T - 1]


def leaks_only_one_position_back(f, T, C):
    return [(j, i) for j, i in _leaks(f, T, C) if i == j - 1]


def leaks_misses_the_last_position(f, T, C):
    return [pair for pair in _leaks(f, T, C) if pair[0] < T - 1]


def leaks_counts_the_changed_position_itself(f, T, C):
    return _leaks(f, T, C, upto=1)


def leaks_counts_what_comes_after(f, T, C):
    return _leaks(f, T, C, upto=T)


def leaks_pairs_turned_round(f, T, C):
    return sorted((i, j) for j, i in _leaks(f, T, C))


def leaks_changes_x_itself(f, T, C):
    x = torch.randn(T, C)
    found = []
    for j in range(T):
        other = x
        other[j] = torch.randn(C)
        change = (f(other) - f(x)).abs().amax(dim=1)
        found += [(j, i) for i in range(j) if change[i] > 1e-6]
    return found


def leaks_never_puts_x_back(f, T, C):
    x = torch.randn(T, C)
    before, found = f(x), []
    for j in range(T):
        x[j] = torch.randn(C)
        change = (f(x) - before).abs().amax(dim=1)
        found += [(j, i) for i in range(j) if change[i] > 1e-6]
    return found


def leaks_a_constant_is_added(f, T, C):
    return _leaks(f, T, C, new=lambda old: old + 1)


def leaks_change_too_small(f, T, C):
    return _leaks(f, T, C, new=lambda old: old + 1e-7)


def leaks_signs_turned(f, T, C):
    return _leaks(f, T, C, new=torch.neg)


def leaks_set_to_zero(f, T, C):
    return _leaks(f, T, C, new=torch.zeros_like)


def leaks_tolerance_too_large(f, T, C):
    return _leaks(f, T, C, tolerance=0.5)


def leaks_tolerance_of_a_hundredth(f, T, C):
    return _leaks(f, T, C, tolerance=1e-2)


def leaks_says_only_yes_or_no(f, T, C):
    return bool(_leaks(f, T, C))


def leaks_first_leak_only(f, T, C):
    return _leaks(f, T, C)[:1]


def leaks_compares_only_first_output(f, T, C):
    return [(j, i) for j, i in _leaks(f, T, C) if i == 0]


def multi_head_no_scale(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, mask, scale=1)


def multi_head_scale_of_the_whole_width(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, mask, scale=x.shape[2] ** -0.5)


def multi_head_scale_without_the_root(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, mask, scale=n_head / x.shape[2])


def multi_head_softmax_over_queries(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, mask, dim=-2)


def multi_head_without_mask(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, torch.ones_like(mask))


def multi_head_always_causal(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, torch.ones_like(mask).tril())


def multi_head_mask_turned_round(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, mask.T)


def multi_head_mask_inverted(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, n_head, ~mask)


def multi_head_one_head(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, w_o, 1, mask)


def multi_head_without_the_last_matrix(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q, w_k, w_v, torch.eye(x.shape[2]), n_head, mask)


def multi_head_matrices_transposed(x, w_q, w_k, w_v, w_o, n_head, mask):
    return _heads(x, w_q.T, w_k.T, w_v.T, w_o.T, n_head, mask)


def multi_head_cut_without_transpose(x, w_q, w_k, w_v, w_o, n_head, mask):
    B, T, C = x.shape
    q, k, v = ((x @ w).view(B, n_head, T, C // n_head) for w in (w_q, w_k, w_v))
    scores = q @ k.transpose(-2, -1) / (C // n_head) ** 0.5
    y = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
    return y.transpose(1, 2).reshape(B, T, C) @ w_o


def multi_head_put_together_without_transpose(x, w_q, w_k, w_v, w_o, n_head, mask):
    B, T, C = x.shape
    q, k, v = ((x @ w).view(B, T, n_head, C // n_head).transpose(1, 2) for w in (w_q, w_k, w_v))
    scores = q @ k.transpose(-2, -1) / (C // n_head) ** 0.5
    y = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
    return y.reshape(B, T, C) @ w_o


def multi_head_masked_after_the_softmax(x, w_q, w_k, w_v, w_o, n_head, mask):
    B, T, C = x.shape
    q, k, v = ((x @ w).view(B, T, n_head, C // n_head).transpose(1, 2) for w in (w_q, w_k, w_v))
    weights = (q @ k.transpose(-2, -1) / (C // n_head) ** 0.5).softmax(dim=-1) * mask
    return (weights @ v).transpose(1, 2).reshape(B, T, C) @ w_o


def multi_head_masked_with_zero(x, w_q, w_k, w_v, w_o, n_head, mask):
    B, T, C = x.shape
    q, k, v = ((x @ w).view(B, T, n_head, C // n_head).transpose(1, 2) for w in (w_q, w_k, w_v))
    scores = (q @ k.transpose(-2, -1) / (C // n_head) ** 0.5) * mask
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, T, C) @ w_o


def row_mask_window_one_too_narrow(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return (d >= 0) & ((d < grid) | ~both_cells)


def row_mask_window_one_too_wide(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return (d >= 0) & ((d <= grid + 1) | ~both_cells)


def row_mask_own_row_only(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    row = (torch.arange(text_len + rows * grid) - text_len) // grid
    return (d >= 0) & ((row[:, None] == row) | ~both_cells)


def row_mask_whole_row_above(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    row = (torch.arange(text_len + rows * grid) - text_len) // grid
    return (d >= 0) & ((row[:, None] - row <= 1) | ~both_cells)


def row_mask_sees_ahead(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return torch.where(both_cells, d.abs() <= grid, d >= 0)


def row_mask_not_itself(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return (d > 0) & ((d <= grid) | ~both_cells)


def row_mask_the_window_holds_for_text_too(text_len, grid, rows):
    d, _ = _pairs(text_len, grid, rows)
    return (d >= 0) & (d <= grid)


def row_mask_cells_see_no_text(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    is_cell = torch.arange(text_len + rows * grid) >= text_len
    return (d >= 0) & ((d <= grid) | ~both_cells) & (is_cell[:, None] == is_cell)


def row_mask_text_sees_all_text(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    is_text = torch.arange(text_len + rows * grid) < text_len
    return ((d >= 0) & ((d <= grid) | ~both_cells)) | (is_text[:, None] & is_text)


def row_mask_turned_round(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return ((d >= 0) & ((d <= grid) | ~both_cells)).T


def row_mask_rows_for_columns(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return (d >= 0) & ((d <= rows) | ~both_cells)


def row_mask_a_square_grid(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, grid)
    return (d >= 0) & ((d <= grid) | ~both_cells)


def row_mask_true_where_hidden(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return ~((d >= 0) & ((d <= grid) | ~both_cells))


def row_mask_zeros_and_ones(text_len, grid, rows):
    d, both_cells = _pairs(text_len, grid, rows)
    return ((d >= 0) & ((d <= grid) | ~both_cells)).float()


def _leaks(f, T, C, new=torch.randn_like, tolerance=1e-6, upto=0):  # to build wrong ones on
    x = torch.randn(T, C)
    before, found = f(x), []
    for j in range(T):
        other = x.clone()
        other[j] = new(x[j])
        change = (f(other) - before).abs().amax(dim=1)
        found += [(j, i) for i in range(min(T, j + upto)) if change[i] > tolerance]
    return found


def _heads(x, w_q, w_k, w_v, w_o, n_head, mask, scale=None, dim=-1):
    B, T, C = x.shape
    D = C // n_head
    q, k, v = ((x @ w).view(B, T, n_head, D).transpose(1, 2) for w in (w_q, w_k, w_v))
    scores = (D**-0.5 if scale is None else scale) * q @ k.transpose(-2, -1)
    y = scores.masked_fill(~mask, float("-inf")).softmax(dim=dim) @ v
    return y.transpose(1, 2).reshape(B, T, C) @ w_o


def _pairs(text_len, grid, rows):
    t = torch.arange(text_len + rows * grid)
    return t[:, None] - t, (t[:, None] >= text_len) & (t >= text_len)
