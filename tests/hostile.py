"""Files that try to do harm when they are read as published weights: `python -m tests.hostile` counts how many are refused.

Each comes with its own reason, a pattern that the refusal has to match, and is read with 2 GB of address space more than the imports
took. Refused means: by one sentence for that reason, in less than 2 s of processor time, and nothing was executed.
"""

import copy
import copyreg
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from minidalle.scale.torchfile import module_tensors

SECONDS, MEGABYTES = 2, 500


class Hostile(NamedTuple):
    name: str
    reason: str  # a pattern for the refusal
    path: Path


# --- pickles, put together by hand -------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(n: int) -> bytes:
    if -(2**31) <= n < 2**31:
        return b"J" + struct.pack("<i", n)
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def of(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def put(k: int) -> bytes:
    return b"r" + struct.pack("<I", k)


def get(k: int) -> bytes:
    return b"j" + struct.pack("<I", k)


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    return of(text("storage"), named("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(of_storage: bytes | None = None, offset: int = 0, size=(4,), stride=(1,)) -> bytes:
    size, stride = (x if isinstance(x, bytes) else of(*map(number, x)) for x in (size, stride))
    arguments = of(of_storage or storage(), number(offset), size, stride, b"\x89", b"}")
    return named("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def module(parameters: bytes = b"}", children: bytes = b"}") -> bytes:
    """An object with dictionaries of parameters and children."""
    state = b"}(" + text("_parameters") + parameters + text("_modules") + children + b"u"
    return named("torch.nn.modules.linear", "Identity") + b")\x81" + state + b"b"


def weight(value: bytes) -> bytes:
    return b"}" + text("w") + value + b"s"


def tower(n: int) -> bytes:
    """A tuple of twice a tuple of twice ...: 2^n parts in 5 n bytes."""
    return b"N" + b"q\x00h\x00\x86" * n


CONTROL = (
    b"\x80\x02" + module(weight(tensor())) + b"."
)  # this one is fine, and shows that the others are put together well
NUMBERS = struct.pack("<4f", 0, 1, 2, 3)
MAGIC = b"\x80\x02" + number(0x1950A86A20F9469CFC6C) + b"." + b"\x80\x02" + number(1001) + b"." + b"\x80\x02}."


# --- the files -----------------------------------------------------------------------------------------------------------


def archive(path: Path, program: bytes, data: bytes = NUMBERS, change=None, kind=zipfile.ZIP_STORED) -> Path:
    """In torch's present format, with one storage. change(archive): to spoil it before its directory is written."""
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/data/0", data)
        if change:
            change(file)
    return path


def legacy(path: Path, program: bytes, keys: bytes, data: bytes = struct.pack("<q", 4) + NUMBERS) -> Path:
    path.write_bytes(MAGIC + program + keys + data)
    return path


ASKS = "it asks for {}, which is neither"
SYSTEM, BUILDER = named("posix", "system"), named("torch._utils", "_rebuild_parameter")
ENCODER, IDENTITY = named("dall_e.encoder", "Encoder"), named("torch.nn.modules.linear", "Identity")
FLOATS, SET = named("torch", "FloatStorage"), named("builtins", "set")


def executing(mark: Path) -> list[tuple[str, str, bytes]]:
    """(name, reason, pickle) of what would leave the file `mark`, if it were loaded as usual."""
    touch = text(f"touch {mark}")
    return [
        ("GLOBAL and REDUCE", ASKS.format("posix.system"), SYSTEM + of(touch) + b"R."),
        ("STACK_GLOBAL", ASKS.format("posix.system"), text("posix") + text("system") + b"\x93" + of(touch) + b"R."),
        ("eval", ASKS.format("builtins.eval"), named("builtins", "eval") + of(text(f"open({str(mark)!r}, 'w')")) + b"R."),
        ("exec", ASKS.format("builtins.exec"), named("builtins", "exec") + of(text(f"open({str(mark)!r}, 'w')")) + b"R."),
        ("open", ASKS.format("io.open"), named("io", "open") + of(text(str(mark)), text("w")) + b"R."),
        ("mkdir", ASKS.format("os.mkdir"), named("os", "mkdir") + of(text(str(mark))) + b"R."),
        ("INST", "the instruction INST,", b"(" + touch + b"iposix\nsystem\n."),
        ("extension, one byte", "the instruction EXT1,", b"\x82\xf0" + of(touch) + b"R."),
        ("extension, two bytes", "the instruction EXT2,", b"\x83\xf0\x00" + of(touch) + b"R."),
        ("extension, four bytes", "the instruction EXT4,", b"\x84\xf0\x00\x00\x00" + of(touch) + b"R."),
        ("in a parameter", ASKS.format("posix.system"), module(weight(SYSTEM + of(touch) + b"R")) + b"."),
        ("in a dictionary's key", ASKS.format("posix.system"), b"}" + SYSTEM + of(touch) + b"RNs."),
    ]  # fmt: skip


def forbidden() -> list[tuple[str, str, bytes]]:
    """Names, calls and states that are not for a file to ask for."""
    return [
        ("import", ASKS.format("builtins.__import__"), named("builtins", "__import__") + of(text("os")) + b"R."),
        ("getattr", ASKS.format("builtins.getattr"), named("builtins", "getattr") + of(text("a"), text("upper")) + b"R."),
        ("torch.load", ASKS.format("torch.load"), named("torch", "load") + of(text("a")) + b"R."),
        ("torch.hub", ASKS.format("torch.hub.load"), named("torch.hub", "load") + of(text("a"), text("b")) + b"R."),
        ("dots in a name", ASKS.format("torch.nn.modules.linear.torch.load"), text("torch.nn.modules") + text("linear.torch.load") + b"\x93."),
        ("no name", ASKS.format(r"dall_e.x.1 \+ 1"), named("dall_e.x", "1 + 1") + b"."),
        ("OBJ", "the instruction OBJ,", b"(" + ENCODER + b"o."),
        ("NEWOBJ_EX", "the instruction NEWOBJ_EX,", ENCODER + b")}\x92."),
        ("a text as persistent id", "the instruction PERSID,", b"Pposix.system\n."),
        ("out-of-band buffer", "the instruction NEXT_BUFFER,", b"\x97."),
        ("buffer made read-only", "the instruction READONLY_BUFFER,", b"N\x98."),
        ("NEWOBJ of a builder", "it makes an object of a Builder", BUILDER + b")\x81."),
        ("NEWOBJ with arguments", "or with arguments", ENCODER + of(text("a")) + b"\x81."),
        ("a class called", "it calls a type", ENCODER + b")R."),
        ("a type of numbers called", "it calls a dtype", FLOATS + b")R."),
        ("a text called", "it calls a str", text("posix.system") + b")R."),
        ("BUILD on a builder", "it changes a Builder as if", BUILDER + b"}" + text("make") + text("x") + b"sb."),
        ("BUILD on a class", "it changes a type as if", ENCODER + b"}" + text("state") + b"}sb."),
        ("BUILD on a tensor", "it changes a View as if", tensor() + b"}" + text("size") + b"Nsb."),
        ("BUILD with a class attribute", "it has the name __class__", IDENTITY + b")\x81}" + text("__class__") + ENCODER + b"sb."),
        ("BUILD with a method", "it has the name __setstate__", IDENTITY + b")\x81}" + text("__setstate__") + BUILDER + b"sb."),
        ("BUILD with slots", "the state of an object in it is a tuple", IDENTITY + b")\x81}}\x86b."),
        ("APPEND to an object", "it changes a Inert as if it were of type list", IDENTITY + b")\x81Na."),
        ("SETITEM on a class", "it changes a type as if it were of type dict", ENCODER + text("a") + b"Ns."),
    ]  # fmt: skip


def endless() -> list[tuple[str, str, bytes]]:
    """Small values that are very large to print, hash, compare or copy."""
    return [
        ("endless persistent id", "it names a storage by a tuple", tower(2000) + b"Q."),
        ("endless key of a storage", "of type tuple for a name",
         of(text("storage"), FLOATS, tower(2000), text("cpu"), number(4)) + b"Q."),
        ("endless kind", "not a storage", of(tower(2000), tower(2000), tower(2000), tower(2000), number(4)) + b"Q."),
        ("endless count", "of other than 1", of(text("storage"), FLOATS, text("0"), text("cpu"), tower(2000)) + b"Q."),
        ("endless module", "what it holds is a tuple, expected a module", tower(2000) + b"."),
        ("endless name", "of type tuple for a name", tower(2000) + text("system") + b"\x93."),
        ("endless state", "the state of an object in it is a tuple", IDENTITY + b")\x81" + tower(2000) + b"b."),
        ("endless arguments", "it describes a tensor by other things", named("torch._utils", "_rebuild_tensor_v2") + of(tower(2000) + put(0) + get(0) * 3) + b"R."),
        ("endless key", "of type tuple for a name", b"}" + tower(2000) + b"Ns."),
        ("endless key among many", "of type tuple for a name", b"}(" + text("a") + b"N" + tower(2000) + b"Nu."),
        ("endless set", "what it holds is a tuple", SET + of(b"](" + tower(2000) + b"e") + b"R."),
        ("keys that collide", "of type int for a name", b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 25_000)) + b"u."),
        ("a list copied by OrderedDict", "it fills an OrderedDict in the call",
         b"](" + b"N" * 100_000 + b"e" + put(1) + named("collections", "OrderedDict") + put(2) + (get(2) + get(1) + b"\x85R") * 25_000 + b"."),
        ("a list copied by set", "what it holds is a tuple",
         b"](" + b"N" * 100_000 + b"e" + put(1) + SET + put(2) + (get(2) + get(1) + b"\x85R") * 25_000 + b"."),
        ("a list as size", "it describes a tensor by other things", b"](" + b"K\x01" * 100_000 + b"e" + put(1) + tensor(size=get(1), stride=get(1)) + b"."),
        ("a short list as size", "it describes a tensor by other things", tensor(size=b"]K\x01a", stride=b"]K\x01a") + b"."),
        ("a long tuple as size", "a stride of at most 8", b"(" + b"K\x01" * 100_000 + b"t" + put(1) + tensor(size=get(1), stride=get(1)) + b"."),
        ("many arguments, many times", "at most 8 arguments",
         b"(" + b"N" * 100_000 + b"t" + put(1) + SET + put(2) + (get(2) + get(1) + b"R") * 25_000 + b"."),
        ("one state for many objects", "what it holds is a NoneType", b"}("
         + b"".join(text(f"{k}") + b"N" for k in range(10_000)) + b"u" + put(1) + IDENTITY + put(2) + (get(2) + b")\x81" + get(1) + b"b") * 25_000 + b"N."),
    ]  # fmt: skip


