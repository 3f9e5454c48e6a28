"""What a drawn picture says of its origin: a visible mark, metadata, a hash of its pixels, and, with a key, a signature.

    save(path, image, facts)      a PNG with all of it          verify(path) -> (0 intact | 1 altered | 2 unknown, a sentence)

Why: a picture that was drawn by a model should say so, to people and to programs. The mark is a row of coloured squares in a
strip below the picture, where it covers nothing (DALL-E 2 put such squares into a corner; DALL-E 1, as far as is known, none).
The metadata are a JSON text in the PNG, and the IPTC's word for such pictures, "trainedAlgorithmicMedia", as XMP, where
other programs look for it.

What it is worth. The hash tells that nothing has changed since *somebody* wrote the file; anyone can write one. A signature
(Ed25519) tells that the holder of one key wrote it. Both end where the pixels are changed: cropping, scaling, JPEG or a
screenshot leave the mark at most. docs/provenance.md has what was measured. All of this is O.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from minidalle.checkpoint import replacing
from minidalle.data.folder import FORMATS, MAX_PIXELS
from minidalle.train import to_array

MARK = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167))  # of Okabe and Ito's palette
NEAR = 40  # the most that the mean of a square may differ from its colour, of 255, in each channel
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE}"/></rdf:RDF></x:xmpmeta>'
)
READ = (*FORMATS, "GIF", "BMP", "TIFF")  # not EPS, say, for which Pillow starts another program
LARGEST = 64 * 1024  # bytes of metadata that are read

# --- the mark ------------------------------------------------------------------------------------------------------


def with_mark(picture: np.ndarray) -> np.ndarray:
    """picture (height, width, 3) uint8 -> the same on a strip (height + side, width, 3) with five squares at its right."""
    width = picture.shape[1]
    side = max(2, width // 8)
    strip = np.full((side, width, 3), 255, np.uint8)
    for k, colour in enumerate(reversed(MARK)):
        strip[:, max(0, width - (k + 1) * side) : width - k * side] = colour
    return np.concatenate([picture, strip])


def has_mark(picture: np.ndarray) -> bool:
    """Is the mark at the lower right of a picture (height, width, 3) uint8, whatever its size?"""
    height, width = picture.shape[:2]
    side = max(2, width // 8)
    if height < 2 * side or width < len(MARK) * side:
        return False
    inner = min(max(1, side // 4), (side - 1) // 2)  # away from the edges, which scaling and JPEG blur, but never all
    for k, colour in enumerate(reversed(MARK)):
        square = picture[height - side : height, width - (k + 1) * side : width - k * side]
        if np.abs(square[inner : side - inner, inner : side - inner].mean((0, 1)) - colour).max() > NEAR:
            return False
    return True


def without_mark(picture: Image.Image) -> Image.Image:
    """The drawing alone, where the mark is below it."""
    side = max(2, picture.width // 8)
    return picture.crop((0, 0, picture.width, picture.height - side)) if has_mark(np.asarray(picture)) else picture


# --- writing -------------------------------------------------------------------------------------------------------


def save(path: Path, image: torch.Tensor, facts: dict, mark: bool = True, upscale: int = 1, key: Path | None = None):
    """Write one drawing (3, height, width) in [0, 1] as a PNG that says where it comes from.

    facts: prompt, seed, options, model, JSON-ready. upscale: every pixel as so many by so many. key: an Ed25519 private
    key as PEM; raises ValueError where it is none.
    """
    write(path, as_shown(image, mark, upscale), {"mark": mark, "upscale": upscale, **facts}, key)


def as_shown(image: torch.Tensor, mark: bool = True, upscale: int = 1) -> np.ndarray:
    """image (3, height, width) in [0, 1] -> (upscale * height + the strip's, upscale * width, 3) uint8."""
    picture = to_array(image[None])[0].repeat(upscale, 0).repeat(upscale, 1)
    return with_mark(picture) if mark else picture


def write(path: Path, picture: np.ndarray, facts: dict, key: Path | None = None):
    """`save` for a picture (height, width, 3) uint8 that has its mark already, such as a sheet of several."""
    words = {"generator": "minidalle", "digital_source_type": SOURCE, **facts}
    words["pixels_sha256"] = pixels_sha256(picture)
    words["sha256"] = words_sha256(words)
    if key is not None:
        words |= signature(words["sha256"], key)
    info = PngImagePlugin.PngInfo()
    info.add_itxt("minidalle", json.dumps(words, sort_keys=True, ensure_ascii=False))
    info.add_itxt("XML:com.adobe.xmp", XMP)
    with replacing(path) as aside:
        Image.fromarray(picture).save(aside, format="PNG", pnginfo=info)


def save_gif(path: Path, frames: torch.Tensor, mark: bool = True, upscale: int = 1, seconds: float = 4.0):
    """frames (n, 3, height, width) in [0, 1] as an animation of so many seconds, which stays at its last frame for two.

    A GIF has 256 colours and no place for a signature: its comment says where it comes from, and `verify` cannot vouch for it.
    """
    pictures = [Image.fromarray(as_shown(frame, mark, upscale)) for frame in frames]
    each = max(20, round(1000 * seconds / len(pictures) / 10) * 10)  # milliseconds, in steps of 10
    how = {"duration": [each] * (len(pictures) - 1) + [2000], "loop": 0, "comment": f"drawn by minidalle, {SOURCE}"}
    with replacing(path) as aside:
        pictures[0].save(aside, format="GIF", save_all=True, append_images=pictures[1:], **how)


def pixels_sha256(picture: np.ndarray) -> str:
    """Of height, width and RGB values."""
    return hashlib.sha256(f"{picture.shape}".encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def words_sha256(words: dict) -> str:
    """Of all metadata but this hash and the signature, which speak about it."""
    kept = {name: value for name, value in words.items() if name not in ("sha256", "signature", "public_key")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def signature(digest: str, key: Path) -> dict[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_pem_private_key(Path(key).read_bytes(), password=None)
    except OSError:
        raise ValueError(
            f"--key {key} cannot be read: make one with openssl genpkey -algorithm ed25519 -out {key}"
        ) from None
    except (ValueError, TypeError):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise ValueError(f"--key {key} is no Ed25519 key as PEM without a password: openssl genpkey -algorithm ed25519")
    public = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"signature": private.sign(bytes.fromhex(digest)).hex(), "public_key": public.hex()}


# --- reading -------------------------------------------------------------------------------------------------------


def verify(path: Path, public_key: str | None = None) -> tuple[int, str]:
    """(0, …) if the file is as it was written, (1, …) if it was altered, (2, …) if that cannot be said; and why.

    public_key: 64 hexadecimal digits that the signature has to be of. Raises ValueError where it is none, and for a file
    that is no picture.
    """
    if public_key is not None and not re.fullmatch("[0-9a-fA-F]{64}", public_key):
        raise ValueError(f"{public_key[:80]!r} is no public key: expected 64 hexadecimal digits")
    picture, words = read(Path(path))
    if words is None:
        marked = ", but the mark is there: it may have been drawn by minidalle" if has_mark(picture) else ""
        return 2, f"{path} says nothing of its origin{marked}"
    if (
        not isinstance(words, dict)
        or words.get("generator") != "minidalle"
        or words.get("sha256") != words_sha256(words)
    ):
        return 1, f"{path} was altered: it is no RGB PNG any more, or its metadata are not as they were written"
    if words.get("pixels_sha256") != pixels_sha256(picture):
        return 1, f"{path} was altered: its pixels are not as they were written"
    who = words.get("public_key")
    if who is not None and not signed(words):
        return 1, f"{path} was altered: its signature does not fit"
    if public_key is not None and who != public_key.lower():
        return 2, f"{path} is not signed with the key {public_key.lower()}, but with {who or 'none'}"
    prompt = words.get("prompt")
    prompt = "; ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)  # of a sheet
    what = f"drawn by minidalle from {prompt[:200]!r}, seed {words.get('seed')}"
    by = f"signed with the key {who}" if who else "not signed, so anyone can have written it"
    return 0, f"{path} is intact: {what}; {by}"


def read(path: Path) -> tuple[np.ndarray, object]:
    """(pixels (height, width, 3) uint8, its metadata; None without any, False if they are not JSON)."""
    try:
        with Image.open(path, formats=READ) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise ValueError(f"over {MAX_PIXELS // 10**6} megapixels")
            text = image.info.get("minidalle")
            image.load()
            text = image.info.get("minidalle", text)  # it may stand behind the pixels
            picture = np.asarray(image.convert("RGB"))
            exact = image.mode == "RGB" and image.format == "PNG"
    except (FileNotFoundError, IsADirectoryError):
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}: give the path of a picture") from None
    except Exception as error:  # a decoder may raise nearly anything on broken bytes
        raise ValueError(f"{path} cannot be read as a picture: {str(error)[:100]}") from None
    if text is None:
        return picture, None
    try:
        if not exact or len(text) > LARGEST:
            raise ValueError
        return picture, json.loads(text) or False
    except (ValueError, RecursionError):
        return picture, False


def signed(words: dict) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(words["public_key"]))
        public.verify(bytes.fromhex(words["signature"]), bytes.fromhex(words["sha256"]))
    except (InvalidSignature, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True
