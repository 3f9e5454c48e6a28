"""The page: `python -m minidalle serve --run DIR` draws in a browser.

    prompt and sliders  ->  nine pictures, which fill while they are drawn  ->  the best first by CLIP (where the run has one)
    a picture           ->  large, beside the codes it is made of  ->  saved, or its top kept and the rest drawn anew

Here stands how it looks and how it is served; page.py holds what it does. Gradio makes it, for this machine alone unless
told otherwise. It asks nothing of any other: fonts are the system's, and a header forbids the browser to load from elsewhere.
What Gradio shows lies in a temporary folder, ten minutes at most, and ends with the server.
"""

import argparse
import logging
import os
import socket
import tempfile
from functools import partial

from minidalle.studio.draw import LoadedRun, scorer

try:
    import fastapi
    import gradio as gr
    import uvicorn
except ImportError as missing:
    raise ImportError(f"serve needs Gradio ({missing}): .venv/bin/pip install -r requirements-extra.txt") from None

from minidalle.studio.page import Page, example, say

LARGEST = 20 * 1024**2  # bytes of an uploaded picture
ASKED = 2**18  # bytes of any other request; Gradio keeps what each visitor has typed
LONGEST_TYPED = 20_000  # characters that the browser takes, so that they fit; page.py says what it thinks of so many
SESSIONS = 200  # so many visitors are remembered, of whom each takes some memory; beyond them the one longest silent is forgotten
# What a browser may load: what comes from here. Gradio writes styles and scripts into the page and fills templates by eval.
OURS = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; object-src 'none'"
CSS = """
#grid img, #detail img, #kept img { image-rendering: pixelated }
#grid .grid-wrap { max-height: none; overflow: visible; padding: 8px } #grid .grid-container { padding: 0; grid-template-columns: repeat(3, 1fr) }
#grid .thumbnail-item { display: flex; flex-direction: column; aspect-ratio: auto; height: auto; overflow: visible }
#grid .caption-label { position: static; align-self: center; max-width: none; border: 0; background: none; white-space: normal; opacity: 1 !important }
#grid .thumbnail-item:hover img { filter: none }
#said p { margin: 0; min-height: 3em } .wrong { color: #b3261e } .dark .wrong { color: #ffb4ab }
#detail img { width: 100%; max-width: 320px; border: 1px solid #8886 } #kept img { width: 160px; border: 1px solid #8886 }
.codes { border-collapse: collapse; table-layout: fixed; width: 100%; max-width: 320px }
.codes td { border: 1px solid white; padding: 0; text-align: center; color: black; overflow: hidden; font-size: min(.8rem, calc(13rem / var(--grid))) }
.codes caption { text-align: left; padding: .5em 0 } a.save { display: block; padding: .5em 0; font-weight: 600; text-decoration: underline }
"""


def knobs(run: LoadedRun, editing: bool) -> list:
    """How to draw: seed, temperature, top-k, top-p, guidance, as the run was measured."""
    usual, guided = run.options(editing), bool(run.preset.train.transformer.caption_dropout)
    with gr.Accordion("How to draw", open=False):
        return [
            gr.Number(0, label="Seed: the pictures have this and the next eight"),
            gr.Slider(0, 2, usual["temperature"], step=0.05, label="Temperature (0: always the likeliest code)"),
            gr.Slider(0, run.model.config.codebook_size, usual["top_k"], step=1, label="Top-k (0: all codes)"),
            gr.Slider(0.05, 1, usual["top_p"], step=0.05, label="Top-p (1: all codes)"),
            gr.Slider(1, 5, usual["guidance"], step=0.1, label="Guidance (1: off)", visible=guided),
        ]


