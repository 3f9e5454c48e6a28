"""Writing tar shards: of a folder of pictures, and of the codes that a dVAE makes of pictures in other shards.

    write(my_pictures, out)                  {.jpg,.png,.webp} + .txt of a folder   ->  shards of pictures
    encode(paths, out, dvae, …)              shards of pictures                     ->  shards of codes, .npy + .txt

Codes are computed once, so that the transformer trains without running the encoder, and take 2 KB a picture at full size. Beside
them lies `encoded.json`, which says from which dVAE they come. shards.py reads both kinds.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minidalle.checkpoint import fingerprint, read_json, replacing, write_json
from minidalle.data import folder
from minidalle.data.filter import CaptionRules, check
from minidalle.dvae import DVAE
from minidalle.scale import shards
from minidalle.train import to_float

PER_SHARD = 1_000  # pictures in a shard that `write` makes
ENCODED = "encoded.json"  # beside shards of codes: which dVAE made them


def write(
    source: Path, out: Path, per_shard: int = PER_SHARD, rules: CaptionRules | None = None
) -> tuple[dict[str, int], str]:
    """Shards of the pictures of a folder (see `data/folder.py`), as they are, with their captions and, as JSON, their keys.
    rules: those of the captions filter, None without it. Returns its counts, of which "kept" is what there is now, and what
    was skipped in words. A shard appears under its name only when it is whole."""
    from webdataset import TarWriter

    if not source.is_dir():
        raise ValueError(f"{source} is no folder: expected one with pictures such as fox.jpg and captions, fox.txt")
    if any(out.glob("*.tar")) or (out / ENCODED).exists():
        raise ValueError(f"{out} holds shards already, which would be mixed with these: choose another folder")
    found = folder.find(source)
    captions, skipped = folder.sort_out(found, rules)
    folder.check_enough(source, found, skipped)
    keys = sorted(captions, key=folder.hashed)  # so that a shard holds some of everything
    for number, start in enumerate(tqdm(range(0, len(keys), per_shard), desc="write", unit="shard")):
        with replacing(out / f"shard-{number:05d}.tar") as aside, TarWriter(str(aside), mtime=0) as tar:
            for place, key in enumerate(keys[start : start + per_shard], start):
                path = found[key][0]
                ending = path.suffix.lower().lstrip(".")
                tar.write({
                    "__key__": f"{place:09d}", ending: path.read_bytes(), "txt": captions[key].encode(),
                    "json": json.dumps({"key": key}).encode(),
                })  # fmt: skip
    return folder.tally(found, skipped), folder.summary(found, skipped) if skipped else ""


def encode(
    paths: list[Path], out: Path, dvae: DVAE, height: int, width: int, device: torch.device,
    rules: CaptionRules | None = None,
) -> tuple[int, list]:  # fmt: skip
    """Shards of codes beside captions, one for each shard of pictures, so that the transformer trains without the encoder.

    Each picture once, its middle (O: the paper crops anew at every sight). Shards that are there already are left as
    they are, so that an interrupted command goes on; of a shard that is cut off none is made, until it is whole. rules: those of the captions filter, None without it; shards that
    img2dataset has made are filtered here. Returns the pictures encoded now, and [(sample, reason)] skipped.
    """
    from webdataset import TarWriter

    if len({path.name for path in paths}) < len(paths) or out.resolve() in {path.resolve().parent for path in paths}:
        raise ValueError(
            f"each shard becomes one of its name in {out}: give shards of different names, and another folder"
        )
    if dvae.config.codebook_size > 2**16:
        raise ValueError(f"codes are stored in 16 bits, so at most 65,536 of them, got {dvae.config.codebook_size}")
    wanted = what_codes(dvae, height, width)
    wanted |= {"filter": hashlib.sha256(repr(rules).encode()).hexdigest()} if rules else {}
    if (out / ENCODED).exists() and read_json(out / ENCODED) != wanted:
        raise ValueError(
            f"{out} holds codes of another dVAE or another size of pictures, or filtered otherwise: choose another folder"
        )
    write_json(out / ENCODED, wanted)
    done, skipped = 0, []
    for path in tqdm(paths, desc="encode", unit="shard"):
        if (out / path.name).exists():
            continue
        before, n = len(skipped), 0
        with (
            contextlib.suppress(CutOff), replacing(out / path.name) as aside, TarWriter(str(aside), mtime=0) as tar
        ):  # fmt: skip
            for group in groups_of(usable_in(path, height, width, skipped, rules), max(1, 2**18 // (height * width))):
                images = torch.from_numpy(np.stack([image for _, image, _ in group]))
                codes = dvae.encode(to_float(images.to(device))).cpu().numpy().astype(np.uint16)
                for (key, _, caption), grid in zip(group, codes):
                    tar.write({"__key__": key, "npy": grid, "txt": caption.encode()})
                n += len(group)
            if any(name == str(path) and reason.startswith("cut off") for name, reason in skipped[before:]):
                raise CutOff  # before it gets its name
            done += n
    return done, skipped


class CutOff(Exception):
    """The shard that is read is not whole."""


def usable_in(path: Path, height: int, width: int, skipped: list, rules: CaptionRules | None = None):
    """(key, image, caption) of the usable samples of one shard."""
    for sample in shards.raw_samples(path, skipped):
        try:
            caption = shards.caption_of(sample)
            check(caption, None, rules)
            yield sample["__key__"], shards.image_of(sample, height, width, None), caption
        except ValueError as reason:
            skipped.append((f"{path}:{sample['__key__']}", str(reason)))


def groups_of(items, size: int):
    """Lists of `size` items, the last perhaps shorter."""
    group = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def are_encoded(paths: list[Path], dvae: DVAE, height: int, width: int) -> bool:
    """Do these shards hold codes? Raises ValueError where some hold codes and some pictures, or codes of another dVAE or of
    pictures of another size."""
    folders = {path.parent for path in paths}
    encoded = {folder for folder in folders if (folder / ENCODED).exists()}
    if encoded and encoded != folders:
        raise ValueError(
            f"the shards in {sorted(encoded)[0]} hold codes, those in {sorted(folders - encoded)[0]} pictures: give one kind"
        )
    for place in sorted(encoded):
        found, wanted = read_json(place / ENCODED), what_codes(dvae, height, width)
        if not isinstance(found, dict) or {name: found.get(name) for name in wanted} != wanted:
            raise ValueError(
                f"the codes in {place} come from another dVAE or another size of pictures: encode the pictures again, or "
                "give that dVAE and size"
            )
    return bool(encoded)


def what_codes(dvae: DVAE, height: int, width: int) -> dict:
    """What stands in `ENCODED`: from which dVAE codes come, and from pictures of which size."""
    return {"dvae": fingerprint(dvae.state_dict()), "height": height, "width": width}
