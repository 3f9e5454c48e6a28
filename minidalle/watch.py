"""Does a run go wrong? It says so: updates that are no numbers, a codebook that collapses, a CLIP at chance, a full disk.

    check_space(folder, weights_of(preset, …))     before a run: is there room for what it will write?
    watch = Watch("dvae", stage, most)             beside the loop of `train.py`, and in `scale/sharded.py`
    watch.accepts(loss, norm, model, step)         in each update: may the optimizers take this gradient?
    watch.look(record)                             at each logged update: does it learn at all?

Why: a loss that is not a number, once in the weights, makes everything after it not a number, and the night's work is gone
without a word. So such an update is skipped and counted, and ten in a row stop the run with what to try. A codebook of
which two codes are left, or a CLIP that guesses, breaks nothing and is only seen in the pictures, hours later: one
warning each. All of it is O.
"""

import dataclasses
import math
import shutil
import warnings
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from minidalle.clip import CLIP
from minidalle.config import Preset, StageConfig
from minidalle.dvae import DVAE
from minidalle.transformer import DALLE

IN_A_ROW = 10  # so many skipped updates stop the run
WARM_UP = 0.1  # share of a stage's updates before anything is said of what it has learned
COLLAPSED = 0.02  # perplexity as a share of the codebook
AT_CHANCE, LOGGED = 1.5, 5  # CLIP is at chance if the mean of so many logged accuracies is below this many times chance
STATES = 3  # the two that are kept, and the one being written
OVERHEAD = 2**25  # bytes of a run's pictures, metrics and other small files


class Watch:
    """What it has seen of one stage; `state` goes into a checkpoint, so that a resumed run counts on."""

    def __init__(self, name: str, stage: StageConfig, most: int = 0, state: dict | None = None):
        """most: the largest perplexity that a batch of the dVAE can have; 0 for the other models."""
        self.name, self.stage, self.most = name, stage, most
        self.state = {key: int((state or {}).get(key, 0)) for key in ("skipped", "in_a_row")}
        self.accuracies, self.warned = deque(maxlen=LOGGED), False

    def accepts(self, loss: float, norm: float, model: nn.Module, step: int, scale: float = 1.0) -> bool:
        """Are the loss and the gradient's norm numbers? If not, the update is counted as skipped.

        step: of this update, from 1. scale: of the gradient scaler; while it is above 1 an overflow is its own doing, which
        it mends by itself. Raises ValueError after ten in a row, naming the layer with the largest gradient.
        """
        if math.isfinite(loss + norm):
            self.state["in_a_row"] = 0
            return True
        self.state["skipped"] += 1
        self.state["in_a_row"] += scale <= 1
        if self.state["in_a_row"] == IN_A_ROW:
            layer, largest = largest_gradient(model)
            raise ValueError(
                f"the {self.name} stopped at update {step}: in {IN_A_ROW} updates in a row the loss or the gradient was not a "
                f"finite number (loss {loss:g}; largest gradient in {layer}: {largest:g}); start again with "
                f"--train.{self.name}.lr={self.stage.lr / 2:g}" + ("" if self.stage.clip else f" or --train.{self.name}.clip=1")
            )  # fmt: skip
        return False

    def look(self, record: dict):
        """Warn once, after the warm-up, of a collapsed codebook or a CLIP at chance. record: of one logged update."""
        if self.warned or record["step"] <= max(self.stage.warmup, WARM_UP * self.stage.updates):
            return
        after = f"after update {record['step']} of {self.stage.updates}"
        if "perplexity" in record and record["perplexity"] < COLLAPSED * self.most:
            self.warn(
                f"{after} the dVAE's codebook has collapsed: the perplexity of its codes is {record['perplexity']:g}, where "
                f"{self.most} is possible; try --dvae.normalize_logits=true, a smaller --train.dvae.kl_weight or --train.dvae.lr"
            )
        if "accuracy" in record:
            self.accuracies.append(record["accuracy"])
            mean, chance = sum(self.accuracies) / len(self.accuracies), 1 / self.stage.batch_size
            if len(self.accuracies) == LOGGED and mean < AT_CHANCE * chance:
                self.warn(
                    f"{after} CLIP finds {mean:.3f} of the captions in a batch, and chance is {chance:.3f}: it has learned "
                    "nothing; try a smaller --train.clip.lr or a longer --train.clip.warmup"
                )

    def warn(self, sentence: str):
        self.warned = True
        warnings.warn(sentence, stacklevel=3)


def largest_gradient(model: nn.Module) -> tuple[str, float]:
    """(layer, norm) of the parameter with the largest gradient, where not a number is more than any; of equals the last,
    which is the nearest to the loss, where trouble came in."""
    norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
    norms = {name: float(n.full_tensor() if hasattr(n, "full_tensor") else n) for name, n in norms.items()}  # of shards
    name = max(reversed(norms), key=lambda name: norms[name] if norms[name] == norms[name] else math.inf)
    layer, _, last = name.rpartition(".")
    return layer if last in ("weight", "bias", "w", "b") else name, norms[name]


def check_space(folder: Path, weights: Iterable[int]):
    """Raise ValueError where the disk lacks room for a run in `folder`. weights: bytes of its models, in the order of stages.

    At most there are, at one time: the finished weights of every model and one file being replaced; and three states, each of
    a model's weights, their average, two moments of the optimizer, and copies of the models finished before. What the
    folder holds already, such as when a run goes on, is not needed again.
    """
    weights = list(weights)
    state = max(4 * size + sum(weights[:k]) for k, size in enumerate(weights))
    needed = sum(weights) + max(weights) + STATES * state + OVERHEAD
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(place).free
    if needed - held > free:
        raise ValueError(
            f"the run in {folder} writes up to {in_bytes(needed)}, most of it {STATES} states of {in_bytes(state)} to resume "
            f"from, and {in_bytes(free)} are free there: make room, or choose another --out"
        )


def in_bytes(n: int) -> str:
    return f"{n / 10**9:.1f} GB" if n >= 10**9 else f"{n / 10**6:.0f} MB"


def weights_of(preset: Preset, vocab_size: int, text_len: int) -> list[int]:
    """Bytes of the weights of a run's dVAE, transformer and CLIP, found without memory for them."""
    c, data, step = preset, preset.data, preset.dvae.downsample
    transformer = dataclasses.replace(
        c.transformer, text_len=text_len, vocab_size=vocab_size, codebook_size=c.dvae.codebook_size,
        rows=data.height // step, grid=data.width // step,
    )  # fmt: skip
    clip = dataclasses.replace(
        c.clip, height=data.height, width=data.width, context=text_len, vocab_size=vocab_size + 1
    )
    with torch.device("meta"):
        models = DVAE(c.dvae), DALLE(transformer), CLIP(clip)
    return [sum(t.nbytes for t in model.state_dict().values()) for model in models]
