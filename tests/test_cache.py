"""One position at a time, against the whole stream at once, in both forms of the cache."""

import pytest
import torch

from kernels.reference import MASKS, dense_mask
from minidalle import transformer
from minidalle.attention import seen_cells
from minidalle.cache import IN_A_RING, StaticCache, WindowCache, most_seen, new_cache
from minidalle.config import TransformerConfig
from minidalle.sequence import PAD
from minidalle.transformer import DALLE
from tests.test_sample import CONFIG, TEXT, lively

GEOMETRIES = [(5, 4, 3), (2, 7, 5), (4, 4, 11), (1, 1, 3)]  # rows, grid, kernel


@pytest.mark.parametrize("kind", ["column", "conv"])
@pytest.mark.parametrize("rows, grid, kernel_size", GEOMETRIES)
def test_the_cells_a_step_reads_are_those_of_the_mask(kind, rows, grid, kernel_size):
    mask = dense_mask(kind, 0, grid, rows, kernel_size)
    seen = seen_cells(kind, grid, rows, kernel_size)
    assert [torch.arange(rows * grid)[s].tolist() for s in seen] == [row.nonzero()[:, 0].tolist() for row in mask]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rows, grid, kernel_size", GEOMETRIES)
def test_there_is_room_for_the_cells_that_are_seen(kind, rows, grid, kernel_size):
    """In a ring for all of them, and by these masks they are the last; else for as many as any cell sees."""
    config = TransformerConfig(rows=rows, grid=grid, kernel_size=kernel_size)
    W, mask = most_seen(kind, config), dense_mask(kind, 0, grid, rows, kernel_size)
    assert mask.sum(1).max() <= W
    if kind in IN_A_RING:
        assert all(row.nonzero()[:, 0].tolist() == list(range(max(0, i + 1 - W), i + 1)) for i, row in enumerate(mask))


@pytest.mark.parametrize("cache_of", [WindowCache, StaticCache])
@pytest.mark.parametrize("kind", [*MASKS, "dalle"])
@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("n_known", [0, 8])
def test_cached_logits_equal_uncached_logits(kind, cache_of, n_known, share, monkeypatch):
    """Four layers deep, for each mask in all layers and for the paper's order, at every cell, to 1e-4; one picture or three
    of each of two captions (one of them empty, as guidance needs it), from the start or from two given rows on."""
    if kind != "dalle":
        monkeypatch.setattr(transformer, "layer_masks", lambda config: [kind] * config.n_layer)
    model = lively(DALLE(CONFIG))
    text = torch.stack([TEXT, torch.full_like(TEXT, PAD)])
    codes = torch.randint(9, (2 * share, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = model(text.repeat_interleave(share, 0), codes)[1]  # (2 * share, 20, K)
        cache = cache_of(model, text, share, codes[:, :n_known])
        logits = cache.logits
        for cell in range(n_known, 20):
            torch.testing.assert_close(logits, full[:, cell], atol=1e-4, rtol=0)
            if cell < 19:
                logits = cache.step(codes[:, cell], cell)


@pytest.mark.parametrize("share", [1, 2])
def test_a_step_reads_nothing_that_its_mask_forbids(share):
    """At every step, all stored keys and values of the image that a layer's mask forbids are poisoned, and all room that
    nothing stands in: nothing changes."""
    model = lively(DALLE(CONFIG))
    codes = torch.randint(9, (share, 20), generator=torch.Generator().manual_seed(1))
    plain, poisoned = (WindowCache(model, TEXT[None], share) for _ in range(2))
    for cell in range(19):
        for block, layer in zip(model.blocks, poisoned.layers):
            mask = dense_mask(block.attn.mask, 0, CONFIG.grid, CONFIG.rows, CONFIG.kernel_size)
            if layer.image is None:
                W = layer.read.shape[2] - poisoned.start
                empty = torch.tensor([cell % W, *range(cell, W)])  # or about to be written over
                layer.read[:, :, poisoned.start + empty] = torch.nan
            else:
                layer.image[~mask[cell]] = torch.nan
                layer.read[:, :, poisoned.start :] = torch.nan
        assert torch.equal(*(cache.step(codes[:, cell], cell) for cache in (plain, poisoned)))
        for ours, theirs in zip(poisoned.layers, plain.layers):
            for mine, right in ((ours.image, theirs.image), (ours.read, theirs.read)):
                if mine is not None:
                    mine.copy_(right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cache_of", [WindowCache, StaticCache])
def test_other_dtypes(cache_of, dtype):
    model = lively(DALLE(CONFIG)).to(dtype)
    codes = torch.randint(9, (1, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = model(TEXT[None], codes)[1]
        cache = cache_of(model, TEXT[None])
        for cell in range(3):
            close = {"atol": 1e-9, "rtol": 0} if dtype == torch.float64 else {"atol": 0.3, "rtol": 0.1}
            torch.testing.assert_close(cache.logits, full[:, cell], **close)
            cache.step(codes[:, cell], cell)


def test_the_static_step_has_the_same_addresses_each_time():
    """What a CUDA graph needs: nothing that lasts from one step to the next is anew allocated."""
    cache = StaticCache(lively(DALLE(CONFIG)), TEXT[None])
    lasting = [cache.codes, cache.cell, cache.places, *cache.keys_values]
    before = [t.data_ptr() for t in lasting]
    for cell in range(3):
        cache.step(torch.tensor([cell]), cell)
    assert [t.data_ptr() for t in [cache.codes, cache.cell, cache.places, *cache.keys_values]] == before


def test_the_device_decides_which_form():
    config = {"text_len": 6, "rows": 5, "grid": 4, "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 20}
    for backend, form in (("sdpa", WindowCache), ("triton", StaticCache)):
        model = DALLE(TransformerConfig(**config, codebook_size=9, kernel_size=3, backend=backend))
        assert type(new_cache(model, TEXT[None])) is form
