"""The transformer: a GPT over the stream of `sequence.py`, predicting each next token of its own kind.

    text (B, text_len), image (B, rows * grid)  ->  text_logits (B, text_len - 2, V), image_logits (B, rows * grid, K)

A decoder-only, pre-norm transformer (P B.1; norm, activation and initialisation after Sparse Transformers, SPEC 5, O).
Three things set it apart from a plain GPT: every layer has its own sparse mask over the image (`attention.py`), text
and image have separate vocabularies and heads, and the image counts seven times as much as the text (P 2.2).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from minidalle.attention import attend, layer_masks
from minidalle.config import TransformerConfig
from minidalle.sequence import PAD, StreamEmbedding


class CausalSelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig, mask: str):
        super().__init__()
        self.config, self.mask = config, mask
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor, kept: list | None = None) -> torch.Tensor:
        """x (B, T, C), the first T positions of the stream. Keys and values, (B, H, T, D) each, are added to `kept`."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if kept is not None:
            kept.append((k, v))
        y = attend(q, k, v, self.mask, self.config)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, mask: str):
        super().__init__()
        self.recompute = config.recompute
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, mask)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(), nn.Linear(4 * config.n_embd, config.n_embd)
        )

    def forward(self, x: torch.Tensor, kept: list | None = None) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), kept)
        # One stream at a time, because the hidden layers of all streams of a batch would be four times as large as x.
        if self.recompute and torch.is_grad_enabled():
            again = {"use_reentrant": False, "preserve_rng_state": False}
            return x + torch.cat([checkpoint(self.rest, one, **again) for one in x.split(1)])
        return x + self.rest(x)

    def rest(self, x: torch.Tensor) -> torch.Tensor:
        """The second half of the block but for its sum, (B, T, C) -> (B, T, C): what `recompute` computes twice."""
        return self.mlp(self.ln_2(x))