def broken() -> list[tuple[str, str, bytes]]:
    """Lengths that are not true, and programs that make no sense."""
    return [
        ("a bytearray of a terabyte", "1099511627776 bytes in a bytearray8", b"\x96" + struct.pack("<Q", 2**40) + b"."),
        ("a text of four gigabytes", "4294967295 bytes in a unicodestring4", b"X\xff\xff\xff\xff."),
        ("a text of an exabyte", "in a unicodestring8", b"\x8d" + struct.pack("<Q", 2**60) + b"."),
        ("bytes of negative length", "long4 byte count < 0", b"\x8b\xff\xff\xff\xff."),
        ("a number of half a million digits", "digits", b"I" + b"9" * 500_000 + b"\n."),
        ("a memo with a place of 2^32", "what it holds is a NoneType", b"Nr\xff\xff\xff\xff."),
        ("a memo that was never filled", "an instruction of it finds nothing", b"h\x07."),
        ("an empty stack", "an instruction of it finds nothing", b"\x85."),
        ("no end", "exhausted before seeing STOP", b"N"),
        ("an unknown instruction", r"opcode b'\\xff' unknown", b"\xff."),
    ]  # fmt: skip


def many() -> list[tuple[str, str, bytes]]:
    """Much, deep or wide, of what is allowed."""
    return [
        ("copies of the top", "the instruction DUP,", b"N" + b"2" * 1_000 + b"."),
        ("many marks", "an instruction of it finds nothing", b"(" * 100_000 + b"\x85."),
        ("many dictionaries", "what it holds is a dict", b"}" * 100_000 + b"."),
        ("half a million tuples in each other", "what it holds is a tuple", b"N" + b"\x85" * 500_000 + b"."),
        ("lists in each other", "what it holds is a list", b"]" * 100_000 + b"a" * 99_999 + b"."),
        ("a list in itself", "what it holds is a list", b"]" + put(0) + get(0) * 1000 + b"a" * 1000 + b"."),
        ("many places in the memo", "what it holds is a NoneType", b"N" + b"\x94" * 100_000 + b"."),
        ("many texts", "what it holds is a str", (b"X\x02\x00\x00\x00ab") * 30_000 + b"."),
        ("many objects", "what it holds is a tuple", IDENTITY + put(0) + (get(0) + b")\x81") * 30_000 + b")."),
        ("many names", "what it holds is a type", named("dall_e.a", "b") * 20_000 + b"."),
        ("a name of half a million letters", "it asks for a", named("a" * 500_000, "b") + b"."),
        ("modules 20,000 deep", "a name in it has more than 200 letters", deep(20_000)),
        ("a module in itself", "a name in it has more than 200 letters", itself()),
        ("ten children, twenty levels", "more than 10,000 parts", wide(10, 20)),
        ("one dictionary for many modules", "more than 10,000 parts", shared(5_000, 5_000)),
        ("a long name", "it has the name n{80}:", module(b"}" + text("n" * 201) + b"Ns") + b"."),
        ("a name that clears the screen", r"it has the name \\x1b\[2J", module(b"}" + text("\x1b[2J") + b"Ns") + b"."),
    ]  # fmt: skip


