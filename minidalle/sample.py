"""Drawing: the transformer writes image codes one by one, each drawn from what it predicts, none ever taken back.

    text (text_len,) or (n, text_len)  ->  codes (n, rows, grid)

The *cache* of `cache.py` runs one new position through the network at each step instead of all of them. And every
picture has a *seed of its own*: picture k gets all its random numbers from seeds[k], before the first code is drawn, so
that it does not depend on what is drawn beside it, except where two codes are so close that rounding, which does, decides.

The paper draws at temperature 1, from all codes (P 3). Cutting the tail (`top_k`, `top_p`) and `guidance` are O.
"""

from collections.abc import Callable, Sequence

import torch

from minidalle.cache import new_cache
from minidalle.config import SampleConfig, TransformerConfig
from minidalle.sequence import PAD
from minidalle.transformer import DALLE


@torch.no_grad()
def generate(
    model: DALLE,
    text: torch.Tensor,
    n: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix: torch.Tensor | None = None,
    on_token: Callable[[int, torch.Tensor], None] | None = None,
    guidance: float = 1.0,
) -> torch.Tensor:
    """Draw n pictures as codes (n, rows, grid) int64.

    text: (text_len,) int64 for one caption, or (n, text_len) for a caption each, as `sequence.tokenize` makes it.
    seeds: n integers; picture k depends on seeds[k] alone. temperature: 0 is greedy. top_k: 0 keeps all codes; ties
    with the k-th are kept. top_p: keeps the fewest codes whose probabilities reach it; 1 keeps all.
    prefix: codes (r, grid) or (n, r, grid) of the top rows, which are kept as they are (P 3.3).
    on_token(cell, codes (n,)): called after every drawn cell.
    guidance: logits are moved from those of the empty caption towards and past those of the caption by this factor
    (O; needs a model trained with `caption_dropout`); 1 is off.
    Raises ValueError for values outside these ranges, shapes that do not fit the model, or weights that overflow.
    """
    config, device = model.config, model.image_head.weight.device
    SampleConfig(temperature, top_k, top_p, guidance).check()
    if n < 1 or len(seeds) != n:
        raise ValueError(f"expected n >= 1 pictures and a seed for each, got n = {n} and {len(seeds)} seeds")
    text = (text[None] if text.dim() == 1 else text).to(device)  # (captions, text_len)
    if len(text) not in (1, n):
        raise ValueError(f"expected one caption or {n}, one a picture, got {len(text)}")
    share = n // len(text)  # pictures of one caption
    if guidance != 1:
        text = torch.cat([text, torch.full_like(text, PAD)])  # twice as many: the second half has no caption
    model.check(text)
    draws = torch.stack([uniform(seed, config.n_image) for seed in seeds]).to(device)  # (n, rows * grid)
    codes = torch.zeros(n, config.n_image, dtype=torch.int64, device=device)
    first = place_prefix(codes, prefix, config)

    copies = len(text) * share // n  # 2 with guidance, else 1
    cache = new_cache(model, text, share, codes[:, :first].repeat(copies, 1))
    logits = cache.logits  # (n or 2n, K)
    finite = torch.ones((), dtype=torch.bool, device=device)  # looked at in the end: a GPU should not wait for it
    for cell in range(first, config.n_image):
        logits = logits.float()
        if guidance != 1:
            given, empty = logits.chunk(2)
            logits = empty + guidance * (given - empty)  # (n, K)
        finite &= logits.isfinite().all()
        codes[:, cell] = choose(probabilities(logits, temperature, top_k, top_p), draws[:, cell])
        if on_token is not None:
            on_token(cell, codes[:, cell])
        if cell + 1 < config.n_image:
            logits = cache.step(codes[:, cell].repeat(copies), cell)
    if not finite:
        raise ValueError(
            "the model's logits are no finite numbers: its weights are damaged, or its training went wrong"
        )
    return codes.view(n, config.rows, config.grid)


def in_batches(n: int, config: TransformerConfig) -> list[range]:
    """0 … n - 1 in ranges that are small enough to be drawn at once: about 8192 positions, 6 pictures at full size."""
    size = max(1, 8192 // (config.text_len + config.n_image))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def uniform(seed: int, count: int) -> torch.Tensor:
    """`count` numbers in [0, 1), float64, that depend on `seed` alone."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"a seed must lie in 0 … 2⁶³ - 1, got {seed}")
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """logits (n, K) -> probabilities (n, K) after temperature, then top-k, then top-p."""
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    logits = logits / temperature
    if 0 < top_k < logits.shape[1]:
        kth = logits.topk(top_k, dim=1).values[:, -1:]  # (n, 1)
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = logits.softmax(dim=1)
    if top_p < 1:
        ranked, order = probs.sort(dim=1, descending=True, stable=True)
        before = ranked.cumsum(dim=1) - ranked  # probability of all likelier codes
        ranked = ranked.masked_fill((before >= top_p) & (before > 0), 0.0)  # the first is kept, however small top_p is
        probs = torch.zeros_like(probs).scatter_(1, order, ranked)
        probs = probs / probs.sum(dim=1, keepdim=True)
    return probs


def choose(probs: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling: the first code at which the summed probability passes u. (n, K), (n,) in [0, 1) -> (n,).

    One random number decides one code, and a code of probability 0 is never taken: the sum does not grow there. Where the
    probabilities are no numbers, it is the last code.
    """
    total = probs.cumsum(dim=1, dtype=torch.float64)
    return torch.searchsorted(total, (u * total[:, -1])[:, None], right=True)[:, 0].clamp(max=probs.shape[1] - 1)


def place_prefix(codes: torch.Tensor, prefix: torch.Tensor | None, config) -> int:
    """Write the given top rows into codes (n, rows * grid); returns the number of cells that are then known."""
    if prefix is None:
        return 0
    fits = prefix.dim() == 2 or (prefix.dim() == 3 and len(prefix) in (1, len(codes)))
    if not fits or prefix.shape[-1] != config.grid or not 0 < prefix.shape[-2] < config.rows:
        raise ValueError(
            f"expected a prefix of shape (r, {config.grid}) or (n, r, {config.grid}) with 0 < r < "
            f"{config.rows} rows of codes, got {tuple(prefix.shape)}"
        )
    if prefix.min() < 0 or prefix.max() >= config.codebook_size:
        raise ValueError(f"the codes of a prefix must lie in 0 … {config.codebook_size - 1}")
    first = prefix.shape[-2] * config.grid
    codes[:, :first] = prefix.reshape(-1, first).to(codes.device)
    return first
