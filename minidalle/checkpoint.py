"""What a run keeps: weights as safetensors, everything else as JSON, each file written aside and renamed into place.

    RUN/config.json · bpe.json · dvae, transformer, clip.safetensors           the models, ready for use (EMA weights)
    RUN/state/STEP/                                                            all that training needs to go on
    RUN/metrics.jsonl                                                          one line for each logged update

Why not torch.save: a pickle runs code when it is opened, and stops opening when a library moves (SPEC 8). A weight
file here describes itself: its metadata hold the architecture and the fingerprints of the tokenizer and the dVAE that
the model was trained with, and a model refuses to work with others. `state/STEP/` appears under its name only when it
is complete, so there is always a whole one to resume from; the last two are kept.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minidalle.bpe import BPE
from minidalle.clip import CLIP
from minidalle.config import CLIPConfig, DVAEConfig, Preset, TransformerConfig, check_numbers, from_dict
from minidalle.dvae import DVAE
from minidalle.transformer import DALLE

LARGEST_JSON = 2**23  # bytes; no JSON file, and no description at the head of a safetensors file, has more
LONGEST_LINE = 2**16  # bytes of a line of metrics.jsonl

# --- files ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path):
    """A temporary name beside `path`, for a file or a folder; moved to `path` if the block ends well, else removed.

    Moved only once the disk holds all of it, and left only once the disk holds the move: so that even where the power fails,
    `path` is the old one or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield aside / path.name
        flush(aside / path.name)
        if path.is_dir():
            os.replace(path, aside / "old")
        os.replace(aside / path.name, path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path):
    """Return once the disk holds this file, or this folder with all that is in it."""
    for part in [*path.rglob("*"), path]:  # of a file, itself alone
        if part.is_dir():
            flush_folder(part)
        else:
            with part.open("r+b") as file:
                os.fsync(file.fileno())


def flush_folder(path: Path):
    """The same for the names in a folder. Windows has no such call."""
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def remove(state: Path):
    """Delete a state; one that is deleted only half, as the run is killed, no longer has a state's name."""
    aside = state.with_name(f".writing-{state.name}")
    os.replace(state, aside)
    shutil.rmtree(aside)


def write_json(path: Path, value):
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path):
    """Raises ValueError, naming the file, where there is none, or it is not JSON, or more than any of ours."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MB")
        return json.loads(text.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} does not exist: is {Path(path).parent} the folder of a run?") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it or start the run again") from None


def read_records(path: Path) -> Iterator[dict]:
    """The lines of metrics.jsonl, one at a time. A last line that was cut off is passed over; raises ValueError for any other
    that is no record of an update."""
    with Path(path).open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
            try:
                record = json.loads(line.decode("utf-8"))
                if not isinstance(record["stage"], str) or not isinstance(record["step"], int):
                    raise ValueError
            except (ValueError, TypeError, KeyError, RecursionError):
                if not line.endswith(b"\n") and not file.read(1):
                    return
                raise ValueError(
                    f"{path}, line {number} is no record of an update: restore it or remove the line"
                ) from None
            yield record


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None):
    """Raises OSError where the disk is full, whatever the library calls it."""
    with replacing(path) as aside:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, aside, metadata)
            aside.chmod(0o644)  # the library lets nobody else read it
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None


@contextlib.contextmanager
def opened(path: Path):
    """A safetensors file, open. Raises ValueError with the name of one that is missing or damaged."""
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")  # of the description at its head
        if length > LARGEST_JSON:
            raise SafetensorError(f"its head claims {length:,} bytes, over {LARGEST_JSON:,}")
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: was this run's training finished?") from None
    except (SafetensorError, OSError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): train again or restore it") from None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata). Raises ValueError as `opened` does."""
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


# --- models --------------------------------------------------------------------------------------------------------


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes and bytes: two models with the same one draw the same pictures."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(path: Path, model: torch.nn.Module, tensors: dict[str, torch.Tensor], **hashes: str):
    """Write `tensors`, the weights of `model`, with its architecture and the `hashes` of what it depends on."""
    metadata = {"format": f"minidalle {type(model).__name__} 1", "config": json.dumps(dataclasses.asdict(model.config))}
    save_tensors(path, tensors, metadata | hashes)


