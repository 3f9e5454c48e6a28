"""Weights that others have published: OpenAI's dVAE, and CLIP ViT-B/32, in our own classes.

    load_dvae("released/")                                       encoder.pkl and decoder.pkl  ->  DVAE
    load_clip("clip.safetensors", "tokenizer.json")              ->  (CLIP, Vocabulary)

The dVAE's two files are pickled *modules* (SPEC 2): to open them as they were meant to be opened takes their package, and
runs whatever code the file asks for. Here `Weights`, an unpickler that knows tensors, plain containers and nothing else,
reads them: a class of the package becomes an `Inert` object that only holds attributes, a tensor becomes a description of
one, and any other name is refused. Tensors are made when everything has been read, and their sizes checked against what the
file holds.

CLIP's weights come as safetensors with the release's names (open_clip publishes such files), its vocabulary as the
tokenizer.json of the `tokenizers` library. The README says where to obtain the files; none of them is part of this project.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from minidalle import checkpoint
from minidalle.checkpoint import load_tensors
from minidalle.clip import CLIP, PIXEL_MEAN, PIXEL_STD
from minidalle.config import CLIPConfig, DVAEConfig
from minidalle.dvae import DVAE
from minidalle.sequence import pack_text

LARGEST = 2**31  # bytes of one file; the released ones have about 215 and 175 million
PARTS = 10_000  # modules in one file; the released ones have about 100

# --- the dVAE ------------------------------------------------------------------------------------------------------


def load_dvae(folder: str | Path) -> DVAE:
    """The released dVAE from a folder with encoder.pkl and decoder.pkl, in evaluation mode.

    Raises ValueError, naming the file, where one is missing, holds anything but modules and tensors, or other weights.
    """
    with torch.device("meta"):
        dvae = DVAE(DVAEConfig())
    for name in ("encoder", "decoder"):
        put(getattr(dvae, name), module_tensors(Path(folder) / f"{name}.pkl"), Path(folder) / f"{name}.pkl")
    return dvae.to(memory_format=torch.channels_last).eval()


def dvae_from(source: str) -> DVAE:
    """The dVAE of a run's folder, or of "released:FOLDER"."""
    kind, _, folder = source.partition(":")
    return load_dvae(folder) if kind == "released" else checkpoint.load_dvae(Path(source))


def put(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path):
    """Let the tensors be the weights of `model`. Raises ValueError for the first name or shape that does not fit."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"{path} is not the released {type(model).__name__}: {name} should have shape "
                f"{wanted.get(name, '(not be there)')}, and has {given.get(name, 'is not there')}"
            )
    model.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)


def module_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers, by name, of a module that torch.save has pickled whole."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any released file")
        tensors = from_zip(path) if zipfile.is_zipfile(path) else from_legacy(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the README says where the released files are") from None
    except Exception as error:  # broken bytes can make an unpickler raise nearly anything
        raise ValueError(f"{path} cannot be read as a pickled module: {error}") from None
    if not tensors:
        raise ValueError(f"{path} holds no module with weights")
    return tensors


def walk(module, load, prefix: str = "", budget: list | None = None):
    """(name, tensor) of all parameters and buffers of an `Inert` module, depth first. load(storage) -> its numbers. Raises
    ValueError for what is no module, or has more tensors than any released file."""
    budget = [PARTS] if budget is None else budget
    budget[0] -= 1
    if not isinstance(module, Inert) or budget[0] < 0:
        raise ValueError(
            f"expected a module at {prefix or 'its top'}, got {type(module).__name__}, or too many of them"
        )
    for group in ("_parameters", "_buffers"):
        for name, value in items_of(module, group):
            if isinstance(value, View):
                yield prefix + name, value.tensor(load)
    for name, child in items_of(module, "_modules"):
        yield from walk(child, load, f"{prefix}{name}.", budget)


def items_of(module, group: str) -> list:
    values = vars(module).get(group, {})
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"its {group} are no dictionary of names")
    return [*values.items()]


class Inert:
    """Stands for an object of a class that is not to be run: it keeps its attributes, and does nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise ValueError(f"the state of an object must be a dict, got {type(state).__name__}")
        self.__dict__.update(state)