def misdescribed() -> list[tuple[str, str, bytes]]:
    """Modules and tensors that cannot be."""
    return [
        ("parameters that are a list", "its _parameters are a list", module(b"]") + b"."),
        ("a description of two megabytes", "its description has more than", b"N" * 2**21 + b"."),
        ("no weights", "holds no module with weights", module() + b"."),
        ("a storage of 2^60 numbers", "it has a storage of other than", module(weight(tensor(storage(count=2**60), size=(2**60,)))) + b"."),
        ("a storage of -4 numbers", "it has a storage of other than", module(weight(tensor(storage(count=-4)))) + b"."),
        ("a storage of no numbers", "it has a storage of other than", module(weight(tensor(storage(count=0)))) + b"."),
        ("a storage that is not there", "its storage 1 should have 16 bytes, and has none", module(weight(tensor(storage("1")))) + b"."),
        ("a storage of other bytes", "its storage 0 should have 32 bytes, and has 16", module(weight(tensor(storage(count=8)))) + b"."),
        ("a storage described twice", "it describes the storage 0 in two ways",
         module(b"}(" + text("a") + tensor() + text("b") + tensor(storage(kind="IntStorage")) + b"u") + b"."),
        ("a tensor beyond its storage", "reaches beyond its storage of 4", module(weight(tensor(offset=2))) + b"."),
        ("a tensor of repeated numbers", "reaches beyond its storage of 4", module(weight(tensor(size=(10**8,), stride=(0,)))) + b"."),
        ("a tensor of nothing", "reaches beyond its storage of 4", module(weight(tensor(size=(0,)))) + b"."),
        ("a negative offset", "other things than whole numbers", module(weight(tensor(offset=-1))) + b"."),
        ("a stride of 2^62", "other things than whole numbers", module(weight(tensor(size=(1,), stride=(2**62,)))) + b"."),
        ("a size of another length", "it describes a tensor by other things", module(weight(tensor(size=(4, 1)))) + b"."),
        ("a tensor of no storage", "it describes a tensor by other things", module(weight(tensor(text("none")))) + b"."),
    ]  # fmt: skip


