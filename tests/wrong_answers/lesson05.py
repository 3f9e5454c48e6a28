"""Plausible wrong answers to the exercises of lesson 05: each must fail its check."""

import torch


def pack_pads_are_zero(token_lists, text_len):
    return _rows([(tokens[: text_len - 1] + [0] * text_len)[:text_len] for tokens in token_lists])


def pack_no_room_for_sep(token_lists, text_len):
    return _rows([(tokens + [-1] * text_len)[:text_len] for tokens in token_lists])


def pack_as_wide_as_the_longest(token_lists, text_len):
    cut = [tokens[: text_len - 1] for tokens in token_lists]
    width = max(len(tokens) for tokens in cut) + 1
    return _rows([tokens + [-1] * (width - len(tokens)) for tokens in cut])


def pack_pads_first(token_lists, text_len):
    cut = [tokens[: text_len - 1] for tokens in token_lists]
    return _rows([[-1] * (text_len - 1 - len(tokens)) + tokens + [-1] for tokens in cut])


def pack_drops_token_0(token_lists, text_len):
    cut = [[token for token in tokens if token][: text_len - 1] for tokens in token_lists]
    return _rows([tokens + [-1] * (text_len - len(tokens)) for tokens in cut])


def pack_in_floats(token_lists, text_len):
    return _right_pack(token_lists, text_len).float()


def pack_cuts_the_beginning(token_lists, text_len):
    return _right_pack([tokens[-(text_len - 1) :] for tokens in token_lists], text_len)


def pack_does_not_cut(token_lists, text_len):
    text = torch.full((len(token_lists), text_len), -1)
    for row, tokens in enumerate(token_lists):
        text[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return text


def pack_changes_the_lists(token_lists, text_len):
    for tokens in token_lists:
        del tokens[text_len - 1 :]
        tokens += [-1] * (text_len - len(tokens))
    return _rows(token_lists)


def pack_sep_is_not_a_pad(token_lists, text_len):
    text = torch.full((len(token_lists), text_len), -2)
    text[:, -1] = -1
    for row, tokens in enumerate(token_lists):
        tokens = tokens[: text_len - 1]
        text[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return text


def embed_text_minus_one_is_the_last_token(text, token_table, pad_table, position_table):
    return token_table[text] + position_table


def embed_text_pads_are_token_0(text, token_table, pad_table, position_table):
    return token_table[text.clamp(min=0)] + position_table


def embed_text_token_0_is_a_pad(text, token_table, pad_table, position_table):
    return torch.where((text <= 0)[:, :, None], pad_table, token_table[text.clamp(min=0)]) + position_table


def embed_text_one_pad_for_all(text, token_table, pad_table, position_table):
    return torch.where((text == -1)[:, :, None], pad_table[0], token_table[text.clamp(min=0)]) + position_table


def embed_text_pads_counted_from_the_end_of_the_caption(text, token_table, pad_table, position_table):
    is_pad = text == -1
    pads = pad_table[(is_pad.cumsum(dim=1) - 1).clamp(min=0)]
    return torch.where(is_pad[:, :, None], pads, token_table[text.clamp(min=0)]) + position_table


def embed_text_pads_have_no_place(text, token_table, pad_table, position_table):
    return torch.where((text == -1)[:, :, None], pad_table, token_table[text.clamp(min=0)] + position_table)


def embed_text_no_place(text, token_table, pad_table, position_table):
    return torch.where((text == -1)[:, :, None], pad_table, token_table[text.clamp(min=0)])


def embed_text_pad_added_to_token_0(text, token_table, pad_table, position_table):
    is_pad = (text == -1)[:, :, None]
    return token_table[text.clamp(min=0)] + is_pad * pad_table + position_table


def embed_text_sep_is_not_a_pad(text, token_table, pad_table, position_table):
    x = _right_text(text, token_table, pad_table, position_table)
    return torch.cat([x[:, :-1], (pad_table[-1]).expand(len(text), 1, -1)], dim=1)


def embed_text_forgets_the_pads_in_place(text, token_table, pad_table, position_table):
    text[text == -1] = 0
    return _right_text(text, token_table, pad_table, position_table)


def embed_text_changes_the_text(text, token_table, pad_table, position_table):
    is_pad = (text == -1)[:, :, None]
    text.clamp_(min=0)
    return torch.where(is_pad, pad_table, token_table[text]) + position_table


def embed_image_rows_and_columns_swapped(codes, token_table, row_table, column_table):
    cell, rows = torch.arange(codes.shape[1]), len(row_table)
    return token_table[codes] + row_table[cell % rows] + column_table[cell // rows % len(column_table)]


def embed_image_a_row_is_as_long_as_a_column(codes, token_table, row_table, column_table):
    cell, rows = torch.arange(codes.shape[1]), len(row_table)
    return token_table[codes] + row_table[cell // rows % rows] + column_table[cell % rows % len(column_table)]


def embed_image_no_rows(codes, token_table, row_table, column_table):
    return token_table[codes] + column_table[torch.arange(codes.shape[1]) % len(column_table)]


def embed_image_cells_counted_from_1(codes, token_table, row_table, column_table):
    cell, grid = torch.arange(codes.shape[1]) + 1, len(column_table)
    return token_table[codes] + row_table[(cell // grid).clamp(max=len(row_table) - 1)] + column_table[cell % grid]


def embed_image_always_the_whole_grid(codes, token_table, row_table, column_table):
    return token_table[codes] + (row_table[:, None] + column_table).flatten(0, 1)


def embed_image_mean_of_the_three(codes, token_table, row_table, column_table):
    cell, grid = torch.arange(codes.shape[1]), len(column_table)
    return (token_table[codes] + row_table[cell // grid] + column_table[cell % grid]) / 3


def embed_image_row_of_the_code(codes, token_table, row_table, column_table):
    grid = len(column_table)
    return token_table[codes] + row_table[codes // grid % len(row_table)] + column_table[codes % grid]


def _rows(lists):  # to build wrong ones on
    return torch.tensor(lists, dtype=torch.int64)


def _right_pack(token_lists, text_len):
    cut = [tokens[: text_len - 1] for tokens in token_lists]
    return _rows([tokens + [-1] * (text_len - len(tokens)) for tokens in cut])


def _right_text(text, token_table, pad_table, position_table):
    return torch.where((text == -1)[:, :, None], pad_table, token_table[text.clamp(min=0)]) + position_table
