"""The race against the clock: train until drawings of the tuning pairs are good enough, and say how long that took.

In: a goal such as "tuning=0.90", and the transformer's averaged weights after every `EVERY` updates and the last. Out:
whether to stop; and the time since `train_tiny` began (imports were before), with all that happened in it: drawing the
pictures to learn from, the dVAE, the transformer, and the looks themselves. A race trains no CLIP, which draws nothing.

The tuning pairs are two combinations of colour and shape that no stage trains on and that choices are made on. The look
that reaches a goal is flattered by luck, as the best of several, so what counts as the result are the held-out splits,
measured afterwards and off the clock (O).
"""

import argparse
import time
from collections.abc import Callable

from minidalle.data.pictures import Pictures
from minidalle.evaluate import Models, spaced
from minidalle.oracle import judge
from minidalle.transformer import DALLE

EVERY = 100  # updates of the transformer between two looks
DRAWINGS = 256  # of a look, round and round the captions of the tuning pairs


def clock() -> tuple[float, float]:
    """(seconds of the wall clock, seconds of all threads of this process on a CPU), each since some fixed moment."""
    return time.perf_counter(), time.process_time()


def goal(text: str) -> float:
    """An argparse type: "tuning=0.90" -> 0.9."""
    name, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if name != "tuning" or not 0 < value <= 1:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected tuning=SHARE with a share above 0 and at most 1, such as tuning=0.90"
            + ("" if name == "tuning" else "; no other split may decide when to stop")
        )
    return value


class Race:
    """Called after every update; true where it is time to stop.

    goal: share of right drawings, in (0, 1]. models: all that draws but the transformer. started: the wall clock's and the
    CPU's seconds at the start of the race, as `clock` gives them.
    """

    def __init__(self, goal: float, models: Models, tuning: Pictures, started: tuple[float, float]):
        self.goal, self.models, self.started = goal, models, started
        self.updates = models.preset.train.transformer.updates
        different = spaced(sorted(set(tuning.captions)), DRAWINGS)
        self.captions = [different[i % len(different)] for i in range(DRAWINGS)]
        self.looks = []  # (update, share of right drawings)

    def __call__(self, step: int, averaged: Callable[[], DALLE]) -> bool:
        """averaged() -> the transformer with its averaged weights after `step` updates."""
        if step % EVERY and step != self.updates:
            return False
        drawn = self.models._replace(dalle=averaged()).draw(self.captions, range(DRAWINGS))
        self.looks.append((step, float(judge(drawn, self.captions)[0].mean())))
        self.seconds, self.cpu_seconds = (now - then for now, then in zip(clock(), self.started))
        return self.reached

    @property
    def reached(self) -> bool:
        return self.looks[-1][1] >= self.goal

    def results(self) -> dict:
        """What results.json keeps under "race"."""
        return {
            "goal": self.goal, "reached": self.reached, "updates": self.looks[-1][0], "tuning": self.looks[-1][1],
            "seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1), "looks": self.looks,
        }  # fmt: skip

    def __str__(self):
        step, share = self.looks[-1]
        verb = "reached" if self.reached else "NOT reached"
        return (
            f"tuning={self.goal:g} {verb}: {share:.3f} after {step} of {self.updates} updates of the transformer, "
            f"{self.seconds:.1f} seconds and {self.cpu_seconds:.1f} CPU seconds from the start"
        )
