"""Solutions of lesson 05."""

import torch


def pack(token_lists, text_len):
    text = torch.full((len(token_lists), text_len), -1)
    for row, tokens in enumerate(token_lists):
        tokens = tokens[: text_len - 1]
        text[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return text


def embed_text(text, token_table, pad_table, position_table):
    is_pad = (text == -1)[:, :, None]  # (B, text_len, 1)
    return torch.where(is_pad, pad_table, token_table[text.clamp(min=0)]) + position_table  # (B, text_len, C)


def embed_image(codes, token_table, row_table, column_table):
    cell = torch.arange(codes.shape[1])  # (n,)
    grid = len(column_table)
    return token_table[codes] + row_table[cell // grid] + column_table[cell % grid]  # (B, n, C)
