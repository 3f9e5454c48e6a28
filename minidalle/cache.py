"""The transformer one position at a time, as sampling needs it: 1024 times for a picture.

    text (captions, text_len)  --prefill-->  logits (N, K);   codes (N,) of one cell  --step-->  logits (N, K)

A position's keys and values never change once they are computed, so they are kept, and a step runs one new position
through the network. There are two forms, equal up to rounding:

`WindowCache`, for a CPU, where reading memory takes the time. A step reads the keys of the image that its layer's mask
allows, and those of the text. Where one caption is drawn several times, its keys are stored once, and one product serves
all its pictures; where each picture has its own, they stand beside those of the image, and one product reads both.

`StaticCache`, for a GPU, which waits for Python if a step is a few hundred small calls: here every step makes the same
calls on the same memory, so that they are recorded once, as a CUDA graph, and replayed. Which keys are allowed, the
kernel of `kernels/decode.py` finds out from the position.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from minidalle.attention import fused, mask_on, seen_cells
from minidalle.config import TransformerConfig
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
    text: tuple  # keys (captions * H, D, text_len) and values (captions * H, text_len, D), if pictures share a caption
    read: torch.Tensor  # (2, M, start + W, D), keys and values that a step reads: of the text, if it is not shared, and
    # then, from `start` on, of the image, room for W cells
    image: torch.Tensor | None  # (rows * grid, 2, M, D), those of all cells, for masks by which a step picks some
    seen: list | None  # and which, for each cell, as `seen_cells` gives them


# By these masks a cell sees the W cells up to its own, so the next one takes the place of the first of them.
IN_A_RING = ("causal", "row")


def most_seen(mask: str, c: TransformerConfig) -> int:
    """W, the most cells of the image that a cell sees, itself included."""
    return {"causal": c.n_image, "row": c.grid + 1, "column": c.rows}.get(mask, c.kernel_size**2 // 2 + 1)


class WindowCache:
    """N = captions * share pictures. Heads come before the pictures of a caption: M counts (captions, H, share). So the
    queries of all pictures of a caption lie together, and meet the keys of its text in one product of matrices."""

    @torch.no_grad()
    def __init__(self, model: DALLE, text: torch.Tensor, share: int = 1, known: torch.Tensor | None = None):
        self.model, self.share, c = model, share, model.config
        self.logits, kept = prefill(model, text, share, known)
        self.places, self.head = places(model), laid_out(model.image_head.weight)
        self.start = c.text_len if share == 1 else 0  # where the image begins in what is read
        self.layers = [self.layer(block, torch.stack(kept.pop(0)), len(text)) for block in model.blocks]

    def layer(self, block, both: torch.Tensor, captions: int) -> Layer:
        """both (2, captions or N, H, T so far, D): keys and values of the text, and of the cells that are known."""
        c, mask, text_len = self.model.config, block.attn.mask, self.model.config.text_len
        M, W = captions * c.n_head * self.share, most_seen(mask, c)
        both = both.unflatten(1, (captions, -1)).transpose(2, 3)  # (2, captions, H, 1 or share, T so far, D)
        text = both[..., :text_len, :]
        known = both[..., text_len:, :].expand(-1, -1, -1, self.share, -1, -1).flatten(1, 3)  # (2, M, n, D)
        read = both.new_empty(2, M, self.start + W, both.shape[-1])
        shared, image, seen = (), None, None
        if self.share == 1:
            read[:, :, :text_len] = text.flatten(1, 3)
        else:
            keys, values = text[:, :, :, 0].flatten(1, 2)  # (captions * H, text_len, D) each
            shared = (keys.contiguous().mT, values.contiguous())
        cells = torch.arange(known.shape[2], device=known.device)
        if mask in IN_A_RING:
            read[:, :, self.start + cells[-W:] % W] = known[:, :, cells[-W:]]
        else:
            image = both.new_empty(c.n_image, 2, M, both.shape[-1])
            image[cells] = known.movedim(2, 0)
            seen = seen_cells(mask, c.grid, c.rows, c.kernel_size)
        linears = (block.attn.qkv, block.attn.proj, block.mlp[0], block.mlp[2])
        return Layer(
            [(norm.weight, norm.bias) for norm in (block.ln_1, block.ln_2)],
            [(laid_out(linear.weight), linear.bias) for linear in linears],
            shared, read, image, seen,
        )  # fmt: skip

    @torch.inference_mode()
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
        H, share = self.model.config.n_head, self.share
        D = qkv.shape[1] // (3 * H)
        qkv = qkv.view(-1, share, 3, H, D).permute(2, 0, 3, 1, 4).reshape(3, -1, D)  # (3, M, D)
        q = (qkv[0] * D**-0.5).view(-1, 1, D)  # (M, 1, D)
        keys, values = self.store(layer, qkv[1:], cell)  # (M, n, D) each
        if share == 1:
            y = torch.bmm(torch.bmm(q, keys.mT).softmax(2), values)  # (M, 1, D)
        else:
            text_keys, text_values = layer.text
            far = torch.bmm(q.view(-1, share, D), text_keys).view(len(q), 1, -1)  # (M, 1, text_len)
            near = torch.bmm(q, keys.mT)  # (M, 1, n)
            far, near = torch.cat((far, near), 2).softmax(2).split((far.shape[2], near.shape[2]), 2)
            y = torch.bmm(far.reshape(-1, share, far.shape[2]), text_values).view(-1, 1, D)
            y = torch.baddbmm(y, near, values)  # (M, 1, D)
        return y.view(-1, H, share, D).transpose(1, 2).reshape(-1, H * D)

    def store(self, layer: Layer, new: torch.Tensor, cell: int) -> torch.Tensor:
        """new (2, M, D), of `cell` -> (2, M, n, D), what it may see of this layer's `read`, itself included."""
        start, W = self.start, layer.read.shape[2] - self.start
        if layer.image is None:
            layer.read.select(2, start + cell % W).copy_(new)
            return layer.read.narrow(2, 0, start + min(cell + 1, W))
        layer.image[cell].copy_(new)
        seen = layer.image[layer.seen[cell]]  # (up to W, 2, M, D)
        layer.read.narrow(2, start, len(seen)).copy_(seen.movedim(0, 2))
        return layer.read.narrow(2, 0, start + len(seen))


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
