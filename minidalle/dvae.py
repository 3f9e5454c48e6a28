"""The discrete VAE: a picture becomes a grid of codes, and a grid of codes becomes a picture again.

    images (B, 3, height, width) in [0, 1]  --encode-->  codes (B, rows, grid) in 0 … K-1  --decode-->  images

Why: 256 x 256 x 3 numbers are too many for a transformer to write one by one. The dVAE spells a picture in a language
of K = 8192 words, 32 x 32 of them, and the transformer then only has to learn to write that language (P 2, P 2.1).

How it is trained: the encoder gives K logits for every cell. A hard choice has no gradient, so a soft one stands in for
it: softmax((logits + Gumbel noise) / tau), a sample that becomes one-hot as tau falls. The decoder paints from that
mixture of codebook vectors, and the loss is the negative ELBO (P 2, with beta as in P A.2):

    loss = ( -ln p(x | z)  +  beta * KL(q(z | x) || uniform) ) / number of pixel values

The networks, their names and their sizes are those of the released code (SPEC 2, marks C), sized by `DVAEConfig`.
What tiny models need beyond the paper is off by default and marked O: `patch`, `normalize_logits`, "bernoulli", "gaussian". The
preset `tiny` also sets beta to 0 and keeps tau above 1/16, so what it minimises is not an ELBO.
"""

import math
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.config import DVAEConfig, DVAEStage

PIXEL_EPS = 0.1  # epsilon of the pixel map (C)


def map_pixels(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [eps, 1 - eps], so that logit(x) stays finite (P A.3, C)."""
    return (1 - 2 * PIXEL_EPS) * x + PIXEL_EPS


def unmap_pixels(x: torch.Tensor) -> torch.Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1] (C)."""
    return ((x - PIXEL_EPS) / (1 - 2 * PIXEL_EPS)).clamp(0, 1)


# --- the networks --------------------------------------------------------------------------------------------------


class Conv2d(nn.Module):
    """A same-size convolution whose parameters are called `w` and `b`, as in the released weights (C)."""

    def __init__(self, n_in: int, n_out: int, kernel: int):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel) / math.sqrt(n_in * kernel**2))
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """id_path(x) + post_gain * res_path(x), with res_path = (ReLU, conv) four times through a bottleneck (C).

    `kernels` is (3, 3, 3, 1) in the encoder and (1, 3, 3, 3) in the decoder. post_gain = 1 / n_layers² keeps the sum
    of all blocks near its input at the start.
    """

    def __init__(self, n_in: int, n_out: int, n_layers: int, kernels: tuple[int, ...]):
        super().__init__()
        n_hid = n_out // 4
        widths = [n_in, n_hid, n_hid, n_hid, n_out]
        self.post_gain = 1 / n_layers**2
        self.id_path = Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.res_path = nn.Sequential(OrderedDict())
        for i, kernel in enumerate(kernels, start=1):
            self.res_path.add_module(f"relu_{i}", nn.ReLU())
            self.res_path.add_module(f"conv_{i}", Conv2d(widths[i - 1], widths[i], kernel))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(self.id_path(x), self.res_path(x), alpha=self.post_gain)


def groups(config: DVAEConfig, n_in: int, widths: list[int], kernels: tuple[int, ...], resize: nn.Module):
    """The named groups of blocks, with `resize` after every group but the last."""
    for g, n_out in enumerate(widths, start=1):
        group = nn.Sequential(OrderedDict())
        for b in range(1, config.n_block + 1):
            group.add_module(f"block_{b}", Block(n_in, n_out, config.n_group * config.n_block, kernels))
            n_in = n_out
        if g < len(widths):
            group.add_module("resize", resize)
        yield f"group_{g}", group