class Storage(NamedTuple):
    """Numbers that the file keeps under a key; none of them is read yet."""

    dtype: torch.dtype
    key: str
    count: int


class View(NamedTuple):
    """A tensor that the file describes, as a view of a storage; it is made when all that was described has been looked at."""

    storage: Storage
    offset: int
    size: tuple
    stride: tuple

    def tensor(self, load) -> torch.Tensor:
        numbers = [self.offset, *self.size, *self.stride]
        if not isinstance(self.storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor is described by other things than a storage and whole numbers")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        if (
            len(self.size) != len(self.stride)
            or math.prod(self.size) > self.storage.count
            or last >= self.storage.count
        ):
            raise ValueError(f"a tensor of size {self.size} reaches beyond its storage of {self.storage.count} numbers")
        return load(self.storage).as_strided(self.size, self.stride, self.offset)


class Builder:
    """A function that a file may name. Unlike a function it has no attributes that the file could set."""

    __slots__ = ("_build",)

    def __init__(self, build):
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments):
        return self._build(*arguments)

    def __setattr__(self, name, value):
        raise ValueError(f"it sets {name} of what it may only call")

    def __setstate__(self, state):
        raise ValueError("it sets the state of what it may only call")


def view_of(storage, offset, size, stride, *_):
    return View(storage, offset, tuple(size), tuple(stride))


DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool,
}  # fmt: skip
KNOWN = {  # all that a file may name and have called; each builds a value and does nothing else
    ("collections", "OrderedDict"): Builder(OrderedDict),
    ("builtins", "set"): Builder(lambda items=(): tuple(items) if isinstance(items, list) else ()),
    ("__builtin__", "set"): Builder(lambda items=(): tuple(items) if isinstance(items, list) else ()),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(view_of),
    ("torch._utils", "_rebuild_parameter"): Builder(lambda tensor, *_: tensor),
}
INERT = ("dall_e.", "torch.nn.modules.")  # packages whose classes a file may name; none of them is imported


class Weights(
    pickle._Unpickler
):  # the one in Python, whose memo is a dictionary: no index of the file's makes it large
    """Reads descriptions of tensors, plain containers and `Inert` objects; refuses every other name."""

    def find_class(self, module: str, name: str):
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch", "device") or (module.startswith(INERT) and name.isidentifier()):
            return type(name, (Inert,), {})
        raise ValueError(f"it asks for {module}.{name}, which is neither a tensor nor a part of the released module")

    def get_extension(self, code: int):
        raise ValueError("it asks for an object by a registered number")

    def persistent_load(self, pid):
        if isinstance(pid, tuple) and pid[:1] == ("module",) and isinstance(pid[1], type) and issubclass(pid[1], Inert):
            return pid[1]  # the older format notes a class with its source
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in DTYPES.values():
            raise ValueError(f"it names the storage {pid!r:.60}")
        return Storage(pid[1], str(pid[2]), int(pid[4]))

    def load_build(self):
        """Only an `Inert` object may be given a state; the library would give one to anything."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (Inert, OrderedDict)):
            raise ValueError(f"it gives a state to {type(self.stack[-1]).__name__}")
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def numbers(data: bytes, storage: Storage) -> torch.Tensor:
    """`data` as a tensor (count,). Raises ValueError for another length."""
    if len(data) != storage.count * storage.dtype.itemsize or not storage.count:
        raise ValueError(f"a storage of {storage.count} numbers has {len(data)} bytes")
    return torch.frombuffer(bytearray(data), dtype=storage.dtype)


def from_zip(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in torch's present format: an archive with data.pkl, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("a part of it is compressed, which torch never does")
        module = Weights(io.BytesIO(archive.read(members["data.pkl"]))).load()
        load = lru_cache(maxsize=None)(lambda storage: numbers(archive.read(members[f"data/{storage.key}"]), storage))
        return dict(walk(module, load))


MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format


def from_legacy(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in torch's older format: a magic number, a version, a description of the machine, the object, the keys
    of its storages; then each storage, the count of its numbers in front."""
    with path.open("rb") as file:
        if (Weights(file).load(), Weights(file).load()) != (MAGIC, PROTOCOL):
            raise ValueError("it is in neither of torch's formats")
        Weights(file).load()
        module, keys = Weights(file).load(), Weights(file).load()
        described, places = {}, {}

        def note(storage: Storage):  # a first walk, to learn the storages' types
            described[storage.key] = storage
            return torch.empty(storage.count, dtype=storage.dtype, device="meta")

        dict(walk(module, note))
        for key in keys:
            count = struct.unpack("<q", file.read(8))[0]
            if count != described[key].count:
                raise ValueError(f"storage {key} has {count} numbers, and {described[key].count} are expected")
            places[key] = numbers(file.read(count * described[key].dtype.itemsize), described[key])
        return dict(walk(module, lambda storage: places[storage.key]))


