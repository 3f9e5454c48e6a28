"""Do two runs have the same weights, metrics and results? All but times and dates: `.venv/bin/python -m tests.same_run RUN RUN`.

`.ci/run` asks it of two runs of the same command, each in a fresh clone with an environment of its own; kills.py of a run
that was killed and one that was not.
"""

import hashlib
import json
import sys
from pathlib import Path

from minidalle.checkpoint import differences, fingerprint, load_tensors, read_json, read_records

TIMES = ("seconds", "tokens_per_s", "date")  # of metrics.jsonl and results.json


def contents(run: Path) -> dict[str, str]:
    """Hashes of all weights, with their metadata, and of the metrics without their times."""
    hashes = {}
    for path in sorted(run.glob("*.safetensors")):
        tensors, metadata = load_tensors(path)
        hashes[path.name] = fingerprint(tensors) + json.dumps(metadata, sort_keys=True)
    metrics = [{k: v for k, v in record.items() if k not in TIMES} for record in read_records(run / "metrics.jsonl")]
    return hashes | {"metrics": hashlib.sha256(json.dumps(metrics).encode()).hexdigest()}


def main(one: str, other: str) -> int:
    first, second = (
        contents(Path(run)) | {k: v for k, v in read_json(Path(run, "results.json")).items() if k not in TIMES}
        for run in (one, other)
    )
    different = differences(first, second)
    print("\n".join(different[:20]) + "\n" * bool(different), end="")
    weights = sum(name.endswith(".safetensors") for name in first)
    same = "DIFFERENT" if different else "the same"
    print(f"{len(first['results'])} figures, the metrics and {weights} files of weights: {same}")
    return bool(different)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
