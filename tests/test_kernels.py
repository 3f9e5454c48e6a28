"""The fused kernels against the formula in float64, and PyTorch's attention as the measure of what error is fair.

On a CPU they run in Triton's interpreter (conftest.py), on a GPU as compiled. `-m slow` adds the full stream at every mask.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton", reason="Triton is for Linux")

import triton.language as tl  # noqa: E402

from kernels import attention as launcher  # noqa: E402
from kernels import tiled  # noqa: E402
from kernels.attention import Shape, from_mask_order, fused_attention, to_mask_order  # noqa: E402
from kernels.bench import errors, tiles_needed, tiles_read, with_gradients  # noqa: E402
from kernels.decode import decode_attention, key_count, split_count  # noqa: E402
from kernels.reference import MASKS, attention, dense_mask  # noqa: E402
from minidalle.config import TransformerConfig  # noqa: E402
from minidalle.sample import generate  # noqa: E402
from minidalle.transformer import DALLE  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEOMETRIES = [  # text_len, grid, rows, kernel_size
    (0, 1, 1, 11), (1, 4, 4, 3), (13, 8, 8, 3), (16, 8, 8, 3), (13, 8, 5, 11), (5, 40, 3, 11), (64, 32, 3, 11),
    (112, 12, 2, 5), (40, 1, 0, 3),
]  # fmt: skip
FULL = (256, 32, 32, 11)


@pytest.fixture(params=["pointers", "descriptors"])
def loads(request, monkeypatch):
    """Either way to load a tile, wherever the test runs: the second is Hopper's, with its order of products."""
    if DEVICE == "cuda" and request.param == "descriptors" and torch.cuda.get_device_capability()[0] not in (9, 10):
        pytest.skip("this GPU has no descriptors")
    monkeypatch.setattr(launcher, "loads_for", lambda x: request.param)
    return request.param


def length(geometry):
    text_len, grid, rows, _ = geometry
    return text_len + rows * grid


def inputs(T, D=16, B=1, H=2, dtype=torch.float32, seed=0, gain=1.0):
    g = torch.Generator().manual_seed(seed)
    q, k, v, do = (torch.randn(B, H, T, D, generator=g).to(dtype).to(DEVICE) for _ in range(4))
    return q * gain, k, v, do


# --- right ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", MASKS)
def test_attention_and_its_gradients_are_as_exact_as_pytorchs(kind, geometry, loads):
    for error, fair in errors(kind, *geometry, *inputs(length(geometry), H=1)):
        assert error <= fair


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("D", [32, 128])
@pytest.mark.parametrize("kind", ["row", "conv"])
def test_head_widths_and_dtypes(kind, D, dtype, loads):
    for error, fair in errors(kind, 13, 8, 8, 3, *inputs(77, D=D, H=1, dtype=dtype)):
        assert error <= fair


@pytest.mark.parametrize("dtype, gain", [(torch.float16, 2e3), (torch.float32, 2e3)])
@pytest.mark.parametrize("kind", MASKS)
def test_logits_of_ten_thousand(kind, dtype, gain):
    """Where scores are ±10⁴, their last digit in float32 is 10⁻³ and p is right to as much, whoever computes it: so at
    most twice PyTorch's error, or what these two roundings explain; dk, which holds q, in units of q."""
    q, k, v, do = inputs(77, H=2, dtype=dtype, gain=gain)
    largest = (q.float() @ k.float().mT / 4).abs().max()
    assert largest > 5e3
    mask = dense_mask(kind, 13, 8, 8, 3).to(DEVICE)
    exact = with_gradients(lambda *x: attention(*x, mask), q.double(), k.double(), v.double(), do.double())
    peer = with_gradients(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), q, k, v, do)
    ours = with_gradients(lambda *x: fused_attention(*x, kind, 13, 8, 3), q, k, v, do)
    for name, x, y, z in zip(("o", "dq", "dk", "dv"), ours, peer, exact):
        size = z.abs().max().clamp(min=1.0)
        rounding = 4 * torch.finfo(dtype).eps * size * (gain if name == "dk" else 1) + 2**-24 * largest * z.abs().max()
        assert x.isfinite().all()
        assert (x - z).abs().max() <= max(2 * (y - z).abs().max(), rounding)


