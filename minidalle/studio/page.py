"""What answers the page of web.py: a prompt is read, nine pictures are drawn while it watches, one of them is looked at or edited.

    prompt  ->  `read_prompt`  ->  the line  ->  `drawing`, a few codes at a time  ->  `ranked`  ->  `pick`, `send`, `kept`

Drawings wait in one line, as there is one model; whoever would be too far back is told so at once. A drawing whose browser
has gone stops at its next code: Gradio closes the generator, and `on_token` raises `Gone`.
"""

import asyncio
import base64
import html
import io
import tempfile
import threading
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import gradio as gr
import torch
from PIL import Image

from minidalle.plots import to_array
from minidalle.studio.draw import OPTIONS, LoadedRun, controls, save, slug, strange

COUNT = 9  # pictures, in a square
SEEDS = 2**48  # a browser's numbers are exact up to 2⁵³
LONGEST = 1000  # characters of a prompt; more is not even tokenised
EXAMPLES = {
    "shapes": "a photo of a large red circle",
    "scenes": "a photo of a red circle above a blue square",
    "openmoji": "the exact same fox on the top as a sketch on the bottom",
}


class Gone(Exception):
    """Nobody waits for this drawing any more."""


def read_prompt(prompt: str, run: LoadedRun) -> tuple[str, str]:
    """(the caption on one line, a warning to append or ""). Raises ValueError, in one sentence, for what cannot be drawn."""
    if len(prompt) > LONGEST:
        raise ValueError(f"the caption has {len(prompt):,} characters, and {LONGEST:,} are taken: say it shorter")
    if controls(prompt):
        raise ValueError("the caption holds control characters, which are no text: type it anew")
    caption = " ".join(prompt.split())
    tokens, room = len(run.bpe.encode(caption)), run.model.config.text_len - 1
    if not tokens:
        raise ValueError(f"the caption is empty: say what to draw, such as “{example(run)}”")
    if tokens > room:
        raise ValueError(f"the caption has {tokens} tokens, and this model reads {room}: say it shorter")
    said = strange(caption, run.bpe)
    return caption, said and f"; {said}"


def example(run: LoadedRun) -> str:
    return EXAMPLES.get(run.preset.data.name, "what the pictures of the run show")


def say(sentence: str, wrong: bool = False) -> str:
    """The line above the pictures; screen readers read it out as it changes."""
    return f'<p role="status" dir="auto"{" class=wrong" * wrong}>{html.escape(sentence[:1].upper() + sentence[1:])}</p>'


