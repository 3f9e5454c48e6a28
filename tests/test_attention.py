"""The masks against their definition cell by cell, the layer order, and that no mask sees the future."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from kernels.reference import MASKS, attention, dense_mask
from minidalle import attention as dispatch
from minidalle.attention import attend, fused, layer_masks, seen_cells, window_mask, windowed
from minidalle.config import TransformerConfig


def allowed(kind, i, j, text_len, grid, kernel_size) -> bool:
    """May position i look at position j? Written from P Fig. 11 in rows and columns, not in flat distances."""
    if j > i:
        return False
    if i < text_len or j < text_len:
        return True
    (r, c), (s, d) = divmod(i - text_len, grid), divmod(j - text_len, grid)
    if kind == "row":  # this row so far, and the row above from the same column on
        return (s == r) or (s == r - 1 and d >= c)
    if kind == "column":
        return d == c
    if kind == "conv":  # a neighbour (dr, dc) in the kernel, counted on through the ends of rows
        half = kernel_size // 2
        neighbours = {(r * grid + c) - (dr * grid + dc) for dr in range(half + 1) for dc in range(-half, half + 1)}
        return s * grid + d in neighbours
    return True


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize(
    "text_len, grid, rows, kernel_size", [(3, 4, 4, 3), (0, 1, 1, 11), (5, 6, 3, 5), (16, 8, 8, 3), (2, 3, 7, 11)]
)
def test_mask_against_its_definition(kind, text_len, grid, rows, kernel_size):
    mask = dense_mask(kind, text_len, grid, rows, kernel_size)
    T = text_len + rows * grid
    brute = [[allowed(kind, i, j, text_len, grid, kernel_size) for j in range(T)] for i in range(T)]
    assert mask.tolist() == brute


def test_the_papers_drawing_of_the_row_mask():
    """P Fig. 11: on a 4 x 4 grid a token sees "the previous 5" image tokens, itself counted: window 4 + 1."""
    mask = dense_mask("row", 6, 4)
    assert mask[6 + 9, 6:].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_the_conv_mask_has_61_offsets_and_reaches_165_back():
    row = dense_mask("conv", 256, 32)[256 + 500, 256:]
    offsets = 500 - row.nonzero().flatten()
    assert len(offsets) == 61 and offsets.max() == 165 and offsets.min() == 0


@pytest.mark.parametrize("kind, share", [("row", 0.40), ("column", 0.38), ("conv", 0.43)])
def test_share_of_causal_pairs_that_is_kept(kind, share):
    kept = dense_mask(kind, 256, 32).sum() / dense_mask("causal", 256, 32).sum()
    assert kept.item() == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("kind", MASKS)
def test_mask_is_causal_and_never_empty(kind):
    mask = dense_mask(kind, 7, 5, kernel_size=3)
    assert not mask.triu(1).any() and mask.diagonal().all()


def test_layer_order_of_the_paper():
    order = layer_masks(TransformerConfig())
    assert len(order) == 64 and order[-1] == "conv"
    assert (order.count("row"), order.count("column"), order.count("conv")) == (47, 16, 1)
    assert [i for i, kind in enumerate(order, start=1) if kind == "column"] == list(range(2, 64, 4))
    assert layer_masks(TransformerConfig(n_layer=3)) == ["row", "column", "conv"]
    assert layer_masks(TransformerConfig(n_layer=2, masks="causal")) == ["causal", "causal"]


@pytest.mark.parametrize("kind", MASKS)
def test_attention_is_that_of_the_formula(kind):
    config = TransformerConfig(text_len=5, rows=3, grid=4, kernel_size=3)
    q, k, v = torch.randn(3, 2, 2, 17, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = dense_mask(kind, 5, 4, 3, 3)
    formula = attention(q, k, v, mask)
    torch.testing.assert_close(formula, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    torch.testing.assert_close(attend(q, k, v, kind, config), formula)


@pytest.mark.parametrize("kind", MASKS)
def test_changing_a_position_changes_only_those_that_may_see_it(kind):
    config = TransformerConfig(text_len=4, rows=4, grid=4, kernel_size=3)
    q, k, v = torch.randn(3, 1, 1, 20, 4, generator=torch.Generator().manual_seed(0))
    mask, before = dense_mask(kind, 4, 4, 4, 3), attend(q, k, v, kind, config)
    for j in range(20):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, j], v2[:, :, j] = 9, -9
        changed = (attend(q, k2, v2, kind, config) != before).any(-1)[0, 0]
        assert torch.equal(changed, mask[:, j])


@pytest.mark.parametrize("kind", ["column", "conv"])
@pytest.mark.parametrize("grid", [1, 6])
def test_the_cells_that_a_cell_sees_are_those_of_its_mask(kind, grid):
    places = torch.arange(5 * grid)
    for row, seen in zip(dense_mask(kind, 0, grid, 5, 3), seen_cells(kind, grid, 5, 3), strict=True):
        assert places[seen].tolist() == row.nonzero()[:, 0].tolist()


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="unknown mask 'colum'"):
        dense_mask("colum", 4, 4)
    with pytest.raises(ValueError, match="odd"):
        dense_mask("conv", 4, 4, kernel_size=4)
    with pytest.raises(ValueError, match="negative"):
        dense_mask("row", -1, 4)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize(
    "text_len, grid, rows, kernel_size", [(3, 4, 4, 3), (2, 1, 5, 11), (5, 6, 3, 5), (16, 8, 8, 3), (2, 3, 7, 11)]
)
def test_windows_give_what_the_mask_gives(kind, text_len, grid, rows, kernel_size):
    """Values and gradients, in float64."""
    config = TransformerConfig(text_len=text_len, grid=grid, rows=rows, kernel_size=kernel_size)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, text_len + rows * grid, 8)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3))
    do = torch.randn(shape, generator=generator, dtype=torch.float64)
    ours = windowed(q, k, v, kind, config)
    expected = attention(q, k, v, dense_mask(kind, text_len, grid, rows, kernel_size))
    torch.testing.assert_close(ours, expected)
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), do), torch.autograd.grad(expected, (q, k, v), do)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind, keys", [("row", 64), ("column", 32), ("conv", 224)])
def test_windows_leave_most_of_the_picture_out(kind, keys):
    mask = window_mask(torch.device("cpu"), kind, 32, 32, 11)
    assert mask.shape == (32, 32, keys)
    assert mask.sum() == dense_mask(kind, 0, 32).sum()  # and nothing that is allowed


@pytest.mark.parametrize("n", [3, 8, 20, 300])
def test_attention_of_the_streams_start_is_that_of_the_whole(n):
    """Of 8 + 300 positions the first n, which `prefill` runs; what large pictures do is what small ones do."""
    config = TransformerConfig(text_len=8, grid=20, rows=15, kernel_size=5)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 308, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    for kind in MASKS:
        expected = attention(q, k, v, dense_mask(kind, 8, 20, 15, 5))
        torch.testing.assert_close(attend(q, k, v, kind, config), expected)
        torch.testing.assert_close(attend(*(x[:, :, :n] for x in (q, k, v)), kind, config), expected[:, :, :n])


@pytest.mark.parametrize("rows, windows", [(16, 2), (15, 0)])
def test_a_whole_picture_of_256_codes_is_taken_window_by_window(rows, windows, monkeypatch):
    """One stream at a time, and a smaller picture not at all; either way it is the formula's attention."""
    config, calls = TransformerConfig(text_len=3, rows=rows, grid=16, kernel_size=3), []
    monkeypatch.setattr(dispatch, "windowed", lambda *given: calls.append(given[0].shape[0]) or windowed(*given))
    q, k, v = torch.randn(3, 2, 1, 3 + rows * 16, 4, generator=torch.Generator().manual_seed(0)).double()
    y = attend(q, k, v, "row", config)
    assert calls == [1] * windows
    torch.testing.assert_close(y, attention(q, k, v, dense_mask("row", 3, 16, rows, 3)))


@pytest.mark.parametrize("kind", MASKS)
def test_our_kernels_get_what_pytorch_gets(kind):
    pytest.importorskip("triton", reason="Triton is for Linux")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = torch.randn(3, 1, 1, 4 + 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    sizes = {"text_len": 4, "rows": 4, "grid": 4, "kernel_size": 3}
    ours, theirs = (attend(q, k, v, kind, TransformerConfig(**sizes, backend=name)) for name in ("triton", "sdpa"))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_our_kernels_are_for_gpus_that_have_them(monkeypatch):
    def chosen(device="cuda", backend="auto", width=64, dtype=torch.float16, capability=(8, 0), triton="there"):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda _: triton)
        q = SimpleNamespace(device=SimpleNamespace(type=device), shape=(1, 1, 1, width), dtype=dtype)
        return fused(q, TransformerConfig(backend=backend))

    assert chosen() and chosen(width=128, capability=(9, 0))
    assert not chosen(device="cpu") and not chosen(capability=(7, 5)) and not chosen(triton=None)
    assert not chosen(width=48) and not chosen(dtype=torch.float64)
    assert chosen(backend="triton", device="cpu") and not chosen(backend="sdpa")
