"""The transformer one position at a time, as sampling needs it: 1024 times for a picture.

    text (captions, text_len)  --prefill-->  logits (N, K);   codes (N,) of one cell  --step-->  logits (N, K)

A position's keys and values never change once they are computed, so they are kept, and a step runs one new position
through the network. There are two forms, equal up to rounding:

`WindowCache`, for a CPU, where reading memory takes the time. A step reads the keys of the image that its layer's mask
allows, and those of the text, which are stored once for each caption: one product serves all its pictures.

`StaticCache`, for a GPU, which waits for Python if a step is a few hundred small calls: here every step makes the same
calls on the same memory, so that they are recorded once, as a CUDA graph, and replayed. Which keys are allowed, the
kernel of `kernels/decode.py` finds out from the position.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from minidalle.attention import fused, mask_on, seen_cells
from minidalle.transformer import DALLE


def new_cache(model: DALLE, text: torch.Tensor, share: int = 1, known: torch.Tensor | None = None):
    """The form that suits the model's device, with the text and the known start of the pictures read in.

    text (captions, text_len) int64; each caption is for `share` pictures, one after the other, N = captions * share in
    all. known (N, n) int64: the codes of the first n cells, if they are given. Its `logits` (N, K) are those of cell n.
    """
    static = text.is_cuda or model.config.backend == "triton"
    return (StaticCache if static else WindowCache)(model, text, share, known)


def prefill(model: DALLE, text: torch.Tensor, share: int, known: torch.Tensor | None):
    """One pass over what is given. Returns the logits of what follows, (N, K), and a list with the keys and values
    of each layer, (B, H, T, D): B = captions and T = text_len, or, where codes are known, B = N and T = text_len + n."""
    stream, kept = model.embed.text(text), []
    if known is not None and known.shape[1]:
        stream = torch.cat([stream.repeat_interleave(share, 0), model.embed.image(known)], dim=1)
    logits = model.image_head(model.run(stream, kept)[:, -1])  # (B, K)
    return (logits if len(logits) == len(text) * share else logits.repeat_interleave(share, 0)), kept


def places(model: DALLE) -> torch.Tensor:
    """(rows * grid, C): what `StreamEmbedding` adds to the token of each cell."""
    return (model.embed.image_row.weight[:, None] + model.embed.image_column.weight).flatten(0, 1)


# --- for a CPU -----------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """What a step needs of one layer, looked up once and not at each of 1024 steps."""

    norms: list[tuple]  # (weight, bias) of the two layer norms
    linears: list[tuple]  # (weight, bias) of qkv, proj and the two of the MLP
    text_keys: torch.Tensor  # (captions * H, D, text_len)
    text_values: torch.Tensor  # (captions * H, text_len, D)
    image: torch.Tensor  # (2, M, rows * grid, D), keys and values; what is not drawn yet is 0
    seen: list  # for each cell, the cells that it sees, as `seen_cells` gives them


class WindowCache:
    """Heads come before the pictures of a caption: M counts (captions, H, share). So the queries of all pictures of a
    caption lie together, and meet the keys of its text in one product of matrices."""

    @torch.no_grad()
    def __init__(self, model: DALLE, text: torch.Tensor, share: int = 1, known: torch.Tensor | None = None):
        self.model, self.share, c = model, share, model.config
        self.logits, kept = prefill(model, text, share, known)
        self.places, self.head = places(model), laid_out(model.image_head.weight)
        M, D, n_known = len(text) * c.n_head * share, c.n_embd // c.n_head, kept[0][0].shape[2] - c.text_len
        self.layers = []
        for block in model.blocks:
            both = torch.stack(kept.pop(0)).unflatten(1, (len(text), -1))  # (2, captions, 1 or share, H, T so far, D)
            both = both.transpose(2, 3)  # (2, captions, H, 1 or share, T so far, D)
            text_keys, text_values = both[:, :, :, 0, : c.text_len].flatten(1, 2)  # (captions * H, text_len, D) each
            image = both.new_zeros(2, M, c.n_image, D)
            if n_known:
                image[:, :, :n_known] = both[:, :, :, :, c.text_len :].flatten(1, 3)
            linears = (block.attn.qkv, block.attn.proj, block.mlp[0], block.mlp[2])
            self.layers.append(Layer(
                [(norm.weight, norm.bias) for norm in (block.ln_1, block.ln_2)],
                [(laid_out(linear.weight), linear.bias) for linear in linears],
                text_keys.contiguous().mT, text_values.contiguous(), image,
                seen_cells(block.attn.mask, c.grid, c.rows, c.kernel_size),
            ))  # fmt: skip

    @torch.no_grad()
    def step(self, codes: torch.Tensor, cell: int) -> torch.Tensor:
        """codes (N,) int64, drawn for `cell` -> (N, K), the logits of the next cell."""
        x = self.model.embed.image_token(codes) + self.places[cell]  # (N, C)
        C = x.shape[1:]
        for layer in self.layers:  # as `Block.forward`
            (ln_1, ln_2), (qkv, proj, up, down) = layer.norms, layer.linears
            x = x + F.linear(self.attend(layer, F.linear(F.layer_norm(x, C, *ln_1), *qkv), cell), *proj)
            x = x + F.linear(gelu(F.linear(F.layer_norm(x, C, *ln_2), *up)), *down)
        self.logits = F.linear(self.model.ln_f(x), self.head)
        return self.logits

    def attend(self, layer: Layer, qkv: torch.Tensor, cell: int) -> torch.Tensor:
        """Store the new keys and values, and read those that the new queries may see. qkv (N, 3C) -> (N, C)."""
        H, share, n = self.model.config.n_head, self.share, self.model.config.text_len
        D = qkv.shape[1] // (3 * H)
        qkv = qkv.view(-1, share, 3, H, D).permute(2, 0, 3, 1, 4).reshape(3, -1, D)  # (3, M, D)
        q, new = qkv.split((1, 2))
        layer.image.select(2, cell).copy_(new)
        keys, values = layer.image[:, :, layer.seen[cell]]  # (M, w, D) each, w cells that are seen
        q = q.view(-1, share, D) * D**-0.5  # (captions * H, share, D)
        far = torch.bmm(q, layer.text_keys).view(-1, 1, n)  # (M, 1, text_len)
        near = torch.bmm(q.view(-1, 1, D), keys.mT)  # (M, 1, w)
        far, near = torch.cat((far, near), 2).softmax(2).split((n, near.shape[2]), 2)
        y = torch.bmm(far.reshape(-1, share, n), layer.text_values).view(-1, 1, D)
        y = torch.baddbmm(y, near, values)  # (M, 1, D)
        return y.view(-1, H, share, D).transpose(1, 2).reshape(-1, H * D)


def laid_out(weight: torch.Tensor) -> torch.Tensor:
    """The same matrix with its longer side contiguous, along which a product with one vector then reads it."""
    return weight.T.contiguous().T if weight.shape[0] > weight.shape[1] else weight


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x * (probability that a standard normal is below x), the definition. F.gelu calls oneDNN, which starts slowly."""
    return x * torch.special.ndtr(x)


