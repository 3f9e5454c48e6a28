"""How good are the kernels? On a GPU: exact, and how fast beside PyTorch's. Without one: what can be counted.

    python kernels/bench.py               on a GPU: errors on that GPU, then times; else: registers, instructions, tiles, bounds
    python kernels/bench.py --markdown    the same as tables for a README

Without a GPU the kernels are compiled ahead of time for six generations of GPU and the machine code is counted
(`benchmarks/kernel_static.py` explains the columns); the tiles that are read are found by poisoning them, in Triton's
interpreter. Nothing here is a time that was not measured: a bound says what no kernel of this form can be faster than.
"""

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from kernels import attention as launcher  # noqa: E402
from kernels.attention import Shape, fused_attention, to_mask_order  # noqa: E402
from kernels.reference import MASKS, attention, dense_mask  # noqa: E402

TEXT, GRID, ROWS, KERNEL, D = 256, 32, 32, 11, 64  # the paper's stream
PEAK = {  # of the tensor cores in bfloat16, FLOP/s, by part of the device's name
    "A100": 312e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
LIMITS = {  # FLOP/s of the tensor cores, bytes/s of memory, exponentials/s: data sheets (clock · SMs · 16 for the last)
    "A100": (312e12, 2.0e12, 16 * 108 * 1.41e9),
    "H100": (989e12, 3.35e12, 16 * 132 * 1.83e9),
}


def main():
    parser = argparse.ArgumentParser(
        description="Exactness and speed of the attention kernels, or what can be counted."
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for a README")
    parser.add_argument("--tiles", action="store_true", help=argparse.SUPPRESS)  # the part that runs in the interpreter
    args = parser.parse_args()
    if args.tiles:
        print(
            json.dumps(
                {kind: int(tiles_read(full_shape(kind), launcher.FORWARD["pointers"], "v").sum()) for kind in MASKS}
            )
        )
    elif launcher.triton is None:
        parser.error("this needs Triton, which Linux has")
    elif torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        print(f"{name}, torch {torch.__version__}, triton {launcher.triton.__version__}\n")
        found = error_rows()
        show(["mask", "dtype", *(f"{x}: error / fair" for x in ("o", "dq", "dk", "dv"))], found, args.markdown)
        if "WRONG" in str(found):
            sys.exit("the kernels are wrong on this GPU: please report the table above")
        show(["mask", "B·H", "", "ms", "TFLOP/s", "of peak", "sdpa ms", "flex ms"], time_rows(name), args.markdown)
    else:
        print(
            f"no GPU: compiled ahead of time by triton {launcher.triton.__version__}; nothing below is a measured time\n"
        )
        print("beside each tensor-core operation (in equivalents of HMMA.16816), other instructions in the loop over")
        head = ["kernel", "GPU", "tile", "registers", "spilled B", "shared B", "warps/SM", "whole tiles", *MASKS]
        show(head, compiled_rows(), args.markdown)
        show(
            ["mask", "tiles read", "tiles with a pair that is seen", "of all", "pairs that are seen", *bounds_head()],
            tile_rows(),
            args.markdown,
        )


def full_shape(kind: str) -> Shape:
    return Shape(kind, TEXT, GRID, ROWS, KERNEL // 2)


def show(head: list[str], rows: list[list], markdown: bool):
    lines = [head, *([str(cell) for cell in row] for row in rows)]
    if markdown:
        lines.insert(1, ["---"] * len(head))
        print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    else:
        widths = [max(map(len, column)) for column in zip(*lines)]
        print("\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths)) for line in lines) + "\n")


# --- exactness -----------------------------------------------------------------------------------------------------


def with_gradients(function, q, k, v, do) -> list[torch.Tensor]:
    """[o, dq, dk, dv] of function(q, k, v)."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    o = function(*leaves)
    o.backward(do.to(o.dtype))
    return [o.detach(), *(x.grad for x in leaves)]


def errors(kind: str, text_len: int, grid: int, rows: int, kernel_size: int, q, k, v, do) -> list[tuple[float, float]]:
    """[(error, what is fair)] of o, dq, dk and dv: against the formula in float64, and twice PyTorch's error in the same
    dtype, but at least eight roundings of the largest entry, or of 1, the size of the inputs."""
    mask = dense_mask(kind, text_len, grid, rows, kernel_size).to(q.device)
    exact = with_gradients(lambda *x: attention(*x, mask), q.double(), k.double(), v.double(), do.double())
    peer = with_gradients(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=mask), q, k, v, do)
    ours = with_gradients(lambda *x: fused_attention(*x, kind, text_len, grid, kernel_size), q, k, v, do)
    result = []
    for x, y, z in zip(ours, peer, exact):
        rounding = torch.finfo(q.dtype).eps * z.abs().max().clamp(min=1)
        error = (x - z).abs().max().item() if x.isfinite().all() else math.inf
        result.append((error, max(2 * (y - z).abs().max(), 8 * rounding).item()))
    return result


def error_rows() -> list[list]:
    rows = []
    for kind in MASKS:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            torch.manual_seed(0)
            x = torch.randn(4, 2, 2, TEXT + GRID * ROWS, D, device="cuda", dtype=dtype)
            found = errors(kind, TEXT, GRID, ROWS, KERNEL, *x)
            cells = [f"{error:.1e} / {fair:.1e}{'' if error <= fair else '  WRONG'}" for error, fair in found]
            rows.append([kind, str(dtype).removeprefix("torch."), *cells])
    return rows


# --- time, on a GPU ------------------------------------------------------------------------------------------------


def time_rows(name: str) -> list[list]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    peak = next((flops for part, flops in PEAK.items() if part in name), None)
    torch._functorch.config.donated_buffer = False  # or a backward cannot be timed more than once
    flex = torch.compile(flex_attention, dynamic=False)
    rows = []
    for kind in MASKS:
        torch._dynamo.reset()
        mask = dense_mask(kind, TEXT, GRID, ROWS, KERNEL).cuda()
        block_mask = create_block_mask(as_arithmetic(kind), None, None, len(mask), len(mask))
        dense = {"is_causal": True} if kind == "causal" else {"attn_mask": mask}
        systems = {
            "ours": functools.partial(fused_attention, mask=kind, text_len=TEXT, grid=GRID, kernel_size=KERNEL),
            "sdpa": functools.partial(F.scaled_dot_product_attention, **dense),
            "flex": functools.partial(flex, block_mask=block_mask),
        }
        for heads in (16, 128, 512):
            torch.manual_seed(0)
            *leaves, do = torch.randn(4, heads // 16, 16, len(mask), D, device="cuda", dtype=torch.bfloat16)
            leaves = [x.requires_grad_() for x in leaves]
            for way, products in (("forward", 2), ("backward", 5)):  # of matrices, as papers count them
                ms = {system: time_of(way, function, leaves, do) for system, function in systems.items()}
                flops = 2 * products * D * mask.sum().item() * heads / (ms["ours"] / 1e3)
                share = "" if peak is None else f"{flops / peak:.2f}"
                times = [f"{ms['ours']:.3f}", f"{flops / 1e12:.0f}", share, f"{ms['sdpa']:.3f}", f"{ms['flex']:.3f}"]
                rows.append([kind, heads, way, *times])
    return rows


def as_arithmetic(kind: str):
    """The mask as FlexAttention likes it: from positions i and j, without reading memory."""

    def seen(b, h, i, j):
        d = i - j
        band = {
            "causal": d >= 0,
            "row": d <= GRID,
            "column": d % GRID == 0,
            "conv": (d <= GRID * (KERNEL // 2) + KERNEL // 2) & ((d + KERNEL // 2) % GRID < KERNEL),
        }
        return (d >= 0) & ((j < TEXT) | band[kind])

    return seen


def time_of(way: str, function, leaves: list[torch.Tensor], do: torch.Tensor) -> float:
    """Milliseconds, the mean of many runs with a cold cache."""
    if way == "forward":
        return launcher.triton.testing.do_bench(lambda: function(*leaves))
    o = function(*leaves)
    return launcher.triton.testing.do_bench(lambda: torch.autograd.grad(o, leaves, do, retain_graph=True))


# --- without a GPU -------------------------------------------------------------------------------------------------


def compiled_rows() -> list[list]:
    """What the compiler made of every kernel for every target; of the four masks the worst, or each in its column."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tool, spec = ROOT / "benchmarks" / "kernel_static.py", ROOT / "benchmarks" / "kernels_spec.py"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, str(tool), str(spec), "--json", str(report), "--jobs", str(os.cpu_count())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        results = json.loads(report.read_text())
    found = {}
    for r in results if isinstance(results, list) else results["results"]:
        kernel, kind = r["name"].rsplit("[")[0].split()
        found.setdefault((kernel, r["target"]), {})[kind] = r
    rows = []
    for (kernel, target), by_kind in found.items():
        each = by_kind.values()
        spill = max((r["spill_stores"] or 0) + (r["spill_loads"] or 0) for r in each)
        blocks = "{BLOCK_M} × {BLOCK_N}".format(**by_kind["causal"]["constexprs"])
        cells = [max(r["regs"] for r in each), spill, max(r["smem"] for r in each)]
        loops = {kind: sorted(r["loops"], key=lambda loop: loop["total"]) for kind, r in by_kind.items()}
        cost = lambda loop: f"{loop['nt_eq']:.2f}" if loop.get("nt_eq") else "–"  # noqa: E731
        # where one loop is left, the other's single tile stands by itself: for the causal mask that of the band
        masked = [cost(loops[kind][-1]) if len(loops[kind]) > 1 or kind != "causal" else "no loop" for kind in MASKS]
        warps = min(r["occupancy"]["warps_sm"] for r in each)
        rows.append([kernel, f"sm_{target}", blocks, *cells, warps, cost(loops["causal"][0]), *masked])
    return rows


def tiles_read(shape: Shape, tiles, poison: str) -> torch.Tensor:
    """(tiles of queries, tiles of keys) bool: is this tile of keys read for these queries? With poison "do" instead of
    "v": are these queries read for this tile of keys, in the backward?

    NaN times nothing is NaN: a poisoned tile that is read leaves it in the result. Each head has another one poisoned.
    """
    T = shape.TEXT + shape.ROWS * shape.GRID
    block = tiles.BLOCK_N if poison == "v" else tiles.BLOCK_M
    count = -(-T // block)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v, do = torch.randn(4, 1, count, T, 16, generator=torch.Generator().manual_seed(0)).half().to(device)
    for head in range(count):
        (v if poison == "v" else do)[:, head, head * block : (head + 1) * block] = torch.nan
    o, m, log_l = launcher.forward(q, k, v, shape, 0.25)
    if poison == "v":
        hit = o.isnan().all(3)[0].cpu()  # (count, T)
        return torch.stack([hit[:, m0] for m0 in range(0, T, tiles.BLOCK_M)])
    dv = launcher.backward(q, k, v, o, do, m, log_l, shape, 0.25)[2]
    hit = dv.isnan().all(3)[0].cpu()
    return torch.stack([hit[:, n0] for n0 in range(0, T, tiles.BLOCK_N)], dim=1)


def tiles_needed(shape: Shape, tiles) -> torch.Tensor:
    """The same from the mask: which tiles hold a pair that is seen, with the image in the kernel's order."""
    T = shape.TEXT + shape.ROWS * shape.GRID
    order = to_mask_order(torch.arange(T)[None, None, :, None], shape)[0, 0, :, 0]
    mask = dense_mask(shape.KIND, shape.TEXT, shape.GRID, shape.ROWS, 2 * shape.HALF + 1)[order][:, order]
    padded = F.pad(mask, (0, -T % tiles.BLOCK_N, 0, -T % tiles.BLOCK_M))
    return padded.unflatten(1, (-1, tiles.BLOCK_N)).unflatten(0, (-1, tiles.BLOCK_M)).any(3).any(1)


def bounds_head() -> list[str]:
    return [f"{gpu} {way}, µs at least" for gpu in LIMITS for way in ("forward", "backward")]


def tile_rows() -> list[list]:
    """Tiles of the forward kernel, and bounds in microseconds at B · H = 128: the slowest of products, memory, exponentials.

    They bound kernels of this form, whose backward computes p and dp twice: seven products, not five."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--tiles"]
    read = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    heads, rows = 128, []
    for kind in MASKS:
        tiles = launcher.FORWARD["pointers"]
        needed = tiles_needed(full_shape(kind), tiles)
        pairs = dense_mask(kind, TEXT, GRID, ROWS, KERNEL).sum().item()
        T, bounds = TEXT + GRID * ROWS, []
        for flops, memory, exponentials in LIMITS.values():
            for products, matrices, times in ((2, 4, 1), (7, 12, 2)):  # the backward computes p and dp twice
                work = 2 * products * D * pairs * heads / flops
                traffic = 2 * matrices * T * D * heads / memory
                bounds.append(f"{1e6 * max(work, traffic, times * pairs * heads / exponentials):.0f}")
        share = f"{read[kind] / needed.numel():.3f}"
        rows.append([kind, read[kind], int(needed.sum()), share, pairs, *bounds])
    return rows


if __name__ == "__main__":
    main()
