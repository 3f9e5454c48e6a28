"""Packing captions into the stream, the pads, [SEP], and the embeddings of P Fig. 10."""

import random
import warnings
from types import SimpleNamespace

import pytest
import torch

from minidalle.bpe import BPE
from minidalle.config import TransformerConfig
from minidalle.sequence import PAD, StreamEmbedding, fit_text_len, pack_text, tokenize, unpack_text

CONFIG = TransformerConfig(n_embd=8, n_head=2, n_layer=1, text_len=6, rows=2, grid=3, vocab_size=20, codebook_size=7)


@pytest.fixture(scope="module")
def bpe():
    return BPE.train(["a red circle", "a blue square"] * 5, 270)


def test_pack_and_unpack_round_trip():
    lists = [[0, 5, 2], [], [19] * 5]
    text = pack_text(lists, 6)
    assert text.dtype == torch.int64
    assert text.tolist() == [[0, 5, 2, -1, -1, -1], [-1] * 6, [19] * 5 + [-1]]
    assert unpack_text(text) == lists


def test_the_last_column_is_kept_for_sep_and_the_cut_is_told():
    with pytest.warns(UserWarning, match="8 tokens was cut to the 5 .* last 3 tokens are lost"):
        text = pack_text([list(range(8))], 6)
    assert text.tolist() == [[0, 1, 2, 3, 4, PAD]]


def test_text_len_is_the_smallest_multiple_of_16_that_holds_the_longest_caption_and_sep(bpe):
    assert len(bpe.encode("a red circle")) == 5
    assert fit_text_len(bpe, ["a red circle"]) == 16
    for letters, expected in ((15, 16), (16, 32)):  # 15 tokens and [SEP] fill 16 positions
        assert fit_text_len(bpe, ["z" * letters]) == expected


def test_a_caption_that_only_dropout_makes_too_long_is_encoded_without_it(bpe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = tokenize(bpe, ["a red circle"], 8, dropout=1.0, rng=random.Random(0))  # 12 tokens with dropout
    assert unpack_text(text) == [bpe.encode("a red circle")]
    longer = tokenize(bpe, ["a red circle"], 16, dropout=1.0, rng=random.Random(0))
    assert len(unpack_text(longer)[0]) == 12


def test_a_caption_of_one_token_too_many_is_encoded_without_dropout_or_cut():
    """One that is as long as the text leaves no place for [SEP]."""
    bpe = SimpleNamespace(encode=lambda caption, dropout=0.0, rng=None: [6] * 4 if dropout else [5] * 3)
    assert unpack_text(tokenize(bpe, ["a"], 4, dropout=0.5)) == [[5] * 3]
    with pytest.warns(UserWarning, match="4 tokens was cut to the 3 .* last 1 tokens are lost"):
        pack_text([[5] * 4], 4)


def test_every_pad_has_its_own_position_and_zero_is_a_real_token():
    embed = StreamEmbedding(CONFIG)
    text = torch.tensor([[0, 3, PAD, PAD, PAD, PAD]])
    h = embed.text(text)[0]  # (text_len, C)
    for p, token in enumerate(text[0].tolist()):
        vector = embed.text_pad.weight[p] if token == PAD else embed.text_token.weight[token]
        torch.testing.assert_close(h[p], vector + embed.text_position.weight[p])
    assert len({tuple(v.tolist()) for v in h}) == 6


def test_image_embedding_is_token_plus_row_plus_column():
    embed = StreamEmbedding(CONFIG)
    codes = torch.tensor([[4, 0, 6, 1, 1, 5]])
    h = embed.image(codes)[0]
    for cell, code in enumerate(codes[0].tolist()):
        r, c = divmod(cell, 3)
        expected = embed.image_token.weight[code] + embed.image_row.weight[r] + embed.image_column.weight[c]
        torch.testing.assert_close(h[cell], expected)
    torch.testing.assert_close(embed.image(codes[:, :4]), embed.image(codes)[:, :4])