def deep(n: int) -> bytes:
    """Modules in each other: the innermost is written first."""
    start = IDENTITY + put(0) + text("_modules") + put(1) + text("a") + put(2)
    inner = get(0) + b")\x81"
    return start + (get(0) + b")\x81}" + get(1) + b"}" + get(2)) * n + inner + b"ssb" * n + b"."


def itself() -> bytes:
    """A module that is its own child."""
    return IDENTITY + b")\x81" + put(0) + b"}" + text("_modules") + b"}" + text("a") + get(0) + b"ssb."


def wide(children: int, levels: int) -> bytes:
    """A module of so many children that are all the same one, which has so many children ..."""
    program = module() + put(0)
    for _ in range(levels):
        program += module(children=b"}(" + b"".join(text(f"{k}") + get(0) for k in range(children)) + b"u") + put(0)
    return program + b"."


def shared(modules: int, parameters: int) -> bytes:
    """Many modules that have the same many parameters."""
    names = b"}(" + b"".join(text(f"{k}") + b"N" for k in range(parameters)) + b"u" + put(1)
    one = module(get(1)) + put(2)
    children = b"}(" + b"".join(text(f"{k}") + get(2) for k in range(modules)) + b"u"
    return names + one + module(children=children) + b"."


def spoiled_archives(folder: Path) -> list[Hostile]:
    """Archives with harmless pickles, whose directory or numbers are not as they should be."""

    def spoil(name: str, reason: str, change=None, patch=None, **options) -> Hostile:
        path = archive(folder / f"{name}.zip", CONTROL, change=change, **options)
        if patch:
            path.write_bytes(patch(path.read_bytes()))
        return Hostile(name, reason, path)

    def entry(data: bytes, at: int, value: bytes) -> bytes:
        """Overwrite a field in the directory's entry of the storage, the last."""
        place = data.rindex(b"PK\1\2") + at
        return data[:place] + value + data[place + len(value) :]

    def repeat(n: int):
        def change(file):
            info = file.infolist()[-1]
            for k in range(n):
                file.filelist.append(copy.copy(info))
                file.filelist[-1].filename = f"archive/data/{k}"

        return change

    def without_description(file):
        file.filelist.pop(0)

    def encrypted(data):
        return entry(data, 8, b"\1")

    huge = struct.pack("<I", 2**30)
    return [
        spoil("compressed", "is compressed", kind=zipfile.ZIP_DEFLATED),
        spoil("compressed a thousand times", "is compressed", kind=zipfile.ZIP_LZMA, data=bytes(10_000_000)),
        spoil("a part of a false size", "other sizes than the directory says", patch=lambda d: entry(d, 24, huge)),
        spoil("a part that is stored longer", "other sizes than the directory says", patch=lambda d: entry(d, 20, huge)),
        spoil("a part longer than the file", "other sizes than the directory says", patch=lambda d: entry(d, 20, huge * 2)),
        spoil("one part under a thousand names", "other sizes than the directory says", repeat(1000), data=bytes(100_000)),
        spoil("thirty thousand parts", "its directory has more than", repeat(30_000)),
        spoil("a directory of four gigabytes", "a broken archive", patch=lambda d: d[:-10] + b"\xfe\xff\xff\xff" + d[-6:]),
        spoil("without a description", "without data.pkl", without_description),
        spoil("half an archive", "a broken archive", patch=lambda d: d[: len(d) // 2]),
        spoil("without an end", "a broken archive", patch=lambda d: d[:-10]),
        spoil("encrypted", "encrypted", patch=encrypted),
        spoil("other numbers than were stored", "Bad CRC-32", patch=lambda d: d.replace(NUMBERS, NUMBERS[::-1])),
    ]  # fmt: skip


def spoiled_legacy(folder: Path) -> list[Hostile]:
    """The older format, in which five pickles come first and then the numbers."""
    keys, start = b"\x80\x02](" + text("0") + b"e.", MAGIC.split(b".")[0] + b"."
    system = SYSTEM + of(text("true")) + b"R."
    large = b"\x80\x02" + module(weight(tensor(storage(count=2**30), size=(2**30,)))) + b"."
    asks = ASKS.format("posix.system")
    made = [
        ("code as magic number", asks, system + MAGIC + CONTROL + keys),
        ("code as the computer's description", asks, MAGIC[:-2] + system + CONTROL + keys),
        ("code as keys", asks, MAGIC + CONTROL + system),
        ("neither format", "neither of torch's formats", start * 2 + CONTROL + keys),
        ("not a pickle", "unknown|instruction", b"GIF89a" + bytes(1000)),
        ("nothing", "exhausted before seeing STOP", b""),
        ("keys that are no list", "other storages than its tensors need", MAGIC + CONTROL + text("0") + b"."),
        ("keys without end", "other storages than its tensors need", MAGIC + CONTROL + b"]" + tower(2000) + b"a" + b"Na."),
        ("a key without end", "of type tuple for a name", MAGIC + CONTROL + b"]" + tower(2000) + b"a."),
        ("another key", "other storages than its tensors need", MAGIC + CONTROL + b"](" + text("1") + b"e."),
        ("no keys", "other storages than its tensors need", MAGIC + CONTROL + b"]."),
        ("a count of -4", "should have 4 numbers, and has -4", MAGIC + CONTROL + keys + struct.pack("<q", -4) + NUMBERS),
        ("a count of 2^62", "should have 4 numbers, and has 46116860", MAGIC + CONTROL + keys + struct.pack("<q", 2**62)),
        ("numbers cut off", "should have 16 bytes, and has 15", MAGIC + CONTROL + keys + struct.pack("<q", 4) + NUMBERS[:-1]),
        ("storages larger than the file", "more bytes than the file", MAGIC + large + keys + struct.pack("<q", 2**30)),
        ("a long description", "its description has more than", MAGIC + b"N" * 2**19 + CONTROL + keys),
        ("five long descriptions", "its description has more than", MAGIC[:-2] + b"N" * 2**18 + b"}." + b"N" * 2**18 + CONTROL),
    ]  # fmt: skip
    files = [Hostile(f"older format: {name}", reason, folder / f"{name}.pkl") for name, reason, _ in made]
    for file, (_, _, data) in zip(files, made):
        file.path.write_bytes(data)
    return files


def hostile_files(folder: Path, mark: Path) -> list[Hostile]:
    """Write them all. `mark` is what those that execute something would leave."""
    files = []
    for group in (executing(mark), forbidden(), endless(), broken(), many(), misdescribed()):
        for name, reason, program in group:
            path = archive(folder / f"{len(files)}.zip", b"\x80\x02" + program)
            files.append(Hostile(name, reason, path))
    for name, reason, program in executing(mark):
        path = legacy(folder / f"{len(files)}.pkl", b"\x80\x02" + program, b"].")
        files.append(Hostile(f"{name}, older format", reason, path))
        path = folder / f"{len(files)}.pkl"
        path.write_bytes(program)
        files.append(Hostile(f"{name}, as it is", reason, path))
    sparse = folder / "sparse.pkl"
    sparse.touch()
    with sparse.open("r+b") as file:
        file.truncate(3 * 2**30)
    files.append(Hostile("three gigabytes of nothing", "more than any released file", sparse))
    return files + spoiled_archives(folder) + spoiled_legacy(folder)


# --- reading them --------------------------------------------------------------------------------------------------------


def refusal(read: Callable) -> tuple[str, float]:
    """(what is said, seconds of processor time); what takes too long is interrupted."""

    def stop(*_):
        raise TimeoutError("it takes too long")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    started, said = time.process_time(), "nothing"
    try:
        said = str(read())
    except ValueError as error:
        said = str(error)
    except BaseException as error:
        said = f"another error: {error!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return said, time.process_time() - started


def memory(field: str) -> float:
    """MB of this process: VmSize its address space, VmRSS what it has, VmHWM the most that it had since `forget`."""
    return int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def forget():
    Path("/proc/self/clear_refs").write_text("5")


def count(what: str, cases: list[tuple[str, str, Callable]], harmed: Callable[[], bool]) -> int:
    """Read each of the (name, pattern of the reason, function that reads it) with 2 GB of address space more than there is
    now, and print how many are refused as they should be. Returns 0 if all are."""
    limit = int((memory("VmSize") + 2048) * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    refused, slowest, largest = 0, 0.0, 0.0
    for name, reason, read in cases:
        forget()
        before = memory("VmRSS")
        said, seconds = refusal(read)
        more = memory("VmHWM") - before
        sentence = "\n" not in said and len(said) < 600 and "another error" not in said
        if re.search(reason, said) and sentence and seconds < SECONDS and more < MEGABYTES and not harmed():
            refused += 1
        else:
            print(f"NOT REFUSED AS IT SHOULD BE: {name} ({seconds:.1f} s, {more:.0f} MB): {said[:400]}")
        slowest, largest = max(slowest, seconds), max(largest, more)
    print(f"{what} {refused} of {len(cases)}, each for its own reason, nothing executed;")
    print(f"at most {slowest:.1f} s of processor time and {largest:.0f} MB for one")
    return refused != len(cases)


def main() -> int:
    copyreg.add_extension("posix", "system", 240)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        mark = folder / "mark"
        files = hostile_files(folder, mark)
        for fine in (archive(folder / "f.zip", CONTROL), legacy(folder / "f.pkl", CONTROL, b"](" + text("0") + b"e.")):
            assert module_tensors(fine)["w"].tolist() == [0, 1, 2, 3]
        cases = [(file.name, file.reason, partial(module_tensors, file.path)) for file in files]
        return count("hostile pickles: refused", cases, mark.exists)


if __name__ == "__main__":
    sys.exit(main())
