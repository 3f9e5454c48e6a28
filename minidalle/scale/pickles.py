"""Reads pickles that describe tensors, without running what they ask for.

    Machine().run(io.BytesIO(data))  ->  dicts, lists, tuples, numbers and texts, `View` for a tensor, `Inert` for a module

A pickle is a program for a small machine with a stack. Its instructions push numbers, texts and containers, look up any
name of any module, and call what they found: opening one can do anything. The library `pickletools` takes such a program
apart without running it, and `Machine` here runs what torch writes and nothing else: a name is looked up in the table
`KNOWN` and nowhere else, an object of another package's class becomes an `Inert` one that only has a state, a tensor
becomes a `View`, the description of one (torchfile.py makes tensors of them).

A short program can also be a bomb: as it may refer to what it has built, a few bytes describe a tower of 2^1000 parts,
harmless until something copies, compares, hashes or prints it. So an instruction here touches only what its own bytes
have put on the stack, never the inside of what lies there, and the keys of dictionaries are short texts.
"""

import io
import math
import pickletools
from collections.abc import Callable
from typing import NamedTuple

import torch

LARGEST = 2**31  # bytes of one file, and numbers of a storage; the released files have about 215 and 175 million bytes
DESCRIPTION = 2**19  # bytes of a file's pickles; stand-ins with the released structure have 24,000
LONGEST = 200  # letters of a name

# --- what a file describes -------------------------------------------------------------------------------------------


class Inert:
    """Stands for an object of a class that is not to be run: it has the state that the file gives it, and does nothing."""

    __slots__ = ("state",)

    def __init__(self):
        self.state = {}


class Storage(NamedTuple):
    """Numbers that the file keeps under a key; none of them is read yet."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def n_bytes(self) -> int:
        return self.count * self.dtype.itemsize


class View(NamedTuple):
    """A tensor, as a view of a storage that lies wholly inside it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Builder(NamedTuple):
    """A function of ours that a file may name and have called."""

    make: Callable


def view_of(storage, offset, size, stride, *_) -> View:
    """In place of torch's `_rebuild_tensor_v2`."""
    shapes = type(size) is type(stride) is tuple and len(size) == len(stride) <= 8
    if type(storage) is not Storage or not shapes:
        raise ValueError(
            "it describes a tensor by other things than a storage, a size and a stride of at most 8 numbers"
        )
    if not all(type(n) is int and 0 <= n <= LARGEST for n in (offset, *size, *stride)):
        raise ValueError(f"it describes a tensor by other things than whole numbers of at most {LARGEST:,}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 in size or math.prod(size) > storage.count or last >= storage.count:
        raise ValueError(f"a tensor of size {size} reaches beyond its storage of {storage.count} numbers")
    return View(storage, offset, size, stride)


def empty_dictionary(*items) -> dict:
    if items:
        raise ValueError("it fills an OrderedDict in the call that makes it, which torch does not")
    return {}


DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool,
}  # fmt: skip
KNOWN = {  # all that a file may name and have called
    ("collections", "OrderedDict"): Builder(empty_dictionary),
    ("builtins", "set"): Builder(lambda *_: ()),  # modules keep a set of names, which nobody here asks for
    ("__builtin__", "set"): Builder(lambda *_: ()),
    ("torch", "device"): Builder(lambda *_: None),
    ("torch._utils", "_rebuild_tensor_v2"): Builder(view_of),
    ("torch._utils", "_rebuild_parameter"): Builder(lambda tensor, *_: tensor),
}
INERT = ("dall_e.", "torch.nn.modules.")  # packages whose classes a file may name; none of them is imported


def named(module: str, name: str):
    """What a file gets when it asks for a name."""
    if (module, name) in KNOWN:
        return KNOWN[module, name]
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if module.startswith(INERT) and name.isidentifier():
        return Inert
    raise ValueError(
        f"it asks for {shown(f'{module}.{name}')}, which is neither a tensor nor a part of the released module"
    )


def shown(name: str) -> str:
    """A name in a file, in short and without control characters."""
    return repr(name[:80])[1:-1]


def kind(value) -> str:
    """What is said of a value of a file, whose repr may have no end."""
    return type(value).__name__


