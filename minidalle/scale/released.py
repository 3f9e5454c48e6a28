"""Weights that others have published: OpenAI's dVAE, and CLIP ViT-B/32, in our own classes.

    load_dvae("released/")                                       encoder.pkl and decoder.pkl  ->  DVAE
    load_clip("clip.safetensors", "tokenizer.json")              ->  (CLIP, Vocabulary)

The dVAE's two files are pickled *modules* (SPEC 2): to open them as they were meant to be opened takes their package, and
runs whatever code the file asks for. Here `Weights`, an unpickler that knows tensors, plain containers and nothing else,
reads them: a class of the package becomes an `Inert` object that only holds attributes, any other name is refused, and so
nothing in the file can call anything. Sizes are checked before memory is taken.

CLIP's weights come as safetensors with the release's names (open_clip publishes such files), its vocabulary as the
tokenizer.json of the `tokenizers` library. The README says where to obtain the files; none of them is part of this project.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from minidalle.checkpoint import load_tensors
from minidalle.clip import CLIP
from minidalle.config import CLIPConfig, DVAEConfig
from minidalle.dvae import DVAE
from minidalle.sequence import pack_text

LARGEST = 2**31  # bytes of one file; the released ones have about 215 and 175 million

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
        module = from_zip(path) if zipfile.is_zipfile(path) else from_legacy(path)
        tensors = dict(walk(module))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the README says where the released files are") from None
    except (ValueError, OSError, RuntimeError, RecursionError, LookupError, AttributeError, TypeError, EOFError,
            ImportError, MemoryError, OverflowError, pickle.UnpicklingError, zipfile.BadZipFile, struct.error) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a pickled module: {error}") from None
    if not tensors:
        raise ValueError(f"{path} holds no module with weights")
    return tensors


def walk(module, prefix: str = "", depth: int = 0):
    """(name, tensor) of all parameters and buffers of an `Inert` module, depth first."""
    if not isinstance(module, Inert) or depth > 20:
        raise ValueError(f"expected a module at {prefix or 'its top'}, got {type(module).__name__}")
    for group in ("_parameters", "_buffers"):
        for name, value in vars(module).get(group, {}).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
    for name, child in vars(module).get("_modules", {}).items():
        yield from walk(child, f"{prefix}{name}.", depth + 1)


class Inert:
    """Stands for an object of a class that is not to be run: it keeps its attributes, and does nothing."""

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise ValueError(f"the state of an object must be a dict, got {type(state).__name__}")
        self.__dict__.update(state)


DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool,
}  # fmt: skip


def tensor_of(storage, offset, size, stride, *_):
    """What torch._utils._rebuild_tensor_v2 does, for a storage that we have read: a view of it, inside its bounds."""
    if not isinstance(storage, torch.Tensor):
        raise ValueError(f"a tensor must be made of a storage, got {type(storage).__name__}")
    return storage.as_strided(size, stride, offset).clone()  # RuntimeError beyond the storage


def parameter_of(tensor, *_):
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"a parameter must be a tensor, got {type(tensor).__name__}")
    return tensor


KNOWN = {  # all that a file may name and we call; each builds a value and does nothing else
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_of,
    ("torch._utils", "_rebuild_parameter"): parameter_of,
}
INERT = ("dall_e.", "torch.nn.modules.")  # packages whose classes a file may name; none of them is imported


class Weights(pickle.Unpickler):
    """Reads tensors, plain containers and `Inert` objects; refuses every other name."""

    def __init__(self, file, storage):
        """storage(dtype, key, number) -> the numbers (number,) that the file keeps under `key`."""
        super().__init__(file)
        self.storage = storage

    def find_class(self, module: str, name: str):
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch", "device") or (module.startswith(INERT) and name.isidentifier()):
            return type(name, (Inert,), {})
        raise ValueError(f"it asks for {module}.{name}, which is neither a tensor nor a part of the released module")

    def persistent_load(self, pid):
        if isinstance(pid, tuple) and pid[:1] == ("module",) and isinstance(pid[1], type) and issubclass(pid[1], Inert):
            return pid[1]  # the older format notes a class with its source
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in DTYPES.values():
            raise ValueError(f"it names the storage {pid!r:.60}")
        return self.storage(pid[1], str(pid[2]), int(pid[4]))


def numbers(data: bytes, dtype: torch.dtype, number: int) -> torch.Tensor:
    """`data` as a tensor (number,). Raises ValueError for another length."""
    if len(data) != number * dtype.itemsize or not number:
        raise ValueError(f"a storage of {number} numbers has {len(data)} bytes, not {number * dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype)


def from_zip(path: Path):
    """The pickled object in torch's present format: an archive with data.pkl, and a file for each storage."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("a part of it is compressed, which torch never does")

        def storage(dtype, key, number):
            return numbers(archive.read(members[f"data/{key}"]), dtype, number)

        return Weights(io.BytesIO(archive.read(members["data.pkl"])), storage).load()


MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format


def from_legacy(path: Path):
    """The pickled object in torch's older format: a magic number, a version, a description of the machine, the object, the
    keys of its storages; then each storage, the count of its numbers in front."""
    kinds = {}  # key -> (dtype, count), noted while the object is read for the first time

    def note(dtype, key, number):
        kinds[key] = dtype, number
        return torch.empty(number, dtype=dtype, device="meta")  # no memory yet

    with path.open("rb") as file:
        if (Weights(file, note).load(), Weights(file, note).load()) != (MAGIC, PROTOCOL):
            raise ValueError("it is in neither of torch's formats")
        Weights(file, note).load()
        start = file.tell()
        Weights(file, note).load()
        keys, storages = Weights(file, note).load(), {}
        for key in keys:
            dtype, number = kinds[key]
            count = struct.unpack("<q", file.read(8))[0]
            storages[key] = numbers(file.read(min(count, number) * dtype.itemsize), dtype, number)
        file.seek(start)
        return Weights(file, lambda dtype, key, number: storages[key]).load()


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
        self.marks = {self.tokenizer.token_to_id(mark) for mark in ("<|startoftext|>", "<|endoftext|>")}
        if None in self.marks:
            raise ValueError(f"{path} has no <|startoftext|> and <|endoftext|>: it is not CLIP's vocabulary")

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
    clip = CLIP(config)
    put(clip, tensors, Path(weights))
    return clip.eval(), Vocabulary(vocabulary, config.context)
