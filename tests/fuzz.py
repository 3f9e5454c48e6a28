"""Broken pictures, captions, checkpoints, shards and pickles, and odd arguments: none may end in a traceback.

    python tests/fuzz.py --minutes 10 --seed 0                 prints "0 tracebacks in N calls"; exit code 1 if there are any
    python tests/fuzz.py --minutes 1 --only shards             one kind alone
    python tests/fuzz.py --only pictures --call 4711           one call again, with its traceback

Each call takes good bytes, spoils them by chance, and hands them to what reads them; the chance of call N depends on (seed,
kind, N) alone. Fine is: it works, or ValueError or OSError in one sentence. For a verb: exit code 0, 1 or 2 and at most one
sentence of complaint on stderr. What is found is mended and kept as a case in test_properties.py.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from minidalle import checkpoint, sample, sequence  # noqa: E402
from minidalle.__main__ import main as minidalle  # noqa: E402
from minidalle.data import filter as captions_filter  # noqa: E402
from minidalle.data import folder  # noqa: E402
from minidalle.scale import shards  # noqa: E402
from minidalle.scale.torchfile import module_tensors  # noqa: E402
from minidalle.studio import card, draw, provenance  # noqa: E402

RUN = ROOT / "lessons" / "weights"
PATIENCE = 30  # seconds for one call
GRADIO = importlib.util.find_spec("gradio") is not None  # the page needs it; it is in requirements-extra.txt
MEMORY = 8 * 2**30  # bytes of address space: a size that a file claims must not take the machine down


class TooLong(BaseException):
    """A call took longer than `PATIENCE`. No OSError as TimeoutError is, which commands turn into a sentence."""


# --- a verb, called here ---------------------------------------------------------------------------------------------


def call(argv: list[str]) -> tuple[int, str]:
    """(exit code, stderr) of python -m minidalle ARGV, run in this process. Whatever else it raises goes on."""
    out, err, before = io.StringIO(), io.StringIO(), warnings.showwarning
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            minidalle(argv)
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code
    finally:
        warnings.showwarning = before
    return code, err.getvalue()


def complaints(stderr: str) -> list[str]:
    """The lines of stderr without warnings, progress bars and the usage that argparse prints before its sentence."""
    text = re.sub(r"(?s)^usage: .*?(?=^python -m minidalle[^\n]*: error: )", "", stderr, flags=re.MULTILINE)
    lines = [line for part in text.split("\n") for line in part.split("\r")]
    return [x for x in lines if x.strip() and not x.startswith("warning: ") and not re.search(r"\[\d\d:\d\d", x)]


def check_verb(argv: list[str]) -> int:
    """The exit code. Raises AssertionError for what no user should see."""
    code, stderr = call(argv)
    said = complaints(stderr)
    assert code in (0, 1, 2), f"exit code {code!r} of {argv}"
    assert "Traceback" not in stderr, f"{argv}: {stderr[-400:]}"
    assert len(said) <= 1, f"{len(said)} lines for {argv}: {said}"
    assert argv[:1] == ["verify"] or code == 0 or said, f"exit code {code} without a word for {argv}"
    return code


# --- spoiling --------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def spoiled(rng: random.Random, data: bytes, most: int = 4) -> bytes:
    """`data` after up to `most` changes: bits, bytes, numbers, pieces taken out, put in twice, or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 256))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(min(size, len(data) - at))
            case 2:
                form = rng.choice(("<I", ">I", "<H", ">H"))
                number = struct.pack(form, rng.choice(NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
                data[at : at + len(number)] = number
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                data[at:at] = rng.randbytes(size)
            case _ if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


ODD = (
    None, True, False, 0, -1, 1, 3, 10**9, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\0", "9" * 5000,
    [], {}, [[]], {"": {}}, ["a"], "é\ud800", {"n_layer": 1},
)  # fmt: skip


def spoiled_value(rng: random.Random, value):
    """A JSON value with one of its parts, at any depth, replaced, removed or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        value = value.copy()
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(8):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[f"{key}x"] = value.pop(key)
            case 1:
                value.append(value[key])
            case _:
                value[key] = spoiled_value(rng, value[key])
        return value
    if isinstance(value, (int, float)) and rng.random() < 0.5:
        return rng.choice((value + 1, value * 2, -value, value // 2, str(value)))
    return rng.choice(ODD)


def spoiled_json(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.02:
        return b'{"a":' * 100_000
    if rng.random() < 0.2:
        return spoiled(rng, data)
    value = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        value = spoiled_value(rng, value)
    return json.dumps(value).encode()


def spoiled_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Bytes anywhere, the sizes of a header, or numbers in the weights."""
    size = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + size], data[8 + size :]
    match rng.randrange(4):
        case 0:
            return spoiled(rng, data[: 8 + size]) + body
        case 1:
            value = json.loads(head)
            if rng.random() < 0.6:  # what the weights say of themselves
                about = value["__metadata__"]
                about["config"] = spoiled_json(rng, about["config"].encode()).decode("utf-8", "replace")
            else:
                value = spoiled_value(rng, value)
            head = json.dumps(value).encode()
        case 2:
            body = bytearray(body)
            for _ in range(rng.choice((1, 10, 1000))):
                at = 4 * rng.randrange(len(body) // 4)
                body[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), -1e38, 1e38, 0.0)))
        case _:
            return rng.randbytes(8) + data[8:] if rng.random() < 0.3 else data[: rng.randrange(len(data))]
    return len(head).to_bytes(8, "little") + head + bytes(body)


