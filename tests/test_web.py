"""The page: what it answers, that it asks nothing of other machines, and that many at once or one that leaves do not end it.

The browser's tests run the real server, in a process that reports each connection it makes; the others run the same
site in this process, with a model that draws as slowly as the test wants.
"""

import asyncio
import base64
import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidalle.__main__ import main
from minidalle.studio import draw, provenance

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-extra.txt")
import gradio  # noqa: E402
import httpx  # noqa: E402 (Gradio brings it)
import uvicorn  # noqa: E402

from minidalle.studio.page import COUNT, Gone, Page, read_prompt  # noqa: E402
from minidalle.studio.web import site  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:the model reads",  # said on the page, which is what is tested
    "ignore:'future.no_silent_downcasting'", "ignore:The copy keyword",  # of Gradio's own use of pandas
)  # fmt: skip
RUN, CAPTION = Path("lessons/weights"), "a photo of a red circle above a blue square"
KNOBS = (0, 1.0, 0, 0.7, 1.5)  # seed, temperature, top-k, top-p, guidance
REPORTING = """
import os, sys
def report(event, args):
    place = args[1] if event == "socket.connect" else args[0] if event == "socket.getaddrinfo" else None
    if isinstance(place, tuple):
        place = place[0]
    if isinstance(place, str) and place not in ("127.0.0.1", "::1", "localhost") and not place.startswith("/"):
        os.write(2, f"LEAVES {place}\\n".encode())
sys.addaudithook(report)
from minidalle.__main__ import main
main(sys.argv[1:])
"""
SENTENCES = {  # what is typed, and what the page says
    "empty": ("   ", "The caption is empty: say what to draw"),
    "long": ("a red circle " * 1334, "The caption has 17,342 characters, and 1,000 are taken"),
    "tokens": ("circle " * 60, "tokens, and this model reads"),
    "nul": ("a red\0circle", "control characters, which are no text"),
    "right to left": ("دائرة حمراء", "The model reads 'دائرة', 'حمراء' in pieces"),
    "emoji": ("a photo of a 🦊", "The model reads '🦊' in pieces"),
    "template": ("${1+1} {{1}}", "“${1+1} {{1}}”"),
    "markup": ("<img src=x onerror=alert(1)>", "“<img src=x onerror=alert(1)>”"),
}


@pytest.fixture(scope="module", autouse=True)
def temporary(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="module")
def run():
    return draw.LoadedRun(RUN)


@pytest.fixture(scope="module")
def page(run):
    return Page(run, draw.scorer(RUN, None, run.device)[0], most=4)


def steps_of(*args, page):
    """All that `nine` yields."""

    async def gather():
        return [step async for step in page.nine(*args)]

    return asyncio.run(gather())


# --- what the page does, without a browser


def test_nine_pictures_fill_and_end_with_the_best_first(page, run):
    steps = steps_of("generate", None, 0, CAPTION, *KNOBS, page=page)
    counts = [int(re.search(r"(\d+) of 576 codes", said)[1]) for _, said, *_ in steps[:-1]]
    assert counts == sorted(counts) and counts[0] < 576 and counts[-1] == 576
    files = [json.dumps(image.info) for grid, *_ in steps for image, _ in grid]  # Gradio names them by their bytes
    assert len(set(files)) == len(steps) * COUNT  # so that none is written anew while a browser reads it
    assert all(shown is None for _, _, shown, *_ in steps[:-1])
    first, shown = steps[0][0], steps[-1][2]
    assert first[-1][0].getextrema() == ((217, 217),) * 3  # grey, as nothing is drawn yet
    assert sorted(shown["seeds"]) == list(range(9)) and shown["scores"] == sorted(shown["scores"], reverse=True)
    again = run.draw(CAPTION, shown["seeds"], shown["options"])
    assert torch.equal(again, shown["codes"])
    expected = page.score(CAPTION, run.paint(again)).tolist()
    assert shown["scores"] == pytest.approx(expected, abs=1e-5)
    assert [name for _, name in steps[-1][0]] == [f"CLIP {s:.3f} · seed {k}" for s, k in zip(expected, shown["seeds"])]