@pytest.mark.parametrize("kind", ["row", "column"])
def test_the_full_stream(kind):
    for error, fair in errors(kind, *FULL, *inputs(1280, D=64, H=1, dtype=torch.float16)):
        assert error <= fair


@pytest.mark.parametrize("kind", ["column", "conv"])
def test_a_grid_that_divides_no_tile(kind):
    for error, fair in errors(kind, 112, 12, 12, 5, *inputs(256, H=1)):
        assert error <= fair


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("D", [16, 64, 128])
@pytest.mark.parametrize("kind", MASKS)
def test_the_full_stream_at_every_mask_width_and_dtype(kind, D, dtype, loads):
    for error, fair in errors(kind, *FULL, *inputs(1280, D=D, H=1, dtype=dtype)):
        assert error <= fair


@pytest.mark.parametrize("kind", MASKS)
def test_the_twin_in_pytorch_loops_is_the_formula(kind):
    text_len, grid, rows, kernel_size = 13, 8, 5, 3
    q, k, v, do = (x.double()[0, 0].cpu() for x in inputs(text_len + rows * grid))
    mask, scale = dense_mask(kind, text_len, grid, rows, kernel_size), 0.3
    expected = with_gradients(lambda *x: attention(*x, mask, scale)[0, 0], *(x[None, None] for x in (q, k, v)), do)
    o, m, log_l = tiled.forward(q, k, v, mask, scale, BLOCK_M=8, BLOCK_N=16)
    dq, delta = tiled.backward_queries(q, k, v, o, do, m, log_l, mask, scale)
    dk, dv = tiled.backward_keys(q, k, v, do, m, log_l, delta, mask, scale)
    for x, y in zip((o, dq, dk, dv), expected):
        torch.testing.assert_close(x, y.view_as(x), rtol=1e-10, atol=1e-10)


# --- only what is seen, and always the same ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
def test_a_position_changes_only_those_that_see_it(kind, loads):
    text_len, grid, rows, kernel_size = 13, 8, 5, 3
    q, k, v, _ = inputs(text_len + rows * grid, H=1)
    mask = dense_mask(kind, text_len, grid, rows, kernel_size)
    before = fused_attention(q, k, v, kind, text_len, grid, kernel_size)
    for j in range(0, q.shape[2], 7):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, j], v2[:, :, j] = 7.0, -7.0
        changed = (fused_attention(q, k2, v2, kind, text_len, grid, kernel_size) != before).any(3)[0, 0].cpu()
        assert torch.equal(changed, mask[:, j])


@pytest.mark.parametrize("kind", MASKS)
def test_the_same_bits_again_and_in_any_batch(kind, loads):
    x = inputs(13 + 40, B=2, H=1)
    run = lambda *x: with_gradients(lambda *y: fused_attention(*y, kind, 13, 8, 3), *x)  # noqa: E731
    once, again, alone = run(*x), run(*x), run(*(y[1:2] for y in x))
    for a, b, c in zip(once, again, alone):
        assert torch.equal(a, b) and torch.equal(a[1:2], c)