def layout(page: Page, name: str) -> gr.Blocks:
    """Controls, the grid, and what was picked: side by side, or one below the other on a phone."""
    run, hint = page.run, example(page.run)
    last = run.model.config.rows - 1
    with gr.Blocks(title="minidalle", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        shown, picked, source = gr.State(time_to_live=3600), gr.State(), gr.State(time_to_live=3600)
        codes = f"{last + 1} × {run.model.config.grid} codes, drawn one after the other"
        gr.Markdown(f"# minidalle\nA caption goes in, nine drawings come out. Each is {codes}, by the run “{name}”.")
        with gr.Row():
            with gr.Column(scale=4, min_width=300), gr.Tabs(elem_id="tabs") as tabs:
                with gr.Tab("Draw", id="draw"):
                    prompt = gr.Textbox(label="What to draw", placeholder=hint, max_lines=6, max_length=LONGEST_TYPED)
                    go = gr.Button("Draw nine", variant="primary")
                    drawing = [prompt, *knobs(run, editing=False)]
                with gr.Tab("Edit", id="edit"):
                    file = gr.File(label="A picture of your own (PNG, JPEG, WebP)", file_types=["image"], height=150)
                    rows = gr.Slider(1, last, run.usual_rows(), step=1, label="Rows of codes to keep, from the top")
                    kept = gr.HTML(page.preview(None, 1), elem_id="kept", js_on_load=None)
                    caption = gr.Textbox(
                        label="What the whole picture shows", placeholder=hint, max_lines=6, max_length=LONGEST_TYPED
                    )
                    redo = gr.Button("Draw the rest nine times", variant="primary")
                    editing = [source, rows, caption, *knobs(run, editing=True)]
            with gr.Column(scale=5, min_width=300):
                said = gr.HTML(say(f"Type a caption, such as “{hint}”."), elem_id="said", js_on_load=None)
                grid = gr.Gallery(
                    page.blank(), label="Drawings", show_label=False, columns=3, height="auto", format="png",
                    elem_id="grid", allow_preview=False, buttons=[], interactive=False, object_fit="contain",
                )  # fmt: skip
            with gr.Column(scale=4, min_width=300):
                detail = gr.HTML(
                    "<p>Click a drawing to see it large, with its codes.</p>", elem_id="detail", js_on_load=None
                )
                send = gr.Button("Keep its top and draw the rest anew", visible=False)
        out, quiet = [grid, said, shown, detail, send], {"show_progress": "hidden", "api_visibility": "private"}
        alone = {"concurrency_limit": None, "show_progress": "hidden", "trigger_mode": "always_last"}  # our own line
        gr.on(
            [go.click, prompt.submit], partial(page.nine, "generate", None, 0), drawing, out, api_name="draw", **alone
        )
        gr.on([redo.click, caption.submit], partial(page.nine, "edit"), editing, out, api_name="edit", **alone)
        look = '() => document.querySelector("{}").scrollIntoView({{block: "nearest"}})'  # a phone shows one at a time
        grid.select(page.pick, shown, [detail, send, picked], **quiet).then(None, js=look.format("#detail"))
        send.click(page.send, [shown, picked], [tabs, source, file, caption], **quiet).then(
            None, js=look.format("#tabs")
        )
        gr.on([file.upload, file.clear], lambda path: path, file, source, **quiet)
        gr.on([source.change, rows.change], page.preview, [source, rows], kept, **quiet)
    blocks.max_threads = page.most + 40  # all that wait, and the clicks beside them
    blocks.state_session_capacity = SESSIONS
    return blocks.queue(api_open=False)


def guarded(app):
    """The same ASGI app, which tells browsers to load nothing from elsewhere and does not read endless requests."""

    async def answer(scope, receive, send):
        async def sending(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", OURS.encode())]
            await send(message)

        answers = app
        if scope["type"] == "http":
            headers, most = dict(scope["headers"]), LARGEST if scope["path"].endswith("/upload") else ASKED
            if b"transfer-encoding" in headers:
                answers = fastapi.responses.PlainTextResponse("say how long it is: send a content-length", 411)
            elif int(headers.get(b"content-length", 0)) > most:
                answers = fastapi.responses.PlainTextResponse(f"more than {most >> 10:,} KB: send less", 413)
        await answers(scope, receive, sending)

    return answer


def site(page: Page, name: str):
    """The ASGI app."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(
        fastapi.FastAPI(), layout(page, name), "/", footer_links=[], run_history=False, show_error=False,
        max_file_size=LARGEST, ssr_mode=False, theme=theme, css=CSS,
    )  # fmt: skip
    return guarded(app)


class Server(uvicorn.Server):
    """The library's, but that pages which are still open when it ends are cut off without a word."""

    async def shutdown(self, sockets=None):
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)


def serve(args: argparse.Namespace):
    """`serve`: the page, until Ctrl-C. Raises OSError for a port that is in use."""
    try:
        family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
        listener = socket.create_server((args.host, args.port), family=family)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise OSError(
            f"--port {args.port} of {args.host} cannot be had ({why}): choose another --port or --host"
        ) from None
    with listener, tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        run = LoadedRun(args.run, args.device, args.dvae)
        ranks = args.clip or (args.run / "clip.safetensors").exists()
        page = Page(run, scorer(args.run, args.clip, run.device)[0] if ranks else None, args.queue)
        config = uvicorn.Config(site(page, args.run.resolve().name), log_level="warning", timeout_graceful_shutdown=2)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        Server(config).run(sockets=[listener])
