"""Do two runs have the same weights and results? All but times and dates: `.venv/bin/python -m tests.same_run RUN RUN`.

`.ci/run` asks it of two runs of the same command, each in a fresh clone with an environment of its own.
"""

import hashlib
import sys
from pathlib import Path

from minidalle.checkpoint import differences, read_json

TIMES = ("seconds", "date")  # of results.json
WEIGHTS = ("dvae.safetensors", "transformer.safetensors", "clip.safetensors")


def contents(run: Path) -> dict:
    """What has to be the same: results.json but for the times, by its keys; and a hash of each file of weights."""
    same = {key: value for key, value in read_json(run / "results.json").items() if key not in TIMES}
    return same | {name: hashlib.sha256((run / name).read_bytes()).hexdigest()[:16] for name in WEIGHTS}


def main(one: str, other: str) -> int:
    first, second = contents(Path(one)), contents(Path(other))
    different = differences(first, second)
    print("\n".join(different[:20]) + "\n" * bool(different), end="")
    print(
        f"{len(first['results'])} figures and {len(WEIGHTS)} files of weights: {'DIFFERENT' if different else 'the same'}"
    )
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
