"""Do the tests notice? Small seeded faults ("mutants") in the core, one at a time, each against its module's tests.

    python tests/mutants.py --seed 0 --count 200                     tries what is not in the file of results yet
    python tests/mutants.py --seed 0 --count 200 --minutes 3         the same for so long; call it again to go on
    python tests/mutants.py --seed 0 --count 200 --again             survivors once more, after tests were added
    python tests/mutants.py --seed 0 --count 200 --show              only prints what is known

A mutant is one change of the syntax tree: a comparison or an arithmetic operator replaced, a whole number off by one, a
condition negated, a statement dropped, two arguments swapped. It is killed if `pytest -x tests/test_<module>.py` fails, or
does not end, in a copy of the repository. The score is the share that is killed, with Wilson's 95 % interval; those in
EQUIVALENT compute the same as the original, so no test can kill them, and do not count. Runs on Linux and macOS (it forks,
so that PyTorch is imported once).
"""

import argparse
import ast
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {  # those with fast tests first
    "sequence": ["minidalle/sequence.py"],
    "sample": ["minidalle/sample.py"],
    "attention": ["minidalle/attention.py"],
    "bpe": ["minidalle/bpe.py"],
    "transformer": ["minidalle/transformer.py"],
    "dvae": ["minidalle/dvae.py"],
    "clip": ["minidalle/clip.py"],
    "kernels": [f"kernels/{name}.py" for name in ("reference", "tiled", "forward", "backward", "decode", "attention")],
}
PATIENCE = 60  # seconds, or twice what the module's tests usually take; a mutant that takes longer is taken to loop
SKIPPED = ("__pycache__", ".*", "runs", "docs", "*.ipynb", "mutants*.jsonl")  # of the repository's files, in the copy

# Survivors that were looked at and compute the same as the original: "file: before → after", and why.
EQUIVALENT = {
    "minidalle/sample.py: cell + 1 < config.n_image → cell + 1 <= config.n_image": "one step more, which nobody reads",
    "minidalle/transformer.py: rows = max(1, 2**22 // len(weight)) # so that a chunk of logits is about 16 MB → "
    "1 as 2 in column 19": "the size of a chunk changes the memory and no sum",
    "minidalle/transformer.py: max(1, 2 ** 22 // len(weight)) → max(2 ** 22 // len(weight), 1)": "the same maximum",
    "minidalle/transformer.py: rows = max(1, 2**22 // len(weight)) # so that a chunk of logits is about 16 MB → "
    "22 as 23 in column 25": "the size of a chunk changes the memory and no sum",
    "minidalle/bpe.py: rng.random() >= dropout → rng.random() > dropout": "a draw equals it once in 2⁵³",
    "minidalle/clip.py: rng.random() < REORDERED → rng.random() <= REORDERED": "a draw equals it once in 2⁵³",
    "minidalle/dvae.py: return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2) → 1 as 2 in column 65": "kernels are square",
    "minidalle/dvae.py: self.to(memory_format=torch.channels_last) → pass": "the order in memory: speed, and no number",
    "minidalle/bpe.py: if not dropout and len(piece) <= 64 and len(self._cache) < 65_536: # so that the cache stays bounded → "
    "64 as 65 in column 41": "which pieces are remembered changes the memory and no result",
    "minidalle/attention.py: i - 2 → i + 2": "the same modulo 4",
    "minidalle/attention.py: x.transpose(2, 3) → x.transpose(3, 2)": "the same exchange",
    "minidalle/transformer.py: max(1, len(targets)) → max(len(targets), 1)": "the same maximum",
    "minidalle/bpe.py: stacklevel=2, → 2 as 3 in column 27": "only where the warning is said to come from",
    "minidalle/bpe.py: total = 0 → 0 as 1 in column 16": "a bound against giant files, a byte earlier",
    "minidalle/clip.py: y.transpose(1, 2) → y.transpose(2, 1)": "the same exchange",
    "minidalle/sequence.py: stacklevel=2, → 2 as 3 in column 27": "only where the warning is said to come from",
}

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip

