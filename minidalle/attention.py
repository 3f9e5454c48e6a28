"""Which layer looks where, and which code computes it.

The paper gives each of its 64 layers one of three sparse masks over the image (SPEC 5; drawn in P Fig. 11):
47 times row, 16 times column, and convolution in the last. The masks themselves are in `kernels/reference.py`; on a CUDA
GPU our Triton kernels compute them (`kernels/attention.py`), elsewhere PyTorch, with the mask as a matrix.
"""

import importlib.util
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
    Returns (B, H, Tq, D). The kernels compute a whole stream and a single query; what is between, the given part of a
    picture, is asked for once and left to PyTorch.
    """
    n_query, n_key = q.shape[2], k.shape[2]
    c = config
    whole = n_query == c.text_len + c.n_image
    if (whole or n_query == 1) and fused(q, c):
        from kernels.attention import fused_attention  # here, so that no one needs Triton who does not use it
        from kernels.decode import decode_attention

        if whole:
            return fused_attention(q, k, v, kind, c.text_len, c.grid, c.kernel_size)
        return decode_attention(q, k, v, kind, c.text_len, c.grid, c.kernel_size, rows=c.rows)
    mask = mask_on(q.device, kind, c.text_len, c.grid, c.rows, c.kernel_size)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[n_key - n_query : n_key, :n_key])


def fused(q: torch.Tensor, config: TransformerConfig) -> bool:
    """Do our kernels compute this? With backend "auto", on CUDA from Ampere on, if they have the head's width."""
    if config.backend != "auto":
        return config.backend == "triton"
    return (
        q.device.type == "cuda"
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
        and importlib.util.find_spec("triton") is not None
        and q.shape[3] in (16, 32, 64, 128)
        and q.dtype != torch.float64
    )