def test_a_picked_picture_shows_its_codes_is_saved_with_its_origin_and_edited(page, run, tmp_path):
    shown = steps_of("generate", None, 0, CAPTION, *KNOBS, page=page)[-1][2]
    detail, button, k = page.pick(shown, gradio.SelectData(None, {"index": 4, "value": None}))
    assert k == 4 and button.visible
    cells = [int(code) for code in re.findall(r"<td[^>]*>(\d+)</td>", detail)]
    assert cells == shown["codes"][4].flatten().tolist()
    assert f"8 × 8 codes, {len(set(cells))} of them different" in detail
    data = re.search(r'download="([^"]+)" href="data:image/png;base64,([^"]+)"', detail)
    path = tmp_path / data[1]
    path.write_bytes(base64.b64decode(data[2]))
    code, sentence = provenance.verify(path)
    assert code == 0 and CAPTION in sentence and f"seed {shown['seeds'][4]}" in sentence
    assert path.name.endswith(f"-seed{shown['seeds'][4]}.png") and Image.open(path).width == 256
    assert provenance.has_mark(provenance.read(path)[0])

    _, source, _, caption = page.send(shown, 4)
    assert caption == CAPTION and torch.equal(source, shown["codes"][4])
    other = "a photo of a red circle above a green cross"
    edited = steps_of("edit", source, 4, other, *KNOBS, page=page)[-1][2]
    assert edited["kept"] == 4 and (edited["codes"][:, :4] == source[:4]).all()  # 100 % of what was kept
    assert (edited["codes"][:, 4:] != source[4:]).any()


@pytest.mark.parametrize("name", SENTENCES)
def test_a_prompt_is_answered_in_a_sentence(page, run, name):
    prompt, sentence = SENTENCES[name]
    steps = steps_of("generate", None, 0, prompt, *KNOBS, page=page)
    said = steps[-1][1]
    assert sentence.replace("<", "&lt;").replace(">", "&gt;").replace("'", "&#x27;")[1:] in said and "<img" not in said
    drawn = len(steps) > 1
    assert drawn == (name in ("right to left", "emoji", "template", "markup")) and ("class=wrong" in said) != drawn
    assert page.line == []


def test_a_prompt_that_is_far_too_long_is_not_tokenised(run, monkeypatch):
    monkeypatch.setattr(run.bpe, "encode", lambda *_: pytest.fail("tokenised"))
    with pytest.raises(ValueError, match="10,000,000 characters"):
        read_prompt("x" * 10_000_000, run)
    for wrong in ("a\x1bb", "a\ud800b", "\x85"):
        with pytest.raises(ValueError, match="control characters"):
            read_prompt(wrong, run)


@pytest.mark.parametrize("knobs, sentence", [
    ((0, -1, 0, 0.7, 1), "temperature must be"), ((0, float("nan"), 0, 0.7, 1), "temperature must be"),
    ((0, 1, 0, 2, 1), "top_p must lie in"), ((0, 1, -1, 0.7, 1), "top_k must be"), ((-5, 1, 0, 0.7, 1), "The seed is -5: give a whole number"),
    ((2.0**63, 1, 0, 0.7, 1), "The seed is 9.22337e+18: give"), ((1.5, 1, 0, 0.7, 1), "The seed is 1.5: give"),
    ((None, 1, 0, 0.7, 1), "The seed is empty: give"),
])  # fmt: skip
def test_settings_that_nothing_can_be_drawn_with_are_a_sentence(page, knobs, sentence):
    said = steps_of("generate", None, 0, CAPTION, *knobs, page=page)[-1][1]
    assert sentence.lower() in said.lower() and "class=wrong" in said and page.line == []


