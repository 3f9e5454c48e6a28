"""What a size of the transformer costs, before it is paid for: parameters, operations, bytes for each GPU, days.

    python -m minidalle plan --preset dalle-12b --gpus 64 --gpu h100-80gb

In: a preset's transformer, a number of GPUs of one kind, the share of their rate that is used. Out: numbers, each with
the formula that it came from. They follow from the code of `transformer.py`, and tests hold them against what PyTorch
counts: parameters and optimizer to the byte, what the forward pass keeps within a tenth. The rates are those of data sheets;
how much of one is reached in practice is the reader's to say (`--utilisation`). No GPU has run this.

Symbols as in the README: T positions, C width, H heads, V and K vocabularies; P parameters, N GPUs, L layers.
"""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import torch

from kernels.reference import dense_mask
from minidalle.attention import layer_masks
from minidalle.config import DVAEConfig, Preset, TransformerConfig, nearest
from minidalle.dvae import DVAE


class GPU(NamedTuple):
    """What its data sheet says."""

    operations: float  # a second, in bfloat16 without sparsity
    bytes: float  # of memory
    bandwidth: float  # bytes a second to its neighbours, in one direction
    network: float = 50e9  # the same beyond a machine of 8: one port of 400 Gbit/s for each GPU


GPUS = {  # NVLink or PCIe in one direction, half of the sum that is advertised
    "a100-80gb": GPU(312e12, 80e9, 300e9),
    "h100-80gb": GPU(989e12, 80e9, 450e9),
    "h200-141gb": GPU(989e12, 141e9, 450e9),
    "rtx-4090": GPU(165e12, 24e9, 32e9),
}
NODE = 8  # GPUs that are joined so closely; more of them talk through a network
FREE = 0.1  # share of a GPU's memory left to CUDA, the allocator and whatever else

# --- counting ------------------------------------------------------------------------------------------------------


def parameters(c: TransformerConfig) -> dict[str, int]:
    """The transformer's parameters by part; their sum is what `DALLE(c)` has."""
    C = c.n_embd
    block = 12 * C**2 + 13 * C  # qkv 3C² + 3C, proj C² + C, mlp 8C² + 5C, two norms 4C
    return {
        "text tokens (V C)": c.vocab_size * C,
        "image tokens (K C)": c.codebook_size * C,
        "pads and text positions (2 text_len C)": 2 * c.text_len * C,
        "rows and columns of the image": (c.rows + c.grid) * C,
        "blocks, L (12 C² + 13 C)": c.n_layer * block,
        "last norm (2 C)": 2 * C,
        "text head (V C)": c.vocab_size * C,
        "image head (K C)": c.codebook_size * C,
    }


def seen_pairs(c: TransformerConfig) -> int:
    """(query, key) pairs that the masks of all layers let through, in one stream."""
    layers = Counter(layer_masks(c))
    return sum(n * int(dense_mask(kind, c.text_len, c.grid, c.rows, c.kernel_size).sum()) for kind, n in layers.items())


def operations(c: TransformerConfig) -> dict[str, int]:
    """Floating-point operations of one stream's forward pass by part; a product and its sum are two. What is not a
    matrix product (norms, softmax, GELU) is left out. A text has as many targets as can be, text_len - 2."""
    C, T = c.n_embd, c.text_len + c.n_image
    return {
        "blocks' products, 24 L C² T": 24 * c.n_layer * C**2 * T,
        "attention, 4 C for each pair seen": 4 * C * seen_pairs(c),
        "heads, 2 C (V text_len + K cells)": 2 * C * (c.vocab_size * (c.text_len - 2) + c.codebook_size * c.n_image),
    }


def training_operations(c: TransformerConfig, recompute: bool) -> int:
    """Of one stream's forward and backward pass: a backward pass is twice a forward; `recompute` runs the blocks once more."""
    parts = [*operations(c).values()]
    return 3 * sum(parts) + recompute * (parts[0] + parts[1])


