"""What is left of a picture's mark and metadata after what happens to pictures, and where a mark is found that is none.

    python benchmarks/survives.py --run lessons/weights [--pictures 64] [--others 1000]

So many pictures are drawn, saved by `provenance.save` as they are and with --upscale 8, and changed in each way of `CHANGES`.
Printed as Markdown, for both sizes: the share on which `has_mark` still finds the mark, with Wilson's 95 % interval, and how
often `verify` says intact, altered and unknown. Then the share of pictures without our mark on which it is found all the same.
"""

import argparse
import io
import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

import side_by_side
from minidalle.cli import positive, run_command
from studio import CAPTIONS

# --- what happens to pictures: each takes the picture as it was opened and gives the bytes of a file ---------------------


def as_png(image: Image.Image, metadata: str | None = None) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    if metadata:
        info.add_itxt("minidalle", metadata)
    Image.fromarray(np.asarray(image)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def as_lossy(kind: str, quality: int):
    def change(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, quality=quality)
        return file.getvalue()

    return change


def resized(factor: float, how: Image.Resampling = Image.Resampling.BICUBIC):
    return lambda image: as_png(image.resize([round(side * factor) for side in image.size], how))


def cropped(image: Image.Image) -> bytes:
    """5 % off each side, a pixel at least."""
    x, y = (max(1, round(0.05 * side)) for side in image.size)
    return as_png(image.crop((x, y, image.width - x, image.height - y)))


def without_strip(image: Image.Image) -> bytes:
    return as_png(image.crop((0, 0, image.width, image.height - image.width // 8)))


def screenshot(image: Image.Image) -> bytes:
    """On a grey desktop, a quarter larger."""
    large = image.resize([round(1.25 * side) for side in image.size], Image.Resampling.BILINEAR)
    desktop = Image.new("RGB", (2 * large.width + 200, 2 * large.height + 200), (90, 90, 90))
    desktop.paste(large, (100, 100))
    return as_png(desktop)


CHANGES = {
    "nothing": lambda image: as_png(image, image.info["minidalle"]),
    "saved as PNG by a program that drops metadata": as_png,
    "one pixel changed": lambda image: as_png(one_pixel(image), image.info["minidalle"]),
    "JPEG, quality 95": as_lossy("JPEG", 95), "JPEG, quality 75": as_lossy("JPEG", 75),
    "JPEG, quality 50": as_lossy("JPEG", 50), "JPEG, quality 25": as_lossy("JPEG", 25),
    "WebP, quality 80": as_lossy("WEBP", 80),
    "resized × 0.5": resized(0.5), "resized × 1.5": resized(1.5), "resized × 2": resized(2),
    "5 % cropped off each side": cropped, "the strip cropped off": without_strip,
    "a screenshot with the desktop around it": screenshot,
    "the same, cut out exactly": resized(1.25, Image.Resampling.BILINEAR),
    "greyscale": lambda image: as_png(image.convert("L").convert("RGB")),
}  # fmt: skip


def one_pixel(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[0, 0, 0] ^= 1
    return Image.fromarray(pixels)


# --- the tables ----------------------------------------------------------------------------------------------------------


def share(found: int, n: int) -> str:
    """ "0.97 (0.89–0.99)": Wilson's interval, which has a width even where all or none are found."""
    z, p = 1.96, found / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (min(1, max(0, m / (1 + z * z / n))) for m in (middle - half, middle + half))
    return f"{p:.3f} ({low:.3f}–{high:.3f})"


def print_survivors(images, folder: Path):
    """images (n, 3, height, width) in [0, 1]."""
    from minidalle.studio import provenance

    print("| what happened | mark found | upscale 8: mark found | verify says | upscale 8: verify says |")
    print("|" + " --- |" * 5)
    for name, change in CHANGES.items():
        marks, answers = [], []
        for upscale in (1, 8):
            found, said = 0, [0, 0, 0]
            for k, image in enumerate(images):
                path = folder / "picture.png"
                facts = {"prompt": CAPTIONS[k % len(CAPTIONS)], "seed": k}
                provenance.save(path, image, facts, upscale=upscale)
                with Image.open(path) as written:
                    path.write_bytes(change(written))
                with Image.open(path) as changed:
                    found += provenance.has_mark(np.asarray(changed.convert("RGB")))
                said[provenance.verify(path)[0]] += 1
            marks.append(share(found, len(images)))
            words = zip(said, ("intact", "altered", "unknown"))
            answers.append(", ".join(f"{n} {word}" for n, word in words if n))
        print(f"| {name} | {' | '.join(marks + answers)} |")


def print_alarms(images, others: int):
    """Of pictures that bear no mark of ours, on how many it is found."""
    from minidalle.studio import provenance

    rng = np.random.default_rng(0)
    kinds = {
        "drawn, --no-mark": [provenance.as_shown(image, mark=False) for image in images],
        "drawn, --no-mark, upscale 8": [provenance.as_shown(image, mark=False, upscale=8) for image in images],
        "OpenMoji, 64 x 128": emoji(others, rng),
        "smooth noise of all scales": [smooth(rng) for _ in range(others)],
        "the same, 10 to 40 pixels wide": [smooth(rng, int(rng.integers(10, 41))) for _ in range(others)],
        "vertical stripes of the five colours, in another order": [stripes(rng) for _ in range(others)],
    }
    print("\n| pictures without our mark | n | mark found |\n| --- | --- | --- |")
    for name, pictures in kinds.items():
        found = sum(provenance.has_mark(picture) for picture in pictures)
        print(f"| {name} | {len(pictures):,} | {share(found, len(pictures))} |")


def emoji(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    from minidalle.data import openmoji

    drawings = openmoji.drawings()
    chosen = [openmoji.variant(drawings[k], 64, rng) for k in rng.permutation(len(drawings))[:n]]
    return list(openmoji.render(chosen, 64).images.permute(0, 2, 3, 1).numpy())


def smooth(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """Noise with the spectrum of photographs, amplitude falling as one over frequency, in colour: (side, side, 3) uint8."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    waves = np.fft.fft2(rng.standard_normal((3, side, side))) / np.maximum(frequency, 1 / side)
    picture = np.fft.ifft2(waves).real
    picture = picture / picture.std((1, 2), keepdims=True) * rng.uniform(20, 70) + rng.uniform(0, 255, (3, 1, 1))
    return picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def stripes(rng: np.random.Generator, side: int = 128) -> np.ndarray:
    """What comes nearest: the mark with its squares in another order, at the same place."""
    from minidalle.studio.provenance import MARK, with_mark

    order = rng.permutation(len(MARK))
    while (order == np.arange(len(MARK))).all():
        order = rng.permutation(len(MARK))
    picture, square = with_mark(smooth(rng, side)), side // 8
    for k, which in enumerate(order):
        picture[side:, side - (k + 1) * square : side - k * square] = MARK[::-1][which]
    return picture


def measure(args: argparse.Namespace):
    import torch

    from minidalle.studio.draw import LoadedRun

    run = LoadedRun(args.run, "cpu")
    each = -(-args.pictures // len(CAPTIONS))
    codes = torch.cat([run.draw(caption, range(each), run.options()) for caption in CAPTIONS])[: args.pictures]
    images = run.paint(codes)
    print(f"{side_by_side.machine()} · {args.run}, {len(images)} pictures of {images.shape[3]} x {images.shape[2]}\n")
    with tempfile.TemporaryDirectory() as folder:
        print_survivors(images, Path(folder))
    print_alarms(images, args.others)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What survives of a picture's mark and metadata.")
    parser.add_argument("--run", type=Path, default=Path("lessons/weights"), help="a run on scenes")
    parser.add_argument("--pictures", type=positive(int), default=64, help="drawn (default 64)")
    parser.add_argument("--others", type=positive(int), default=1000, help="of other kinds, each (default 1000)")
    args = parser.parse_args()
    run_command(lambda: measure(args))
