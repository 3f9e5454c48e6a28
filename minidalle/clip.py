"""CLIP: how well does a caption fit a picture? One number, from two transformers that learned to agree.

    images (B, 3, height, width) in [0, 1]  --image tower-->  (B, E)  \\
                                                                        dot product = score of every pair (B, B)
    text (B, context), -1 = no token        --text tower--->  (B, E)  /

Why: drawing is a game of chance, so DALL-E draws 512 candidates for a caption and shows those that CLIP scores highest
(P 2.6). CLIP has seen only pictures with their captions. In a batch of B pairs each picture has to find its own caption
among the B, and each caption its own picture (Radford et al. 2021; SPEC 6b):

    logits[i, j] = exp(logit_scale) * image_i · text_j         loss = (cross-entropy of the rows + of the columns) / 2

What a batch makes hard decides what CLIP learns: where all other captions speak of other things, knowing the colour is
enough. `train_clip` therefore fills batches with captions that differ in one attribute, or have two objects swapped (O).

Classes, parameter names and shapes are those of the released ViT-B/32 (151,277,313 parameters; the defaults of
`CLIPConfig`), so that its weights fit; at tiny scale the text tower reads the run's own tokenizer.
"""

import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.config import CLIPConfig
from minidalle.sequence import PAD

# Mean and standard deviation of each colour over the release's training pictures, in units of [0, 1].
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
LARGEST_SCALE = 100.0  # of exp(logit_scale)
REORDERED = 0.25  # share of groups of like captions that differ in the order of their words, where there are such


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the release's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention under the release's parameter names; `causal` where only the past may be seen."""

    def __init__(self, width: int, n_head: int, causal: bool):
        super().__init__()
        self.n_head, self.causal = n_head, causal
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, n_head: int, causal: bool, quick_gelu: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, n_head, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=nn.Linear(width, 4 * width),
            gelu=QuickGELU() if quick_gelu else nn.GELU(),
            c_proj=nn.Linear(4 * width, width),
        ))  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks. Residual projections start smaller the more of them add up, as in the release's text tower; its image
    tower keeps PyTorch's own start (O: both the same here)."""

    def __init__(self, width: int, n_layer: int, n_head: int, causal: bool, quick_gelu: bool):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, n_head, causal, quick_gelu) for _ in range(n_layer)))
        for block in self.resblocks:
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * n_layer) ** -0.5)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * n_layer) ** -0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resblocks(x)


def sinusoids(rows: int, columns: int, width: int) -> torch.Tensor:
    """(rows * columns, width) places of a grid in raster order: sines and cosines of the row and of the column, times
    √2, so that their mean square is 1. Their width / 4 frequencies fall from 1 to nearly 1/10 radian per step, so that
    neighbours are alike and opposite borders of a tiny grid are not."""
    frequencies = 10 ** -(torch.arange(width // 4) / (width // 4))
    row = torch.arange(rows)[:, None, None] * frequencies  # (rows, 1, width / 4)
    column = torch.arange(columns)[:, None] * frequencies  # (columns, width / 4)
    waves = torch.broadcast_tensors(row.sin(), row.cos(), column.sin(), column.cos())
    return 2**0.5 * torch.cat(waves, dim=2).flatten(0, 1)


class VisionTransformer(nn.Module):
    """Pictures (B, 3, height, width), normalised -> features (B, E): patches and a class token, which reads them all."""

    def __init__(self, c: CLIPConfig):
        super().__init__()
        width = c.image_width
        self.conv1 = nn.Conv2d(3, width, c.patch, c.patch, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        places = sinusoids(c.height // c.patch, c.width // c.patch, width)
        self.positional_embedding = nn.Parameter(torch.cat([torch.zeros(1, width), places]))  # O, see CLIP
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, c.image_layers, c.image_heads, False, c.quick_gelu)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, c.embed_dim))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)  # (B, patches, C)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + patches, C)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj  # (B, E)


class CLIPLoss(NamedTuple):
    total: torch.Tensor  # scalar, nats: the mean of the two cross-entropies
    accuracy: torch.Tensor  # scalar: share of pictures that find their own caption in the batch