# --- the machine that builds it ----------------------------------------------------------------------------------------

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class Machine:
    """Runs pickles that describe tensors, plain containers and `Inert` objects, and refuses all others."""

    def __init__(self):
        self.storages: dict[str, Storage] = {}  # all that the pickles have described, by key

    def run(self, program: io.BytesIO):
        """What the pickle at the place of `program` builds; the place is behind it then."""
        self.stack, self.marks, self.memo = [], [], {}
        try:
            for instruction, argument, _ in pickletools.genops(program):
                self.step(instruction.name, argument)
            return self.stack.pop()
        except (IndexError, KeyError):
            raise ValueError("an instruction of it finds nothing to work on") from None
        except ValueError:
            if program.tell() > DESCRIPTION:
                raise ValueError(f"its description has more than {DESCRIPTION:,} bytes") from None
            raise

    def step(self, instruction: str, argument):
        """One instruction; `argument` is what pickletools has read behind it."""
        stack = self.stack
        match instruction:
            case "MARK":  # the instructions whose names end in S, and TUPLE, take all that lies above the last mark
                self.marks.append(len(stack))
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[instruction])
            case "TUPLE1":
                stack[-1] = (stack[-1],)
            case "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(instruction[-1]))))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "GLOBAL":
                stack.append(named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(named(*map(text, self.pop(2))))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "APPEND" | "APPENDS":
                items = self.pop(1) if instruction == "APPEND" else self.pop_to_mark()
                self.top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.pop(2) if instruction == "SETITEM" else self.pop_to_mark()
                self.top(dict).update(zip(map(text, items[::2]), items[1::2], strict=True))
            case "NEWOBJ":
                stack.append(new(*self.pop(2)))
            case "REDUCE":
                stack.append(call(*self.pop(2)))
            case "BUILD":
                state = stack.pop()
                self.top(Inert)
                if type(state) is not dict:
                    raise ValueError(f"the state of an object in it is a {kind(state)}, expected a dict")
                stack[-1].state = state
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"it uses the instruction {instruction}, which torch does not write")

    def pop(self, n: int) -> list:
        if n > len(self.stack):
            raise IndexError
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def pop_to_mark(self) -> list:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def top(self, cls: type):
        """The top of the stack, which is to be changed. Raises ValueError where it is of another type."""
        if type(self.stack[-1]) is not cls:
            raise ValueError(f"it changes a {kind(self.stack[-1])} as if it were of type {cls.__name__}")
        return self.stack[-1]

    def persistent(self, pid):
        """What torch keeps beside the pickle: a storage; in the older format also a class, with its source."""
        if type(pid) is not tuple or not 4 <= len(pid) <= 6:
            raise ValueError(f"it names a storage by a {kind(pid)}, expected a tuple of 5")
        what, dtype, key, _, *count = pid
        if what == "module" and dtype is Inert:
            return Inert
        if what != "storage" or type(dtype) is not torch.dtype or count[1:] not in ([], [None]):
            raise ValueError("it keeps something beside it that is not a storage")
        if not count or type(count[0]) is not int or not 0 < count[0] <= LARGEST:
            raise ValueError(f"it has a storage of other than 1 … {LARGEST:,} numbers")
        storage = Storage(dtype, text(key), count[0])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"it describes the storage {shown(key)} in two ways")
        return storage


def text(value) -> str:
    """A name or key of a file. Raises ValueError unless it is a short text that can be printed, and no name of Python's own."""
    if type(value) is not str:
        raise ValueError(f"it has a value of type {kind(value)} for a name")
    if len(value) > LONGEST or value.startswith("__") or not value.isprintable():
        raise ValueError(f"it has the name {shown(value)}: too long, not to be printed, or with __ in front")
    return value


def new(cls, arguments) -> Inert:
    if cls is not Inert or type(arguments) is not tuple or arguments:
        raise ValueError(f"it makes an object of a {kind(cls)}, or with arguments")
    return Inert()


def call(builder, arguments):
    if type(builder) is not Builder:
        raise ValueError(f"it calls a {kind(builder)}")
    if type(arguments) is not tuple or len(arguments) > 8:
        raise ValueError("it calls something with other than a tuple of at most 8 arguments")
    return builder.make(*arguments)
