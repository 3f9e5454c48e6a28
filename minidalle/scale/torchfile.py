"""A module that torch.save has pickled whole, as tensors by name: both of torch's formats, read by the machine of pickles.py.

    module_tensors("encoder.pkl")  ->  {"blocks.input.w": tensor (256, 3, 7, 7), ...}

What a file describes is looked at first: which names it has, and whether its sizes fit the bytes that are there. Only then are
numbers read, each storage once, so that no size that a file claims, and nothing that it shows twice, takes memory that the file
does not have.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from minidalle.scale.pickles import DESCRIPTION, LARGEST, LONGEST, Inert, Machine, Storage, View, kind, shown, text

DIRECTORY = 2**20  # bytes of an archive's directory
PARTS = 10_000  # of a module: its parameters, buffers, modules and theirs; the released ones have about 200


def module_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The parameters and buffers, by name, of a module that torch.save has pickled whole, in either of its formats.

    Raises ValueError, naming the file and the reason, for one that is missing, damaged, or asks for anything else.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than any released file")
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\3\4"
        tensors = from_zip(path) if zipped else from_legacy(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: the README says where the released files are") from None
    except Exception as error:  # broken bytes can make zipfile and pickletools raise nearly anything
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a pickled module: {reason}") from None
    if not tensors:
        raise ValueError(f"{path} holds no module with weights")
    return tensors


def walk(module) -> Iterator[tuple[str, View]]:
    """(name, tensor) of all parameters and buffers. Raises ValueError for what is no module, or has more or deeper parts than any
    released file."""
    waiting, parts = [("", module)], 0
    while waiting:
        prefix, module = waiting.pop()
        if type(module) is not Inert:
            raise ValueError(f"{shown(prefix[:-1]) or 'what it holds'} is a {kind(module)}, expected a module")
        for group in ("_parameters", "_buffers", "_modules"):
            members = module.state.get(group, {})
            if type(members) is not dict:
                raise ValueError(f"its {group} are a {kind(members)}, expected a dictionary")
            for name, value in members.items():
                parts += 1
                if parts > PARTS:
                    raise ValueError(f"it has more than {PARTS:,} parts")
                if len(prefix) + len(name) > LONGEST:
                    raise ValueError(f"a name in it has more than {LONGEST} letters")
                if group == "_modules":
                    waiting.append((f"{prefix}{name}.", value))
                elif type(value) is View:
                    yield prefix + name, value


def tensors_of(module, load: Callable[[Storage], torch.Tensor]) -> dict[str, torch.Tensor]:
    """load: the numbers (count,) of a storage; asked once for each."""
    loaded, tensors = {}, {}
    for name, view in list(walk(module)):
        key = view.storage.key
        if key not in loaded:
            loaded[key] = load(view.storage)
        tensors[name] = loaded[key].as_strided(view.size, view.stride, view.offset)
    return tensors


def numbers(data: bytes, storage: Storage) -> torch.Tensor:
    if len(data) != storage.n_bytes:
        raise ValueError(f"its storage {shown(storage.key)} should have {storage.n_bytes} bytes, and has {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=storage.dtype)


# --- torch's present format: an archive with data.pkl, and a file for each storage ---------------------------------------


class Bounded(io.FileIO):
    """A file that hands out `left` bytes, and no more."""

    left = DIRECTORY

    def read(self, size: int = -1) -> bytes:
        data = super().read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"its directory has more than {DIRECTORY:,} bytes")
        return data


def from_zip(path: Path) -> dict[str, torch.Tensor]:
    with Bounded(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise ValueError(f"it is a broken archive ({error})") from None
        file.left = 3 * LARGEST  # from here on the sizes are known: no part is read twice
        parts = parts_of(archive, path.stat().st_size)

        def load(storage):
            info = parts.get(f"data/{storage.key}")
            if info is None or info.file_size != storage.n_bytes:
                there = f"{info.file_size} bytes" if info else "none"
                raise ValueError(
                    f"its storage {shown(storage.key)} should have {storage.n_bytes} bytes, and has {there}"
                )
            return numbers(archive.read(info), storage)

        return tensors_of(Machine().run(io.BytesIO(archive.read(parts["data.pkl"]))), load)


def parts_of(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's members without the folder that they are in; `size` is the file's."""
    members = archive.infolist()
    parts = {info.filename.partition("/")[2]: info for info in members}
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise ValueError("a part of it is compressed, which torch never does")
    if any(info.compress_size != info.file_size for info in members) or sum(i.file_size for i in members) > size:
        raise ValueError("its parts have other sizes than the directory says")
    if "data.pkl" not in parts:
        raise ValueError("it is an archive without data.pkl")
    if parts["data.pkl"].file_size > DESCRIPTION:
        raise ValueError(f"its description has more than {DESCRIPTION:,} bytes")
    return parts


# --- torch's older format: five pickles, then each storage, with the count of its numbers in front ------------------------

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def from_legacy(path: Path) -> dict[str, torch.Tensor]:
    machine, size = Machine(), path.stat().st_size
    with path.open("rb") as file:
        program = io.BytesIO(file.read(DESCRIPTION + 1))
        if [machine.run(program), machine.run(program)] != [MAGIC, PROTOCOL]:
            raise ValueError("it is in neither of torch's formats")
        machine.run(program)  # about the computer that wrote it
        module, keys = machine.run(program), machine.run(program)
        if type(keys) is not list or len(keys) != len(machine.storages) or {*map(text, keys)} != {*machine.storages}:
            raise ValueError("it has other storages than its tensors need")
        if sum(storage.n_bytes for storage in machine.storages.values()) > size:
            raise ValueError("its storages should have more bytes than the file has")
        file.seek(program.tell())
        loaded = {key: read_storage(file, machine.storages[key]) for key in keys}
    return tensors_of(module, lambda storage: loaded[storage.key])


def read_storage(file, storage: Storage) -> torch.Tensor:
    count = int.from_bytes(file.read(8), "little", signed=True)
    if count != storage.count:
        raise ValueError(f"its storage {shown(storage.key)} should have {storage.count} numbers, and has {count}")
    return numbers(file.read(storage.n_bytes), storage)
