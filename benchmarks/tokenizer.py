"""How fast is our BPE: training 16,384 entries, and encoding one caption per call.

Corpus: comments and docstrings of the Python standard library, then of the packages installed beside it, in the order
of their paths; lines of 3 to 40 words as captions, each distinct line once, until there are enough megabytes. It thus
depends on the Python version and on what is installed; its size and number of distinct words are printed.

    python benchmarks/tokenizer.py [--megabytes 10] [--vocab-size 16384]
"""

import argparse
import platform
import random
import re
import sys
import sysconfig
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minidalle.bpe import BPE  # noqa: E402

PROSE = re.compile(r'"""[\s\S]*?"""|#.*')  # docstrings (and other long strings), comments


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


def timed(function):
    """(result, wall seconds, CPU seconds) of function()."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description="Speed of minidalle's BPE.")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--vocab-size", type=int, default=16_384)
    arguments = parser.parse_args()
    captions = corpus(arguments.megabytes)
    sample = captions[::20]  # dropout uses no cache and is slower: a twentieth will do
    rng = random.Random(0)

    bpe, *training = timed(lambda: BPE.train(captions, arguments.vocab_size))
    cold, *first = timed(lambda: [bpe.encode(caption) for caption in captions])
    _, *again = timed(lambda: [bpe.encode(caption) for caption in captions])
    _, *dropped = timed(lambda: [bpe.encode(caption, 0.1, rng) for caption in sample])
    assert all(bpe.decode(ids) == caption.lower() for ids, caption in zip(cold, captions))

    text = "\n".join(captions).lower()
    words = len(set(re.findall("[a-z]+", text)))
    print(f"{date.today()} · Python {platform.python_version()} · {processor()} · {platform.system()}")
    print(f"corpus {len(text.encode()) / 1e6:.1f} MB · {len(captions):,} captions · {words:,} distinct a-z words")
    print(f"vocabulary {len(bpe):,} · {len(text) / sum(map(len, cold)):.2f} characters per token\n")
    print(f"{'':<44}{'MB':>7}{'wall s':>9}{'CPU s':>9}{'MB/s':>9}")
    for name, lines, (wall, cpu) in (
        ("train", captions, training),
        ("encode, one caption per call", captions, first),
        ("encode again, words in the cache", captions, again),
        ("encode with dropout 0.1, 1 in 20 captions", sample, dropped),
    ):
        size = sum(len(line.encode()) for line in lines) / 1e6
        print(f"{name:<44}{size:>7.2f}{wall:>9.2f}{cpu:>9.2f}{size / wall:>9.2f}")


if __name__ == "__main__":
    main()
