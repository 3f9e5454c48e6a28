"""DALL-E's attention as the formula says it: a dense mask and one softmax. Slow and plain: the rest is held to it.

The stream has T = text_len + rows * grid positions. Who may look at whom (SPEC 5; P B.1, P Fig. 11):

    text  -> text    every earlier token and itself
    text  -> image   nothing
    image -> text    everything
    image -> image   by the mask, with d = i - j the distance in raster order:
        causal   d >= 0
        row      0 <= d <= grid                  the previous `grid` cells and itself
        column   d >= 0 and d a multiple of grid the cells above and itself
        conv     (counted on around the ends of a row, as the paper's figure is)
                 d = grid * dr + dc >= 0 with dr in 0 … k//2 and dc in -(k//2) … k//2, k = kernel_size
"""

import torch

MASKS = ("causal", "row", "column", "conv")


def dense_mask(kind: str, text_len: int, grid: int, rows: int | None = None, kernel_size: int = 11) -> torch.Tensor:
    """(T, T) bool with T = text_len + rows * grid: [i, j] is true where position i may look at position j.

    kind: one of MASKS. rows: rows of the grid, `grid` if None. Raises ValueError for an unknown kind, a negative
    length, or an even kernel size.
    """
    rows = grid if rows is None else rows
    if kind not in MASKS:
        raise ValueError(f"unknown mask {kind!r}: expected one of {', '.join(MASKS)}")
    if text_len < 0 or grid < 0 or rows < 0 or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"text_len {text_len}, grid {grid} and rows {rows} must not be negative, "
            f"and kernel_size must be odd and positive, got {kernel_size}"
        )
    t = torch.arange(text_len + rows * grid)
    i, j = t[:, None], t[None, :]
    d = i - j
    both_image = (i >= text_len) & (j >= text_len)
    if kind == "row":
        allowed = d <= grid
    elif kind == "column":
        allowed = d % max(grid, 1) == 0
    elif kind == "conv":
        half = kernel_size // 2
        offsets = [grid * dr + dc for dr in range(half + 1) for dc in range(-half, half + 1)]
        allowed = torch.isin(d, torch.tensor(offsets))
    else:
        allowed = torch.ones_like(both_image)
    return (d >= 0) & (allowed | ~both_image)


def attention(q, k, v, mask: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """softmax(scale * q kᵀ, over the keys that `mask` allows) v.

    q (B, H, Tq, D); k, v (B, H, Tk, D); mask (Tq, Tk) bool, at least one true entry a row; scale 1/√D if None.
    Returns (B, H, Tq, D) in the dtype of the inputs.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q @ k.transpose(-2, -1)  # (B, H, Tq, Tk)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