def kept_bytes(c: TransformerConfig, recompute: bool, half: bool = True) -> int:
    """Bytes that one stream's forward pass keeps for the backward pass, beside the weights.

    A block keeps 16 T C numbers: its input, the norm of that, q, k and v, attention's result, the sum, the norm of that, and the
    MLP's hidden layer (4 T C) before and after GELU; and T (H + 4) for attention's log-sum-exp and the norms' means and
    deviations. With `recompute` (activation checkpointing) it keeps its input alone, T C, and one block at a time is
    whole. At the end come the last norm's input and the gradient of the states that the heads read, 2 T C.
    half: as on GPUs, all in bfloat16, 2 bytes, but for the residual stream (input and sum of a block), what is counted in
    T (H + 4), and the end; else 4 bytes each.
    """
    T, C, H = c.text_len + c.n_image, c.n_embd, c.n_head
    block = (2 * 14 + 4 * 2 if half else 4 * 16) * T * C + 4 * T * (H + 4)
    ends = 4 * 2 * T * C
    return (c.n_layer * 4 * T * C + block if recompute else c.n_layer * block) + ends


def cache_numbers(c: TransformerConfig) -> int:
    """Keys and values that drawing one picture keeps: 2 L T C."""
    return 2 * c.n_layer * (c.text_len + c.n_image) * c.n_embd


def state_bytes(c: TransformerConfig) -> dict[str, int]:
    """Of all GPUs together, spread evenly by full sharding: everything in float32."""
    P = sum(parameters(c).values())
    return {"weights, 4 P": 4 * P, "gradients, 4 P": 4 * P, "AdamW's two moments, 8 P": 8 * P, "average, 4 P": 4 * P}


def gathered_bytes(c: TransformerConfig) -> int:
    """What every GPU holds whole for a moment. Of embeddings, norms and heads, R parameters, in float32: themselves, their
    gradients, and these once more to be summed, 12 R; and the gradient of the heads as the loss computed it. Of a block, in
    bfloat16: two of them (one at work, one on its way), the buffer in which they came, its gradient; and that in float32."""
    parts = parameters(c)
    block = parts["blocks, L (12 C² + 13 C)"] // c.n_layer
    rest = sum(parts.values()) - c.n_layer * block
    return 12 * rest + 4 * (parts["text head (V C)"] + parts["image head (K C)"]) + (2 * 4 + 4) * block


# --- planning ------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How one update is spread: `gpus` GPUs, each `steps` times with `streams` streams."""

    gpus: int
    streams: int
    steps: int
    recompute: bool
    bytes: float  # for each GPU


