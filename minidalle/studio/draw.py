"""Drawing with a run that was trained: the verbs `generate`, `edit`, `rank` and `verify`.

captions  ->  codes (sample.py)  ->  pictures (dvae.py)  ->  the best by CLIP (clip.py)  ->  marked PNGs (provenance.py)
"""

import argparse
import re
import time
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minidalle import sample
from minidalle.bpe import BPE
from minidalle.checkpoint import fingerprint, load_clip, load_preset_of, load_run
from minidalle.config import TWICE, SampleConfig
from minidalle.data import folder
from minidalle.scale import released
from minidalle.sequence import tokenize
from minidalle.studio import provenance
from minidalle.studio.provenance import without_mark
from minidalle.studio.sheet import MOST, contact_sheet
from minidalle.train import decode_all, pick_device, to_float

LARGER = 4  # times as large as drawn are the pictures of a sheet, at most
FRAMES = 128  # of an animation, at most about twice as many
MAX_CAPTION = 4096  # bytes; the longest model reads 255 tokens
SMALL = 2**24  # weights of a transformer that a CPU runs in float64
OPTIONS = ("temperature", "top_k", "top_p", "guidance")


class LoadedRun:
    """A run that draws: its tokenizer, dVAE and transformer, on one device.

    On a CPU a small transformer runs in float64. In float32 a logit depends, by up to 1e-5, on how many pictures are drawn
    beside this one, as sums are then taken in another order; and where two codes are that close, the code that is drawn
    does too. In float64 that is 2e-14, and of 32,768 codes none differed (`benchmarks/studio.py`).
    """

    def __init__(self, run: Path, device: str = "auto", dvae: str | None = None):
        """dvae: another place to take the dVAE from (see `released.dvae_from`), which has to be the one that the transformer
        was trained with. Raises ValueError where a part is missing or does not fit the others."""
        self.device = pick_device(device)
        other = released.dvae_from(dvae) if dvae else None
        self.preset, self.bpe, self.dvae, self.model = load_run(run, other)
        self.model_hash = fingerprint(self.model.state_dict())
        self.dvae, self.model = self.dvae.to(self.device), self.model.to(self.device)
        if self.device.type == "cpu" and sum(p.numel() for p in self.model.parameters()) <= SMALL:
            self.model.double()
        config, step = self.model.config, self.dvae.config.downsample
        self.size = height, width = config.rows * step, config.grid * step  # of a picture, in pixels
        drawn = self.preset.data
        if (drawn.height, drawn.width) != self.size:
            raise ValueError(
                f"{run}/config.json tells of pictures of {drawn.width} x {drawn.height}, but the weights draw {width} x "
                f"{height}: put the file back that they were trained with"
            )

    def options(self, editing: bool = False, **asked) -> dict:
        """temperature, top_k, top_p and guidance: as asked, and where that is None as the run was measured."""
        usual = self.preset.edit if editing else self.preset.sample
        options = {name: getattr(usual, name) if asked.get(name) is None else asked[name] for name in OPTIONS}
        SampleConfig(**options).check()
        if options["guidance"] != 1 and not self.preset.train.transformer.caption_dropout:
            raise ValueError(
                f"guidance {options['guidance']} needs a transformer that was trained with dropped captions, and this one was "
                "not: leave it at 1, or train with --train.transformer.caption_dropout=0.1"
            )
        return options

    def text(self, caption: str) -> torch.Tensor:
        """The caption's tokens (text_len,). Raises ValueError for one that says nothing or does not fit."""
        check_caption(caption, self.bpe)
        return tokenize(self.bpe, [caption], self.model.config.text_len)[0]

    def draw(self, caption: str, seeds: Sequence[int], options: dict, prefix=None, on_token=None) -> torch.Tensor:
        """Codes (len(seeds), rows, grid), drawn in batches. on_token(first, cell, codes (n,)): after each cell of the
        n pictures from `first` on."""
        text, parts = self.text(caption), []
        for k in sample.in_batches(len(seeds), self.model.config):
            then = partial(on_token, k.start) if on_token else None
            parts.append(
                sample.generate(
                    self.model, text, len(k), [seeds[i] for i in k], prefix=prefix, on_token=then, **options
                )
            )
        return torch.cat(parts)

    def paint(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (n, rows, grid) -> pictures (n, 3, height, width) in [0, 1] on the CPU."""
        return decode_all(self.dvae, codes, self.device)

    def paint_partly(self, codes: torch.Tensor, n: int | torch.Tensor) -> torch.Tensor:
        """The same where only the first n codes of each are drawn: the rest is grey, and the decoder does not know it.
        n: a number, or one for each picture."""
        step = self.dvae.config.downsample
        one_hot = F.one_hot(codes, self.dvae.config.codebook_size).permute(0, 3, 1, 2).float()  # (n, K, rows, grid)
        known = torch.arange(codes[0].numel()) < torch.as_tensor(n).expand(len(codes))[:, None]  # (n, rows * grid)
        known = known.view_as(codes).to(codes.device)[:, None]  # (n, 1, rows, grid)
        with torch.no_grad():
            pictures = self.dvae.paint((one_hot * known).to(self.device))
        seen = known.repeat_interleave(step, 2).repeat_interleave(step, 3).to(self.device)
        return torch.where(seen, pictures, 0.85).cpu()

    def usual_rows(self) -> int:
        """So many rows of codes are kept: half of a picture that shows a thing twice, 15/32 of any other (P 3.3)."""
        rows = self.model.config.rows
        return rows // 2 if self.preset.data.name in TWICE else max(1, rows * 15 // 32)

    def top_rows(self, image: Path, rows: int | None = None) -> torch.Tensor:
        """The codes (rows, grid) of the top of a picture that is to be edited; rows None: `usual_rows`."""
        drawn, config = self.preset.data, self.model.config
        rows = self.usual_rows() if rows is None else rows
        if not 0 < rows < config.rows:
            raise ValueError(
                f"--rows must lie in 1 … {config.rows - 1}, as this run draws {config.rows} rows, got {rows}"
            )
        kept, size = (rows * self.dvae.config.downsample, drawn.width), (drawn.height, drawn.width)
        picture = read_picture(image, self.device, size, kept)
        below = (0, 0, 0, size[0] - picture.shape[1])  # what is not there is white
        return self.dvae.encode(F.pad(picture, below, value=1.0)[None])[0, :rows]


def draw(args: argparse.Namespace):
    """`generate` and `edit`: n pictures for every caption, one PNG each, and a sheet of all."""
    run, editing = LoadedRun(args.run, args.device, args.dvae), args.verb == "edit"
    options = run.options(editing, **{name: getattr(args, name) for name in OPTIONS})
    out = args.out or args.run / ("edited" if editing else "generated")
    check_request(args, run, out)
    score = scorer(args.run, args.clip, run.device)[0] if args.rerank else None
    prefix = run.top_rows(args.image, args.rows) if editing else None
    seeds, config = range(args.seed, args.seed + (args.rerank or args.n)), run.model.config
    tokens = len(args.captions) * len(seeds) * (config.rows - (0 if prefix is None else len(prefix))) * config.grid
    seconds, sheet, up = 0.0, [], min(args.upscale, LARGER)
    with tqdm(total=tokens, unit="token", desc="draw") as bar:
        for number, caption in enumerate(args.captions, start=1):
            started = time.perf_counter()
            codes = run.draw(caption, seeds, options, prefix, lambda first, cell, codes: bar.update(len(codes)))
            seconds += time.perf_counter() - started
            images = run.paint(codes)
            scores = score(caption, images) if score else None
            best = range(args.n) if scores is None else scores.argsort(descending=True)[: args.n].tolist()
            for k in best:
                path = out / f"{number:02d}-{slug(caption)}-seed{seeds[k]}.png"
                save_one(path, run, images[k], codes[k], caption, seeds[k], options, prefix, args)
                if score:
                    bar.write(f"{scores[k]:6.3f}  {path}")
            labels = [f"seed {seeds[k]}" + (f": {scores[k]:.3f}" if score else "") for k in best]
            sheet.append((caption, [provenance.as_shown(images[k], not args.no_mark, up) for k in best[:MOST]], labels))
    how = ", ".join(f"{name} {value}" for name, value in options.items())
    save_sheet(out / "sheet.png", run, sheet, f"{args.run}, {how}", options, args)
    count = len(args.captions) * args.n
    print(f"{count} picture{'' if count == 1 else 's'} and sheet.png in {out} ({how})")
    print(f"{tokens:,} tokens drawn in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s")


def check_request(args: argparse.Namespace, run: LoadedRun, out: Path):
    """Raise ValueError, before the first code is drawn, for what could not be drawn or saved in the end."""
    for caption in args.captions:
        run.text(caption)
    count, (height, width), up = args.rerank or args.n, run.size, args.upscale
    check_pixels(count * height * width, f"{count} pictures of {width} x {height}", "draw fewer, others with --seed")
    large = (up * height + up * width // 8 + 2) * up * width  # with the strip
    check_pixels(large, f"--upscale {up}", "choose a smaller factor")
    if args.gif:
        check_pixels(large * 2 * FRAMES, f"--upscale {up} with --gif", "choose a smaller factor")
    if args.key:
        provenance.signature("", args.key)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, expected a folder for the pictures: choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be made ({error.strerror}): choose another folder") from None


def check_pixels(count: int, what: str, instead: str):
    if count > folder.MAX_PIXELS:
        raise ValueError(f"{what} would be {count:,} pixels, over {folder.MAX_PIXELS:,}: {instead}")


def slug(caption: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")[:60]


def save(path: Path, run: LoadedRun, image, caption, seed, options, kept=0, mark=True, upscale=1, key=None):
    """One drawing (3, height, width), with all that it takes to draw it again; but the picture of which an edit has `kept`
    the codes of so many rows."""
    facts = {"prompt": caption, "seed": seed, "options": options, "verb": "edit" if kept else "generate"}
    facts |= {"model": run.model_hash} | ({"kept_rows": kept} if kept else {})
    provenance.save(path, image, facts, mark, upscale, key)


def save_one(path: Path, run: LoadedRun, image, codes, caption, seed, options, prefix, args: argparse.Namespace):
    """One drawing (3, height, width) with codes (rows, grid), and with --gif how it was drawn."""
    mark, kept = not args.no_mark, 0 if prefix is None else len(prefix)
    save(path, run, image, caption, seed, options, kept, mark, args.upscale, args.key)
    if args.gif:
        frames = frames_of(run, codes, given=kept)
        provenance.save_gif(path.with_suffix(".gif"), frames, mark, args.upscale)


def save_sheet(path: Path, run: LoadedRun, rows, note: str, options: dict, args: argparse.Namespace):
    """All pictures on one page, see sheet.py, each with its mark, and the page with metadata of its own."""
    captions = [caption[:200] for caption in args.captions[:MOST]]
    facts = {"prompt": captions[0] if len(captions) == 1 else captions, "seed": args.seed, "options": options}
    facts |= {"verb": args.verb, "model": run.model_hash, "mark": not args.no_mark, "sheet": True}
    provenance.write(path, contact_sheet(rows, note), facts, args.key)


def frames_of(run: LoadedRun, codes: torch.Tensor, given: int) -> torch.Tensor:
    """A picture (rows, grid) as it is drawn, code after code behind the first `given` rows: (frames, 3, height, width)."""
    total = codes.numel()
    every = max(1, total // FRAMES)
    return torch.cat([run.paint_partly(codes[None], n) for n in [*range(given * codes.shape[1], total, every), total]])


def scorer(run: Path | None, clip: str | None, device: torch.device) -> tuple[Callable, BPE | None]:
    """What ranks: a function (caption, images (n, 3, height, width) in [0, 1]) -> scores (n,), and the run's tokenizer
    if it is a CLIP that was trained with it. clip: released:FILE or openclip:FILE, None for the CLIP of the run."""
    published = released.clip_from(clip) if clip else released.kept_clip(run)
    if published is None:
        bpe, model = load_clip(run)
        model = model.to(device)
        text = lambda caption: tokenize(bpe, [caption], model.config.context)[0].to(device)  # noqa: E731
        return lambda caption, images: model.rank(text(caption), images), bpe
    model, tokens = published
    model, size = model.to(device), (model.config.height, model.config.width)

    def score(caption, images):
        images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        return model.rank(tokens([caption])[0].to(device), images)

    return score, None


def rank_images(args: argparse.Namespace):
    """`rank`: the files with their scores, best first."""
    device = pick_device(args.device)
    score, bpe = scorer(args.run, args.clip, device)
    check_caption(args.captions[0], bpe)
    if args.run:
        drawn = load_preset_of(args.run).data
        images = [read_picture(path, device, (drawn.height, drawn.width)) for path in args.images]
    else:
        images = [read_middle(path, device) for path in args.images]
    images = torch.stack(images)
    if args.dvae:
        dvae = released.dvae_from(args.dvae).to(device)
        images = decode_all(dvae, dvae.encode(images), device)
    scores = score(args.captions[0], images).tolist()
    for score, path in sorted(zip(scores, args.images), key=lambda pair: -pair[0]):
        print(f"{score:6.3f}  {path}")


def verify_picture(args: argparse.Namespace):
    """`verify`: see studio/provenance.py."""
    said = [provenance.verify(path, args.public_key) for path in args.images]
    print("\n".join(sentence for _, sentence in said))
    raise SystemExit(max(code for code, _ in said))


def read_picture(path: Path, device, *sizes: tuple[int, int]):
    """(3, height, width) float32 in [0, 1], without our mark, resized to the one of the sizes (height, width) whose shape it has."""
    return to_float(torch.from_numpy(folder.read(path, *sizes, prepare=without_mark)).to(device))


def read_middle(path: Path, device, side: int = 224):
    """(3, side, side) float32 in [0, 1], the largest square in the middle of the picture, averaged down or enlarged."""
    try:
        folder.check_header(path, aspect=float("inf"))
        picture = without_mark(folder.decode(path, least=side))
    except ValueError as reason:
        raise ValueError(f"{path}: {reason}; expected a JPEG, PNG or WebP picture") from None
    middle = folder.view_box(picture.size, side, side, None)
    return to_float(torch.from_numpy(folder.cut(picture, middle, side, side)).to(device))


def check_caption(caption: str, bpe: BPE | None = None):
    """Raise ValueError for a caption that is empty, too long or not text; warn of words that the run (bpe) cannot know well."""
    if not caption.strip():
        raise ValueError("a caption is empty: say what to draw, in words as the run was trained on")
    try:
        size = len(caption.encode())
    except UnicodeEncodeError:  # the command line had bytes that are no UTF-8
        raise ValueError(f"a caption is not text in UTF-8: {ascii(caption[:80])}") from None
    if controls(caption):
        raise ValueError(f"a caption holds control characters, which are no text: {ascii(caption[:80])}; type it anew")
    if size > MAX_CAPTION:
        raise ValueError(f"a caption has {size:,} bytes, over {MAX_CAPTION:,}: say it in fewer words")
    if bpe is None:
        return
    if said := strange(caption, bpe):
        warnings.warn(said, stacklevel=1)


def controls(text: str) -> bool:
    """Does it hold signs that are no text: control characters but for spaces and ends of lines, halves of characters?"""
    return any(unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\t\n\r" for sign in text)


def strange(caption: str, bpe: BPE) -> str:
    """A sentence about the words, emoji and other signs that the run cannot know well; empty if there are none."""
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s!-~]+", caption.lower()))  # each once
    unknown = [word for word in words if len(bpe.encode(word)) > 1]
    if not unknown:
        return ""
    named = [*map(repr, unknown[:10]), *["…"] * (len(unknown) > 10)]
    return (
        f"the model reads {', '.join(named)} in pieces, because such words were rare or not there in its "
        "captions: what it draws may not show them"
    )
