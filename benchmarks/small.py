"""What the preset `small` would cost on one GPU: counted here, without one. Not yet run.

    python benchmarks/small.py [--utilisation 0.3] [--train.dvae.batch_size=8 and other settings]

For each stage: parameters, with a vocabulary as large as the preset allows; floating-point operations of an update, counted
by PyTorch in a real forward and backward pass on the CPU, whose attention computes windows around what the masks allow, and
twice; bytes of weights, gradients, AdamW's two moments and the average, all float32; bytes that the forward pass keeps for the
backward pass, in float32: an upper bound, as autocast keeps part of it in 16 bits. Both are counted for one picture and for
two, and carried on to the batch along a straight line. Hours are operations divided by what the GPU's data sheet promises in
16 bits without sparsity, times the share of it that is used, which is a guess. Training alone is counted: no loading, no
encoding, no measuring.
"""

import argparse
import dataclasses

import side_by_side
from minidalle.cli import parse_with_settings, positive, run_command

GPUS = {"T4": 65e12, "RTX 4090": 165e12, "A100": 312e12, "H100 SXM": 989e12}  # operations per second, from data sheets


def counted(loss_of, batch: int) -> tuple[float, float]:
    """Of one update with `batch` pictures: (floating-point operations, bytes kept for the backward pass).
    loss_of(n) -> (a loss of n pictures, the model)."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def once(n):
        kept = {}  # address of a storage -> bytes

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss, model = loss_of(n)
        for parameter in model.parameters():
            kept.pop(parameter.untyped_storage().data_ptr(), None)
        del loss
        with (
            FlopCounterMode(display=False) as counter,
            sdpa_kernel(SDPBackend.MATH),
        ):  # in which every product is counted
            loss_of(n)[0].backward()
        return counter.get_total_flops(), sum(kept.values())

    return tuple(one + (batch - 1) * (two - one) for one, two in zip(once(1), once(2)))


def stages(preset) -> dict:
    """{stage: (its settings, its model, the loss as `counted` takes it)}."""
    import torch

    from minidalle.clip import CLIP
    from minidalle.dvae import DVAE
    from minidalle.transformer import DALLE

    torch.manual_seed(0)
    data, step = preset.data, preset.dvae.downsample
    t = dataclasses.replace(
        preset.transformer, rows=data.height // step, grid=data.width // step, vocab_size=data.vocab_size,
        codebook_size=preset.dvae.codebook_size, text_len=preset.transformer.text_len or 256,
    )  # fmt: skip
    c = dataclasses.replace(
        preset.clip, height=data.height, width=data.width, context=t.text_len, vocab_size=data.vocab_size + 1
    )
    dvae, dalle, clip = DVAE(preset.dvae), DALLE(t), CLIP(c)

    def text(n):  # no pads, and [SEP]
        return torch.cat([torch.randint(data.vocab_size, (n, t.text_len - 1)), torch.full((n, 1), -1)], dim=1)

    def images(n):
        return torch.rand(n, 3, data.height, data.width)

    def codes(n):
        return torch.randint(t.codebook_size, (n, t.n_image))

    beta = preset.train.dvae.kl_weight
    return {
        "dvae": (preset.train.dvae, dvae, lambda n: (dvae.loss(images(n), kl_weight=beta).total, dvae)),
        "transformer": (preset.train.transformer, dalle, lambda n: (dalle.loss(text(n), codes(n)).total, dalle)),
        "clip": (preset.train.clip, clip, lambda n: (clip.loss(images(n), text(n)).total, clip)),
    }


def plan(settings: dict, utilisation: float):
    from minidalle.config import load_preset

    preset = load_preset("small", overrides=settings)
    print(f"{side_by_side.machine()}\n\npreset small, {preset.data.height} × {preset.data.width} pixels; not yet run\n")
    print("| stage | parameters, M | updates × batch | 10¹² operations an update | GB of weights, gradients, moments, average"
          " | GB kept for the backward pass, at most | " + " | ".join(f"hours, {gpu}" for gpu in GPUS) + " |")  # fmt: skip
    print("|---" * (6 + len(GPUS)) + "|")
    all_hours = dict.fromkeys(GPUS, 0.0)
    for name, (stage, model, loss_of) in stages(preset).items():
        n = sum(p.numel() for p in model.parameters())
        operations, kept = counted(loss_of, stage.batch_size)
        hours = {gpu: operations * stage.updates / rate / utilisation / 3600 for gpu, rate in GPUS.items()}
        all_hours = {gpu: all_hours[gpu] + hours[gpu] for gpu in GPUS}
        cells = [f"{n / 1e6:.1f}", f"{stage.updates:,} × {stage.batch_size}", f"{operations / 1e12:.2f}"]
        cells += [f"{5 * 4 * n / 1e9:.2f}", f"{kept / 1e9:.1f}", *(f"{value:.1f}" for value in hours.values())]
        print(f"| {name} | {' | '.join(cells)} |")
    print("| all |" + " |" * 5 + "".join(f" {value:.1f} |" for value in all_hours.values()))
    print(
        f"\nat {utilisation:.0%} of the data sheet's rate: "
        + ", ".join(f"{g} {r / 1e12:.0f}·10¹²" for g, r in GPUS.items())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What the preset small would cost on one GPU; not yet run.")
    parser.add_argument("--utilisation", type=positive(float), default=0.3, help="share of the data sheet's rate (0.3)")
    arguments, changed = parse_with_settings(parser, None)
    run_command(lambda: plan(changed, arguments.utilisation))