class Encoder(nn.Module):
    """Mapped pixels (B, 3, height, width) -> logits (B, K, rows, grid)."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.n_hid * 2**g for g in range(config.n_group)]
        output = OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], config.codebook_size, 1))
        self.patch = config.patch
        self.blocks = nn.Sequential(OrderedDict([
            ("input", Conv2d(3 * config.patch**2, config.n_hid, config.input_kernel)),
            *groups(config, config.n_hid, widths, (3, 3, 3, 1), nn.MaxPool2d(2)),
            ("output", nn.Sequential(output)),
        ]))  # fmt: skip
        if config.normalize_logits:
            self.norm = NormalizeLogits(config.codebook_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(x, self.patch)  # (B, 3 * patch², height / patch, width / patch)
        logits = self.blocks(x)  # (B, K, rows, grid)
        return self.norm(logits) if hasattr(self, "norm") else logits


class Decoder(nn.Module):
    """Codes, one-hot or soft (B, K, rows, grid) -> (B, 6, height, width): mu and ln b of P A.3 for each colour.

    The first convolution is 1x1 over K channels: its weight *is* the codebook (D).
    """

    def __init__(self, config: DVAEConfig):
        super().__init__()
        widths = [config.n_hid * 2**g for g in reversed(range(config.n_group))]
        output = OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], 6 * config.patch**2, 1))
        self.patch = config.patch
        self.blocks = nn.Sequential(OrderedDict([
            ("input", Conv2d(config.codebook_size, config.n_init, 1)),
            *groups(config, config.n_init, widths, (1, 3, 3, 3), nn.Upsample(scale_factor=2, mode="nearest")),
            ("output", nn.Sequential(output)),
        ]))  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.blocks(z), self.patch)


class NormalizeLogits(nn.Module):
    """O, not in the paper: every code's logit gets mean 0 and variance 1 over the batch, then one learned scale.

    Small models trained for minutes collapse to a few codes: a code that starts behind gets no gradient and stays
    behind. With each logit normalised by itself, no code can be behind everywhere. Its effect: experiments.md.
    """

    def __init__(self, codebook_size: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(codebook_size, affine=False)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.scale * self.norm(logits)


# --- the loss ------------------------------------------------------------------------------------------------------


def gumbel_softmax(logits: torch.Tensor, tau: float, noise: float = 1.0, generator=None) -> torch.Tensor:
    """A soft sample from softmax(logits) over dimension 1; it becomes one-hot as tau -> 0 (P 2.1).

    With G = -ln(-ln U), argmax(logits + G) is an exact sample of the categorical (the Gumbel-max trick); the softmax
    at temperature tau makes it differentiable. `noise` = 1 is the paper's; less is O, for the first updates.
    """
    logits = logits.movedim(1, -1)  # (B, rows, grid, K): how channels_last lies in memory, so nothing is copied
    u = torch.rand(logits.shape, generator=generator, device=logits.device, dtype=torch.float32)
    # clamped away from 0, where ln 0 is infinite, and from 1, where ln 1 = 0 has no logarithm
    gumbel = -torch.log(-torch.log(u.clamp(1e-9, 1 - 1e-7)))
    return F.softmax((logits + noise * gumbel) / tau, dim=-1).movedim(-1, 1)  # (B, K, rows, grid)


def logit_laplace_nll(x: torch.Tensor, mu: torch.Tensor, ln_b: torch.Tensor) -> torch.Tensor:
    """-ln f(x | mu, b) in nats per value, with f(x | mu, b) = exp(-|logit x - mu| / b) / (2 b x (1 - x)) (P A.3).

    x: mapped pixels in (0, 1); mu, ln_b: any real numbers; all of one shape.
    """
    return (torch.logit(x) - mu).abs() * torch.exp(-ln_b) + math.log(2) + ln_b + torch.log(x * (1 - x))


def bernoulli_nll(x: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """O: the cross-entropy of x in (0, 1) against sigmoid(mu), in nats per value; easier to learn from than Laplace."""
    return F.binary_cross_entropy_with_logits(mu, x, reduction="none")


def gaussian_nll(x: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
    """O: squared error, as -ln N(x | sigmoid(mu), variance 1 / 2 pi), whose constant is 0; in nats per value."""
    return math.pi * (x - torch.sigmoid(mu)) ** 2


def kl_to_uniform(logits: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) || uniform over K) = sum_k q_k ln q_k + ln K, in nats, over dimension 1 (P 2; A 26).

    From the plain logits: neither the temperature nor the noise enters. (B, K, rows, grid) -> (B, rows, grid).
    """
    ln_q = F.log_softmax(logits, dim=1)
    return (ln_q.exp() * ln_q).sum(dim=1) + math.log(logits.shape[1])


class DVAELoss(NamedTuple):
    total: torch.Tensor  # scalar, nats per pixel value: what is minimised
    nll: torch.Tensor  # scalar, -ln p(x | z) per pixel value
    logits: torch.Tensor  # (B, K, rows, grid), the encoder's

    @property
    def kl(self) -> torch.Tensor:
        """Scalar, mean KL per cell in nats; computed when asked for, as it costs a tenth of an update."""
        return kl_to_uniform(self.logits.detach()).mean()

    @property
    def codes(self) -> torch.Tensor:
        """(B, rows, grid) int64, the plain argmax, for counting."""
        return self.logits.argmax(dim=1)