def as_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def png(picture: torch.Tensor) -> bytes:
    """picture (3, height, width) in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray(to_array(picture[None])[0]).save(file, "PNG")
    return file.getvalue()


def code_map(codes: torch.Tensor) -> str:
    """codes (rows, grid) as a table, with a colour for each number."""
    cell = '<td style="background: hsl({} 65% 80%)">{}</td>'
    rows = "".join(f"<tr>{''.join(cell.format(code * 137 % 360, code) for code in row)}</tr>" for row in codes.tolist())
    count = f"{codes.shape[0]} × {codes.shape[1]} codes, {len(codes.unique())} of them different"
    return f'<table class="codes" style="--grid: {codes.shape[1]}"><caption>{count}</caption>{rows}</table>'


class Page:
    """What answers the page: one run, and the line of drawings that wait for it.

    `shown`, which the browser's session keeps, is what the grid shows: {"codes": (n, rows, grid), "seeds", "scores",
    "caption", "options", "kept": rows that an edit kept, else 0}; None while it is being drawn. `source` is what is edited:
    codes (rows, grid) or a file.
    """

    def __init__(self, run: LoadedRun, score, most: int):
        """score(caption, images) -> scores (n,), or None; most: so many drawings may wait."""
        self.run, self.score, self.most, self.line = run, score, most, []

    async def nine(self, verb: str, source, rows: int, prompt: str, seed: float | None, *knobs):
        """Draw. Yields (grid, sentence, shown, detail, the button that sends) until the nine are there."""
        stay = [gr.skip()] * 4
        try:
            caption, warning = read_prompt(prompt or "", self.run)
            if seed is None or not 0 <= seed < SEEDS or seed != int(seed):
                raise ValueError(
                    f"the seed is {'empty' if seed is None else f'{seed:g}'}: give a whole number, from 0 to {SEEDS - 1:,}"
                )
            options = self.run.options(verb == "edit", **dict(zip(OPTIONS, knobs)))
            prefix = await asyncio.to_thread(self.kept, source, rows) if verb == "edit" else None
            if len(self.line) > self.most:
                raise ValueError(f"{self.most} drawings are waiting already, which is the most: try again in a minute")
        except ValueError as error:
            yield stay[0], say(f"{error}", wrong=True), *stay[1:]
            return
        ticket, seeds = object(), range(int(seed), int(seed) + COUNT)
        self.line.append(ticket)
        try:
            while self.line[0] is not ticket:
                yield stay[0], say(f"waiting: {self.line.index(ticket)} before yours"), *stay[1:]
                await asyncio.sleep(0.3)
            shown = {"caption": caption, "options": options, "kept": 0 if prefix is None else len(prefix)}
            async with aclosing(self.filling(shown, warning, seeds, prefix)) as steps:
                async for step in steps:
                    yield step
        except (ValueError, RuntimeError) as error:
            yield stay[0], say(f"{error}".partition("\n")[0], wrong=True), *stay[1:]
        finally:
            self.line.remove(ticket)

    async def filling(self, shown: dict, warning: str, seeds: range, prefix: torch.Tensor | None):
        """The part of `nine` that has the model to itself; yields the same."""
        caption, options = shown["caption"], shown["options"]
        async with aclosing(self.drawing(caption, seeds, options, prefix)) as steps:
            async for codes, drawn in steps:
                grid = await asyncio.to_thread(self.grid, codes, drawn)
                done = f"{int(drawn.sum())} of {codes.numel()} codes{warning}"
                yield grid, say(f"drawing “{caption}”, {done}"), None, "", gr.Button(visible=False)
        shown = shown | await asyncio.to_thread(self.ranked, caption, codes, list(seeds))
        grid = await asyncio.to_thread(self.grid, shown["codes"], None, shown)
        order = "the best first by CLIP" if self.score else "in the order of their seeds"
        yield grid, say(f"“{caption}”, {order}: pick one to see its codes{warning}"), shown, "", gr.skip()

    async def drawing(self, caption: str, seeds: range, options: dict, prefix: torch.Tensor | None):
        """Yields (codes (n, rows, grid), how many cells of each are drawn (n,)) three times a second, at last all."""
        config = self.run.model.config
        codes = torch.zeros(len(seeds), config.rows, config.grid, dtype=torch.int64)
        drawn, gone = torch.zeros(len(seeds), dtype=torch.int64), threading.Event()
        if prefix is not None:
            codes[:, : len(prefix)], drawn[:] = prefix.cpu(), prefix.numel()

        def on_token(first: int, cell: int, new: torch.Tensor):
            if gone.is_set():
                raise Gone
            codes.view(len(seeds), -1)[first : first + len(new), cell] = new.cpu()
            drawn[first : first + len(new)] = cell + 1

        work = asyncio.ensure_future(asyncio.to_thread(self.run.draw, caption, seeds, options, prefix, on_token))
        try:
            while not work.done():
                yield codes.clone(), drawn.clone()
                await asyncio.wait([work], timeout=0.3)
            yield work.result().cpu(), drawn
        finally:
            gone.set()
            await asyncio.gather(work, return_exceptions=True)  # so that the next does not begin beside it

    def ranked(self, caption: str, codes: torch.Tensor, seeds: list[int]) -> dict:
        if self.score is None:
            return {"codes": codes, "seeds": seeds, "scores": None}
        scores = self.score(caption, self.run.paint(codes)).cpu()
        order = scores.argsort(descending=True)
        return {"codes": codes[order], "seeds": [seeds[k] for k in order], "scores": scores[order].tolist()}

    def blank(self) -> list:
        """The gallery before anything is drawn: all grey."""
        config = self.run.model.config
        return self.grid(torch.zeros(COUNT, config.rows, config.grid, dtype=torch.int64), torch.tensor(0))

    def grid(self, codes: torch.Tensor, drawn: torch.Tensor | None, shown: dict | None = None) -> list:
        """Pictures with captions, for the gallery."""
        pictures = to_array(self.run.paint(codes) if drawn is None else self.run.paint_partly(codes, drawn))
        images = [Image.fromarray(picture) for picture in pictures]
        for image in images:
            # Gradio names a file by its bytes, and would write an equal one anew while a browser reads it.
            image.info["once"] = uuid4().hex
        return [(image, "" if shown is None else label(shown, k)) for k, image in enumerate(images)]

    def pick(self, shown: dict | None, event: gr.SelectData):
        """A picture was clicked: (the detail, the button that sends, which it is)."""
        if shown is None:
            return "<p>Nothing is drawn there yet.</p>", gr.skip(), None
        k = event.index
        codes = shown["codes"][k]
        picture = self.run.paint(codes[None])[0]
        name = f"{slug(shown['caption'])}-seed{shown['seeds'][k]}.png"
        alt, text = html.escape(f"drawing of “{shown['caption']}”"), html.escape(label(shown, k))
        link = f'<a class="save" download="{name}" href="{as_url(self.saved(shown, k, picture))}">Save as PNG</a>'
        large = f'<img alt="{alt}" src="{as_url(png(picture))}">'
        return f"<p>{text}</p>{large}{link}{code_map(codes)}", gr.Button(visible=True), k

    def saved(self, shown: dict, k: int, picture: torch.Tensor) -> bytes:
        """The file, with its mark and metadata, large enough to look at."""
        with tempfile.TemporaryDirectory() as folder:
            path, upscale = Path(folder, "picture.png"), max(1, 256 // max(picture.shape[1:]))
            facts = shown["caption"], shown["seeds"][k], shown["options"], shown["kept"]
            save(path, self.run, picture, *facts, upscale=upscale)
            return path.read_bytes()

    def send(self, shown: dict | None, k: int | None):
        """To the Edit tab: (the tabs, the source, no file, the caption)."""
        if shown is None or k is None:
            raise gr.Error("Click a picture first.", print_exception=False)
        return gr.Tabs(selected="edit"), shown["codes"][k], None, shown["caption"]

    def kept(self, source, rows: int) -> torch.Tensor:
        """The codes (rows, grid) that an edit keeps. Raises ValueError for a file that is none of the run's pictures."""
        if source is None:
            raise ValueError("there is no picture to edit: click a drawing and send it here, or upload one")
        if isinstance(source, torch.Tensor):
            return source[: int(rows or 0)]
        try:
            return self.run.top_rows(Path(source), int(rows or 0)).cpu()
        except ValueError as error:
            raise ValueError(f"{error}".replace(str(source), f"“{Path(source).name}”")) from None

    def preview(self, source, rows: int) -> str:
        """What an edit keeps, as a picture, or why it cannot be edited."""
        if source is None:
            return "<p>Click a drawing and send it here, or upload a picture.</p>"
        try:
            prefix = self.kept(source, rows)
        except ValueError as error:
            return say(f"{error}", wrong=True)
        codes = torch.zeros(1, self.run.model.config.rows, prefix.shape[1], dtype=torch.int64)
        codes[0, : len(prefix)] = prefix
        picture = self.run.paint_partly(codes, prefix.numel())[0]
        return f'<img alt="the rows that are kept, the rest grey" src="{as_url(png(picture))}">'


def label(shown: dict, k: int) -> str:
    """ "CLIP 0.312 · seed 4"."""
    score = "" if shown["scores"] is None else f"CLIP {shown['scores'][k]:.3f} · "
    return f"{score}seed {shown['seeds'][k]}"
