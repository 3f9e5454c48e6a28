"""Checks of lesson 12."""

import torch

from checks import exercise, expect, expect_number
from minidalle.config import PAPER, TransformerConfig
from minidalle.transformer import DALLE

TOY = {"n_layer": 3, "n_head": 4, "n_embd": 64, "text_len": 16, "rows": 8, "grid": 8}
CONFIGS = {
    "a model of 3 layers, C = 64, T = 16 + 8 x 8": TransformerConfig(**TOY, vocab_size=300, codebook_size=90),
    "one layer, C = 32, pictures of 6 rows and 4 columns": TransformerConfig(
        n_layer=1, n_head=2, n_embd=32, text_len=24, rows=6, grid=4, vocab_size=260, codebook_size=50
    ),
    "the paper's 12 B": PAPER[-1].transformer,
    "the paper's 2.8 B": PAPER[0].transformer,
}


def _whole(what: str, got, wanted: int):
    expect(isinstance(got, int), f"{what}: expected a whole number (int), got {type(got).__name__} ({got!r:.60})")
    expect(got == wanted, f"{what}: expected {wanted:,}, got {got:,}: {abs(got - wanted):,} too {_side(got, wanted)}")


def _side(got: int, wanted: int) -> str:
    return "many" if got > wanted else "few"


@exercise
def check_count_parameters(fn):
    for what, c in CONFIGS.items():
        got = fn(c)
        with torch.device("meta"):
            model = DALLE(c)
        _whole(f"for {what}", got, sum(p.numel() for p in model.parameters()))


@exercise
def check_largest_share(fn):
    cases = [
        ([(8, 4)], 2),
        ([(512, 128), (512,)], 4),
        ([(10, 3)], 4),  # pieces of 3, 3, 3 and 1 rows
        ([(7,), (5, 2, 3), (1, 1000)], 3),
        ([(3, 4)], 1),
        ([(2, 100), (17, 5)], 8),  # of the first tensor most processes get nothing
    ]
    for shapes, n in cases:
        numbers = sum(torch.empty(shape, device="meta").chunk(n)[0].numel() for shape in shapes)
        _whole(f"bytes of {shapes} over {n} processes", fn(list(shapes), n), 20 * numbers)


@exercise
def check_saved(fn):
    for r, d, m in [
        (896, 3968, 8),
        (640, 2688, 8),
        (512, 1920, 8),
        (64, 1024, 8),
        (64, 1024, 4),
        (8, 64, 1),
        (12, 96, 2),
    ]:
        expect_number(f"for r = {r}, d = {d}, m = {m}", fn(r, d, m), 1 - r * (m + 2) / (2 * d * m), 1e-9)