def usage(codes: torch.Tensor, codebook_size: int) -> dict[str, float]:
    """How much of the codebook some codes (any shape, int64) use: {"codes_used": how many different codes occur,
    "perplexity": exp of the entropy of their frequencies}; both are 1 when the codebook has collapsed, K at most."""
    frequency = torch.bincount(codes.flatten(), minlength=codebook_size).double() / codes.numel()  # (K,)
    entropy = -torch.special.xlogy(frequency, frequency).sum()  # nats, with 0 ln 0 = 0
    return {"codes_used": int((frequency > 0).sum()), "perplexity": round(entropy.exp().item(), 2)}


class DVAE(nn.Module):
    """Encoder and decoder, and what the rest of the project asks of them: encode, decode, loss."""

    def __init__(self, config: DVAEConfig):
        super().__init__()
        config.check()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in

    @property
    def codebook(self) -> torch.Tensor:
        """(K, n_init), what the decoder paints each code from: the weight of its first convolution, 1x1 (SPEC 2, D)."""
        return self.decoder.blocks.input.w.detach().flatten(1).T

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, height, width) float32 in [0, 1] -> codes (B, rows, grid) int64: the most likely code of each
        cell, without noise (P 2.2). Raises ValueError where height or width is not a multiple of `downsample`."""
        return self.logits(images).argmax(dim=1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, rows, grid) int64 in 0 … K-1 -> images (B, 3, height, width) in [0, 1]; ln b is ignored (C)."""
        if codes.dim() != 3 or codes.min() < 0 or codes.max() >= self.config.codebook_size:
            raise ValueError(
                f"expected codes (B, rows, grid) in 0 … {self.config.codebook_size - 1}, got shape "
                f"{tuple(codes.shape)} with values {codes.min().item()} … {codes.max().item()}"
            )
        one_hot = F.one_hot(codes, self.config.codebook_size).permute(0, 3, 1, 2).float()  # (B, K, rows, grid)
        return self.paint(one_hot)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, height, width) in [0, 1] -> encoder logits (B, K, rows, grid)."""
        step = self.config.downsample
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % step or images.shape[3] % step:
            raise ValueError(
                f"expected images (B, 3, height, width) with height and width multiples of {step}, "
                f"got {tuple(images.shape)}: resize or pad the pictures first"
            )
        return self.encoder(map_pixels(images).contiguous(memory_format=torch.channels_last))

    def paint(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, K, rows, grid) one-hot or soft -> images (B, 3, height, width) in [0, 1] (C)."""
        return unmap_pixels(torch.sigmoid(self.decoder(z)[:, :3].float()))

    def loss(self, images, tau: float = 1.0, kl_weight: float = 0.0, noise: float = 1.0, generator=None) -> DVAELoss:
        """The negative ELBO of images (B, 3, height, width) float32 in [0, 1], in nats per pixel value (SPEC 2)."""
        logits = self.logits(images).float()
        z = gumbel_softmax(logits, tau, noise, generator)
        mu, ln_b = self.decoder(z).float().chunk(2, dim=1)  # (B, 3, height, width) each
        x = map_pixels(images)
        if self.config.likelihood == "logit_laplace":
            nll = logit_laplace_nll(x, mu, ln_b).mean()
        elif self.config.likelihood == "bernoulli":  # here and below, ln b is not used
            nll = bernoulli_nll(x, mu).mean()
        else:
            nll = gaussian_nll(x, mu).mean()
        if kl_weight == 0:
            return DVAELoss(nll, nll, logits)
        cells_per_value = logits[0, 0].numel() / images[0].numel()  # 1/192 at 256 px, 32 x 32 codes
        return DVAELoss(nll + kl_weight * cells_per_value * kl_to_uniform(logits).mean(), nll, logits)


# --- the schedules -------------------------------------------------------------------------------------------------


def cosine(step: int, updates: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `updates` along half a cosine, then constant (P A.2)."""
    progress = min(step / updates, 1.0) if updates else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def schedules(stage: DVAEStage, step: int) -> dict[str, float]:
    """tau, kl_weight and noise at update `step`, ready to be passed to `DVAE.loss`."""
    return {
        "tau": cosine(step, stage.tau_updates, stage.tau_start, stage.tau_end),
        "kl_weight": cosine(step, stage.kl_updates, 0.0, stage.kl_weight),
        "noise": min(step / stage.noise_updates, 1.0) if stage.noise_updates else 1.0,
    }
