"""Run one task in several programs and say how they compare: what the other benchmarks here share.

Every run is a process of its own, told how many threads it may use, and the programs take turns, every other turn in
reverse: a slow minute of the machine falls on all of them. Set-up, imports and a short warm-up are not timed;
the peak of memory is the whole process's, imports included. A ratio is taken within a turn, of CPU seconds on one
thread and of wall seconds on all; the table shows its median and range.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def work(cases: dict[str, Callable], argv: list[str]):
    """In the child: cases[name](*its settings) prepares and returns a task; run it, print what it took as JSON.

    A task may return a dict of further figures.
    """
    name, *settings = argv
    task = cases[name](*map(int, settings))
    wall, cpu = time.perf_counter(), time.process_time()
    more = task()
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "peak": peak_megabytes()}
    print(json.dumps(took | (more or {})))


def peak_megabytes() -> float:
    """The most memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def run(script: str, name: str, settings: tuple, threads: int) -> dict:
    """One run in a process of its own."""
    environment = os.environ | {
        variable: str(threads) for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    }
    environment["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    command = [sys.executable, str(Path(script).resolve()), "--work", name, *map(str, settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turns(script: str, names: list[str], settings: tuple, threads: int, repeats: int) -> dict[str, list[dict]]:
    """`repeats` runs of every program, in turns."""
    results = {name: [] for name in names}
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            print(f"\r\033[K{name} {settings}, {threads} threads, turn {turn + 1}", end="", file=sys.stderr, flush=True)
            results[name].append(run(script, name, settings, threads))
    print("\r\033[K", end="", file=sys.stderr, flush=True)
    return results


def ratios(results: dict[str, list[dict]], name: str, reference: str, key: str) -> list[float]:
    """What `name` took in each turn, "cpu" or "wall", as a multiple of what `reference` took in it; ascending."""
    return sorted(a[key] / b[key] for a, b in zip(results[name], results[reference]))


def middle(values: list[float], digits: int = 2) -> str:
    """Median (least–most)."""
    show = [f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values))]
    return show[0] if show[1] == show[2] else f"{show[0]} ({show[1]}–{show[2]})"


def table(results: dict[str, list[dict]], reference: str, threads: int, further: dict[str, Callable]) -> list[str]:
    """Markdown lines. further: heading -> function of (name, one run), for columns that only this benchmark has."""
    key = "cpu" if threads == 1 else "wall"
    on = "one thread" if threads == 1 else f"{threads} threads"
    head = [on, "wall s", "CPU s", f"{key if key == 'wall' else 'CPU'} ratio to {reference}", "peak MB", *further]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, runs in results.items():
        row = [name, middle([r["wall"] for r in runs]), middle([r["cpu"] for r in runs])]
        row += [middle(ratios(results, name, reference, key)), f"{max(r['peak'] for r in runs):.0f}"]
        for f in further.values():  # a column may leave a program out, by None
            values = [f(name, r) for r in runs]
            row.append("" if values[0] is None else middle(values, 1))
        lines.append("| " + " | ".join(row) + " |")
    return lines


def chart(path: Path, groups: dict[str, dict[str, list[float]]], reference: str, title: str):
    """Bars of ratios, a group for each setting: {setting: {program: its ratios}}; the reference is the line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(group, name, values) for group, bars in groups.items() for name, values in bars.items()]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.34 * len(rows)), layout="constrained")
    for y, (_, name, values) in enumerate(rows):
        value = statistics.median(values)
        spread = [[value - min(values)], [max(values) - value]]
        axes.barh(y, value, color="#0072b2" if name.startswith("minidalle") else "#bbbbbb", xerr=spread, capsize=3)
        axes.text(max(values), y, f"  {value:.2f}", va="center")
    axes.set_yticks(range(len(rows)), [f"{name}, {group}" for group, name, _ in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.margins(x=0.1)
    axes.set(xlabel=f"time as a multiple of that of {reference}: shorter is faster", title=title)
    figure.savefig(path, dpi=110)


def machine() -> str:
    """Date, processor and versions, in one line, for which this process imports none of them."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    versions = []
    for package in ("torch", "transformers", "tokenizers", "tiktoken"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    system = f"{platform.system()} · Python {platform.python_version()}"
    return " · ".join([f"{date.today()} · {name}, {os.cpu_count()} cores · {system}", *versions])


def arguments(description: str, repeats: int, **more) -> argparse.Namespace:
    """--repeats, --threads and --chart, and more, {option: its default}."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns (default {repeats})")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, os.cpu_count()}), help="default: 1 and all"
    )
    parser.add_argument("--chart", type=Path, help="write a bar chart of the ratios to this PNG")
    for option, default in more.items():
        name = "--" + option.replace("_", "-")
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true")
        elif isinstance(default, list):
            parser.add_argument(name, type=type(default[0]), nargs="+", default=default, help=f"default {default}")
        else:
            parser.add_argument(name, type=type(default), default=default, help=f"default {default}")
    args = parser.parse_args()
    if args.repeats < 1 or min(args.threads) < 1:
        parser.error("--repeats and --threads must be at least 1")
    return args