def test_uploads_are_edited_or_refused_in_a_sentence(page, run, tmp_path):
    red = Image.new("RGB", (64, 64), "red")
    red.save(tmp_path / "good.png")
    red.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("RGB", (20_000, 10)).save(tmp_path / "wide.png")
    red.save(tmp_path / "film.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), "blue")])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("good.png", "cmyk.jpg", "one.png"):
        said = page.preview(str(tmp_path / name), 4)
        picture = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', said)[1]))).convert("RGB")
        assert picture.size == (32, 32) and picture.getpixel((16, 24)) == (217, 217, 217)  # the lower half is grey
        red_, green, blue = picture.getpixel((16, 8))
        assert red_ > 150 and green < 100 and blue < 100
    reasons = {"wide.png": "is 20000 wide and 10 high", "film.gif": "does not decode", "text.png": "does not decode"}
    for name, reason in reasons.items():
        for said in (page.preview(str(tmp_path / name), 4), steps_of("edit", str(tmp_path / name), 4, CAPTION, *KNOBS, page=page)[-1][1]):  # fmt: skip
            assert f"“{name}”" in said and reason in said and "class=wrong" in said and str(tmp_path) not in said
    assert "there is no picture to edit" in steps_of("edit", None, 4, CAPTION, *KNOBS, page=page)[-1][1].lower()


def test_a_page_without_clip_says_so_and_one_without_guidance_hides_it(run):
    steps = steps_of("generate", None, 0, CAPTION, *KNOBS, page=Page(run, None, 1))
    assert "in the order of their seeds" in steps[-1][1] and steps[-1][0][3][1] == "seed 3"


# --- many at once, and one that leaves: a model that draws when it is told to


class Slow:
    """A run whose drawings take until `go` is set; counts those that began and those that were stopped."""

    def __init__(self, run):
        self.run, self.go, self.began, self.stopped = run, threading.Event(), 0, 0

    def __getattr__(self, name):
        return getattr(self.run, name)

    def draw(self, caption, seeds, options, prefix=None, on_token=None):
        self.began += 1
        nothing, end = torch.zeros(len(seeds), dtype=torch.int64), time.monotonic() + 20
        try:
            while not self.go.wait(0.01) and time.monotonic() < end:
                on_token(0, 0, nothing)
        except Gone:
            self.stopped += 1
            raise
        return torch.zeros(len(seeds), 8, 8, dtype=torch.int64)


@contextlib.contextmanager
def serving(page):
    server = uvicorn.Server(uvicorn.Config(site(page, "weights"), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def until(true, seconds=15.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def join(url, prompt=CAPTION, knobs=KNOBS) -> str:
    """Ask for nine pictures; the address under which they are reported."""
    answer = httpx.post(f"{url}/gradio_api/call/draw", json={"data": [prompt, *knobs]}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return f"{url}/gradio_api/call/draw/{answer.json()['event_id']}"


def reports(address):
    """(event, data) as they come."""
    with httpx.stream("GET", address, timeout=60, trust_env=False) as stream:
        assert stream.status_code == 200
        event = None
        for line in stream.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event != "heartbeat":
                yield event, json.loads(line[6:])


def sentence_of(address) -> str:
    *_, (event, data) = reports(address)
    assert event == "complete", (event, data)
    return data[1]


def test_of_twenty_at_once_those_beyond_the_line_are_told_so(run, page):
    slow = Slow(run)
    with serving(Page(slow, page.score, most=4)) as url, ThreadPoolExecutor(20) as pool:
        said = [pool.submit(lambda: sentence_of(join(url))) for _ in range(20)]
        try:
            until(lambda: sum(one.done() for one in said) == 15)  # one is drawn, four wait
            assert slow.began == 1 and httpx.get(url, trust_env=False).status_code == 200
        finally:
            slow.go.set()
        said = [one.result(60) for one in said]
        refused = [one for one in said if "4 drawings are waiting already, which is the most" in one]
        assert len(refused) == 15 and sum("the best first by CLIP" in one for one in said) == 5
        assert "the best first" in sentence_of(join(url))


def test_a_drawing_stops_when_its_reader_has_gone_and_the_next_is_drawn(run, page):
    slow = Slow(run)
    answers = Page(slow, page.score, most=4)
    with serving(answers) as url:
        drawn = reports(join(url))
        assert next(drawn)[0] == "generating" and slow.began == 1
        waiting = reports(join(url))
        assert "waiting: 1 before yours" in next(waiting)[1][1].lower()
        waiting.close()
        until(lambda: len(answers.line) == 1)  # who waits can leave too
        drawn.close()
        until(lambda: slow.stopped == 1 and answers.line == [])
        slow.go.set()
        assert "the best first" in sentence_of(join(url)) and slow.began == 2 and slow.stopped == 1


def test_requests_that_no_browser_sends_are_refused_and_do_not_end_it(run, page):
    with serving(page) as url, httpx.Client(trust_env=False, timeout=60) as client:
        assert "has 200,000 characters" in sentence_of(join(url, "x" * 200_000))
        large = client.post(f"{url}/gradio_api/call/draw", json={"data": ["x" * 10_000_000, *KNOBS]})
        assert large.status_code == 413 and large.text == "more than 256 KB: send less"
        large = client.post(f"{url}/gradio_api/upload", files={"files": ("a.png", b" " * (21 << 20))})
        assert large.status_code == 413 and large.text == "more than 20,480 KB: send less"
        endless = client.post(f"{url}/gradio_api/call/draw", content=iter([b"x"] * 9))  # in chunks, without its length
        assert endless.status_code == 411 and "content-length" in endless.text
        for content in (
            b"{",
            b"[]",
            b'{"data": []}',
            b'{"data": [1, 2, 3, 4, 5, 6, 7]}',
            b'{"data": [{}, NaN, [], "x", 9e999, 5]}',
        ):
            answer = client.post(
                f"{url}/gradio_api/call/draw", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code < 500, (content, answer.text)
            if answer.status_code == 200:
                *_, (event, data) = reports(f"{url}/gradio_api/call/draw/{answer.json()['event_id']}")
                assert event in ("error", "complete") and "Traceback" not in json.dumps(data), content
        for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=README.md"):
            assert client.get(url + path).status_code in (403, 404)
        answer = client.get(url)
        assert answer.headers["content-security-policy"].startswith("default-src 'self' data: blob:")
        assert "the best first" in sentence_of(join(url))


# --- the real server, and a browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the server, in a process of its own that reports every connection to elsewhere."""
    log = tmp_path_factory.mktemp("server") / "stderr"
    command = [sys.executable, "-c", REPORTING, "serve", "--run", str(RUN), "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            url = re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert url, log.read_text()
            yield url[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
    said = log.read_text()
    assert "LEAVES" not in said and "Traceback" not in said, said


def test_a_port_that_is_taken_or_none_is_one_sentence_and_exit_code_1(server, capsys):
    for port in (server.rpartition(":")[2], "99999"):
        with pytest.raises(SystemExit) as stop:
            main(["serve", "--run", str(RUN), "--port", port])
        said = capsys.readouterr().err
        assert stop.value.code == 1 and said.count("\n") == 1 and f"--port {port} of 127.0.0.1 cannot be had" in said
    for wrong, code in (["--run", "nowhere"], 2), (["--run", str(RUN), "--queue", "0"], 2), ([], 2):
        with pytest.raises(SystemExit) as stop:
            main(["serve", "--port", "0", *wrong])
        assert stop.value.code == code and "Traceback" not in capsys.readouterr().err


def test_it_ends_without_a_word_of_the_pages_that_are_open():
    command = [sys.executable, "-m", "minidalle", "serve", "--run", str(RUN), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with httpx.stream("GET", f"{url}/gradio_api/heartbeat/visitor", timeout=60, trust_env=False) as page:
            assert page.status_code == 200
            process.terminate()  # as Ctrl-C, which a process in the background may have been told to ignore
            assert process.wait(20) == 1
        assert process.stderr.read() == "stopped\n"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r requirements-extra.txt")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as play:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        yield play.chromium.launch(executable_path=found[0], args=arguments)


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["wide", "phone"])
def tab(request, browser, server):
    """The page in a browser. Fails on a request that leaves this machine, and on what the browser calls an error."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    tab, wrong = context.new_page(), []
    tab.on("request", lambda r: r.url.startswith((server + "/", "data:", "blob:")) or wrong.append(f"leaves: {r.url}"))
    tab.on("console", lambda m: m.type == "error" and wrong.append(f"console: {m.text}"))
    tab.on("pageerror", lambda error: wrong.append(f"page: {error}"))
    tab.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status}: {r.url}"))
    tab.set_default_timeout(60_000)
    tab.goto(server)
    tab.wait_for_selector("#grid img")
    yield tab
    context.close()
    assert not wrong, "\n".join(wrong)


def said(tab, sentence):
    """Wait until the line above the pictures says it."""
    tab.locator("#said", has_text=sentence).wait_for()


def test_a_prompt_nine_pictures_one_picked_saved_and_edited(tab, tmp_path):
    assert tab.locator("#grid img").count() == 9
    tab.get_by_label("What to draw").fill(CAPTION)
    tab.keyboard.press("Enter")
    said(tab, "the best first by CLIP")
    scores = [float(text) for text in re.findall(r"CLIP (-?\d\.\d{3}) · seed \d", tab.locator("#grid").inner_text())]
    assert len(scores) == 9 and scores == sorted(scores, reverse=True)
    tab.wait_for_function("[...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth == 32)")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out at the side

    tab.get_by_role("button", name="Thumbnail 2 of 9").focus()
    tab.keyboard.press("Enter")
    tab.locator("table.codes").wait_for()
    codes = tab.locator("table.codes td").all_inner_texts()
    assert len(codes) == 64 and all(0 <= int(code) < 64 for code in codes)
    assert f"8 × 8 codes, {len(set(codes))} of them different" in tab.locator("table.codes caption").inner_text()
    tab.screenshot(path=tmp_path / "page.png")
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Save as PNG").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert provenance.verify(path)[0] == 0 and path.name.startswith("a-photo-of-a-red-circle-above-a-blue-square-seed")

    tab.get_by_role("button", name="Keep its top and draw the rest anew").click()
    tab.locator("#kept img").wait_for()
    box = tab.get_by_label("What the whole picture shows")
    assert box.input_value() == CAPTION
    box.fill("a photo of a red circle above a green cross")
    tab.get_by_role("button", name="Draw the rest nine times").click()
    said(tab, "“a photo of a red circle above a green cross”, the best first by CLIP")
    tab.get_by_role("button", name="Thumbnail 9 of 9").click()
    tab.locator("table.codes").wait_for()  # it went away when the drawing began
    edited = tab.locator("table.codes td").all_inner_texts()
    assert edited[:32] == codes[:32] and edited[32:] != codes[32:]  # half of them is kept
    tab.screenshot(path=tmp_path / "edited.png")


@pytest.mark.parametrize("tab", [(1280, 900)], indirect=True, ids=["wide"])
def test_what_cannot_be_drawn_or_edited_is_a_sentence_on_the_page(tab, tmp_path):
    for prompt, sentence in SENTENCES.values():
        tab.get_by_label("What to draw").fill(prompt)
        tab.get_by_role("button", name="Draw nine").click()
        said(tab, sentence)
    (tmp_path / "text.png").write_text("no picture")
    tab.get_by_role("tab", name="Edit").click()
    tab.locator("input[type=file]").set_input_files(tmp_path / "text.png")
    tab.locator("#kept", has_text="“text.png”: does not decode; expected a JPEG, PNG or WebP picture").wait_for()
