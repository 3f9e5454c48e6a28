"""How fast is one update of the transformer, beside a plain GPT with a joint head and GPT-2 of `transformers`.

The model: 8 layers, width 256, 4 heads of 64, 256 + 1024 positions, vocabularies of 16,384 + 8,192; batches of 4. Ours
has the paper's masks, two heads and no logits held whole; the peers look at everything before, and give each position
one choice among all 24,576 tokens ("a joint head"). "Causal masks" is ours without the paper's masks, which shows
what the heads and the loss contribute; "recompute" is ours with `transformer.recompute`, which keeps less. An update is the loss, its gradient, and AdamW. One before the clock starts.

    python benchmarks/training.py [--repeats 3] [--threads 1 2] [--compile] [--chart docs/training.png]

--compile adds `torch.compile` of our model and of the plain GPT, with the compilation outside the clock.
Needs requirements-extra.txt.
"""

import sys
import time

import side_by_side

BATCH, TEXT, IMAGE, V, K = 4, 256, 1024, 16_384, 8_192
LAYERS, HEADS, WIDTH = 8, 4, 256
UPDATES = 3  # timed in one run


def updates(model, loss_of):
    """A task: UPDATES updates, after one that is not timed."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, fused=True)

    def update():
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    update()
    return lambda: [update() for _ in range(UPDATES)] and None


def tokens():
    import torch

    generator = torch.Generator().manual_seed(0)
    text = torch.randint(V, (BATCH, TEXT), generator=generator)
    return text, torch.randint(K, (BATCH, IMAGE), generator=generator)


def ours(compiled=False, **more):
    import torch

    from minidalle.config import TransformerConfig
    from minidalle.sequence import PAD
    from minidalle.transformer import DALLE

    torch.manual_seed(0)
    config = TransformerConfig(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, vocab_size=V, codebook_size=K, **more)
    model = DALLE(config)
    if compiled:
        model.run = torch.compile(model.run)
    text, image = tokens()
    text[:, -1] = PAD  # [SEP]; every other position holds a word
    return updates(model, lambda: model.loss(text, image).total)


def plain_gpt(compiled=False):
    """As one writes a GPT in PyTorch: pre-norm blocks, scaled_dot_product_attention, one head, cross_entropy."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x):
            B, T, C = x.shape
            q, k, v = self.qkv(self.ln_1(x)).view(B, T, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
            return x + self.mlp(self.ln_2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.place = nn.Embedding(V + K, WIDTH), nn.Embedding(TEXT + IMAGE, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, V + K, bias=False)

        def forward(self, stream):
            h = self.ln_f(self.blocks(self.token(stream) + self.place.weight[: stream.shape[1]]))
            return self.head(h)

    torch.manual_seed(0)
    model, (text, image) = GPT(), tokens()
    stream = torch.cat([text, image + V], dim=1)

    def loss():
        return F.cross_entropy(model(stream[:, :-1]).flatten(0, 1), stream[:, 1:].flatten())

    return updates(model, torch.compile(loss) if compiled else loss)


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    size = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": TEXT + IMAGE}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V + K, bos_token_id=0, eos_token_id=0, **size, **none))
    text, image = tokens()
    stream = torch.cat([text, image + V], dim=1)
    return updates(model, lambda: model(stream, labels=stream, use_cache=False).loss)


def limits():
    """What the machine can do: products of matrices as large as the model's, and copies of 512 MB."""
    import torch

    x, w = torch.randn(BATCH * (TEXT + IMAGE), WIDTH), torch.randn(4 * WIDTH, WIDTH)
    a, b = torch.randn(2**27), torch.empty(2**27)

    def rate(function, amount):
        function()
        best = 9e9
        for _ in range(5):
            started = time.perf_counter()
            function()
            best = min(best, time.perf_counter() - started)
        return amount / best / 1e9

    def task():
        product = rate(lambda: x @ w.T, 2 * x.shape[0] * w.numel())
        return {"gflops": product, "copy": rate(lambda: b.copy_(a), 2 * 4 * a.numel())}

    return task


CASES = {
    "minidalle": ours, "minidalle, recompute": lambda: ours(recompute=True), "minidalle, causal masks": lambda: ours(masks="causal"),
    "plain GPT": plain_gpt, "GPT-2": gpt2, "limits": limits,
    "minidalle, compiled": lambda: ours(compiled=True), "plain GPT, compiled": lambda: plain_gpt(compiled=True),
}  # fmt: skip


def main():
    args = side_by_side.arguments("One update of the transformer, side by side.", 3, compile=False)
    names = ["minidalle", "minidalle, recompute", "minidalle, causal masks", "plain GPT", "GPT-2"]
    names += ["minidalle, compiled", "plain GPT, compiled"] if args.compile else []
    positions = UPDATES * BATCH * (TEXT + IMAGE)
    print(side_by_side.machine(), "\n")
    groups = {}
    for threads in args.threads:
        limit = side_by_side.run(__file__, "limits", (), threads)
        results = side_by_side.in_turns(__file__, names, (), threads, args.repeats)
        further = {"positions/s": lambda name, r: positions / r["wall"]}
        print("\n".join(side_by_side.table(results, "plain GPT", threads, further)))
        print(
            f"\n{UPDATES} updates; limits: {limit['gflops']:.0f} GFLOP/s in products, {limit['copy']:.0f} GB/s copying\n"
        )
        key = "cpu" if threads == 1 else "wall"
        groups["1 thread" if threads == 1 else f"{threads} threads"] = {
            name: side_by_side.ratios(results, name, "plain GPT", key) for name in names if name != "plain GPT"
        }
    if args.chart:
        side_by_side.chart(
            args.chart,
            groups,
            "the plain GPT with a joint head",
            "one update of a transformer: 4 x (256 + 1024) positions, 8 layers",
        )


if __name__ == "__main__":
    if "--work" in sys.argv:
        side_by_side.work(CASES, sys.argv[2:])
    else:
        main()