# --- for a GPU -----------------------------------------------------------------------------------------------------


class StaticCache:
    """All shapes and addresses the same at every step; on a GPU the step is recorded once and replayed.

    Without CUDA it runs as written, which is how it is tested. Without our kernels (an older GPU) every step reads the
    whole cache under a mask.
    """

    @torch.no_grad()
    def __init__(self, model: DALLE, text: torch.Tensor, share: int = 1, known: torch.Tensor | None = None):
        self.model, c = model, model.config
        self.logits, kept = prefill(model, text, share, known)
        self.places = places(model)
        N = len(text) * share
        self.codes = torch.zeros(N, dtype=torch.int64, device=text.device)
        self.cell = torch.zeros(1, dtype=torch.int64, device=text.device)
        self.keys_values = []  # of each layer, (2, N, H, T, D)
        while kept:
            k, v = kept.pop(0)  # (captions or N, H, T so far, D)
            whole = k.new_zeros(2, N, c.n_head, c.text_len + c.n_image, k.shape[3])
            for room, x in zip(whole, (k, v)):
                room.unflatten(0, (len(x), -1))[:, :, :, : x.shape[2]] = x[:, None]
            self.keys_values.append(whole)
        self.graph = self.record() if text.is_cuda else None

    @torch.no_grad()
    def step(self, codes: torch.Tensor, cell: int) -> torch.Tensor:
        """As `WindowCache.step`; the next step writes over what this one returned."""
        self.codes.copy_(codes)
        self.cell.fill_(cell)
        if self.graph is None:
            self.logits = self.once()
        else:
            self.graph.replay()
        return self.logits

    def record(self) -> torch.cuda.CUDAGraph:
        """The calls of one step as a graph, which writes into `self.logits`."""
        first, graph = self.logits, torch.cuda.CUDAGraph()
        self.cell.fill_(self.model.config.n_image - 1)  # what is stored meanwhile goes where nothing is read before
        with torch.cuda.device(self.codes.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.once()  # compiles the kernels, which cannot be done while recording
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph, stream=stream):
                self.logits = self.once()
        self.logits.copy_(first)
        return graph

    def once(self) -> torch.Tensor:
        """One step, from `self.codes` and `self.cell`."""
        x = self.model.embed.image_token(self.codes) + self.places.index_select(0, self.cell)
        position = self.cell + self.model.config.text_len  # (1,)
        for block, keys_values in zip(self.model.blocks, self.keys_values):  # as `Block.forward`
            y = self.attend(block.attn.mask, keys_values, block.attn.qkv(block.ln_1(x)), position)
            x = x + block.attn.proj(y)
            x = x + block.mlp(block.ln_2(x))
        return self.model.image_head(self.model.ln_f(x))

    def attend(self, mask: str, keys_values: torch.Tensor, qkv: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """qkv (N, 3C) of the tokens at `position` -> (N, C)."""
        c = self.model.config
        qkv = qkv.view(len(qkv), 3, c.n_head, 1, -1).transpose(0, 1)  # (3, N, H, 1, D)
        keys_values.index_copy_(3, position, qkv[1:])
        q, (k, v) = qkv[0], keys_values
        if fused(q, c):
            from kernels.decode import decode_attention

            y = decode_attention(q, k, v, position, mask, c.text_len, c.grid, c.kernel_size)  # (N, H, 1, D)
        else:
            allowed = mask_on(q.device, mask, c.text_len, c.grid, c.rows, c.kernel_size).index_select(0, position)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return y.reshape(len(q), c.n_embd)
