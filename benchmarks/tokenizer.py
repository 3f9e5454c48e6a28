"""How fast is our BPE, in Python, beside `tokenizers` (Rust) and `tiktoken` (Rust, encoding only).

Corpus: comments and docstrings of the Python standard library, then of the packages installed beside it, in the order
of their paths; lines of 3 to 40 words as captions, each distinct line once, until there are enough megabytes. It thus
depends on the Python version and on what is installed; its size and number of distinct words are printed.

All split text as SPEC 3 says, into runs of a-z and single other characters. (Training `tokenizers`, the bytes of a
character outside ASCII may merge; there are few.) For encoding, one caption per call, all have the merges that ours
learned, and the benchmark ends with an error unless they give the same ids for every hundredth caption.

    python benchmarks/tokenizer.py [--megabytes 15] [--vocab-sizes 4096 16384] [--repeats 3] [--chart docs/tokenizer.png]

Needs requirements-extra.txt.
"""

import hashlib
import os
import random
import re
import sys
import sysconfig
import tempfile
from pathlib import Path

import side_by_side
from minidalle.bpe import BPE

PROSE = re.compile(r'"""[\s\S]*?"""|#.*')  # docstrings (and other long strings), comments
PATTERN = "[a-z]+|[^a-z]"  # SPEC 3
CORPUS, MERGES = "corpus.txt", "bpe.json"  # in the folder of a run


def prose_lines():
    """Comment and docstring lines of all Python files, the standard library's first."""
    for folder in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")):
        for path in sorted(Path(folder).rglob("*.py")):
            for prose in PROSE.findall(path.read_text(encoding="utf-8", errors="ignore")):
                yield from prose.splitlines()


def corpus(megabytes: float) -> list[str]:
    """At least so many MB (10^6 bytes of UTF-8) of distinct lines of 3 to 40 words, or an error in one sentence."""
    lines, size = {}, 0
    for line in prose_lines():
        line = line.strip("#\"' \t")
        if 3 <= len(line.split()) <= 40 and line not in lines:
            lines[line] = None
            size += len(line.encode())
            if size >= megabytes * 1e6:
                return list(lines)
    sys.exit(f"this Python holds only {size / 1e6:.1f} MB of such lines: ask for less with --megabytes")


def captions() -> list[str]:
    return Path(CORPUS).read_text(encoding="utf-8").split("\n")


def tokens_of(bpe: BPE) -> list[bytes]:
    """What each id spells."""
    tokens = [bytes([i]) for i in range(256)]
    for a, b in bpe.merges:
        tokens.append(tokens[a] + tokens[b])
    return tokens


