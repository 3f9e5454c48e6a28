"""What a run folder says of itself, read back for its model card: settings, weights, the last metrics, results.

Enters: a run folder, of `train_tiny.py` (whole, a race, or stopped) or of the verb `train`. Leaves: `Records`. What is not
there is empty; what is there and damaged, of another version or of another run, raises ValueError.
"""

from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from minidalle.bpe import BPE
from minidalle.checkpoint import check_hash, fingerprint, load_bpe, load_model, load_preset_of, read_json, read_records
from minidalle.clip import CLIP
from minidalle.config import CLIPConfig, DVAEConfig, Preset, TransformerConfig
from minidalle.dvae import DVAE
from minidalle.transformer import DALLE

CLASSES = {"dvae": (DVAE, DVAEConfig), "transformer": (DALLE, TransformerConfig), "clip": (CLIP, CLIPConfig)}
PARTS = {  # of each model, by the beginning of its parameters' names; the first that fits
    "dvae": {"encoder": "encoder", "decoder": "decoder"},
    "transformer": {"embeddings": "embed", "blocks": "blocks", "last norm and heads": ""},
    "clip": {"image tower": "visual", "text tower": ""},
}


class Weights(NamedTuple):
    """One file of weights."""

    config: DVAEConfig | TransformerConfig | CLIPConfig
    parameters: dict[str, int]  # part -> how many numbers are learned
    stored: str  # "F32"
    size: int  # bytes of the file
    sha256: str  # `checkpoint.fingerprint`, which pictures name as their model


class Records(NamedTuple):
    """All that a run folder says of itself; empty where it says nothing."""

    config: dict
    preset: Preset
    bpe: BPE | None
    weights: dict[str, Weights]
    last: dict[str, dict]  # stage -> its last line of metrics.jsonl
    results: dict  # results.json


def read(run: Path) -> Records:
    """Raises ValueError where the folder is none of a run, or a record is damaged, of another version, or of another run."""
    run = Path(run)
    preset = load_preset_of(run)
    bpe = load_bpe(run) if (run / "bpe.json").exists() else None
    weights, hashes = {}, {"tokenizer": bpe.hash} if bpe else {}
    for name in CLASSES:
        path = run / f"{name}.safetensors"
        if path.exists():
            weights[name], metadata = read_weights(path, name)
            for part in hashes.keys() & metadata.keys():
                check_hash(
                    path, metadata, part, hashes[part], "bpe.json" if part == "tokenizer" else "dvae.safetensors"
                )
            hashes[name] = weights[name].sha256
    results = read_json(run / "results.json") if (run / "results.json").exists() else {}
    if not isinstance(results, dict):
        raise ValueError(
            f"{run / 'results.json'} is not as a run writes it: restore it, or remove it for a card without results"
        )
    return Records(read_json(run / "config.json"), preset, bpe, weights, read_last(run / "metrics.jsonl"), results)


def read_weights(path: Path, name: str) -> tuple[Weights, dict]:
    """The facts of a file of weights, and its metadata."""
    model, metadata = load_model(path, *CLASSES[name])
    parameters = dict.fromkeys(PARTS[name], 0)
    for key, value in model.named_parameters():
        parameters[next(part for part, beginning in PARTS[name].items() if key.startswith(beginning))] += value.numel()
    with safe_open(path, framework="pt") as file:
        stored = ", ".join(sorted({file.get_slice(key).get_dtype() for key, _ in model.named_parameters()}))
    return Weights(model.config, parameters, stored, path.stat().st_size, fingerprint(model.state_dict())), metadata


def read_last(path: Path) -> dict[str, dict]:
    """The last line of each stage in metrics.jsonl; a line that was cut off at the end is passed over."""
    return {record["stage"]: record for record in read_records(path)} if path.exists() else {}