# --- CLIP ----------------------------------------------------------------------------------------------------------


class Vocabulary:
    """CLIP's own tokenizer, of the release: text to ids, as `CLIP.encode_text` takes them."""

    def __init__(self, path: str | Path, context: int):
        """path: a tokenizer.json. Raises ValueError where it is not there, or no such file."""
        from tokenizers import Tokenizer  # in requirements-extra.txt

        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises this very class
            raise ValueError(f"{path} is no vocabulary of the tokenizers library (tokenizer.json): {error}") from None
        self.context = context
        if self.tokenizer.token_to_id("<|endoftext|>") != CLIPConfig().vocab_size - 1:
            raise ValueError(f"{path} is not CLIP's vocabulary: <|endoftext|> should be {CLIPConfig().vocab_size - 1}")
        self.marks = {self.tokenizer.token_to_id(mark) for mark in ("<|startoftext|>", "<|endoftext|>")}
        if None in self.marks:
            raise ValueError(f"{path} is not CLIP's vocabulary: it has no <|startoftext|>")

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """captions -> text (B, context) int64: start-of-text, the caption's ids, then -1. `encode_text` adds the end."""
        start = self.tokenizer.token_to_id("<|startoftext|>")
        lists = [self.tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions]
        return pack_text([[start, *(i for i in ids if i not in self.marks)] for ids in lists], self.context)


def load_clip(weights: str | Path, vocabulary: str | Path, quick_gelu: bool = True) -> tuple[CLIP, Vocabulary]:
    """CLIP ViT-B/32 from a safetensors file with the release's names, in evaluation mode, and its vocabulary.

    quick_gelu: x sigmoid(1.702 x), as the release was trained; False for open re-trainings with the exact GELU. Raises
    ValueError, naming the file, where one is missing or another.
    """
    tensors, _ = load_tensors(Path(weights))
    config = CLIPConfig(quick_gelu=quick_gelu)
    with torch.device("meta"):
        clip = CLIP(config)
    put(clip, tensors, Path(weights))
    clip.mean, clip.std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return clip.eval(), Vocabulary(vocabulary, config.context)


def clip_from(source: str) -> tuple[CLIP, Vocabulary]:
    """CLIP ViT-B/32 from "released:FILE" (the release's GELU) or "openclip:FILE" (the exact one), with tokenizer.json beside it."""
    kind, _, file = source.partition(":")
    if kind not in ("released", "openclip") or not file:
        raise ValueError(f"--clip must be released:FILE or openclip:FILE, got {source!r}")
    return load_clip(file, Path(file).parent / "tokenizer.json", quick_gelu=kind == "released")
