"""One stream for caption and picture: text, pads, [SEP], image codes; and the vectors that the transformer reads.

    position   0 … n-1      n … text_len-2      text_len-1      text_len … text_len + rows * grid - 1
    holds      the caption  pads                [SEP]           image codes in raster order

A pad is a *position* without a token, never an id: `text` holds -1 there, and every position has a learned padding
embedding of its own (P 2.2). The last text position always carries [SEP], "the picture starts here" (SPEC 4, O): its
vector is the last row of the table of paddings.
Why one stream: "predict the next token" then means "read the caption, continue it with a picture" (P 2).
"""

import random
import warnings

import torch
from torch import nn

from minidalle.bpe import BPE
from minidalle.config import TransformerConfig

PAD = -1  # "no token here"


def pack_text(token_lists: list[list[int]], text_len: int) -> torch.Tensor:
    """Lists of token ids -> text (B, text_len) int64, -1 where there is no token; the last column is always -1 ([SEP]).

    A caption of more than text_len - 1 tokens is cut there, with a warning that says how much was lost (SPEC 4, O).
    """
    text = torch.full((len(token_lists), text_len), PAD)
    for row, tokens in enumerate(token_lists):
        if len(tokens) >= text_len:
            warnings.warn(
                f"a caption of {len(tokens)} tokens was cut to the {text_len - 1} that this model reads: "
                f"its last {len(tokens) - text_len + 1} tokens are lost",
                stacklevel=2,
            )
        tokens = tokens[: text_len - 1]
        text[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return text


def unpack_text(text: torch.Tensor) -> list[list[int]]:
    """text (B, text_len) int64 -> the lists of token ids that `pack_text` was given."""
    return [[token for token in row if token != PAD] for row in text.tolist()]


def tokenize(bpe: BPE, captions: list[str], text_len: int, dropout: float = 0.0, rng: random.Random | None = None):
    """Captions -> text (B, text_len) int64. A caption that only BPE dropout makes too long is encoded without it."""
    token_lists = [bpe.encode(caption, dropout, rng) for caption in captions]
    if dropout:
        token_lists = [
            tokens if len(tokens) < text_len else bpe.encode(caption) for tokens, caption in zip(token_lists, captions)
        ]
    return pack_text(token_lists, text_len)


def fit_text_len(bpe: BPE, captions: list[str]) -> int:
    """The smallest multiple of 16 that holds the longest caption and [SEP]."""
    longest = max(len(bpe.encode(caption)) for caption in set(captions))
    return 16 * -(-(longest + 1) // 16)


class StreamEmbedding(nn.Module):
    """Token and place, added: text token + text position; image token + row + column (P B.1, P Fig. 10)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.text_token = nn.Embedding(config.vocab_size, config.n_embd)
        self.text_pad = nn.Embedding(config.text_len, config.n_embd)  # one for each position; the last is [SEP]
        self.text_position = nn.Embedding(config.text_len, config.n_embd)
        self.image_token = nn.Embedding(config.codebook_size, config.n_embd)
        self.image_row = nn.Embedding(config.rows, config.n_embd)
        self.image_column = nn.Embedding(config.grid, config.n_embd)

    def text(self, text: torch.Tensor) -> torch.Tensor:
        """text (B, text_len) int64 -> (B, text_len, C). A pad takes the padding embedding of its own position."""
        is_pad = (text == PAD)[:, :, None]  # (B, text_len, 1)
        token = torch.where(is_pad, self.text_pad.weight, self.text_token(text.clamp(min=0)))
        return token + self.text_position.weight

    def image(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, n) int64, the first n cells in raster order -> (B, n, C)."""
        cell = torch.arange(codes.shape[1], device=codes.device)
        return (
            self.image_token(codes)
            + self.image_row(cell // self.config.grid)
            + self.image_column(cell % self.config.grid)
        )
