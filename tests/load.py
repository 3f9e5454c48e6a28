"""Many at once at the page: does it refuse politely, stay up, and give the memory back?

    .venv/bin/python -m tests.load --waves 20

Starts the real server (`serve --run lessons/weights --queue 8`) and comes in waves: 20 drawings at once, of which 3 have a prompt of 10 MB
and 5 leave in the middle; uploads that are no pictures, and edits of them; requests that are no JSON, or too large. The first five
waves are for warming up; then memory is counted before and after the rest, at rest, with nothing asked for.
"""

import argparse
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

CAPTION, KNOBS = (
    "a photo of a red circle above a blue square",
    (0, 1.0, 0, 0.7, 1.5),
)  # seed, temperature, top-k, top-p, guidance
QUEUE, WARM_UP, REST = 8, 5, 5  # drawings that may wait; waves; seconds at rest before memory is read
SERVED, REFUSED, LONG = "the best first by CLIP", f"{QUEUE} drawings are waiting already", "and 1,000 are taken"


class Visitors:
    """Who comes to one server. `seen` counts HTTP's status codes and what became of the drawings."""

    def __init__(self, url: str):
        self.url, self.seen = url, Counter()

    def post(self, path: str, **content) -> httpx.Response:
        answer = httpx.post(f"{self.url}/gradio_api/{path}", timeout=120, trust_env=False, **content)
        self.seen[f"HTTP {answer.status_code // 100}xx"] += 1
        return answer

    def draw(self, prompt: str = CAPTION, leave: bool = False):
        """Ask for nine, and wait for the last report, or leave at the first."""
        self.follow("draw", [prompt, *KNOBS], leave)

    def follow(self, verb: str, data: list, leave: bool = False):
        answer = self.post(f"call/{verb}", json={"data": data})
        if answer.status_code != 200:
            self.seen[f"not begun, {answer.status_code}"] += 1
            return
        address, event, said = f"{self.url}/gradio_api/call/{verb}/{answer.json()['event_id']}", "", ""
        with httpx.stream("GET", address, timeout=120, trust_env=False) as stream:
            self.seen[f"HTTP {stream.status_code // 100}xx"] += 1
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: ") and event != "heartbeat":
                    said = line[6:]
                    if leave:
                        self.seen["left"] += 1
                        return
        told = [
            what
            for what, words in (
                ("drawn", SERVED),
                ("sent away, as the line is full", REFUSED),
                ("told: too long", LONG),
            )
            if words in said
        ]
        told += ["told: no picture"] if verb == "edit" and "class=wrong" in json.loads(said or '""')[1:2] else []
        self.seen[told[0] if told else f"{verb} ended with {event}: {said[:200]}"] += 1

    def upload(self):
        """A text that says it is a picture; then an edit of it."""
        answer = self.post("upload", files={"files": ("fox.png", b"no picture at all" * 1000, "image/png")})
        if answer.status_code == 200:
            file = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
            self.follow("edit", [file, 4, CAPTION, *KNOBS])

    def spoil(self):
        for content in (b"{", b"[]", b'{"data": [1, 2]}', b'{"data": [{}, NaN, [], "x", 9e999, 5]}', b" " * (21 << 20)):
            self.post("call/draw", content=content, headers={"content-type": "application/json"})

    def wave(self):
        """All of them at once."""
        tasks = [self.draw] * 12 + [lambda: self.draw(leave=True)] * 5 + [lambda: self.draw("x" * 10_000_000)] * 3
        tasks += [self.upload] * 3 + [self.spoil]
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
