"""Tar shards: captioned pictures by the million, read as a stream, the same whoever reads them.

    shard-00000.tar:   000000000.jpg  000000000.txt  000000001.jpg  000000001.txt  …        ({.jpg,.png,.webp} + {.txt,.json})

Why tar: a disk or a network reads one large file in order many times as fast as a million small ones. The layout is that
of the `webdataset` library, which groups the files here and writes them (packing.py), and of img2dataset, which makes such shards from lists
of addresses.

**Lanes.** An update's batch must not depend on how many processes share the work, or a run could not go on elsewhere with
the same losses. So the stream is cut into L lanes, whose number follows from the shards and the batch alone. In each epoch the
shards are put in an order that depends on (seed, epoch), and lane l reads those at places l, l + L, … of it, shuffled in a buffer whose
chance depends on (seed, epoch, shard). Lanes with fewer or smaller shards begin the next epoch earlier. An update takes batch / L samples from every lane; a process reads the lanes rank, rank + world, …,
and its workers share these. Where a lane stands is three numbers, (epoch, shard, samples taken), which is all that a checkpoint keeps.

What cannot be used (no caption, a broken picture, the rest of a shard that was cut off) is skipped, counted and named.
Crops are those of `data/folder.py`. What is read is O; the augmentation is SPEC 2's.
"""

import contextlib
import glob
import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from minidalle.data import folder

LANES = 1024  # at most, and so processes
BUFFERS = 16_384  # samples that all lanes together hold, to shuffle them
MEMORY = 2**30  # bytes that they have together, at most
LONGEST_NAME = 2**16  # bytes of what a tar file says of a member beyond its header
UNPACKED = 1100  # times its packed size, about the most that gzip makes of a file
LARGEST = 2**26  # bytes of one file in a shard; a larger one is skipped
PATIENCE = 100  # so many more unusable samples than usable ones stop the reading

Position = tuple[int, int, int]  # (epoch, place of the shard in the epoch's order, samples taken from it)

# --- finding -------------------------------------------------------------------------------------------------------


def find(pattern: str) -> list[Path]:
    """The shards that a pattern names, such as "data/shard-{00000..00099}.tar" or "data/*.tar", in order.

    Raises ValueError where it matches nothing, or names a file that is not there.
    """
    from braceexpand import braceexpand

    paths = []
    for part in braceexpand(pattern):
        found = sorted(glob.glob(part))
        if not found:
            raise ValueError(
                f"--shards {pattern!r}: there is no file {part}: give paths such as 'data/shard-{{00000..00099}}.tar'"
            )
        if folders := [path for path in found if os.path.isdir(path)]:
            raise ValueError(f"--shards {pattern!r}: {folders[0]} is a folder: give '{folders[0]}/*.tar'")
        paths += [Path(path) for path in found]
    return paths


def lanes_of(shards: int, batch_size: int) -> int:
    """L, the largest divisor of the batch that there are shards for, at most `LANES`."""
    return max(n for n in range(1, min(shards, LANES, batch_size) + 1) if batch_size % n == 0)


# --- reading -------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """What one worker adds to an update."""

    images: torch.Tensor  # (n, 3, height, width) uint8, or codes (n, rows, grid) int64
    captions: list[str]  # n
    positions: dict[int, Position]  # where its lanes stand afterwards
    skipped: list[tuple[str, str]]  # (sample, reason) of what was passed over on the way


def raw_samples(path: Path, skipped: list) -> Iterator[dict]:
    """The samples of one shard in their order: {"__key__": "000000017", "jpg": bytes, "txt": bytes}."""
    from webdataset.tariterators import group_by_keys

    def repeated(error: Exception) -> bool:
        skipped.append((str(path), str(error.args[0])[:80]))
        return True  # go on behind it

    yield from group_by_keys(members(path, skipped), handler=repeated)


class Entry(tarfile.TarInfo):
    """A member of a shard; the library would take memory for a name of any length."""

    def _proc_member(self, tar):
        named_by = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if self.type in (*named_by, tarfile.SOLARIS_XHDTYPE) and self.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a name of {self.size:,} bytes")
        return super()._proc_member(tar)