def load_model(path: Path, model_class, config_class) -> tuple[torch.nn.Module, dict[str, str]]:
    """The model in evaluation mode, and its file's metadata. Raises ValueError where the file holds another model.

    The architecture is what the file claims: it is first built without memory, and must have the weights that are there.
    """
    tensors, metadata = load_tensors(path)
    expected = f"minidalle {model_class.__name__} 1"
    if metadata.get("format") != expected:
        raise ValueError(f"{path} holds {metadata.get('format', 'weights of unknown origin')!r}, expected {expected!r}")
    try:
        config = from_dict(config_class, json.loads(metadata["config"]))
        check_numbers(config)
        check_size(config, tensors)
        with torch.device("meta"):
            model_class(config).load_state_dict({name: t.to("meta") for name, t in tensors.items()}, assign=True)
        model = model_class(config)  # only now that it is as large as the file
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {path} do not fit the architecture stored with them ({reason})") from None
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} is damaged: {broken[0]} holds what is no finite number; restore it or train again")
    return model.eval(), metadata


def check_size(config, tensors: dict[str, torch.Tensor]):
    """Raise ValueError for an architecture of more parts than there are tensors, or wider than all of them: before it is built."""
    numbers = sum(t.numel() for t in tensors.values())
    for key, value in dataclasses.asdict(config).items():
        counts = key.endswith(("layer", "layers", "n_block", "n_group"))
        most = len(tensors) if counts else max(numbers, 1024)
        if isinstance(value, int) and not isinstance(value, bool) and not 0 < value <= most:
            raise ValueError(f"{key} is {value}, with {len(tensors)} tensors of {numbers} numbers in all")


def load_dvae(run: Path) -> DVAE:
    """The dVAE of a run folder."""
    return load_model(Path(run) / "dvae.safetensors", DVAE, DVAEConfig)[0]


