"""Nothing is unpickled, and no file does harm: those of `tests/hostile_files.py`, in a process of its own."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
LOADERS = {"torch", "np", "numpy", "th", "yaml"}


def unpickled(source: str) -> list[str]:
    """What in this source could open a pickle: imports of such modules, torch.load and numpy.load, allow_pickle, weights_only."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in UNPICKLERS]
            found += [f"{names[0]}.load" for alias in node.names if names[0] in LOADERS and alias.name == "load"]
        elif isinstance(node, ast.Attribute) and node.attr == "load":
            base = ast.unparse(node.value)
            found += [f"{base}.load"] if base.partition(".")[0] in LOADERS else []
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            found.append(node.arg)
        elif isinstance(node, ast.Attribute) and node.attr == "read_pickle":
            found.append("read_pickle")
    return found


def test_nothing_is_unpickled():
    """Not even in scale/: pickles.py and torchfile.py read them by a machine of their own."""
    files = [path for part in ("minidalle", "kernels", "lessons", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 60
    found = {path: unpickled(path.read_text(encoding="utf-8")) for path in [*files, ROOT / "train_tiny.py"]}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "import torch; torch.load('x')", "import pickle", "from pickle import loads", "import numpy as np; np.load('x')",
        "from torch import load", "torch.jit.load(f)", "read(f, allow_pickle=True)", "read(f, weights_only=False)",
        "import marshal as m", "pd.read_pickle(f)", "f = torch.load", "import yaml; yaml.load(f)",
    ],
)  # fmt: skip
def test_what_could_unpickle_is_found(source):
    assert unpickled(source)


def test_hostile_files_are_refused_each_for_its_own_reason():
    done = subprocess.run([sys.executable, "-m", "tests.hostile_files"], cwd=ROOT, capture_output=True, text=True)
    counts = re.search(r"refused or skipped by name (\d+) of (\d+)", done.stdout)
    assert done.returncode == 0 and counts and counts[1] == counts[2], done.stdout + done.stderr[-2000:]
    assert int(counts[2]) >= 25