def members(path: Path, skipped: list) -> Iterator[dict]:
    """The files of one shard, as webdataset hands them on; the rest of one that is cut off is lost. The library's own reading
    would take memory for a file of any size, and a name such as "pipe:…" for a command; and unpacking xz or bz2, for
    what a file of a few bytes claims, so that of packed shards only those of gzip are read."""
    try:
        with path.open("rb") as stream:
            kind = "r|gz" if stream.read(2) == b"\x1f\x8b" else "r|"
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode=kind, tarinfo=Entry) as tar:
            for info in tar:
                if info.size > UNPACKED * path.stat().st_size:
                    skipped.append((f"{path}:{info.name}", f"{info.size:,} bytes, more than the file can hold"))
                    break
                if info.name.startswith("/") or ".." in info.name.split("/"):
                    skipped.append((f"{path}:{info.name}", "its name leads out of the shard"))
                elif info.isreg() and info.size <= LARGEST:
                    yield {"fname": info.name, "data": tar.extractfile(info).read(), "__url__": str(path)}
                elif info.isreg():
                    skipped.append((f"{path}:{info.name}", f"{info.size:,} bytes, over {LARGEST:,}"))
                tar.members = []  # or it would remember them all
        if not has_end(path):  # cut off between two of its blocks, at which the library only stops
            raise tarfile.ReadError("it has no end")
    except OSError:
        raise
    except Exception as error:  # broken bytes can make the library raise nearly anything
        skipped.append((str(path), f"cut off or no tar file: {str(error)[:80]}"))


def has_end(path: Path) -> bool:
    """Does a shard end in zeros, as a tar file does? Of one that is compressed, this cannot be said."""
    with path.open("rb") as stream:
        plain = stream.read(512)[257:262] == b"ustar"
        stream.seek(-min(512, path.stat().st_size), os.SEEK_END)
        return not plain or not any(stream.read())


def shuffled(samples: Iterator, size: int, limit: int, rng: random.Random) -> Iterator:
    """The same samples; each is drawn at random from the next `size` that have not been drawn, fewer where these would have
    more than `limit` bytes."""
    buffer, held = [], 0
    for sample in samples:
        buffer.append(sample)
        held += bytes_of(sample)
        while len(buffer) == size or held > limit and len(buffer) > 1:
            drawn = buffer.pop(rng.randrange(len(buffer)))
            held -= bytes_of(drawn)
            yield drawn
    rng.shuffle(buffer)
    yield from buffer


def bytes_of(sample: dict) -> int:
    return sum(len(value) for value in sample.values())


def caption_of(sample: dict) -> str:
    """Its text, or the caption in its JSON. Raises ValueError with the reason where there is none to use."""
    if "txt" in sample:
        return folder.clean_caption(sample["txt"])
    try:
        return folder.clean_caption(json.loads(sample["json"])["caption"].encode())
    except KeyError:
        raise ValueError("no caption") from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise ValueError("its JSON holds no caption") from None


def image_of(sample: dict, height: int, width: int, rng: np.random.Generator | None) -> np.ndarray:
    """(3, height, width) uint8, a random crop as in `folder.view_box`, or without rng the middle; raises ValueError."""
    ending = next((ending for ending in ("jpg", "jpeg", "png", "webp") if ending in sample), None)
    if ending is None:
        raise ValueError("no picture")
    folder.check_header(io.BytesIO(sample[ending]))
    picture = folder.decode(io.BytesIO(sample[ending]), least=4 * max(height, width))
    return folder.cut(picture, folder.view_box(picture.size, height, width, rng), height, width)


def codes_of(sample: dict, rows: int, grid: int, codebook_size: int) -> np.ndarray:
    """(rows, grid) int64 from a sample that `encode` wrote. Raises ValueError for anything else."""
    if "npy" not in sample:
        raise ValueError("no codes")
    try:
        file = io.BytesIO(sample["npy"])
        np.lib.format.read_magic(file)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
        if (shape, by_columns, dtype) != ((rows, grid), False, np.dtype(np.uint16)):  # before any memory is taken
            raise ValueError
        codes = np.frombuffer(file.read(), dtype).reshape(shape).astype(np.int64)
    except Exception:  # broken bytes can make it raise nearly anything
        raise ValueError(f"its codes are not {rows} x {grid} whole numbers of 16 bits") from None
    if codes.max() >= codebook_size:
        raise ValueError(f"its codes are not of {codebook_size}")
    return codes


