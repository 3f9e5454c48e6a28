"""Where a run fails: which attribute of a caption came out as which other one, and what a wrong drawing shows instead.

In: drawings of a drawn world and the captions they were asked for. Out: for every drawing a `Finding`: attribute by
attribute what was asked and what the oracle reads, and the reason why it does not count as right and clean. `plots.py`
makes one figure of them: confusions by attribute, and an example of each of the five most frequent reasons.
"""

from collections import Counter, defaultdict
from typing import NamedTuple

import torch

from minidalle.data import scenes, shapes
from minidalle.oracle import CLEAN, Reading, SceneReading, is_of_shapes, read, read_scenes

NONE = "none"  # what is read where there is another number of objects than asked


class Finding(NamedTuple):
    wanted: dict[str, str]  # attribute → value, as in {"colour": "red", "shape": "cross"}
    seen: dict[str, str]
    reason: str  # "" for a drawing that is right and clean


def find(images: torch.Tensor, captions: list[str]) -> list[Finding]:
    """What became of each caption. images (N, 3, height, width) uint8 or float in [0, 1]; captions of one world.
    Raises ValueError where their numbers differ or there are none."""
    if len(images) != len(captions) or not captions:
        raise ValueError(
            f"{len(images)} images and {len(captions)} captions: give one caption per image, and at least one"
        )
    if is_of_shapes(captions[0]):
        return [of_shape(reading, shapes.parse(c)) for reading, c in zip(read(images), captions)]
    return [of_scene(reading, scenes.parse(c)) for reading, c in zip(read_scenes(images), captions)]


def of_shape(reading: Reading, drawing: shapes.Drawing) -> Finding:
    attributes = ("style", "size", "colour", "shape", "ground")
    wanted = {name: getattr(drawing, name) for name in attributes}
    one = reading.objects == 1
    seen = {name: getattr(reading, name) if one or name == "ground" else NONE for name in attributes}
    return Finding(wanted, seen, reason(wanted, seen, reading, 1))


def of_scene(reading: SceneReading, scene: scenes.Scene) -> Finding:
    """The first thing of a finding is the upper or left one, whichever of the two the caption names first."""
    if scene.relation in ("below", "right of"):
        scene = scene.turned
    things = reading.things or (scenes.Thing(NONE, NONE, NONE),) * 2
    wanted, seen = {}, {}
    for which, asked, got in zip(("first", "second"), (scene.first, scene.second), things):
        for name in ("style", "colour", "shape"):
            wanted[f"{which} {name}"], seen[f"{which} {name}"] = getattr(asked, name), getattr(got, name)
    wanted["relation"] = "above" if scene.relation == scenes.SAME else scene.relation
    seen["relation"] = reading.relation if reading.things else NONE
    wanted["ground"], seen["ground"] = "white", reading.ground
    return Finding(wanted, seen, reason(wanted, seen, reading, 2))


def reason(wanted: dict[str, str], seen: dict[str, str], reading: Reading | SceneReading, objects: int) -> str:
    """In a few words, general enough to be counted: "cross drawn as square", "2 objects instead of 1", "right but not clean"."""
    if reading.objects != objects:
        return f"{reading.objects} object{'' if reading.objects == 1 else 's'} instead of {objects}"
    wrong = [name for name in wanted if wanted[name] != seen[name]]
    for kind in ("", " colour", " shape"):  # objects, or only their colours or shapes, in each other's place
        pair = [name for name in wanted if name.startswith(("first", "second")) and name.endswith(kind)]
        other = {name: name.replace("first", "…").replace("second", "first").replace("…", "second") for name in pair}
        if wrong and {*wrong} <= {*pair} and all(seen[name] == wanted[other[name]] for name in pair):
            return f"the two {kind.strip() or 'object'}s swapped"
    if wrong:
        return ", ".join(f"{wanted[name]} drawn as {seen[name]}" for name in wrong)
    return "" if reading.residual < CLEAN else "right but not clean"


def confusions(findings: list[Finding]) -> dict[str, Counter]:
    """attribute → how often each (wanted, seen) occurs. The two objects of a scene are counted together."""
    counts = defaultdict(Counter)
    for finding in findings:
        for name, wanted in finding.wanted.items():
            counts[name.removeprefix("first ").removeprefix("second ")][wanted, finding.seen[name]] += 1
    return dict(counts)


def typical(findings: list[Finding], count: int = 5) -> list[tuple[int, str, int]]:
    """(number of the first drawing with it, reason, how many have it), the most frequent reasons first."""
    counts = Counter(finding.reason for finding in findings if finding.reason)
    reasons = [finding.reason for finding in findings]
    return [(reasons.index(reason), reason, n) for reason, n in counts.most_common(count)]