def load_preset_of(run: Path) -> Preset:
    """The settings of a run folder. Raises ValueError where they are missing or not such settings."""
    path = Path(run) / "config.json"
    config = read_json(path)
    if not isinstance(config, dict) or "preset" not in config:
        raise ValueError(f"{path} names no preset: was it written by train_tiny.py?")
    try:
        return from_dict(Preset, config["preset"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_run(run: Path, dvae: DVAE | None = None) -> tuple[Preset, BPE, DVAE, DALLE]:
    """Everything that draws, from a run folder; its dVAE from elsewhere if one is given.

    Raises ValueError where a part is missing, or where the transformer was trained with another tokenizer or dVAE.
    """
    run = Path(run)
    preset = load_preset_of(run)
    file = "--dvae" if dvae else "dvae.safetensors"
    bpe, dvae = load_bpe(run), dvae or load_dvae(run)
    model, metadata = load_model(run / "transformer.safetensors", DALLE, TransformerConfig)
    check_hash(run / "transformer.safetensors", metadata, "tokenizer", bpe.hash, "bpe.json")
    check_hash(run / "transformer.safetensors", metadata, "dvae", fingerprint(dvae.state_dict()), file)
    return preset, bpe, dvae, model


def load_clip(run: Path) -> tuple[BPE, CLIP]:
    """What ranks, from a run folder. Raises ValueError where a part is missing or does not belong to the other."""
    run = Path(run)
    bpe = load_bpe(run)
    if not (run / "clip.safetensors").exists():
        raise ValueError(
            f"{run / 'clip.safetensors'} does not exist: CLIP is trained last, and a race (--until) leaves it out; "
            "train_tiny.py --resume trains it; for a run of `train` give --clip released:FILE"
        )
    clip, metadata = load_model(run / "clip.safetensors", CLIP, CLIPConfig)
    check_hash(run / "clip.safetensors", metadata, "tokenizer", bpe.hash, "bpe.json")
    return bpe, clip


def load_bpe(run: Path) -> BPE:
    if not (run / "bpe.json").exists():
        raise ValueError(f"{run / 'bpe.json'} does not exist: restore it, or train again")
    return BPE.load(run / "bpe.json")


def check_hash(path: Path, metadata: dict[str, str], part: str, have: str, file: str):
    """Raise ValueError where the weights in `path` were trained with another `part` than what `file` holds now."""
    if metadata.get(part) != have:
        raise ValueError(
            f"{path} was trained with another {part} (hash {metadata.get(part, '-')[:12]}, while {file} has {have[:12]}): "
            "put the file back that it was trained with"
        )


# --- runs ----------------------------------------------------------------------------------------------------------


# What may differ when a run is resumed.
FREE = ("preset.sample", "preset.edit", "preset.train.log_every", "preset.train.save_every")


class Run:
    """A run folder in training: it says what is finished, keeps the states, and takes down the metrics."""

    def __init__(self, folder: Path, settings: dict, resume: bool = False):
        """settings: what decides the run's result, JSON-ready; kept in config.json and compared on `resume`.

        Raises ValueError where the folder is not empty (without resume), or where its settings are others (with it).
        """
        self.folder = Path(folder)
        config = self.folder / "config.json"
        settings = json.loads(json.dumps(settings))
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file, expected a folder for the run: choose another --out")
        if resume and config.exists():
            other = [line for line in differences(read_json(config), settings) if not line.startswith(FREE)]
            if other:
                raise ValueError(
                    f"{self.folder} holds a run with other settings ({'; '.join(other[:3])}): resume it with the same "
                    "arguments, or choose another --out"
                )
        elif self.folder.exists() and any(not path.name.startswith(".writing-") for path in self.folder.iterdir()):
            why = "holds no run to resume" if resume else "is not empty: add --resume to go on with it"
            raise ValueError(f"{self.folder} {why}, or choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in [*self.folder.glob(".writing-*"), *self.folder.glob("state/.writing-*")]:
            shutil.rmtree(left)  # what a killed run had not finished writing
        write_json(config, settings)
        self.metrics = self.folder / "metrics.jsonl"
        self.stages: dict[str, dict] = {}  # finished stages: {"updates": …, "seconds": …}

    def states(self) -> list[Path]:
        """The complete states, oldest first."""
        return sorted(path for path in (self.folder / "state").glob("[0-9]*") if path.is_dir())

    def save_state(self, info: dict, tensors: dict[str, dict[str, torch.Tensor]]):
        """Write state/STEP/, STEP counting the updates of all stages: `info` as JSON, a safetensors file for each entry
        of `tensors`, and what earlier stages left, so that the run can go on from this folder alone."""
        step = info["step"] + sum(stage["updates"] for stage in self.stages.values())
        info = info | {
            "stages": self.stages,
            "finished": ["bpe.json", *(f"{name}.safetensors" for name in self.stages)],
        }
        if self.metrics.exists():  # a state never knows of more updates than they
            flush(self.metrics)
        with replacing(self.folder / "state" / f"{step:09d}") as aside:
            aside.mkdir()
            for name, group in tensors.items():
                save_tensors(aside / f"{name}.safetensors", group)
            for name in info["finished"]:
                shutil.copy(self.folder / name, aside / name)
            write_json(aside / "state.json", info)
        for old in self.states()[:-2]:
            remove(old)

    def latest(self) -> tuple[dict, Path | None]:
        """(info, folder) of the newest state, its finished files put back in place; if nothing was saved yet, an info
        of no stage and None."""
        states = self.states()
        if not states:
            return {"stage": None, "stages": {}}, None
        info = read_json(states[-1] / "state.json")
        check_info(states[-1] / "state.json", info)
        for name in info["finished"]:
            with replacing(self.folder / name) as aside:
                shutil.copy(states[-1] / name, aside)
        return info, states[-1]

    def log(self, record: dict):
        """Append one line to metrics.jsonl; what is not a finite number, which JSON does not know, becomes null."""
        record = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, stage: str, step: int):
        """Drop the metrics of `stage` beyond `step`: a resumed run writes them again."""
        if self.metrics.exists():
            kept = [r for r in read_records(self.metrics) if r["stage"] != stage or r["step"] <= step]
            with replacing(self.metrics) as aside:
                aside.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")


def check_info(path: Path, info):
    """Raise ValueError where a state's JSON is not as `Run.save_state` writes it; above all, it may name no file elsewhere."""
    numbers = (int, float)
    try:
        done = [info, *info["stages"].values()]
        fine = all(isinstance(part["seconds"], numbers) for part in done) and isinstance(info["step"], int)
        fine &= all(isinstance(part["updates"], int) for part in done[1:]) and isinstance(info["stage"], str)
        fine &= all(isinstance(n, int) for n in info.get("watch", {}).values())
        fine &= all(re.fullmatch(r"[a-z]+\.(json|safetensors)", name) for name in info["finished"])
    except (KeyError, TypeError, AttributeError):
        fine = False
    if not fine:
        raise ValueError(
            f"{path} is not as a run writes it: remove {path.parent}, and --resume takes the state before it"
        )


def differences(old, new, name: str = "") -> list[str]:
    """Where two nested JSON values differ: ["seed is 1 there, 0 here", …]."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for key in sorted({*old, *new}) for line in differences(old.get(key), new.get(key), f"{name}.{key}")
        ]
    return [] if old == new else [f"{name.lstrip('.')} is {old!r} there, {new!r} here"]