# --- good files ------------------------------------------------------------------------------------------------------


def good_pictures() -> list[bytes]:
    """Small pictures in all the forms that are read, and some that are not."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    files = []

    def add(image, form, **how):
        file = io.BytesIO()
        image.save(file, form, **how)
        files.append(file.getvalue())

    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        add(picture.convert(mode), "PNG")
    add(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257), "PNG")
    for mode in ("RGB", "L", "CMYK"):
        add(picture.convert(mode), "JPEG")
    add(picture, "JPEG", progressive=True, exif=turned)
    add(picture, "WEBP")
    add(picture.convert("RGBA"), "WEBP", lossless=True)
    add(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)])
    add(picture, "GIF", save_all=True, append_images=[picture.rotate(90)])
    with tempfile.TemporaryDirectory() as folder_:
        path = Path(folder_, "ours.png")
        provenance.save(path, torch.from_numpy(pixels).permute(2, 0, 1) / 255, {"prompt": "a", "seed": 0})
        files.append(path.read_bytes())
    return files


def spoiled_picture(rng: random.Random, data: bytes) -> bytes:
    """Spoiled anywhere, or a PNG in one chunk whose checksum is then put right, so that it is read further."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.4:
        return spoiled(rng, data)
    parts, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    k = rng.randrange(len(parts))
    kind, body = parts[k]
    if kind == b"IDAT" and rng.random() < 0.5:  # the pixels, packed again
        body = zlib.compress(spoiled(rng, zlib.decompress(body)))
    else:
        body = spoiled(rng, body)
    parts[k] = (kind, body)
    if rng.random() < 0.2:
        rng.shuffle(parts)
    chunks = [struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in parts]
    return data[:8] + b"".join(chunks)