class Stream(IterableDataset):
    """Parts of updates, without end: for DataLoader(batch_size=None); see `batches`."""

    def __init__(self, paths: list[Path], batch_size: int, read, seed: int, rank: int, world: int, positions: dict):
        """read(sample, rng) -> an array, or ValueError with the reason. positions: lane -> where it goes on."""
        self.paths, self.read, self.seed, self.positions = paths, read, seed, positions
        lanes = lanes_of(len(paths), batch_size)
        if lanes % world:
            raise ValueError(
                f"{len(paths)} shards and a batch of {batch_size} make {lanes} lanes, which {world} processes cannot share "
                f"evenly: use {', '.join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)} processes, or more shards"
            )
        self.each = batch_size // lanes
        self.lanes = list(range(rank, lanes, world))
        self.n_lanes = lanes

    def __iter__(self):
        """Parts for ever; an error that stops the reading comes as the last."""
        try:
            yield from self.parts()
        except (ValueError, OSError) as error:
            yield error

    def parts(self):
        info = get_worker_info()
        mine = self.lanes[info.id :: info.num_workers] if info else self.lanes
        allow_open_files(len(mine))
        skipped = []
        running = {lane: self.usable(lane, skipped) for lane in mine}
        while True:
            arrays, captions, positions = [], [], {}
            for lane, samples in running.items():
                for _ in range(self.each):
                    array, caption, positions[lane] = next(samples)
                    arrays.append(array)
                    captions.append(caption)
            yield Part(torch.from_numpy(np.stack(arrays)), captions, positions, skipped.copy())
            skipped.clear()

    def usable(self, lane: int, skipped: list):
        """(array, caption, position after it) of a lane, for ever."""
        good = bad = 0
        for path, sample, rng, position in self.samples(lane, skipped):
            try:
                yield self.read(sample, rng), caption_of(sample), position
                good += 1
            except ValueError as reason:
                skipped.append((f"{path}:{sample['__key__']}", str(reason)))
                bad += 1
            if bad > good + PATIENCE:
                raise ValueError(
                    f"{bad} of {good + bad} samples cannot be used, the last, of {path}, for: {skipped[-1][1]}"
                )

    def samples(self, lane: int, skipped: list):
        """(shard, sample, its generator, position after it) of a lane, for ever."""
        epoch, start, taken = self.positions.get(lane, (0, 0, 0))
        empty = set()  # shards without a sample, since there was one
        while True:
            order = random.Random(f"{self.seed} {epoch}").sample(self.paths, len(self.paths))[lane :: self.n_lanes]
            found = False
            for place, path in enumerate(order[start:], start):
                chance = random.Random(f"{self.seed} {epoch} {path.name}")
                size, limit = max(16, BUFFERS // self.n_lanes), MEMORY // self.n_lanes
                for n, sample in enumerate(shuffled(raw_samples(path, skipped), size, limit, chance), 1):
                    found = True
                    if n > taken:
                        rng = np.random.default_rng(folder.hashed(self.seed, epoch, path.name, sample["__key__"]))
                        yield path, sample, rng, (epoch, place, n)
                taken = 0
            empty = set() if found else empty | {*order}
            if len(empty) == len(self.paths):
                raise ValueError(f"there is no sample in {', '.join(path.name for path in order[:3])}: {skipped[-1:]}")
            epoch, start = epoch + 1, 0


def allow_open_files(count: int):
    """Each lane has a shard open, and some systems allow only 256 open files, unless one asks for more."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < count + 256:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count + 256 if hard < 0 else min(hard, count + 256), hard))


def stand_apart(_):
    """A worker in a group of its own: who stops the job by a signal to its group means the reading process, which then
    saves, and ends its workers itself."""
    os.setpgid(0, 0)


def batches(stream: Stream, workers: int = 0):
    """(images or codes, captions, positions of this process's lanes, what was skipped) of update after update."""
    count = max(1, min(workers, len(stream.lanes)))
    loader = DataLoader(stream, batch_size=None, num_workers=count if workers else 0, worker_init_fn=stand_apart)
    parts = iter(loader)
    while True:
        several = [next(parts) for _ in range(count)]
        for part in several:
            if isinstance(part, Exception):
                raise part
        yield Part(
            torch.cat([part.images for part in several]),
            [caption for part in several for caption in part.captions],
            {lane: position for part in several for lane, position in part.positions.items()},
            [entry for part in several for entry in part.skipped],
        )