class CrossEntropy(torch.autograd.Function):
    """The sum of -ln softmax(states @ weightᵀ)[target] over all targets, without ever holding all logits.

    The logits of 4 full streams are 200 MB, their softmax and their gradient each as much again. But the gradient of a
    row of logits, softmax - onehot, needs nothing but that row. So `forward` takes a few rows at a time, computes at
    once what their gradient means for states and weight, adds that up, and frees the rows; `backward` only multiplies
    by the gradient of the sum.
    """

    @staticmethod
    def forward(ctx, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """states (N, C), weight (V, C), targets (N,) int64 in 0 … V-1 -> scalar in float32 or finer, nats."""
        rows = max(1, 2**22 // len(weight))  # so that a chunk of logits is about 16 MB
        dtype = torch.promote_types(states.dtype, torch.float32)  # of all sums
        total, states_grad, weight_grad = states.new_zeros((), dtype=dtype), [], torch.zeros_like(weight, dtype=dtype)
        for h, target in zip(states.split(rows), targets.split(rows)):
            logits = F.linear(h, weight).to(dtype)  # (rows, V)
            ln_sum = logits.logsumexp(dim=1, keepdim=True)  # (rows, 1)
            total += (ln_sum - logits.gather(1, target[:, None])).sum()
            grad = logits.sub_(ln_sum).exp_()  # the softmax
            grad = grad.scatter_add_(1, target[:, None], grad.new_full((len(h), 1), -1.0)).to(weight.dtype)
            states_grad.append(grad @ weight)
            weight_grad += grad.T @ h
        ctx.save_for_backward(torch.cat(states_grad), weight_grad.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, total_grad: torch.Tensor):
        states_grad, weight_grad = ctx.saved_tensors
        return total_grad * states_grad, total_grad * weight_grad, None


def cross_entropy(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, count: float = 0) -> torch.Tensor:
    """The sum of `CrossEntropy` divided by `count`, or by the number of targets: their mean in nats, 0 where there are none."""
    return CrossEntropy.apply(states, weight, targets) / (count or max(1, len(targets)))


def projected(codebook: torch.Tensor, width: int, std: float, generator=None) -> torch.Tensor:
    """codebook (K, n_init) -> (K, width) of deviation about std: its columns at mean 0 and deviation 1, times a random matrix."""
    codebook = (codebook - codebook.mean(dim=0)) / codebook.std(dim=0).clamp(min=1e-6)  # (K, n_init)
    projection = torch.randn(codebook.shape[1], width, generator=generator) * std / codebook.shape[1] ** 0.5
    return codebook @ projection.to(codebook.device)


class DALLELoss(NamedTuple):
    total: torch.Tensor  # scalar, nats: text_weight * text + (1 - text_weight) * image
    text: torch.Tensor  # scalar, nats per text target, 0 where there is none
    image: torch.Tensor  # scalar, nats per image target


class DALLE(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        config.check()
        self.config = config
        self.embed = StreamEmbedding(config)
        self.blocks = nn.ModuleList(Block(config, mask) for mask in layer_masks(config))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.text_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.image_head = nn.Linear(config.n_embd, config.codebook_size, bias=False)
        self.apply(self.init_weights)
        for block in self.blocks:  # the residual stream adds up 2 * n_layer projections
            for proj in (block.attn.proj, block.mlp[2]):
                nn.init.normal_(proj.weight, std=0.02 / (2 * config.n_layer) ** 0.5)

    @staticmethod
    def init_weights(module: nn.Module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def start_from_codebook(self, codebook: torch.Tensor, std: float):
        """Let image tokens, as they are read and as they are predicted, start as two random projections of the dVAE's
        codebook (K, n_init), each of whose columns is first brought to mean 0 and deviation 1; `std` is that of the tokens (O).
        Raises ValueError for another number of codes.

        Otherwise the transformer has to find out by itself that two codes paint nearly the same, from the company they
        keep. With this it knows from the start, and puts together what it never saw together: the edge of a circle, in a
        colour that only squares had. `benchmarks/ablations.py` measures what it is worth.
        """
        if len(codebook) != self.config.codebook_size or len(codebook) < 2:
            raise ValueError(
                f"a codebook of {len(codebook)} codes for a transformer of {self.config.codebook_size}: use its own"
            )
        for weight in (self.embed.image_token.weight, self.image_head.weight):  # (K, C) each
            weight.copy_(projected(codebook, weight.shape[1], std))

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """text (B, text_len) int64, -1 = no token; image (B, rows * grid) int64.

        text_logits[:, p] predicts text position p + 1; image_logits[:, c] predicts image cell c: the state of [SEP]
        predicts cell 0, and the state of the last cell is not needed. Raises ValueError on other shapes or ids.
        """
        h = self.states(text, image)
        text_states, image_states = self.split(h)
        return self.text_head(text_states), self.image_head(image_states)

    def loss(
        self, text: torch.Tensor, image: torch.Tensor, text_weight: float = 1 / 8, counts: tuple | None = None
    ) -> DALLELoss:
        """Cross-entropies in nats, each the mean over its targets in the batch, and their weighted sum (P 2.2).

        A real caption token and an image token are targets; a pad, [SEP] and the first token never are (SPEC 4, O).
        counts: (text targets, image targets) to divide the sums by, where these pictures are part of a larger batch.
        """
        text_states, image_states = self.split(self.states(text, image))  # (B, text_len - 2, C), (B, rows * grid, C)
        targets = text[:, 1:-1]  # (B, text_len - 2)
        real = targets != PAD
        n_text, n_image = counts or (0, 0)
        text_loss = cross_entropy(text_states[real], self.text_head.weight, targets[real], n_text)
        image_loss = cross_entropy(image_states.flatten(0, 1), self.image_head.weight, image.flatten(), n_image)
        return DALLELoss(text_weight * text_loss + (1 - text_weight) * image_loss, text_loss, image_loss)

    def states(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """The final states of the whole stream, (B, text_len + rows * grid, C)."""
        self.check(text, image)
        return self.run(torch.cat([self.embed.text(text), self.embed.image(image)], dim=1))

    def run(self, x: torch.Tensor, kept: list | None = None) -> torch.Tensor:
        """x (B, T, C), the start of the stream, through all blocks; `kept` collects (keys, values) of every layer."""
        for block in self.blocks:
            x = block(x, kept)
        return self.ln_f(x)

    def split(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States that predict text positions 1 … text_len - 2, and states that predict the image cells."""
        text_len = self.config.text_len
        return h[:, : text_len - 2], h[:, text_len - 1 : -1]

    def check(self, text: torch.Tensor, image: torch.Tensor | None = None):
        """Raise ValueError unless text (B, text_len) and image (B, rows * grid) fit this model and its vocabularies."""
        c = self.config
        if text.dim() != 2 or text.shape[1] != c.text_len:
            raise ValueError(
                f"expected text of shape (B, {c.text_len}), got {tuple(text.shape)}: see sequence.tokenize"
            )
        if text.min() < PAD or text.max() >= c.vocab_size or (text[:, -1] != PAD).any():
            raise ValueError(
                f"text ids must lie in -1 … {c.vocab_size - 1} and end in -1 ([SEP]), got "
                f"{text.min().item()} … {text.max().item()}: was this text made by the model's own tokenizer?"
            )
        if image is None:
            return
        if image.shape != (text.shape[0], c.n_image):
            raise ValueError(f"expected image codes of shape {(text.shape[0], c.n_image)}, got {tuple(image.shape)}")
        if image.min() < 0 or image.max() >= c.codebook_size:
            raise ValueError(f"image codes must lie in 0 … {c.codebook_size - 1}, got {image.min()} … {image.max()}")