def hugging_face(model):
    """A tokenizer with our rules: lower case, the split, bytes."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def train_ours(vocab_size: int):
    lines = captions()
    return lambda: BPE.train(lines, vocab_size) and None


def train_hugging_face(vocab_size: int):
    from tokenizers import models, pre_tokenizers, trainers

    lines, alphabet = captions(), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    return lambda: hugging_face(models.BPE()).train_from_iterator(lines, trainer)


def encoding(encode):
    """A task that encodes the captions one by one. Its checksum is compared by `compare`."""
    lines = captions()
    sample = [encode(line) for line in lines[::100]]  # also the warm-up
    checksum = hashlib.sha256(repr(sample).encode()).hexdigest()

    def task():
        for line in lines:
            encode(line)
        return {"checksum": checksum}

    return task


def encode_ours():
    return encoding(BPE.load(MERGES).encode)


def encode_hugging_face():
    from tokenizers import models, pre_tokenizers

    bpe = BPE.load(MERGES)
    shown = shown_bytes(sorted(pre_tokenizers.ByteLevel.alphabet()))
    spelled = ["".join(shown[b] for b in token) for token in tokens_of(bpe)]
    vocabulary = {token: i for i, token in enumerate(spelled)}
    merges = [(spelled[a], spelled[b]) for a, b in bpe.merges]
    tokenizer = hugging_face(models.BPE(vocab=vocabulary, merges=merges))
    return encoding(lambda line: tokenizer.encode(line).ids)


def shown_bytes(alphabet: list[str]) -> list[str]:
    """The character by which `tokenizers` shows each byte: itself if it prints, else the next from U+0100 on."""
    spare = iter(c for c in alphabet if ord(c) >= 256)
    return [chr(b) if chr(b) in alphabet else next(spare) for b in range(256)]


def encode_tiktoken():
    import tiktoken

    ranks = {token: i for i, token in enumerate(tokens_of(BPE.load(MERGES)))}
    encoder = tiktoken.Encoding("minidalle", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return encoding(lambda line: encoder.encode_ordinary(line.lower()))


def encode_with_dropout():
    encode, rng = BPE.load(MERGES).encode, random.Random(0)
    lines = captions()[::20]  # dropout uses no cache and is slower: a twentieth will do

    def task():
        for line in lines:
            encode(line, 0.1, rng)

    return task


CASES = {
    "train minidalle": train_ours, "train tokenizers": train_hugging_face,
    "encode minidalle": encode_ours, "encode tokenizers": encode_hugging_face, "encode tiktoken": encode_tiktoken,
    "dropout minidalle": encode_with_dropout,
}  # fmt: skip


def compare(what: str, settings: tuple, systems: list[str], threads: int, repeats: int, megabytes: float):
    """Run and print one table; returns {system: its ratios to tokenizers}."""
    names = [f"{what} {system}" for system in systems]
    results = side_by_side.in_turns(__file__, names, settings, threads, repeats)
    results = dict(zip(systems, results.values()))
    if len({run["checksum"] for runs in results.values() for run in runs if "checksum" in run}) > 1:
        sys.exit("the systems do not agree on the ids: the comparison would mean nothing")
    rate = {"MB/s": lambda name, r: megabytes / r["wall"]}
    print("\n".join(side_by_side.table(results, "tokenizers", threads, rate)), "\n")
    key = "cpu" if threads == 1 else "wall"
    return {name: side_by_side.ratios(results, name, "tokenizers", key) for name in systems if name != "tokenizers"}


def tables(args, lines: list[str], megabytes: float) -> dict:
    """Every comparison, in the current folder, which becomes that of the runs; returns what the chart shows."""
    Path(CORPUS).write_text("\n".join(lines), encoding="utf-8")
    bpe = BPE.train(lines, max(args.vocab_sizes))
    bpe.save(MERGES)
    groups = {}
    for threads in args.threads:
        on = "1 thread" if threads == 1 else f"{threads} threads"
        for size in args.vocab_sizes:
            print(f"training {size:,} entries:\n")
            both = ["minidalle", "tokenizers"]
            groups[f"train {size:,}, {on}"] = compare("train", (size,), both, threads, args.repeats, megabytes)
        if threads == 1:  # one caption per call: there is nothing for a second thread
            print(f"encoding with {len(bpe):,} entries, one caption per call:\n")
            three = ["minidalle", "tokenizers", "tiktoken"]
            groups[f"encode, {on}"] = compare("encode", (), three, threads, args.repeats, megabytes)
    dropped = side_by_side.run(__file__, "dropout minidalle", (), 1)
    print(f"encoding with dropout 0.1, ours only: {megabytes / 20 / dropped['wall']:.2f} MB/s")
    return groups


def main():
    args = side_by_side.arguments("BPE, side by side.", 3, megabytes=15.0, vocab_sizes=[4096, 16_384])
    lines = corpus(args.megabytes)
    megabytes = sum(len(line.encode()) for line in lines) / 1e6
    words = len({word for line in lines for word in re.findall("[a-z]+", line.lower())})
    print(side_by_side.machine(), "\n")
    print(f"corpus {megabytes:.1f} MB · {len(lines):,} captions · {words:,} distinct a-z words\n")
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            groups = tables(args, lines, megabytes)
        finally:
            os.chdir(here)
    if args.chart:
        side_by_side.chart(args.chart, groups, "tokenizers", f"BPE on {megabytes:.0f} MB of captions")


if __name__ == "__main__":
    if "--work" in sys.argv:
        side_by_side.work(CASES, sys.argv[2:])
    else:
        main()
