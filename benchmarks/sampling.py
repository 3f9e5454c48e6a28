"""How fast does the transformer draw, beside GPT-2 of `transformers` with its cache.

The model: 8 layers, width 256, 4 heads of 64, 256 + 1024 positions, vocabularies of 16,384 + 8,192. A caption of 255
tokens is read, and 1024 image tokens are drawn at temperature 1, for 1, 4 and 16 pictures at once. Ours has the paper's
masks, reads the caption once for all pictures and draws from the 8,192 image codes. GPT-2 looks at everything before,
reads the caption for every picture and draws from all 24,576 tokens, as a joint head must: "cached loop" is the
plainest loop around it, "generate()" its own. So part of the ratio is the head: for a token, 6.3 + 2.1 million weights
of blocks and head are read, where GPT-2 reads 6.3 + 6.3 million.

    python benchmarks/sampling.py [--repeats 3] [--threads 1 2] [--batches 1 4 16] [--chart docs/sampling.png]

Products: what they alone take, called with nothing between them, just before and after the drawing and in its process:
with the weights of 8 layers and of the image head, and with the keys and values that the masks allow (about 256 + 32 a
layer). Needs requirements-extra.txt.
"""

import dataclasses
import sys
import time

import side_by_side
from training import HEADS, IMAGE, LAYERS, TEXT, WIDTH, K, V


def ours(batch: int):
    import torch

    from minidalle.config import TransformerConfig
    from minidalle.sample import generate
    from minidalle.sequence import PAD
    from minidalle.transformer import DALLE

    torch.manual_seed(0)
    config = TransformerConfig(n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, vocab_size=V, codebook_size=K)
    model = DALLE(config).eval()
    text = torch.randint(V, (TEXT,))
    text[-1] = PAD
    warm = DALLE(dataclasses.replace(config, rows=1)).eval()
    generate(warm, text, batch, range(batch))  # not timed: one row
    products = products_of(batch)

    def task():
        before = products()
        wall, cpu = time.perf_counter(), time.process_time()
        generate(model, text, batch, range(batch))
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return took | {"token": (before + products()) / 2}  # in the place of the times of the whole task

    return task


def gpt2():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": TEXT + IMAGE}
    config = GPT2Config(vocab_size=V + K, bos_token_id=0, eos_token_id=None, pad_token_id=0, **size)
    return GPT2LMHeadModel(config).eval(), torch.randint(V, (1, TEXT))


def cached_loop(batch: int):
    import torch

    model, text = gpt2()

    @torch.no_grad()
    def draw(count=IMAGE):
        new, cache = text.expand(batch, -1), None
        for _ in range(count):
            out = model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            new = out.logits[:, -1].softmax(-1).multinomial(1)  # (batch, 1)

    draw(32)
    return draw


def own_generate(batch: int):
    import torch

    model, text = gpt2()
    stream, mask = text.expand(batch, -1), torch.ones(batch, TEXT, dtype=torch.int64)

    def draw(count=IMAGE):
        how = {"do_sample": True, "top_k": 0, "max_new_tokens": count}
        model.generate(stream, attention_mask=mask, **how)

    draw(32)
    return draw


def products_of(batch: int):
    """A function that gives the seconds that the products of one token of each picture take (see the top)."""
    import torch
    import torch.nn.functional as F

    from minidalle.cache import laid_out

    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * LAYERS + [(K, WIDTH)]
    weights = [laid_out(torch.randn(shape)) for shape in shapes]
    inputs = {width: torch.randn(batch, width) if batch > 1 else torch.randn(width) for width in (WIDTH, 4 * WIDTH)}
    D, pairs = WIDTH // HEADS, []  # (probabilities, values), and of the same size (queries, keys)
    for _ in range(2 * LAYERS):
        if batch == 1:
            pairs.append((torch.randn(HEADS, 1, TEXT + 32), torch.randn(HEADS, TEXT + 32, D)))
        else:
            pairs.append((torch.randn(HEADS, batch, TEXT), torch.randn(HEADS, TEXT, D)))
            pairs.append((torch.randn(batch * HEADS, 1, 32), torch.randn(batch * HEADS, 32, D)))

    def once():
        for w in weights:
            w.mv(inputs[w.shape[1]]) if batch == 1 else F.linear(inputs[w.shape[1]], w)
        for p, values in pairs:
            torch.bmm(p, values)

    return lambda: seconds(once, 200)


def seconds(function, times: int) -> float:
    """The median of so many calls."""
    function()
    each = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        each.append(time.perf_counter() - started)
    return sorted(each)[times // 2]


def limits():
    """The machine's rates."""
    import torch

    big, copy, x, square = (
        torch.randn(2**13, 2**13),
        torch.empty(2**13, 2**13),
        torch.randn(2**13),
        torch.randn(2**11, 2**11),
    )
    return lambda: {
        "matvec": 4 * big.numel() / seconds(lambda: big.mv(x), 10) / 1e9,
        "matmul": 2 * 2048**3 / seconds(lambda: square @ square, 5) / 1e9,
        "copy": 8 * big.numel() / seconds(lambda: copy.copy_(big), 10) / 1e9,
    }


CASES = {"minidalle": ours, "GPT-2, cached loop": cached_loop, "GPT-2, generate()": own_generate, "limits": limits}


def columns(batch: int) -> dict:
    """What the table shows besides times."""
    return {
        "tokens/s": lambda name, run: batch * IMAGE / run["wall"],
        "products, ms a token": lambda name, run: 1e3 * run["token"] if "token" in run else None,
        "products, % of it": lambda name, run: 100 * run["token"] * IMAGE / run["wall"] if "token" in run else None,
    }


def main():
    args = side_by_side.arguments("Drawing 1024 image tokens, side by side.", 3, batches=[1, 4, 16])
    names = [name for name in CASES if name != "limits"]
    reference = "GPT-2, cached loop"
    print(side_by_side.machine(), "\n")
    groups = {}
    for threads in args.threads:
        limit = side_by_side.run(__file__, "limits", (), threads)
        for batch in args.batches:
            results = side_by_side.in_turns(__file__, names, (batch,), threads, args.repeats)
            print(f"{batch} picture{'s' if batch > 1 else ''}:\n")
            print("\n".join(side_by_side.table(results, reference, threads, columns(batch))), "\n")
            key = "cpu" if threads == 1 else "wall"
            groups[f"{batch} at once, {threads} thread{'s' if threads > 1 else ''}"] = {
                name: side_by_side.ratios(results, name, reference, key) for name in names if name != reference
            }
        print(
            f"the machine: {limit['matvec']:.1f} GB/s in a large matrix-vector product, {limit['matmul']:.0f} GFLOP/s in a "
            f"matrix product, {limit['copy']:.1f} GB/s copying\n"
        )
    if args.chart:
        side_by_side.chart(args.chart, groups, "GPT-2 in a cached loop", "drawing 1024 tokens after 256: 8 layers")


if __name__ == "__main__":
    if "--work" in sys.argv:
        side_by_side.work(CASES, sys.argv[2:])
    else:
        main()
