"""Build the notebooks: each lesson's source, NN_name.py, becomes NN_name.ipynb with its outputs.

    python lessons/build.py              every notebook whose source has changed since it was built
    python lessons/build.py 06 11        these, changed or not
    python lessons/build.py --check      builds nothing; exit code 2 if a notebook is stale or an error stands in it
    python lessons/build.py --solve      builds nothing; runs the notebooks with the solutions in place of the stubs, and
                                         exit code 2 unless every check then says "pass"

A notebook keeps the hash of the source that it was built from, and the seconds that its cells took. What changes in
`minidalle/` does not make it stale: the tests run every source, so a lesson that no longer holds fails there.
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

LESSONS = Path(__file__).resolve().parent
sys.path.insert(0, str(LESSONS.parent))

from minidalle.checkpoint import replacing  # noqa: E402
from minidalle.cli import run_command  # noqa: E402

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LIMIT = 600  # seconds that one cell may take


def sources() -> list[Path]:
    """The lessons' sources, in order."""
    return sorted(LESSONS.glob("[0-9][0-9]_*.py"))


def digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def about(notebook: Path) -> dict:
    """What `build` noted: {"source_sha256": …, "seconds": …}; empty if the notebook is not there, or not a notebook."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["metadata"].get("minidalle", {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def stale(source: Path) -> bool:
    return about(source.with_suffix(".ipynb")).get("source_sha256") != digest(source)


def execute(notebook, name: str):
    """Run all cells in the folder of the lessons. Raises ValueError, with the lesson's name, where one fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    try:
        where = {"metadata": {"path": str(LESSONS)}}
        NotebookClient(notebook, timeout=LIMIT, resources=where, coalesce_streams=True).execute()
    except CellExecutionError as error:
        raise ValueError(f"{name} does not run: {error}") from None


def build(source: Path):
    """Run the source as a notebook, and write that beside it with its outputs; where a cell fails, the old one stays."""
    import jupytext
    import nbformat

    notebook = jupytext.read(source)
    started = time.perf_counter()
    execute(notebook, source.name)
    seconds = time.perf_counter() - started
    for number, cell in enumerate(notebook.cells):  # nothing that differs from one build to the next
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
    noted = {"source_sha256": digest(source), "seconds": round(seconds, 1)}
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "minidalle": noted}
    with replacing(source.with_suffix(".ipynb")) as aside:
        nbformat.write(notebook, aside)


def solve(source: Path):
    """Run the notebook with every stub replaced by its solution. Raises ValueError for a check that does not say "pass"."""
    import nbformat

    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    for cell in notebook.cells:
        stub = re.search(r"^def (\w+)\(.*raise NotImplementedError", cell.source, re.MULTILINE | re.DOTALL)
        if cell.cell_type == "code" and stub:
            cell.source += f"\n\nfrom solutions.lesson{source.name[:2]} import {stub[1]}"
    execute(notebook, source.name)
    for cell in notebook.cells:
        said = [
            output.data["text/plain"] for output in cell.get("outputs", ()) if output.output_type == "execute_result"
        ]
        if cell.cell_type == "code" and "\ncheck_" in cell.source and said != ["'pass'"]:
            raise ValueError(f"{source.name}: with the solutions, {cell.source.splitlines()[-1]} says {said}")


def wanted(names: list[str]) -> list[Path]:
    """The sources that the arguments name, or else all stale ones."""
    chosen = [s for s in sources() if any(s.name.startswith(name) for name in names)]
    unknown = [name for name in names if not any(s.name.startswith(name) for s in sources())]
    if unknown:
        raise ValueError(f"there is no lesson {unknown[0]!r}: write its number, such as {sources()[0].name[:2]}")
    return chosen if names else [s for s in sources() if stale(s)]


def each(work: Callable[[Path], None], chosen: list[Path]):
    """Do the work on every source chosen, with a progress bar."""
    from tqdm import tqdm

    bar = tqdm(chosen, unit="lesson")
    for source in bar:
        bar.set_description(source.stem)
        work(source)


def show_times():
    for source in sources():
        notebook = source.with_suffix(".ipynb")
        if notebook.exists():
            print(f"{source.stem:24} {about(notebook)['seconds']:6.1f} s {notebook.stat().st_size / 1000:6.0f} kB")


def check():
    """Raise ValueError for the first notebook that is stale, or in which an error stands."""
    for source in sources():
        notebook = source.with_suffix(".ipynb")
        if stale(source):
            raise ValueError(f"{notebook.name} is not what {source.name} gives now: run lessons/build.py")
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        if any(output["output_type"] == "error" for output in outputs):
            raise ValueError(f"an error stands in {notebook.name}: mend {source.name} and run lessons/build.py")
    print(f"{len(sources())} notebooks are as their sources")


def main(args: argparse.Namespace):
    if args.check:
        check()
    elif args.solve:
        each(solve, wanted(args.lessons) if args.lessons else sources())
    else:
        each(build, wanted(args.lessons))
        show_times()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the lessons' notebooks from their sources.")
    parser.add_argument("lessons", nargs="*", help="numbers, such as 06 (default: all that have changed)")
    parser.add_argument("--check", action="store_true", help="only say whether all notebooks are up to date")
    parser.add_argument("--solve", action="store_true", help="only run them with the solutions, and keep nothing")
    run_command(lambda: main(parser.parse_args()))