def layouts(c: TransformerConfig, batch: int, gpus: int):
    """All ways of giving each GPU its share of a batch, with and without recomputing; most streams at a time first."""
    share = batch // gpus
    fixed = sum(state_bytes(c).values()) / gpus + gathered_bytes(c)
    for streams in (n for n in range(share, 0, -1) if share % n == 0):
        for recompute in (False, True):
            kept = kept_bytes(c, recompute) * streams
            yield Layout(gpus, streams, share // streams, recompute, fixed + kept)


def fitting(c: TransformerConfig, batch: int, gpus: int, gpu: GPU) -> list[Layout]:
    return [way for way in layouts(c, batch, gpus) if way.bytes <= (1 - FREE) * gpu.bytes]


def bandwidth_of(gpu: GPU, gpus: int) -> float:
    """Bytes a second that each GPU can receive."""
    return gpu.bandwidth if gpus <= NODE else min(gpu.bandwidth, gpu.network)


def communication(c: TransformerConfig, gpus: int, steps: int) -> float:
    """Bytes that each GPU receives in one update: for every step the weights twice in bfloat16, for the forward and for the
    backward pass, and its part of all gradients in float32: 8 P (N - 1) / N."""
    return 8 * sum(parameters(c).values()) * (gpus - 1) / gpus * steps


def times(c: TransformerConfig, way: Layout, gpu: GPU, utilisation: float) -> tuple[float, float]:
    """Seconds of an update that are computing, and seconds that each GPU receives for. FSDP fetches the next block while this
    one is computed, so an update takes the longer of the two, at best."""
    work = training_operations(c, way.recompute) * way.streams * way.steps
    return work / gpu.operations / utilisation, communication(c, way.gpus, way.steps) / bandwidth_of(gpu, way.gpus)


def dvae_bytes(c: DVAEConfig) -> int:
    """Of its weights, in float32."""
    with torch.device("meta"):
        return sum(p.nbytes for p in DVAE(c).parameters())


def gpu_named(name: str) -> GPU:
    """One of `GPUS`, or "custom:FLOPS,BYTES,BANDWIDTH". Raises ValueError for anything else."""
    kind, colon, numbers = name.partition(":")
    if name in GPUS:
        return GPUS[name]
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if kind != "custom" or len(values) != 3 or not all(0 < value < float("inf") for value in values):
        raise ValueError(
            f"unknown GPU {name!r}{nearest(name, GPUS)}: there are {', '.join(GPUS)}, and custom:FLOPS,BYTES,BANDWIDTH "
            "such as custom:312e12,80e9,300e9: operations a second, bytes of memory, bytes a second between GPUs"
        )
    return GPU(*values, network=values[2])


def plan(preset: Preset, gpus: int, gpu_name: str, utilisation: float) -> list[str]:
    """The lines that the verb prints. Raises ValueError for a layout that does not fit, saying what would."""
    gpu, stage = gpu_named(gpu_name), preset.train.transformer
    if utilisation > 1:
        raise ValueError(f"--utilisation is a share of the GPU's rate, at most 1, got {utilisation:g}")
    c = replace(preset.transformer, vocab_size=preset.data.vocab_size, codebook_size=preset.dvae.codebook_size,
                rows=preset.data.height // preset.dvae.downsample, grid=preset.data.width // preset.dvae.downsample,
                text_len=preset.transformer.text_len or 256)  # fmt: skip
    if gpus < 1 or stage.batch_size % gpus:
        divisors = [n for n in range(1, stage.batch_size + 1) if stage.batch_size % n == 0]
        raise ValueError(
            f"a batch of {stage.batch_size} cannot be shared evenly by {gpus} GPUs: "
            f"take {min(divisors, key=lambda n: abs(n - gpus))}, or change --train.transformer.batch_size"
        )
    ways = fitting(c, stage.batch_size, gpus, gpu)
    if not ways:
        raise ValueError(what_is_missing(c, stage.batch_size, gpus, gpu, gpu_name))
    way = min(ways, key=lambda way: max(times(c, way, gpu, utilisation)))  # the first of equals: without recomputing
    return [
        *describe_model(preset.name, c), "", *describe_memory(c, way, gpu, gpu_name, dvae_bytes(preset.dvae)), "",
        *describe_time(c, way, gpu, stage, utilisation),
    ]  # fmt: skip


def what_is_missing(c: TransformerConfig, batch: int, gpus: int, gpu: GPU, name: str) -> str:
    """One sentence for a layout that does not fit: how far it is off, and the fewest GPUs that would do."""
    least = min(layouts(c, batch, gpus), key=lambda way: way.bytes)
    enough = [n for n in range(gpus + 1, batch + 1) if batch % n == 0 and fitting(c, batch, n, gpu)]
    would = (
        f"{enough[0]} such GPUs would do"
        if enough
        else f"no number of {name} would do: a block and the heads do not fit"
    )
    return (
        f"{gpus} × {name} do not hold it: each needs {least.bytes / 1e9:.1f} GB, one stream at a time and recomputing, and has "
        f"{gpu.bytes / 1e9:.0f} GB, of which {FREE:.0%} are kept free; {would}"
    )


# --- saying it -----------------------------------------------------------------------------------------------------


def table(rows: dict[str, float], number: str = ",.0f", scale: float = 1) -> list[str]:
    return [f"  {name:44} {value / scale:>22{number}}" for name, value in rows.items()]


def plural(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'s' if n != 1 else ''}"


def describe_model(name: str, c: TransformerConfig) -> list[str]:
    parts, forward = parameters(c), operations(c)
    T, masks = c.text_len + c.n_image, Counter(layer_masks(c))
    causal = T * (T + 1) // 2
    return [
        f"{name}: {c.n_layer} layers, {c.n_head} heads of {c.n_embd // c.n_head}, C = {c.n_embd}; "
        f"a stream is {c.text_len} + {c.rows} x {c.grid} = {T} positions",
        "",
        "parameters",
        *table(parts | {"P, all": sum(parts.values())}),
        "",
        "operations, 10⁹, of one stream forward",
        *table(forward | {"all": sum(forward.values())}, ",.1f", 1e9),
        *table({"of one token in training, 3 x all / T": 3 * sum(forward.values()) / T}, ",.1f", 1e9),
        f"  layers: {', '.join(f'{n} {kind}' for kind, n in masks.items())}; their masks keep "
        f"{seen_pairs(c) / c.n_layer / causal:.0%} of the causal pairs",
    ]


def describe_memory(c: TransformerConfig, way: Layout, gpu: GPU, name: str, dvae_bytes: int) -> list[str]:
    kept = {r: kept_bytes(c, r) for r in (False, True)}
    choice = "with recomputing" if way.recompute else "without recomputing"
    P = sum(parameters(c).values())
    spread = {f"{key}; 1/{way.gpus} of it": value / way.gpus for key, value in state_bytes(c).items()}
    return [
        f"GB for each of {way.gpus} x {name}, fully sharded",
        *table(spread, ",.2f", 1e9),
        *table({"whole for a moment: heads, tokens, two blocks": gathered_bytes(c)}, ",.2f", 1e9),
        *table(
            {f"kept for the backward pass, {way.streams} at a time": kept[way.recompute] * way.streams}, ",.2f", 1e9
        ),
        *table({f"all, of {gpu.bytes / 1e9:.0f}": way.bytes}, ",.2f", 1e9),
        f"  {plural(way.streams, 'stream')} at a time, {plural(way.steps, 'step')} an update, {choice}; a stream keeps "
        f"{kept[False] / 1e9:.2f} GB, or {kept[True] / 1e9:.2f} with recomputing",
        f"  to train so: --streams {way.streams}{'' if way.recompute else ' --no-recompute'}, from {plural(way.gpus, 'shard')} or more; "
        f"if they hold pictures, not codes, each GPU needs {dvae_bytes / 1e9:.2f} GB more for the dVAE, and what it computes",
        f"  drawing, on one GPU and in float32: weights {4 * P / 1e9:.2f} GB, and keys and values, "
        f"2 L T C, {4 * cache_numbers(c) / 1e9:.2f} GB for each picture",
        f"  on disk: 16 P a state, two kept and a third being written, and the average twice, 8 P: {56 * P / 1e9:.2f} GB; "
        f"in the memory of process 0's machine, to write the average, 4 P: {4 * P / 1e9:.2f} GB",
    ]


def describe_time(c: TransformerConfig, way: Layout, gpu: GPU, stage, utilisation: float) -> list[str]:
    computing, receiving = times(c, way, gpu, utilisation)
    seconds = max(computing, receiving)
    work = training_operations(c, way.recompute) * stage.batch_size
    received = communication(c, way.gpus, way.steps)
    days = stage.updates * seconds / 86400
    long = f"{days:,.1f} days" if days >= 1 else f"{24 * days:.2g} hours"
    return [
        f"time, at {utilisation:.0%} of {gpu.operations / 1e12:.0f}·10¹² operations a second (a guess: no GPU has run this)",
        f"  an update of {stage.batch_size} streams: {work:.3g} operations, {computing:.2f} s",
        f"  meanwhile (an update takes the longer of the two): each GPU receives 8 P (N - 1) / N a step, {received / 1e9:.1f} GB, "
        f"{receiving:.2f} s at {bandwidth_of(gpu, way.gpus) / 1e9:.0f} GB/s",
        f"  {86400 / seconds:,.0f} updates a day; {stage.updates:,} updates take {long}, {24 * days * way.gpus:,.1f} GPU hours",
    ]