def good_shard() -> bytes:
    pictures, file = good_pictures(), io.BytesIO()
    codes = io.BytesIO()
    np.save(codes, np.arange(64, dtype=np.uint16).reshape(8, 8))
    with tarfile.open(fileobj=file, mode="w") as tar:
        for k, (ending, data) in enumerate((("jpg", pictures[7]), ("png", pictures[0]), ("npy", codes.getvalue()))):
            caption = {"txt": b"a red circle"} if k != 1 else {"json": json.dumps({"caption": "a fox"}).encode()}
            for name, content in ({ending: data} | caption).items():
                info = tarfile.TarInfo(f"{k:09d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def good_modules(place: Path) -> list[bytes]:
    """A small pickled module, in both of torch's formats."""
    from tests.stand_ins import random_tensors, save_module

    tensors = random_tensors({"blocks.input.w": (4, 3, 3, 3), "blocks.input.b": (4,)}, 1.0, 0)
    files = []
    for zipped in (True, False):
        save_module(place / "good.pkl", tensors, "Encoder", zipped)
        files.append((place / "good.pkl").read_bytes())
    return files


# --- what is called --------------------------------------------------------------------------------------------------


class Targets:
    """One method for each kind of call: it takes a generator and raises what the product raises."""

    def __init__(self, place: Path):
        """place: an empty folder to write into."""
        self.place, self.pictures, self.shard = place, good_pictures(), good_shard()
        self.modules = good_modules(place)
        self.run = draw.LoadedRun(RUN, "cpu")
        self.files = {path.name: path.read_bytes() for path in RUN.iterdir() if path.is_file()}

    def write(self, name: str, data: bytes) -> Path:
        path = self.place / name
        path.write_bytes(data)
        return path

    def spoiled_run(self, rng: random.Random) -> Path:
        run, name = self.place / "run", rng.choice(sorted(self.files))
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        spoil = spoiled_json if name.endswith(".json") else spoiled_safetensors
        for other, data in self.files.items():
            (run / other).write_bytes(spoil(rng, data) if other == name else data)
        return run

    def picture(self, rng: random.Random):
        """Reading a picture, in all the ways there are."""
        path = self.write("spoiled.png", spoiled_picture(rng, rng.choice(self.pictures)))
        match rng.randrange(5):
            case 0:
                folder.check_header(path)
            case 1:
                folder.decode(path, least=rng.choice((1, 32, 64)))
            case 2:
                draw.read_middle(path, "cpu")
            case 3:
                provenance.verify(path, rng.choice((None, "0" * 64)))
            case _:
                self.run.top_rows(path, rng.choice((None, 1, 7, 8)))

    def caption(self, rng: random.Random):
        """Text as bytes from a file, from JSON, and to a model."""
        signs = "".join(rng.choice(TEXTS) for _ in range(rng.randint(0, 6)))
        data = spoiled(rng, signs.encode("utf-8", "surrogatepass") or b"a")
        match rng.randrange(5):
            case 0:
                captions_filter.check(folder.clean_caption(data), (32, 32), captions_filter.CaptionRules())
            case 1:
                shards.caption_of({"json": spoiled_json(rng, json.dumps({"caption": signs, "n": [1, {}]}).encode())})
            case 2:
                self.run.text(signs)
            case 3:
                text = sequence.tokenize(self.run.bpe, [signs], 32, rng.choice((0.0, 0.5)), rng)
                assert self.run.bpe.decode(sequence.unpack_text(text)[0]) is not None
            case _ if GRADIO:
                from minidalle.studio.page import read_prompt

                read_prompt(signs, self.run)

    def checkpoint(self, rng: random.Random):
        """A run's folder with one of its files spoiled: what draws, what ranks, its card."""
        run = self.spoiled_run(rng)
        match rng.randrange(4):
            case 0:
                loaded = draw.LoadedRun(run, "cpu")
                options = loaded.options()
                codes = sample.generate(loaded.model, loaded.text("a"), 1, [0], **options)
                loaded.paint(codes)
            case 1:
                checkpoint.load_clip(run)
            case 2:
                card.write(run)
            case _:
                checkpoint.load_preset_of(run)
                checkpoint.load_run(run)

    def shards(self, rng: random.Random):
        """A tar file with captioned pictures and codes."""
        path, skipped = self.write("spoiled.tar", spoiled(rng, self.shard, 8)), []
        for found in shards.raw_samples(path, skipped):
            for read in (
                shards.caption_of,
                lambda found: shards.image_of(found, 16, 16, np.random.default_rng(0)),
                lambda found: shards.codes_of(found, 8, 8, 64),
            ):
                with contextlib.suppress(ValueError):
                    read(found)
        assert all(isinstance(name, str) and isinstance(why, str) for name, why in skipped)

    def pickles(self, rng: random.Random):
        """A pickled module, which is read without running it."""
        module_tensors(self.write("spoiled.pkl", spoiled(rng, rng.choice(self.modules))))

    def verbs(self, rng: random.Random):
        """A command line, mostly of what there is, in odd combinations."""
        for old in self.place.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        self.spoiled_run(rng)
        (self.place / "good").mkdir()
        files = {f"good/{name}": data for name, data in self.files.items()} | dict(zip(PICTURES, self.pictures))
        files |= {
            "good.tar": self.shard,
            "spoiled.tar": spoiled(rng, self.shard),
            "good0.txt": b"a fox",
            "good1.txt": b"a red fox",
        }
        for name, data in (files | {"spoiled.png": spoiled_picture(rng, rng.choice(self.pictures))}).items():
            self.write(name, data)
        check_verb(command_line(rng))

    def page(self, rng: random.Random):
        """What answers the page: prompts, knobs and pictures of its visitors."""
        from minidalle.studio.page import Page

        page = Page(self.run, None, 2)
        path = self.write("spoiled upload.png", spoiled_picture(rng, rng.choice(self.pictures)))
        assert page.preview(str(path), rng.choice(ODD[3:13]))
        if rng.random() < 0.2:
            return first_answer(page, rng)

    KINDS = {  # kind -> (method, how often)
        "pictures": (picture, 30), "captions": (caption, 20), "checkpoints": (checkpoint, 8), "shards": (shards, 20),
        "pickles": (pickles, 20), "verbs": (verbs, 6), "page": (page, 6),
    }  # fmt: skip


def first_answer(page, rng: random.Random):
    """The first thing that the page says to odd knobs, after which its visitor leaves."""
    import asyncio

    async def ask():
        knobs = [rng.choice((None, 0, -1, 1, 0.5, 1e-9, 1e9, float("nan"))) for _ in draw.OPTIONS]
        steps = page.nine(
            "generate", None, 0, "".join(rng.choices(TEXTS, k=2)), rng.choice((None, 0, -5, 2**70)), *knobs
        )
        async with contextlib.aclosing(steps):
            async for step in steps:
                return step

    return asyncio.run(ask())


TEXTS = (
    "a photo of a red circle above a blue square", "a", " ", "", "\n", "\0", "\ud800", "é", "狐", "🦊", "👨‍👩‍👧", "İ", "ﬃ", "x" * 5000,
    "--", "-n", "{}", "%s", "{0}", "../../x", "a\u202eb", "\x1b[31m", "<b>", "'; --", "ß" * 300,
)  # fmt: skip
NUMERIC = (
    "0",
    "1",
    "2",
    "-1",
    "1.0",
    "0.5",
    "1e-9",
    "1e400",
    "nan",
    "inf",
    "x",
    "",
    "9" * 30,
    "٣",
    "1_0",
    "0x10",
    " 1",
    "9" * 5000,
)
SETTINGS = (
    "transformer.n_layer", "transformer.n_head", "transformer.masks", "transformer.text_len", "transformer.kernel_size",
    "dvae.n_group", "dvae.n_hid", "dvae.patch", "data.height", "data.width", "clip.patch", "clip.image_heads", "sample.top_p",
    "train.transformer.betas", "train.transformer.halve_at", "train.transformer.batch_size", "train", "dvae", "nonsense", "",
    "a.b.c.d", "transformer.rows", "data.name",
)  # fmt: skip
PICTURES = tuple(f"good{k}.{'png' if k < 7 else 'jpg'}" for k in range(8))
FILES = (
    *PICTURES,
    "spoiled.png",
    "good",
    "run",
    "spoiled.tar",
    "none",
    "",
    "/dev/null",
    "good/bpe.json",
    "a\0b",
    "a\udcffb",
)
INTS, REALS = ("0", "1", "2", "7"), ("0", "0.5", "1", "1.5")
DRAWING = {
    "-n": ("1", "2"), "--seed": INTS, "--temperature": REALS, "--top-k": INTS, "--top-p": ("0.1", "1"), "--guidance": REALS,
    "--rerank": ("1", "3"), "--upscale": ("1", "2"), "--gif": (), "--no-mark": (), "--key": ("good/bpe.json",), "--clip": ("openclip:none",),
}  # fmt: skip
PRESET, FILTER = {"--preset": ("tiny", "small")}, {"--filter": (), "--blocklist": ("good/bpe.json",)}
OPTIONS = {  # verb -> its options with good values
    "generate": DRAWING,
    "edit": DRAWING | {"--rows": ("1", "4", "7"), "--image": PICTURES},
    "rank": {"--dvae": ("good",), "--clip": ("openclip:none",)},
    "verify": {"--public-key": ("0" * 64,)},
    "card": {},
    "plan": PRESET | {"--gpus": INTS, "--gpu": ("h100-80gb", "custom:1e15,8e10,1e11"), "--utilisation": REALS},
    "shards": FILTER | {"--per-shard": INTS},
    "encode": PRESET | FILTER | {"--shards": ("spoiled.tar", "good.tar"), "--dvae": ("good",)},
    "train": PRESET | {"--shards": ("none.tar",), "--dvae": ("good",), "--bpe": ("good/bpe.json",), "--resume": (), "--streams": INTS, "--budget": ("1e-9",)},
    "serve": {"--port": ("-1", "70000"), "--queue": INTS},
}  # fmt: skip
ALWAYS = ("--image", "--shards", "--dvae", "--preset", "--budget", "--port")
PATTERNS = (
    "none.tar",
    "{1..3}.tar",
    "{",
    "{a,",
    "[",
    "",
    "*",
    "good/*",
    "good",
    "released:",
    "released:none",
    "custom:1,2,3",
    "custom:nan,0,-1",
    "tinny",
)


def command_line(rng: random.Random) -> list[str]:
    """Words for python -m minidalle, in the folder of `Targets`; most of them make sense."""

    def one(good, odd=(*NUMERIC, *TEXTS, *FILES, *PATTERNS)) -> str:
        return rng.choice(good if rng.random() < 0.85 else odd)

    verb, words = rng.choice(list(OPTIONS)), []
    if verb in ("generate", "edit", "rank"):
        words += [one(TEXTS[:2], TEXTS) for _ in range(rng.choice((1, 1, 1, 2)) if verb == "generate" else 1)]
    if verb in ("rank", "verify"):
        words += [one(PICTURES, FILES) for _ in range(rng.choice((1, 3)) if verb == "rank" else 1)]
    words += {"shards": [one((".", "good"), FILES), "out"], "encode": ["out"]}.get(verb, [])
    if verb in ("generate", "edit", "rank", "card", "serve"):
        words += ["--run", one(("good", "good", "run"), FILES)]
    if verb in ("generate", "edit", "train"):
        words += ["--out", one(("out",), ("good", "none/x", "good0.png", "good0.png/x", "/dev/null", "/dev/null/x"))]
    for option, good in OPTIONS[verb].items():
        if option in ALWAYS or rng.random() < 0.2:
            odd = {"odd": TEXTS} if option == "--port" else {}  # none that a server could listen at
            words += [option, one(good, **odd)] if good else [option]
    words += ["-n", "1"] if verb in ("generate", "edit") and "-n" not in words else []
    if verb in ("plan", "encode", "train") and rng.random() < 0.6:
        words.append(f"--{rng.choice(SETTINGS)}={one(INTS, (*NUMERIC, '0.9,0.99', 'causal', ',', 'true'))}")
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice(TEXTS))
    if rng.random() < 0.05:
        del words[rng.randrange(len(words))]
    return [verb if rng.random() < 0.98 else rng.choice(TEXTS), *words]