# --- making them ---------------------------------------------------------------------------------------------------


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, ast.AST]]:
    """(node, its field, what may be put there instead) for every mutant of a module, in the order of the source.

    Nothing inside annotations, decorators, error messages and other texts is touched: no test should look there.
    """
    for node in code(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "ops", [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
        if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in ARITHMETIC:
            yield node, "op", ARITHMETIC[type(node.op)]()
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield node, "value", node.value + 1
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield node, "test", ast.UnaryOp(ast.Not(), node.test)
        if (
            isinstance(node, ast.Call)
            and len(node.args) >= 2
            and not any(isinstance(a, ast.Starred) for a in node.args)
        ):
            yield node, "args", [node.args[1], node.args[0], *node.args[2:]]
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            for k, statement in enumerate(block if isinstance(block, list) else ()):
                if not isinstance(node, (ast.Module, ast.ClassDef)) and does_something(statement):
                    yield node, name, [*block[:k], ast.Pass(), *block[k + 1 :]]


def does_something(statement: ast.AST) -> bool:
    """An assignment, a raise or a call."""
    is_call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    return is_call or isinstance(statement, (ast.Assign, ast.AugAssign, ast.Raise))


def code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute something."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or (isinstance(node, ast.Raise) and name == "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from code(child)


def mutant(path: str, number: int) -> tuple[str, str]:
    """(the source with the `number`-th change of a file, the change in words: "before → after")."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    node, name, new = list(places(tree))[number]
    old = getattr(node, name)
    dropped = next((a for a, b in zip(old, new) if a is not b), None) if name in ("body", "orelse") else None
    line = (dropped or node).lineno
    if name == "test":
        before, after = ast.unparse(old), ast.unparse(new)
    else:
        before = ast.unparse(dropped or node)
    setattr(node, name, new)
    if name != "test":
        after = "pass" if dropped else ast.unparse(node)
    if isinstance(node, ast.Constant):  # one number says little: the whole line
        before = (ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1].strip()
        after = f"{old} as {new} in column {node.col_offset}"
    source = ast.unparse(ast.fix_missing_locations(tree))
    return source, f"{path}:{line}: {short(before)} → {short(after)}"


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 110 else f"{text[:107]}…"


def chosen(seed: int, count: int) -> list[tuple[str, str, int]]:
    """(module, file, number of the change): the same share of each module, drawn at random, modules in order."""
    rng, picked = random.Random(seed), []
    for k, (module, files) in enumerate(MODULES.items()):
        every = [
            (module, file, n)
            for file in files
            for n in range(len(list(places(ast.parse((ROOT / file).read_text(encoding="utf-8"))))))
        ]
        share = count // len(MODULES) + (k < count % len(MODULES))
        picked += sorted(rng.sample(every, min(share, len(every))))
    return picked


# --- trying them ---------------------------------------------------------------------------------------------------


def passes(copy: Path, module: str, patience: float = 600) -> str:
    """What the module's tests say in the copy: "passed", "failed" or, after `patience` seconds, "endless"."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(copy)
        sys.path[0] = str(copy)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"tests/test_{module}.py"])) & 255)
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "endless"


def warm_up():
    """Import what all tests need once, before forking, but nothing of this repository."""
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant may have the size and the second of the one before
    sys.dont_write_bytecode = True
    import hypothesis  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch.utils.checkpoint
    import triton  # noqa: F401

    torch.set_num_threads(1)


def try_all(mutants: list, results: Path, known: dict, minutes: float):
    end, patience = time.monotonic() + 60 * minutes, {}  # by module
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*SKIPPED))
        for module, file, number in mutants:
            source, change = mutant(file, number)
            if change in known or time.monotonic() > end:
                continue
            started = time.monotonic()
            if module not in patience and passes(copy, module) != "passed":
                raise SystemExit(f"tests/test_{module}.py fails as it is: mend it first")
            patience.setdefault(module, max(PATIENCE, 2 * (time.monotonic() - started)))
            original = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(source, encoding="utf-8")
            started = time.monotonic()
            known[change] = (module, passes(copy, module, patience[module]))
            (copy / file).write_text(original, encoding="utf-8")
            record = {"module": module, "change": change, "tests": known[change][1]}
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
            print(f"{time.monotonic() - started:5.1f} s  {known[change][1]:8} {change}", flush=True)


# --- the score -----------------------------------------------------------------------------------------------------


def wilson(killed: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    p, square = killed / n, z * z / n
    middle, half = p + square / 2, z * math.sqrt(p * (1 - p) / n + square / (4 * n))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


def key_of(change: str) -> str:
    """A change without its line number, which moves."""
    path, _, rest = change.split(":", 2)
    return f"{path}:{rest}"


def report(mutants: list, known: dict):
    wanted = {mutant(file, number)[1] for _, file, number in mutants}
    tried = {change: value for change, value in known.items() if change in wanted}
    counted = {change: value for change, value in tried.items() if key_of(change) not in EQUIVALENT}
    for module in MODULES:
        mine = [said for name, said in counted.values() if name == module]
        if mine:
            print(f"{module:12} {sum(said != 'passed' for said in mine):3} of {len(mine):3} killed")
    for change, (_, said) in counted.items():
        if said == "passed":
            print(f"survived: {change}")
    n, killed = len(counted), sum(said != "passed" for _, said in counted.values())
    if n:
        low, high = wilson(killed, n)
        print(
            f"{killed} of {n} killed: {killed / n:.1%} ({low:.1%} to {high:.1%}); "
            f"{len(tried) - n} equivalent; {len(tried)} of {len(wanted)} tried"
        )


def main():
    parser = argparse.ArgumentParser(description="Do the tests notice seeded faults in the core?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long (default: never)")
    parser.add_argument("--only", choices=MODULES, help="mutants of one module")
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl", help="default mutants.jsonl")
    parser.add_argument("--again", action="store_true", help="try survivors again, such as after a test was added")
    parser.add_argument("--show", action="store_true", help="try nothing, print what is known")
    args = parser.parse_args()
    mutants = [m for m in chosen(args.seed, args.count) if args.only in (None, m[0])]
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results.exists() else []
    known = {r["change"]: (r["module"], r["tests"]) for r in map(json.loads, lines)}
    if args.again:
        known = {change: value for change, value in known.items() if value[1] != "passed"}
    if not args.show:
        try_all(mutants, args.results, known, args.minutes)
    report(mutants, known)


if __name__ == "__main__":
    main()
