"""How long do imports take, beside `import torch` alone.

python benchmarks/startup.py [--repeats 7]
"""

import argparse
import importlib
import sys

import side_by_side

NAMES = ["torch", "minidalle", "minidalle.transformer", "minidalle.sample", "minidalle.train", "train_tiny"]


def importing(name: str):
    return lambda: importlib.import_module(name) and None


CASES = {name: lambda name=name: importing(name) for name in NAMES}


def main():
    parser = argparse.ArgumentParser(description="Imports, side by side.")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(side_by_side.machine(), "\n")
    results = side_by_side.in_turns(__file__, NAMES, (), 1, args.repeats)
    print("\n".join(side_by_side.table(results, "torch", 1, {})))


if __name__ == "__main__":
    if "--work" in sys.argv:
        side_by_side.work(CASES, sys.argv[2:])
    else:
        main()