# --- the command -----------------------------------------------------------------------------------------------------


def sentence(error: BaseException) -> bool:
    """Is this how the product may complain?"""
    return isinstance(error, (ValueError, OSError)) and bool(str(error))


def on_alarm(*_):
    raise TooLong


def once(targets: Targets, kind: str, seed: int, number: int) -> BaseException | None:
    """Make call `number` of a kind; what it should not have raised, or None."""
    rng, before = random.Random(f"{seed} {kind} {number}"), signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            Targets.KINDS[kind][0](targets, rng)
    except (Exception, TooLong, SystemExit) as error:
        return None if sentence(error) else error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def where(error: BaseException) -> str:
    """The last lines of ours that the error went through: what makes two findings one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT / "minidalle"))]
    place = f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}" if frames else "tests/fuzz.py"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"


def main():
    parser = argparse.ArgumentParser(description="Broken input of all kinds: does any end in a traceback?")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start", type=int, default=0, help="number of the first call, to go on behind an earlier command"
    )
    parser.add_argument("--only", choices=Targets.KINDS)
    parser.add_argument("--call", type=int, help="with --only: this call alone, with its traceback")
    args = parser.parse_args()
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    os.environ.pop("MINIDALLE_TRACEBACK", None)
    kinds = {
        kind: often
        for kind, (_, often) in Targets.KINDS.items()
        if args.only in (None, kind) and (GRADIO or kind != "page")
    }
    order, counts, found = random.Random(args.seed), Counter(), {}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        targets = Targets(Path(place))
        if args.call is not None:
            error = once(targets, args.only, args.seed, args.call)
            print("".join(traceback.format_exception(error)) if error else "nothing wrong")
            return
        end = time.monotonic() + 60 * args.minutes
        while time.monotonic() < end:
            kind = order.choices(list(kinds), list(kinds.values()))[0]
            number = args.start + counts[kind]
            counts[kind] += 1
            if error := once(targets, kind, args.seed, number):
                key = where(error)
                if key not in found:
                    print(f"{kind} {number}: {key}", flush=True)
                found[key] = found.get(key, 0) + 1
    print(", ".join(f"{n:,} {kind}" for kind, n in counts.most_common()))
    print(f"{sum(found.values())} tracebacks in {counts.total():,} calls (seed {args.seed}, from {args.start})")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
