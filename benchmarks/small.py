"""What the preset `small` would cost on one GPU: counted here, without one. Not yet run.

    python benchmarks/small.py [--utilisation 0.3] [--set train.dvae.batch_size=8 ...]

For each stage: parameters; floating-point operations of an update, counted by PyTorch in a real forward and backward pass of
one picture on the CPU, times the batch; bytes of weights, gradients, AdamW's two moments and the average, all float32; bytes
that one picture's forward pass keeps for its backward pass, counted in float32, times the batch: an upper bound, as autocast
keeps about half of it in 16 bits. Seconds are operations divided by what the GPU's data sheet promises in 16 bits without
sparsity, times the share of it that is used, which is a guess. Loading pictures is not counted.
"""

import argparse
import dataclasses

import side_by_side

GPUS = {
    "T4": 65e12,
    "RTX 4090": 165e12,
    "A100": 312e12,
    "H100 SXM": 989e12,
}  # operations per second, from the data sheets


def counted(loss_of, model) -> tuple[float, float]:
    """Of one picture: (floating-point operations of the forward and backward pass, bytes that the former keeps)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = loss_of(1)
        loss.backward()
    return counter.get_total_flops(), sum(kept.values())


def stages(preset) -> dict:
    """{stage: (its settings, its model, a function from a batch size to the loss of such a batch)}."""
    import torch

    from minidalle.clip import CLIP
    from minidalle.dvae import DVAE
    from minidalle.transformer import DALLE

    torch.manual_seed(0)
    data, t = preset.data, preset.transformer
    side = preset.dvae.downsample
    rows, grid = data.height // side, data.width // side
    t = dataclasses.replace(
        t, rows=rows, grid=grid, codebook_size=preset.dvae.codebook_size, vocab_size=data.vocab_size
    )
    c = dataclasses.replace(
        preset.clip, height=data.height, width=data.width, context=t.text_len, vocab_size=data.vocab_size + 1
    )
    dvae, dalle, clip = DVAE(preset.dvae), DALLE(t), CLIP(c)

    def text(n):
        ids = torch.randint(data.vocab_size, (n, t.text_len))
        ids[:, -1] = -1
        return ids

    def images(n):
        return torch.rand(n, 3, data.height, data.width)

    return {
        "dvae": (preset.train.dvae, dvae, lambda n: dvae.loss(images(n), kl_weight=1.0).total),
        "transformer": (
            preset.train.transformer, dalle,
            lambda n: dalle.loss(text(n), torch.randint(t.codebook_size, (n, t.n_image))).total,
        ),
        "clip": (preset.train.clip, clip, lambda n: clip.loss(images(n), text(n)).total),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description="What the preset small would cost on one GPU; not yet run.")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the data sheet's rate (default 0.3)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings, as train_tiny.py takes them"
    )
    args = parser.parse_args()
    from minidalle.config import load_preset

    preset = load_preset("small", overrides=dict(item.split("=", 1) for item in args.set))
    print(f"{side_by_side.machine()}\n\npreset small, {preset.data.height} x {preset.data.width} pixels; not yet run\n")
    print("| stage | parameters, M | updates x batch | 10¹² operations an update | GB: weights, gradients, moments, average"
          " | GB kept for the backward pass, at most |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    total = 0
    for name, (stage, model, loss_of) in stages(preset).items():
        n = sum(p.numel() for p in model.parameters())
        flops, kept = counted(loss_of, model)
        flops, kept, state = flops * stage.batch_size, kept * stage.batch_size, n * 4 * (5 if stage.ema_decay else 4)
        total += flops * stage.updates
        print(
            f"| {name} | {n / 1e6:.1f} | {stage.updates:,} x {stage.batch_size} | {flops / 1e12:.2f} | {state / 1e9:.2f} | {kept / 1e9:.2f} |"
        )
    print(f"\n{total:.2e} operations in all; at {args.utilisation:.0%} of the data sheet's rate:")
    print(", ".join(f"{gpu} {total / rate / args.utilisation / 3600:.1f} h" for gpu, rate in GPUS.items()))


if __name__ == "__main__":
    main()
