"""Files of every kind that try to do harm, beside the pickles of `tests/hostile.py`: `python -m tests.hostile_files` counts
how many are refused, or skipped by name.

Each comes with its own reason, a pattern that the refusal has to match, and is read with 2 GB of address space more than the
imports took. Refused means: in one sentence for that reason, in less than 2 s of processor time and with less than 500 MB.
"""

import io
import json
import lzma
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from minidalle import checkpoint
from minidalle.bpe import BPE
from minidalle.data import filter, folder
from minidalle.data.folder import read_caption
from minidalle.scale import packing, shards
from minidalle.studio import provenance, records
from tests.hostile import count

LESSON = Path(__file__).parent.parent / "lessons/weights"
DEEP = "[" * 100_000
Cases = list[tuple[str, str, Callable]]  # (what it is, a pattern for the refusal, what reads it)


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of so many bytes that takes no room on the disk."""
    with write(path, head).open("r+b") as file:
        file.truncate(size)
    return path


# --- weights ---------------------------------------------------------------------------------------------------------


def head(value, length: int | None = None) -> bytes:
    """The beginning of a safetensors file."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def tensor(shape: list[int], end: int) -> dict:
    return {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


def weights(d: Path) -> Cases:
    files = {
        "a head that claims 10^15 bytes": (head(b"{}", 10**15), "claims 1,000,000,000,000,000 bytes"),
        "a head that claims 90 MB": (head(b"{}", 90_000_000), "claims 90,000,000 bytes"),
        "a tensor that claims 10^15 bytes": (head(tensor([10**14], 4 * 10**14)), "not a whole safetensors"),
        "a shape whose product overflows": (head(tensor([2**62, 2**62], 4)), "not a whole safetensors"),
        "a head nested 100,000 deep": (head(DEEP.encode()), "not a whole safetensors"),
        "a pickle by another name": (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", "not a whole safetensors|claims"),
        "weights of nothing": (b"", "not a whole safetensors"),
    }  # fmt: skip
    load = checkpoint.load_dvae
    cases = [
        (name, reason, partial(load, write(d / f"w{k}/dvae.safetensors", data).parent))
        for k, (name, (data, reason)) in enumerate(files.items())
    ]
    large = sparse(d / "large/dvae.safetensors", 2**40)
    cases.append(("a terabyte of nothing", "not a whole safetensors", lambda: load(large.parent)))
    tensors, metadata = checkpoint.load_tensors(LESSON / "dvae.safetensors")
    config = json.loads(metadata["config"])
    for key, value in [("n_hid", 10**9), ("n_group", 10**9), ("codebook_size", 2**31), ("n_block", -1), ("patch", 0), ("n_init", 64 * 999)]:  # fmt: skip
        path = d / f"config-{key}/dvae.safetensors"
        checkpoint.save_tensors(path, tensors, metadata | {"config": json.dumps(config | {key: value})})
        cases.append((f"an architecture with {key} = {value}", "do not fit", partial(load, path.parent)))
    for name, text in (("deep", DEEP), ("a list", "[]"), ("long", json.dumps(config | {"n_hid": 10**400}))):
        path = d / f"text-{name}/dvae.safetensors"
        checkpoint.save_tensors(path, tensors, metadata | {"config": text})
        cases.append((f"an architecture that is {name}", "do not fit", partial(load, path.parent)))
    return cases


# --- JSON, metrics, tokenizer, states ----------------------------------------------------------------------------------


def texts(d: Path) -> Cases:
    read, bpe = checkpoint.read_json, BPE.load
    merges = [[97, 97, "aa"]] + [[256 + k, 256 + k, "a"] for k in range(60)]  # each spells twice as much
    doubling = {"format": "minidalle-bpe", "version": 1, "vocab_size": 317, "merges": merges}
    run = d / "metrics"
    line = json.dumps({"stage": "dvae", "step": 1}) + "\n"
    metrics = {
        "no record in the middle": line + "[]\n" + line, "nested 100,000 deep": DEEP + "\n" + line,
        "without a step": line + '{"stage": "dvae"}\n' + line,
    }  # fmt: skip
    cases = [
        ("JSON nested 100,000 deep", "is not JSON", lambda: read(write(d / "a.json", DEEP))),
        ("JSON with a number of 10,000 digits", "is not JSON", lambda: read(write(d / "b.json", "9" * 10_000))),
        ("JSON that is no text", "is not JSON", lambda: read(write(d / "c.json", b"\xff\xfe\0"))),
        ("JSON of 5 GB", "larger than 8 MB", lambda: read(sparse(d / "d.json", 5 * 10**9))),
        ("settings that are a list", "names no preset", lambda: checkpoint.load_preset_of(write(d / "e/config.json", "[]").parent)),
        ("settings without end", "must be of type", lambda: checkpoint.load_preset_of(
            write(d / "f/config.json", '{"preset": {"data": {"height": Infinity}}}').parent)),
        ("a tokenizer nested 100,000 deep", "was not written by BPE.save", lambda: bpe(write(d / "g.json", DEEP))),
        ("a tokenizer of 5 GB", "larger than 16 MB", lambda: bpe(sparse(d / "h.json", 5 * 10**9))),
        ("a tokenizer whose tokens double", "already spell", lambda: bpe(write(d / "i.json", json.dumps(doubling)))),
        ("metrics of 5 GB", "is no record", lambda: records.read_last(sparse(run / "large.jsonl", 5 * 10**9))),
        ("a caption of 5 GB", "caption over 64 KB", lambda: read_caption(sparse(d / "fox.txt", 5 * 10**9))),
        ("a caption that is no text", "not readable as UTF-8", lambda: read_caption(write(d / "owl.txt", b"\xff\xff"))),
        ("a blocklist of 5 GB", "larger than 1 MB", lambda: filter.load_blocklist(sparse(d / "words", 5 * 10**9))),
    ]  # fmt: skip
    for k, (name, text) in enumerate(metrics.items()):
        path = write(run / f"{k}.jsonl", text)
        cases.append((f"metrics {name}", "is no record", partial(records.read_last, path)))
    return cases + states(d)


def states(d: Path) -> Cases:
    """States that a run would go on from."""
    fine = {"stage": "dvae", "step": 1, "seconds": 1.0, "scaler": {}, "stages": {}, "finished": []}
    changes = {
        "names a file elsewhere": {"finished": ["../../x"]}, "names no files": {"finished": 5}, "has no step": {"step": "a"}, "counts in words": {"watch": {"skipped": "many"}},
        "has stages of another kind": {"stages": {"dvae": 7}}, "is a list": None,
    }  # fmt: skip
    cases = []
    for k, (name, change) in enumerate(changes.items()):
        run = checkpoint.Run(d / f"state-{k}", {})
        info = [] if change is None else fine | change
        write(run.folder / "state/000000001/state.json", json.dumps(info))
        write(run.folder / "x", "untouched")
        cases.append((f"a state that {name}", "is not as a run writes it", run.latest))
    return cases


# --- pictures and shards -----------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(side: int, pixels: bytes = b"", more: bytes = b"") -> bytes:
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
    return start + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(MARK) (w) file closefile\nshowpage\n"


def pictures(d: Path) -> Cases:
    files = {
        "of 40,000 x 40,000 pixels": (png(40_000, b"\0" * 10**7), "megapixels|decompression bomb"),
        "of 2^31 x 2^31 pixels": (png(2**31 - 1), "does not decode|megapixels|decompression bomb|cannot be read"),
        "that ends early": (png(64, b"\0" * 9), "does not decode|cannot be read"),
        "with 500 MB of text": (png(8, b"\0" * 200, chunk(b"zTXt", b"minidalle\0\0" + zlib.compress(b"x" * 5 * 10**8))),
                                "does not decode|cannot be read"),
        "that is a program": (POSTSCRIPT, "does not decode|cannot be read"),
        "that is a web page": (b"<svg onload='x'/>", "does not decode|cannot be read"),
    }  # fmt: skip
    cases = []
    for k, (name, (data, reason)) in enumerate(files.items()):
        path = write(d / f"{k}.png", data)
        cases.append((f"a picture {name}, to train on", reason, partial(folder.read, path, (8, 8))))
        cases.append((f"a picture {name}, to verify", reason, partial(provenance.verify, path)))
    return cases


def shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def skipped_in(path: Path) -> str:
    """What reading a shard says: the reasons of what it skips."""
    skipped = []
    for _ in packing.usable_in(path, 8, 8, skipped):
        pass
    return "; ".join(f"{name} {reason}" for name, reason in skipped)


def tars(d: Path) -> Cases:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "png")
    up = [(tarfile.TarInfo(f"{name}.{end}"), data) for name in ("../../x", "/x") for end, data in (("png", picture.getvalue()), ("txt", b"a fox"))]  # fmt: skip
    named = tarfile.TarInfo("a")
    named.type, named.size = tarfile.GNUTYPE_LONGNAME, 5 * 10**9
    claims = tarfile.TarInfo("a.png")
    claims.size = 10**15
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<u2", "fortran_order": False, "shape": (10**6, 10**9)})
    odd = tarfile.TarInfo("a")
    odd.type, odd.size = b"Z", 10**15
    cases = {
        "a member of no known kind, of 10^15 bytes": (write(d / "odd.tar", odd.tobuf(tarfile.GNU_FORMAT)), "than the file can hold"),
        "a member named ../../x": (shard(d / "up.tar", *up), "leads out of the shard"),
        "a name of 5 GB": (sparse(d / "long.tar", 6 * 10**9, named.tobuf(tarfile.GNU_FORMAT)), "a name of 5,000,000,000 bytes"),
        "a member of 10^15 bytes": (write(d / "claims.tar", claims.tobuf(tarfile.GNU_FORMAT)), "than the file can hold"),
        "what xz packed 7,000 times": (write(d / "xz.tar", lzma.compress(bytes(2**26))), "no tar file"),
        "no tar at all": (write(d / "none.tar", b"\x1f\x8b" + b"x" * 999), "no tar file"),
        "JSON nested 100,000 deep": (shard(d / "deep.tar", (tarfile.TarInfo("a.json"), DEEP.encode())), "its JSON holds no caption"),
        "a picture bomb": (shard(d / "bomb.tar", (tarfile.TarInfo("a.png"), png(40_000)), (tarfile.TarInfo("a.txt"), b"a fox")), "megapixels"),
    }  # fmt: skip
    found = [(f"a shard with {name}", reason, partial(skipped_in, path)) for name, (path, reason) in cases.items()]  # fmt: skip
    sample = {"npy": array.getvalue()}
    return [*found, ("codes that claim 10^15 numbers", "are not 8 x 8", lambda: shards.codes_of(sample, 8, 8, 64))]


def main() -> int:
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        cases = [*weights(d / "weights"), *texts(d / "texts"), *pictures(d / "pictures")]
        (d / "tars").mkdir()
        cases += tars(d / "tars")
        shutil.copytree(LESSON, d / "fine")
        checkpoint.load_run(d / "fine")  # a good run still opens
        harmed = lambda: any(Path(p).exists() for p in ("MARK", "/x"))  # noqa: E731
        return count("hostile files: refused or skipped by name", cases, harmed)


if __name__ == "__main__":
    sys.exit(main())