class Poisoned:
    """torch, but every buffer is full of NaN, with NaN around it that `check` wants to find untouched."""

    def __init__(self):
        self.whole, self.inside = [], []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, *shape, dtype, device, margin=4096):
        size = torch.Size(shape).numel()
        whole = torch.full((size + 2 * margin,), torch.nan, dtype=dtype, device=device)
        self.whole.append((whole, margin))
        return whole[margin : margin + size].view(shape)

    def empty_like(self, x, memory_format=None):
        return self.empty(*x.shape, dtype=x.dtype, device=x.device)

    def place(self, x):
        y = self.empty(*x.shape, dtype=x.dtype, device=x.device)
        return y.copy_(x)

    def check(self):
        for whole, margin in self.whole:
            assert whole[:margin].isnan().all() and whole[-margin:].isnan().all()


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("geometry", [(13, 8, 5, 3), (64, 32, 2, 11)])
def test_no_memory_beside_the_buffers_is_read_or_written(kind, geometry, loads, monkeypatch):
    text_len, grid, rows, kernel_size = geometry
    q, k, v, do = inputs(text_len + rows * grid, H=1)
    expected = with_gradients(lambda *x: fused_attention(*x, kind, text_len, grid, kernel_size), q, k, v, do)
    shape, poisoned = Shape(kind, text_len, grid, rows, kernel_size // 2), Poisoned()
    monkeypatch.setattr(launcher, "torch", poisoned)
    q, k, v, do = (poisoned.place(to_mask_order(x, shape)) for x in (q, k, v, do))
    o, m, log_l = launcher.forward(q, k, v, shape, 0.25)
    gradients = launcher.backward(q, k, v, o, do, m, log_l, shape, 0.25)
    poisoned.check()
    for x, y in zip((o, *gradients), expected):
        assert torch.equal(from_mask_order(x, shape), y)


@pytest.mark.parametrize("poison, geometry", [("v", (128, 32, 8, 11)), ("do", (64, 32, 4, 11))])
@pytest.mark.parametrize("kind", MASKS)
def test_no_tile_is_read_that_the_mask_leaves_empty(kind, poison, geometry):
    text_len, grid, rows, kernel_size = geometry
    shape = Shape(kind, text_len, grid, rows, kernel_size // 2)
    table = launcher.FORWARD if poison == "v" else launcher.KEYS
    tiles = launcher.tiles_for(table, launcher.loads_for(torch.empty(0, device=DEVICE)), 16, torch.float16)
    read, needed = tiles_read(shape, tiles, poison), tiles_needed(shape, tiles)
    assert torch.equal(read, needed) and not needed.all()


# --- broken kernels are caught -------------------------------------------------------------------------------------

MUTANTS = [  # file, what stands there, what a slip would make of it, a mask and geometry at which it must be seen
    ("forward", "acc * shrink[:, None]", "acc", "causal", (13, 8, 8, 3)),
    ("forward", "l * shrink + tl.sum(p, 1)", "l + tl.sum(p, 1)", "causal", (13, 8, 8, 3)),
    ("forward", "(high - corner + 0.5)", "(high - corner + 1.5)", "causal", (13, 8, 8, 3)),
    ("forward", "(high - corner + 0.5)", "(high - corner - 0.5)", "causal", (13, 8, 8, 3)),
    ("forward", "first = i - GRID\n", "first = i - GRID + 1\n", "row", (13, 8, 8, 3)),
    ("forward", "(i - TEXT) % ROWS", "i % ROWS", "column", (13, 8, 8, 3)),
    ("forward", "GRID * HALF + HALF", "GRID * HALF", "conv", (13, 8, 8, 3)),
    ("forward", "1 << (2 * HALF + 1)", "1 << (2 * HALF)", "conv", (13, 8, 8, 3)),
    ("forward", "aside <= 2 * HALF", "aside < 2 * HALF", "conv", (13, 12, 4, 5)),
    ("forward", "(low + high - 2 * corner)", "(low + high)", "row", (13, 8, 8, 3)),
    ("forward", "tl.minimum(i, TEXT - 1)", "tl.minimum(i, TEXT)", "row", (13, 8, 8, 3)),
    ("forward", "tl.where(begin > whole, BLOCK_N, 0)", "0", "row", (40, 8, 12, 3)),
    ("forward", "m + log_l, mask", "m - log_l, mask", "causal", (13, 8, 8, 3)),
    ("backward", "delta = tl.sum(", "delta = 0.5 * tl.sum(", "causal", (13, 8, 8, 3)),
    ("backward", "p * (dp - delta[:, None])", "p * dp", "causal", (13, 8, 8, 3)),
    ("backward", "last = j + GRID\n", "last = j + GRID - 1\n", "row", (13, 8, 8, 3)),
    ("backward", "ROWS - 1 - (j - TEXT)", "ROWS - (j - TEXT)", "column", (13, 8, 8, 3)),
    ("backward", "j + GRID * HALF + HALF", "j + GRID * HALF", "conv", (13, 8, 8, 3)),
    ("backward", "dk * scale_natural", "dk * scale", "causal", (13, 8, 8, 3)),
    ("backward", "end = tl.where((n0 < TEXT) | (KIND == \"causal\"), all_later, end)", "end = tl.minimum(end, T)", "row", (40, 8, 12, 3)),
]  # fmt: skip


def load_kernels(folder: Path, changes: dict[str, tuple[str, str]]):
    """forward.py and backward.py as modules of their own, with `changes`: file -> (what, by what)."""
    modules = {}
    for name in ("forward", "backward"):
        text = (Path(launcher.__file__).parent / f"{name}.py").read_text().replace("kernels.forward", "mutant_forward")
        if name in changes:
            assert text.count(changes[name][0]) >= 1, "the line to break is no longer there"
            text = text.replace(*changes[name])
        path = folder / f"mutant_{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        modules[name] = importlib.util.module_from_spec(spec)
        pytest.MonkeyPatch().setitem(sys.modules, path.stem, modules[name])
        spec.loader.exec_module(modules[name])
    return modules


@pytest.mark.parametrize("file, what, by, kind, geometry", MUTANTS)
def test_a_broken_kernel_is_caught(file, what, by, kind, geometry, tmp_path, monkeypatch):
    modules = load_kernels(tmp_path, {file: (what, by)})
    monkeypatch.setattr(launcher, "attention_forward", modules["forward"].attention_forward)
    for name in ("backward_queries", "backward_keys"):
        monkeypatch.setattr(launcher, name, getattr(modules["backward"], name))
    dtype = torch.float16 if "log_l, mask" in what else torch.float32
    found = errors(kind, *geometry, *inputs(length(geometry), H=1, dtype=dtype))
    assert any(error > fair for error, fair in found)


def test_unbroken_copies_of_the_kernels_are_not(tmp_path, monkeypatch):
    modules = load_kernels(tmp_path, {})
    monkeypatch.setattr(launcher, "attention_forward", modules["forward"].attention_forward)
    for name in ("backward_queries", "backward_keys"):
        monkeypatch.setattr(launcher, name, getattr(modules["backward"], name))
    for kind, geometry in {(kind, geometry) for *_, kind, geometry in MUTANTS}:
        found = errors(kind, *geometry, *inputs(length(geometry), H=1))
        assert all(error <= fair for error, fair in found)


def test_an_unmasked_tail_is_caught(tmp_path, monkeypatch, loads):
    """Reading past the last row goes unseen where zeros follow; between poisoned buffers it does not."""
    if loads == "descriptors":
        pytest.skip("descriptors know where the matrix ends")
    modules = load_kernels(tmp_path, {"forward": ("elif T % BLOCK == 0:", "elif True:")})
    monkeypatch.setattr(launcher, "attention_forward", modules["forward"].attention_forward)
    with pytest.raises(AssertionError):
        test_no_memory_beside_the_buffers_is_read_or_written("causal", (13, 8, 5, 3), loads, monkeypatch)


def test_they_compile_for_gpus_at_uneven_sizes(tmp_path):
    """The interpreter takes what a compiler would not: types that differ between branches, say."""
    root = Path(launcher.__file__).parent.parent
    (tmp_path / "spec.py").write_text(
        f"import sys, torch; sys.path.insert(0, {str(root / 'benchmarks')!r})\n"
        "from kernels_spec import entry, spec\n"
        "uneven = dict(TEXT=13, GRID=12, ROWS=5, HALF=2)\n"
        "forms = [('pointers', 128, torch.float32, 80), ('descriptors', 16, torch.bfloat16, 90)]\n"
        "SPECS = [spec(name, [entry(name, 'conv', loads, D, dtype, **uneven) | {'targets': [target], 'bars': {}} "
        "for loads, D, dtype, target in forms]) for name in ('forward', 'backward_queries', 'backward_keys')]\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(root / "benchmarks" / "kernel_static.py"), str(tmp_path / "spec.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "bars: 0 broken" in done.stdout and "FAILED" not in done.stdout, done.stdout + done.stderr


# --- use -----------------------------------------------------------------------------------------------------------


def test_inputs_of_any_strides():
    x = torch.randn(2, 53, 3, 2, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)  # (B, T, 3, H, D)
    views = [y.transpose(1, 2) for y in x.unbind(2)]
    crooked = [y.contiguous().mT.contiguous().mT for y in views]  # D is not the innermost
    do = torch.randn(2, 2, 53, 32).to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    run = lambda *x: with_gradients(lambda *y: fused_attention(*y, "row", 13, 8), *x, do)  # noqa: E731
    expected = run(*(y.contiguous() for y in views))
    for case in (views, crooked):
        leaves = [y.detach().requires_grad_() for y in case]
        o = fused_attention(*leaves, "row", 13, 8)
        o.backward(do)
        for a, b in zip((o, *(y.grad for y in leaves)), expected):
            assert torch.equal(a, b)


def test_inputs_off_their_boundary_or_repeated(loads):
    """A slice of a buffer that begins in its middle, and the gradient of a sum, which is one number everywhere."""
    q, k, v, _ = inputs(53, D=16)
    expected = with_gradients(lambda *x: fused_attention(*x, "row", 13, 8), q, k, v, torch.ones_like(q))
    buffer = torch.zeros(3 * q.numel() + 1, device=DEVICE)[1:]
    leaves = [y.view_as(x).copy_(x).requires_grad_() for x, y in zip((q, k, v), buffer.chunk(3))]
    o = fused_attention(*leaves, "row", 13, 8)
    o.sum().backward()
    for a, b in zip((o, *(x.grad for x in leaves)), expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", MASKS)
def test_nan_is_not_hidden(kind, loads):
    q, k, v, _ = inputs(53, H=1)
    k[:, :, 20] = torch.nan
    seen = dense_mask(kind, 13, 8, 5, 3)[:, 20].to(DEVICE)
    assert fused_attention(q, k, v, kind, 13, 8, 3)[0, 0][seen].isnan().all()


@pytest.mark.parametrize("wanted", range(1, 8))
def test_gradients_of_any_subset(wanted):
    q, k, v, do = inputs(53)
    expected = with_gradients(lambda *x: fused_attention(*x, "conv", 13, 8, 3), q, k, v, do)[1:]
    leaves = [x.clone().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate((q, k, v))]
    fused_attention(*leaves, "conv", 13, 8, 3).backward(do)
    for i, (leaf, gradient) in enumerate(zip(leaves, expected)):
        assert (leaf.grad is not None) == bool(wanted >> i & 1)
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("geometry", [(5, 4, 3, 3), (0, 16, 4, 11), (13, 12, 2, 5)])
def test_one_new_query_after_another(kind, geometry):
    text_len, grid, rows, kernel_size = geometry
    q, k, v, _ = inputs(text_len + rows * grid, B=2)
    mask = dense_mask(kind, text_len, grid, rows, kernel_size).to(DEVICE)
    expected = attention(q.double(), k.double(), v.double(), mask)
    for t in range(0, q.shape[2], 7):
        new, at = q[:, :, t : t + 1], torch.tensor([t], device=DEVICE)
        cache = [x.clone() for x in (k, v)]
        for x in cache:
            x[:, :, t + 1 :] = float("nan")  # what is not drawn yet must not be read
        o = decode_attention(new, *cache, at, kind, text_len, grid, kernel_size)
        torch.testing.assert_close(o.double(), expected[:, :, t : t + 1], rtol=1e-5, atol=1e-6)
        alone = decode_attention(new[1:], *(x[1:] for x in cache), at, kind, text_len, grid, kernel_size)
        assert torch.equal(o[1:], alone)


def test_one_new_query_of_tensors_that_lie_otherwise_in_memory():
    q, k, v, _ = inputs(16 + 64)
    new, at = q[:, :, 40:41], torch.tensor([40], device=DEVICE)
    expected = decode_attention(new, k, v, at, "row", 16, 8)
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (new, k, v)]
    turned[0] = torch.stack([new, new], -1)[..., 0]  # of one query, the other way would change nothing
    assert all(x.stride(3) != 1 for x in turned)
    assert torch.equal(decode_attention(*turned, at, "row", 16, 8), expected)


def test_a_row_and_the_cell_above_it_are_shared_by_no_more_programs_than_they_need():
    assert [split_count("row", 0, grid, 4, 1) for grid in (127, 128)] == [1, 2]


@pytest.mark.parametrize("kind, splits", [("causal", 10), ("row", 3), ("column", 3), ("conv", 3)])
def test_one_new_query_of_the_full_stream(kind, splits):
    assert split_count(kind, 256, 32, 32, 5) == splits
    q, k, v, _ = inputs(1280, D=64, H=1, dtype=torch.float16)
    mask = dense_mask(kind, *FULL).to(DEVICE)
    for t in (0, 255, 256, 300, 1279):
        o = decode_attention(q[:, :, t : t + 1], k, v, torch.tensor([t], device=DEVICE), kind)
        row = mask[t : t + 1, : t + 1]
        expected = attention(q[:, :, t : t + 1].double(), k[:, :, : t + 1].double(), v[:, :, : t + 1].double(), row)
        torch.testing.assert_close(o.double(), expected, rtol=2e-3, atol=1e-3)


@triton.jit
def store_key_count(COUNTS, KIND: tl.constexpr, TEXT: tl.constexpr, GRID: tl.constexpr, HALF: tl.constexpr):
    position = tl.program_id(0)
    tl.store(COUNTS + position, key_count(position, KIND, TEXT, GRID, HALF))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("geometry", [(16, 8, 8, 3), (5, 4, 6, 11)])
def test_a_step_looks_at_no_more_keys_than_its_mask_has(kind, geometry):
    """Or, of conv, than its kernel has places."""
    text_len, grid, rows, kernel_size = geometry
    seen = dense_mask(kind, text_len, grid, rows, kernel_size).sum(1)
    counts, half = torch.zeros(len(seen), dtype=torch.int32, device=DEVICE), kernel_size // 2
    store_key_count[(len(seen),)](counts, kind, text_len, grid, half)
    if kind == "conv" and grid > 2 * half:
        assert (seen <= counts.cpu()).all() and counts.max() == text_len + (half + 1) * (2 * half + 1)
    else:
        assert counts.tolist() == seen.tolist()


@pytest.mark.parametrize(
    "dtype, geometry, tolerance", [(torch.float32, (16, 8, 8, 3), 1e-5), (torch.float16, FULL, 2e-2)]
)
def test_the_transformer_gives_the_same_loss_and_gradients_with_either(dtype, geometry, tolerance):
    text_len, grid, rows, kernel_size = geometry
    layers = 1 if geometry == FULL else 3
    config = TransformerConfig(
        n_layer=layers, n_head=2, n_embd=32, text_len=text_len, grid=grid, rows=rows, kernel_size=kernel_size,
        vocab_size=50, codebook_size=40,
    )  # fmt: skip
    g = torch.Generator().manual_seed(0)
    text = torch.randint(50, (1, text_len), generator=g).to(DEVICE)
    text[:, -1] = -1
    image = torch.randint(40, (1, rows * grid), generator=g).to(DEVICE)
    results = {}
    for backend in ("sdpa", "triton"):
        torch.manual_seed(0)
        model = DALLE(dataclasses.replace(config, backend=backend)).to(DEVICE, dtype)
        loss = model.loss(text, image).total
        loss.backward()
        results[backend] = [loss.detach(), *(p.grad for p in model.parameters())]
    for a, b in zip(results["sdpa"], results["triton"]):
        scale = a.abs().max().item()
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


def test_drawing_with_the_kernels_gives_the_same_picture():
    config = TransformerConfig(
        n_layer=3, n_head=2, n_embd=32, text_len=5, grid=4, rows=3, kernel_size=3, vocab_size=20, codebook_size=10
    )
    text = torch.tensor([3, 1, -1, -1, -1])
    drawn = {}
    for backend in ("sdpa", "triton"):
        torch.manual_seed(0)
        model = DALLE(dataclasses.replace(config, backend=backend)).to(DEVICE)
        drawn[backend] = generate(model, text, 2, [0, 1], temperature=0.5)
    assert torch.equal(drawn["sdpa"], drawn["triton"])


BAD = [
    ({"q": torch.zeros(2, 17, 16)}, "must all have four dimensions"),
    ({"k": torch.zeros(1, 2, 17, 32)}, "heads must all be"),
    ({"v": torch.zeros(1, 2, 17, 16, dtype=torch.float16)}, "must share one of float16, bfloat16 and float32"),
    ({n: torch.zeros(1, 2, 17, 16, dtype=torch.float64) for n in "qkv"}, "got float64, float64, float64"),
    ({n: torch.zeros(1, 2, 17, 24) for n in "qkv"}, r"16, 32, 64 or 128 wide, got \[24\]"),
    ({n: torch.zeros(1, 2, 18, 16) for n in "qkv"}, "does not hold text_len = 5"),
    ({n: torch.zeros(1, 2, 3, 16) for n in "qkv"}, "does not hold text_len = 5"),
    ({n: torch.zeros(0, 2, 17, 16) for n in "qkv"}, "no dimension empty"),
    ({"mask": "colunm"}, "did you mean 'column'"),
    ({"kernel_size": 4}, "must be odd"),
    ({"grid": 0}, "grid at least 1, got 5 and 0"),
    ({"scale": 0.0}, "scale must lie in"),
    ({"scale": float("nan")}, "scale must lie in"),
    ({"k": torch.zeros(1, 2, 17, 16, device="meta")}, "must be on one device"),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_input_in_one_sentence(changes, message):
    good = {n: torch.zeros(1, 2, 17, 16) for n in "qkv"} | {"text_len": 5, "grid": 4, "kernel_size": 3}
    with pytest.raises(ValueError, match=message):
        fused_attention(**good | changes)


def test_what_this_machine_cannot_do_in_one_sentence(monkeypatch):
    q = torch.zeros(1, 1, 17, 16)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="interpreter rounds bfloat16 wrongly"):
            fused_attention(*[q.bfloat16()] * 3, text_len=17)
    monkeypatch.setattr(launcher, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="only if TRITON_INTERPRET=1 was set"):
        fused_attention(q, q, q, text_len=17)
    monkeypatch.setattr(launcher, "triton", None)
    with pytest.raises(ImportError, match="need Triton, which Linux has"):
        fused_attention(q, q, q, text_len=17)


def test_bad_input_of_one_query():
    q, k = torch.zeros(1, 2, 2, 16, device=DEVICE), torch.zeros(1, 2, 16, 16, device=DEVICE)
    at = torch.tensor([3], device=DEVICE)
    with pytest.raises(ValueError, match=r"expected q \(B, H, 1, D\)"):
        decode_attention(q, k, k, at, text_len=4, grid=4)
    q = q[:, :, :1]
    with pytest.raises(ValueError, match="got float64, float64, float64"):
        decode_attention(q.double(), k.double(), k.double(), at, text_len=4, grid=4)
    with pytest.raises(ValueError, match="did you mean 'row'"):
        decode_attention(q, k, k, at, "rows")
    with pytest.raises(ValueError, match="with text_len = 5, grid = 4"):
        decode_attention(q, k, k, at, text_len=5, grid=4)
    with pytest.raises(ValueError, match="expected position as one int64 on"):
        decode_attention(q, k, k, at[0].float(), text_len=4, grid=4)
    with pytest.raises(ValueError, match="has no gradient"):
        decode_attention(q.requires_grad_(), k, k, at, text_len=4, grid=4)
