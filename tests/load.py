"""Many at once at the page: does it refuse politely, stay up, and give the memory back?

    .venv/bin/python -m tests.load --waves 20

Starts the real server (`serve --run lessons/weights --queue 8`) and comes in waves of what follows, all at once: 20 drawings, of which 5
readers leave in the middle and 3 have a prompt of 10 MB; 3 prompts of 200 KB; 3 uploads that are no pictures, and edits of them; requests that
are no JSON, or too large. The first waves are for warming up (the page remembers its last 200 visitors); then memory is counted
before and after the others, at rest, with nothing asked for.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx

CAPTION, KNOBS = (
    "a photo of a red circle above a blue square",
    (0, 1.0, 0, 0.7, 1.5),
)  # seed, temperature, top-k, top-p, guidance
QUEUE, WARM_UP, REST = 8, 10, 5  # drawings that may wait; waves; seconds at rest before memory is read
ENDS = {  # what is said at last, and what became of the request
    "the best first by CLIP": "drawn", f"{QUEUE} drawings are waiting already": "told: the line is full",
    "and 1,000 are taken": "told: say it shorter", "“fox.png”: does not decode": "told: no picture",
}  # fmt: skip


class Visitors:
    """Who comes to one server. `seen` counts HTTP's status codes and what became of the requests."""

    def __init__(self, url: str):
        self.url, self.seen = url, Counter()
        config = httpx.get(f"{url}/config", trust_env=False).json()
        self.file = next(c["id"] for c in config["components"] if c["type"] == "file")
        self.calls = {
            (tuple(target), d["api_name"]): d["id"] for d in config["dependencies"] for target in d["targets"]
        }

    def post(self, path: str, **content) -> httpx.Response:
        answer = httpx.post(f"{self.url}/gradio_api/{path}", timeout=120, trust_env=False, **content)
        self.seen[f"HTTP {answer.status_code // 100}xx"] += 1
        return answer

    def reports(self, path: str):
        """(event, data) of what the server tells, until it has no more to tell."""
        with httpx.stream("GET", f"{self.url}/gradio_api/{path}", timeout=120, trust_env=False) as stream:
            self.seen[f"HTTP {stream.status_code // 100}xx"] += 1
            event = ""
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: "):
                    yield event, line[6:]

    def draw(self, prompt: str = CAPTION, leave: bool = False):
        """Ask for nine, and wait for the last report, or leave at the first."""
        answer = self.post("call/draw", json={"data": [prompt, *KNOBS]})
        if answer.status_code == 413:
            self.seen["told: send less"] += 1
            return
        said = ""
        for event, said in self.reports(f"call/draw/{answer.json()['event_id']}"):  # noqa: B007 (the last is read below)
            if leave and event == "generating":
                self.seen["left"] += 1
                return
        self.seen[next((what for words, what in ENDS.items() if words in said), f"ended with: {said[:200]}")] += 1

    def edit(self):
        """As a browser does: upload a picture, which is none, and ask for an edit of it."""
        answer = self.post("upload", files={"files": ("fox.png", b"no picture at all" * 1000, "image/png")})
        file = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
        who, said = uuid4().hex, ""
        uploaded = next(n for ((target, _), n) in self.calls.items() if target == (self.file, "upload"))
        edits = next(n for ((_, name), n) in self.calls.items() if name == "edit")
        for n, data in ((uploaded, [file]), (edits, [None, 4, CAPTION, *KNOBS])):
            self.post("queue/join", json={"data": data, "fn_index": n, "session_hash": who})
            for _, said in self.reports(f"queue/data?session_hash={who}"):
                if "process_completed" in said:
                    break
        self.seen[next((what for words, what in ENDS.items() if words in said), f"edit ended with: {said[:300]}")] += 1

    def spoil(self):
        for content in (b"{", b"[]", b'{"data": [1, 2]}', b'{"data": [{}, NaN, [], "x", 9e999, 5]}', b" " * (21 << 20)):
            self.post("call/draw", content=content, headers={"content-type": "application/json"})

    def wave(self):
        """All of them at once."""
        tasks = [self.draw] * 12 + [lambda: self.draw(leave=True)] * 5
        tasks += [lambda: self.draw("x" * 10_000_000)] * 3 + [lambda: self.draw("x" * 200_000)] * 3
        tasks += [self.edit] * 3 + [self.spoil]
        with ThreadPoolExecutor(len(tasks)) as pool:
            for done in [pool.submit(task) for task in tasks]:
                done.result()


def resident(pid: int) -> float:
    """MB of memory that a process holds, once it has had a rest."""
    time.sleep(REST)
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


@contextlib.contextmanager
def server():
    """(its process, its address)."""
    command = [
        sys.executable,
        "-m",
        "minidalle",
        "serve",
        "--run",
        "lessons/weights",
        "--port",
        "0",
        "--queue",
        str(QUEUE),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.terminate()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--waves", type=int, default=20)
    waves = parser.parse_args().waves
    with server() as (process, url):
        first = Visitors(url)
        first.draw()
        fresh = resident(process.pid)
        for _ in range(WARM_UP):
            first.wave()
        before = resident(process.pid)
        visitors = Visitors(url)
        for _ in range(waves):
            visitors.wave()
        after = resident(process.pid)
        last = Visitors(url)
        last.draw()
        page = httpx.get(url, trust_env=False).status_code
    for what, n in sorted((first.seen + visitors.seen).items()):
        print(f"{n:6,} {what}")
    print(
        f"memory: {fresh:.0f} MB after the first drawing, {before:.0f} after {WARM_UP} waves, {after:.0f} after {waves} more: {after / before - 1:+.1%}"
    )
    print(f"the page still answers: {page}, and draws: {last.seen['drawn'] == 1}")
    errors = sum(n for what, n in (first.seen + visitors.seen).items() if "5xx" in what)
    print(f"{errors} answers of 5xx")
    return bool(errors) or page != 200 or last.seen["drawn"] != 1 or after > 1.1 * before


if __name__ == "__main__":
    sys.exit(main())
