"""Which layer looks where, and which code computes it.

The paper gives each of its 64 layers one of three sparse masks over the image (SPEC 5; drawn in P Fig. 11):
47 times row, 16 times column, and convolution in the last. The masks themselves are in `kernels/reference.py`.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F

from kernels.reference import dense_mask
from minidalle.config import TransformerConfig


def layer_masks(config: TransformerConfig) -> list[str]:
    """The mask of every layer, first to last: "row", "column" and "conv" in the paper's order (P B.1), or all "causal".

    The last layer is convolutional; else layer i, counted from 1, is column where (i - 2) mod 4 = 0, and row elsewhere.
    """
    n = config.n_layer
    if config.masks == "causal":
        return ["causal"] * n
    return ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, n)] + ["conv"]


@lru_cache(maxsize=32)
def mask_on(device, kind: str, text_len: int, grid: int, rows: int, kernel_size: int) -> torch.Tensor:
    """`dense_mask`, built once for each device and kept."""
    return dense_mask(kind, text_len, grid, rows, kernel_size).to(device)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: str, config: TransformerConfig) -> torch.Tensor:
    """Masked attention of the last Tq positions of the stream to its first Tk positions.

    q (B, H, Tq, D); k, v (B, H, Tk, D) with Tq <= Tk <= T; query n stands at stream position Tk - Tq + n.
    Returns (B, H, Tq, D).
    """
    n_query, n_key = q.shape[2], k.shape[2]
    mask = mask_on(q.device, kind, config.text_len, config.grid, config.rows, config.kernel_size)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[n_key - n_query : n_key, :n_key])
