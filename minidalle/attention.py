"""Which layer looks where, and which code computes it.

The paper gives each of its 64 layers one of three sparse masks over the image (SPEC 5; drawn in P Fig. 11):
47 times row, 16 times column, and convolution in the last. The masks themselves are in `kernels/reference.py`; on a CUDA
GPU our Triton kernels compute them (`kernels/attention.py`), elsewhere PyTorch: from 256 codes on window by window,
so that most of what a mask forbids is not even computed (`windowed`), smaller pictures with the mask as a matrix.
"""

import importlib.util
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

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
    """Masked attention among the first T positions of the stream: q, k, v (B, H, T, D) -> (B, H, T, D).

    Training has the whole stream. Sampling asks for its start; the steps that follow are in `cache.py`.
    """
    T, c = q.shape[2], config
    whole = c.text_len + c.n_image == T
    if whole and fused(q, c):
        from kernels.attention import fused_attention  # here, so that no one needs Triton who does not use it

        return fused_attention(q, k, v, kind, c.text_len, c.grid, c.kernel_size)
    if kind == "causal" or c.text_len >= T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if whole and c.n_image >= 256 and not q.is_cuda:  # on smaller pictures there is too little to leave out
        one_by_one = zip(q.split(1), k.split(1), v.split(1))  # the scores of one picture at a time: 5 MB for 4 heads
        again = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(windowed, *one, kind, c, **again) for one in one_by_one])
    mask = mask_on(q.device, kind, c.text_len, c.grid, c.rows, c.kernel_size)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:T, :T])


def windowed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: str, config: TransformerConfig) -> torch.Tensor:
    """`attend` for the whole stream, (B, H, T, D) each, and "row", "column" or "conv", without most forbidden pairs.

    The image's queries are taken in groups, a row of cells at a time, or a column. All queries of a group look at the
    same keys: at the text, and at a window of the image, their own group and the few rows above that the mask reaches.
    At 256 + 1024 positions that is 320 keys in a row layer, 288 in a column layer and 480 in conv, of 1280.
    `attend` calls it through `checkpoint`, which computes the scores again in the backward pass instead of keeping them.
    """
    n = config.text_len
    text = F.scaled_dot_product_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], is_causal=True)  # (B, H, text_len, D)
    q, k_image, v_image = (in_groups(x[:, :, n:], kind, config) for x in (q * q.shape[-1] ** -0.5, k, v))
    k_image, v_image = windows(k_image, kind, config), windows(v_image, kind, config)  # (B, H, groups, W, D)
    mask = window_mask(q.device, kind, config.grid, config.rows, config.kernel_size)  # (groups, cells in a group, W)
    near = (q @ k_image.transpose(-2, -1)).masked_fill(~mask, float("-inf"))  # (B, H, groups, cells in a group, W)
    far = (q.flatten(2, 3) @ k[:, :, :n].transpose(-2, -1)).unflatten(2, mask.shape[:2])  # ... the same, text_len)
    far, near = torch.cat([far, near], dim=-1).softmax(dim=-1).split([n, mask.shape[2]], dim=-1)
    y = near @ v_image + (far.flatten(2, 3) @ v[:, :, :n]).unflatten(2, mask.shape[:2])
    return torch.cat([text, from_groups(y, kind)], dim=2)


def in_groups(x: torch.Tensor, kind: str, config: TransformerConfig) -> torch.Tensor:
    """(B, H, rows * grid, D) -> (B, H, rows, grid, D), a group for each row, or (B, H, grid, rows, D) for "column"."""
    x = x.unflatten(2, (config.rows, config.grid))
    return x.transpose(2, 3) if kind == "column" else x


def from_groups(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The inverse of `in_groups`."""
    return (x.transpose(2, 3) if kind == "column" else x).flatten(2, 3)


def windows(x: torch.Tensor, kind: str, config: TransformerConfig) -> torch.Tensor:
    """(B, H, groups, cells, D) -> (B, H, groups, W, D): each group preceded by those above it that the mask reaches.

    Above the first row stand zeros. A column reaches no other; a row, that above; conv reaches half * (grid + 1) back.
    """
    half = config.kernel_size // 2
    above = {"column": 0, "row": 1, "conv": half + -(-half // config.grid)}[kind]
    padded = F.pad(x, (0, 0, 0, 0, above, 0))  # (B, H, above + groups, cells, D)
    return padded.unfold(2, above + 1, 1).movedim(-1, 3).flatten(3, 4)


@lru_cache(maxsize=32)
def window_mask(device, kind: str, grid: int, rows: int, kernel_size: int) -> torch.Tensor:
    """(groups, cells in a group, W) bool: `dense_mask` as the queries of `windowed` see it, built once and kept."""
    config = TransformerConfig(rows=rows, grid=grid, kernel_size=kernel_size)
    cells = in_groups(1 + torch.arange(rows * grid).view(1, 1, -1, 1), kind, config)  # counted from 1: 0 is padding
    query, key = cells[0, 0, :, :, 0] - 1, windows(cells, kind, config)[0, 0, :, :, 0] - 1
    mask = dense_mask(kind, 0, grid, rows, kernel_size)[query[:, :, None], key[:, None, :]]
    return (mask & (key[:, None, :] >= 0)).to(device)


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


@lru_cache(maxsize=32)
def seen_cells(kind: str, grid: int, rows: int, kernel_size: int) -> list[slice | torch.Tensor]:
    """Only for "column" and "conv", by which a cell sees others than the last few: for every cell of the image, the cells
    that it may look at, itself included, as an index into their sequence, a slice where one can say it."""
    if kind == "column":
        return [slice(i % grid, i + 1, grid) for i in range(rows * grid)]
    return [row.nonzero()[:, 0] for row in dense_mask(kind, 0, grid, rows, kernel_size)]
