"""What `kernel_static.py` is to compile: the attention kernels as `kernels/attention.py` launches them.

    python benchmarks/kernel_static.py benchmarks/kernels_spec.py --loops all

For every mask and six generations of GPU, at the paper's stream, D = 64 and bfloat16.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from kernels.attention import FORWARD, KEYS, QUERIES, tiles_for  # noqa: E402
from kernels.reference import MASKS  # noqa: E402

TARGETS = {"pointers": [80, 86, 89, 120], "descriptors": [90, 100]}
KERNELS = {  # name -> function, its table of tiles, its pointers, the letters of its strides
    "forward": ("attention_forward", FORWARD, "Q K V O M LOG_L", "qkvo"),
    "backward_queries": ("backward_queries", QUERIES, "Q K V O DO M LOG_L DELTA DQ", "qkvog"),
    "backward_keys": ("backward_keys", KEYS, "Q K V DO M LOG_L DELTA DK DV", "qkvg"),
}
BARS = {  # what may not get worse, in the loop that runs most; `--check` holds the kernels to it
    "forward": {
        "80": {"spill": 32, "warps_sm": 8, "nt_eq": 4.0, "local_ops": 0},
        "90": {"spill": 0, "warps_sm": 8, "nt_eq": 5.5},
    },
    "backward_queries": {"80": {"spill": 0, "nt_eq": 2.4, "local_ops": 0}, "90": {"spill": 0, "nt_eq": 2.55}},
    "backward_keys": {"80": {"spill": 80, "nt_eq": 2.4, "local_ops": 0}, "90": {"spill": 0, "nt_eq": 2.55}},
}


def entry(name: str, kind: str, loads: str, D: int = 64, dtype: torch.dtype = torch.bfloat16, **shape: int) -> dict:
    """One kernel for `kernel_static.py`; shape: what differs from the paper's stream, such as GRID=12."""
    function, table, pointers, letters = KERNELS[name]
    tiles = tiles_for(table, loads, D, dtype)
    floats, pointer_type = ("M", "LOG_L", "DELTA"), {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    signature = {pointer: "*fp32" if pointer in floats else pointer_type for pointer in pointers.split()}
    strides = {f"stride_{letter}{axis}": "i32" for letter in letters for axis in "bht"}
    scales = {"scale": "fp32"} | ({} if name == "forward" else {"scale_natural": "fp32"})
    return {
        "name": f"{name} {kind}",
        "fn": function,
        "signature": signature | strides | {"H": "i32"} | scales,
        "div16": list(strides),
        "constexprs": {
            "KIND": kind, "TEXT": 256, "GRID": 32, "ROWS": 32, "HALF": 5, "D": D,
            "BLOCK_M": tiles.BLOCK_M, "BLOCK_N": tiles.BLOCK_N,
            "DESCRIPTORS": loads == "descriptors", "PRECISION": "ieee",
        } | ({"BEHIND": loads == "descriptors"} if name == "forward" else {}) | shape,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
        "targets": TARGETS[loads],
        "bars": {target: bar | {"serialized": 0} for target, bar in BARS[name].items()},
    }  # fmt: skip


def spec(name: str, entries: list[dict]) -> dict:
    folder = Path(__file__).resolve().parent.parent / "kernels"
    return {"file": str(folder / ("forward.py" if name == "forward" else "backward.py")), "kernels": entries}


SPECS = [spec(name, [entry(name, kind, loads) for kind in MASKS for loads in TARGETS]) for name in KERNELS]