class CLIP(nn.Module):
    """Both towers. Text ids: 0 … vocab_size - 2 are tokens, vocab_size - 1 is end-of-text, which is added here.

    Positions start as strong as what stands there, and those of patches as sinusoids (O). In the release they start
    faint and without order, at width^-1/2 beside patches of about 1 and at 0.01 beside tokens of 0.02. From there, no try
    of some minutes learned which of two swapped objects is where; the tries were single ones, while tuning.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        config.check()
        self.config = c = config
        self.visual = VisionTransformer(c)
        self.transformer = Transformer(c.text_width, c.text_layers, c.text_heads, True, c.quick_gelu)
        self.token_embedding = nn.Embedding(c.vocab_size, c.text_width)  # starts as N(0, 1)
        self.positional_embedding = nn.Parameter(torch.randn(c.context, c.text_width))
        self.ln_final = nn.LayerNorm(c.text_width)
        self.text_projection = nn.Parameter(c.text_width**-0.5 * torch.randn(c.text_width, c.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, height, width) float32 in [0, 1] -> (B, E) of length 1. ValueError for another shape."""
        c = self.config
        if images.dim() != 4 or images.shape[1:] != (3, c.height, c.width):
            raise ValueError(f"expected images (B, 3, {c.height}, {c.width}), got {tuple(images.shape)}: resize them")
        return F.normalize(self.visual((images - self.mean) / self.std).float(), dim=-1)

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        """text (B, context) int64, each row tokens and then only -1, at least one -> (B, E) of length 1.

        The first -1 becomes the end-of-text token, and its state, which has read the whole caption, is the feature; what
        stands behind it is not seen by it. Raises ValueError for another shape or ids.
        """
        c = self.config
        if text.dim() != 2 or text.shape[1] != c.context:
            raise ValueError(f"expected text (B, {c.context}), got {tuple(text.shape)}: see sequence.tokenize")
        if text.min() < PAD or text.max() > c.vocab_size - 2 or (text[:, -1] != PAD).any():
            raise ValueError(
                f"text ids must lie in -1 … {c.vocab_size - 2} and end in -1, got {text.min().item()} … "
                f"{text.max().item()}: was this text made by the model's own tokenizer?"
            )
        end = (text == PAD).int().argmax(dim=1)  # (B,) the first -1
        ids = text.masked_fill(text == PAD, c.vocab_size - 1)[:, : end.max() + 1]  # nobody sees what stands behind
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]])  # (B, ≤ context, C)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])  # (B, C)
        return F.normalize((x @ self.text_projection).float(), dim=-1)

    def loss(self, images: torch.Tensor, text: torch.Tensor) -> CLIPLoss:
        """The contrastive loss of B pairs, images (B, 3, height, width) in [0, 1] and text (B, context).

        An equal caption elsewhere in the batch is as true as one's own, so it is left out of the sums (O; the release's
        400 million pairs hardly ever meet that case).
        """
        scale = self.logit_scale.exp().clamp(max=LARGEST_SCALE)
        logits = scale * self.encode_image(images) @ self.encode_text(text).T  # (B, B)
        own = torch.arange(len(text), device=text.device)
        equal = (text[:, None] == text[None]).all(dim=2)  # (B, B)
        logits = logits.masked_fill(equal & (own[:, None] != own), float("-inf"))
        rows, columns = F.cross_entropy(logits, own), F.cross_entropy(logits.T, own)
        return CLIPLoss((rows + columns) / 2, (logits.argmax(dim=1) == own).float().mean())

    @torch.no_grad()
    def rank(self, text: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of images (n, 3, height, width) for one caption, text (context,): cosines in [-1, 1], the higher
        the better. Raises ValueError where there is nothing to rank."""
        if len(images) == 0:
            raise ValueError("there is no picture to rank: give at least one")
        features = torch.cat([self.encode_image(part.to(text.device)) for part in images.split(64)])  # (n, E)
        return features @ self.encode_text(text[None])[0]


def neighbours(captions: Iterable[str]) -> Callable[[str, int, random.Random], list[str]]:
    """A function (caption, n, rng) -> at most n other captions that say nearly the same and mean something else.

    All n differ from the caption in one and the same way, drawn anew each time: other words in one place, one or two of
    them ("red" for "blue", "left of" for "above"), or the same words in another order ("a red circle above a blue
    square" for "a blue circle above a red square"). All come from `captions`, so what those leave out (held-out ones,
    say) is never named, not even as a wrong answer.
    """
    sharing = defaultdict(list)  # what stays of a caption -> all captions of which it stays

    def remains(caption: str):  # "the red cat" -> its words in order of the alphabet; "_ red cat", "the _ cat", …
        words = caption.split()
        gaps = [(i, i + n) for n in (1, 2) if n < len(words) for i in range(len(words) - n + 1)]
        return [" ".join(sorted(words)), *(" ".join([*words[:i], "_", *words[end:]]) for i, end in gaps)]

    for caption in sorted(set(captions)):
        for rest in remains(caption):
            sharing[rest].append(caption)

    def choose(caption: str, n: int, rng: random.Random) -> list[str]:
        same_words, *gaps = remains(caption)
        gaps = [rest for rest in gaps if len(sharing[rest]) > 1]
        reorder = len(sharing[same_words]) > 1 and (not gaps or rng.random() < REORDERED)
        if not reorder and not gaps:
            return []
        others = [c for c in sharing[same_words if reorder else rng.choice(gaps)] if c != caption]
        return rng.sample(others, min(n, len(others)))

    return choose
