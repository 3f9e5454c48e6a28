"""One training loop for every model, and its three stages: the dVAE; with that frozen, the transformer; and CLIP.

What happens at update k depends on (seed, stage, k) alone: the batch, the noise and the dropped words are drawn from
generators seeded with these three. So a resumed run needs no other memory of chance than its position, and ends with
the same weights as one that was never stopped: the same bits on a CPU with the same number of threads, nearly the same
on a GPU, where sums may be taken in another order.
"""

import contextlib
import copy
import dataclasses
import hashlib
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from minidalle.bpe import BPE
from minidalle.checkpoint import Run, fingerprint, load_tensors, save_model
from minidalle.clip import CLIP, neighbours
from minidalle.config import Preset, StageConfig
from minidalle.data.pictures import Pictures
from minidalle.dvae import DVAE, cosine, schedules, usage
from minidalle.muon import Muon
from minidalle.sequence import tokenize
from minidalle.transformer import DALLE
from minidalle.watch import Watch

# --- the stages ----------------------------------------------------------------------------------------------------


def train_dvae(run: Run, preset: Preset, images: torch.Tensor, seed: int, device: torch.device) -> DVAE:
    """Stage 1 (P 2.1). images (N, 3, height, width) uint8 -> the trained dVAE, EMA weights, in evaluation mode."""
    stage = preset.train.dvae
    torch.manual_seed(seed_of(seed, "dvae", "weights"))
    model = DVAE(preset.dvae).to(device)

    def batch_at(rng: random.Random):
        batch = images[rng.choices(range(len(images)), k=stage.batch_size)]  # (B, 3, height, width) uint8
        if stage.mirror:
            turned = torch.tensor([rng.random() < 0.5 for _ in batch])
            batch[turned] = batch[turned].flip(3)
        return (batch,)

    def losses_at(step: int, batch, generator):
        loss = model.loss(to_float(batch[0]), **schedules(stage, step), generator=generator)
        return loss.total, lambda: {
            "nll": loss.nll.item(), "kl": loss.kl.item(), **schedules(stage, step),
            **usage(loss.codes, preset.dvae.codebook_size),
        }  # fmt: skip

    n_codes = images[0, 0].numel() // preset.dvae.downsample**2
    return fit(run, "dvae", model, stage, preset, batch_at, losses_at, seed, device, n_codes)


def train_transformer(
    run: Run, preset: Preset, bpe: BPE, dvae: DVAE, captions: list[str], codes: torch.Tensor, text_len: int, seed: int,
    device: torch.device, stop: Callable | None = None,
) -> DALLE:  # fmt: skip
    """Stage 2 (P 2.2). N captions and their codes (N, rows, grid) int64 -> the trained transformer, which reads
    text_len positions of text. stop: see `fit`."""
    stage = preset.train.transformer
    config = dataclasses.replace(
        preset.transformer, text_len=text_len, vocab_size=len(bpe),
        rows=codes.shape[1], grid=codes.shape[2], codebook_size=preset.dvae.codebook_size,
    )  # fmt: skip
    torch.manual_seed(seed_of(seed, "transformer", "weights"))
    model = DALLE(config).to(device)
    if stage.codebook_std:
        model.start_from_codebook(dvae.codebook, stage.codebook_std)
    codes = codes.flatten(1)  # (N, rows * grid)

    def batch_at(rng: random.Random):
        chosen = rng.choices(range(len(captions)), k=stage.batch_size)
        words = ["" if rng.random() < stage.caption_dropout else captions[i] for i in chosen]
        return tokenize(bpe, words, config.text_len, stage.bpe_dropout, rng), codes[chosen]

    def losses_at(step: int, batch, generator):
        loss = model.loss(*batch, text_weight=stage.text_weight)
        return loss.total, lambda: {"text": loss.text.item(), "image": loss.image.item()}

    hashes = {"tokenizer": bpe.hash, "dvae": fingerprint(dvae.state_dict())}
    n_positions = config.text_len + config.n_image
    return fit(run, "transformer", model, stage, preset, batch_at, losses_at, seed, device, n_positions, hashes, stop)


def train_clip(
    run: Run, preset: Preset, bpe: BPE, dvae: DVAE, pictures: Pictures, codes: torch.Tensor, text_len: int, seed: int,
    device: torch.device,
) -> CLIP:  # fmt: skip
    """Stage 3 (P 2.6; SPEC 6b). N pictures with captions, and their codes (N, rows, grid) int64 -> the trained CLIP.

    What is to be ranked comes out of the dVAE, so a share of the pictures is shown as the dVAE paints them (O). Each
    batch consists of groups of captions that are nearly alike (`clip.neighbours`, O), as far as there are such; with
    one picture for each.
    """
    stage, (images, captions) = preset.train.clip, pictures
    config = dataclasses.replace(
        preset.clip, height=images.shape[2], width=images.shape[3], context=text_len, vocab_size=len(bpe) + 1
    )
    torch.manual_seed(seed_of(seed, "clip", "weights"))
    model = CLIP(config).to(device)
    painted = torch.rand(len(images)) < stage.reconstructed  # (N,)
    if painted.any():
        images = images.clone()
        images[painted] = to_uint8(decode_all(dvae, codes[painted], device))
    rows_of = defaultdict(list)
    for row, caption in enumerate(captions):
        rows_of[caption].append(row)
    near = neighbours(rows_of)

    def batch_at(rng: random.Random):
        words = []
        for caption in rng.choices(captions, k=-(-stage.batch_size // stage.alike)):
            words += [caption, *near(caption, stage.alike - 1, rng)]
        words += rng.choices(captions, k=max(0, stage.batch_size - len(words)))  # where some have none alike
        words = words[: stage.batch_size]
        return images[[rng.choice(rows_of[caption]) for caption in words]], tokenize(bpe, words, config.context)

    def losses_at(step: int, batch, generator):
        loss = model.loss(to_float(batch[0]), batch[1])
        return loss.total, lambda: {"accuracy": loss.accuracy.item(), "scale": model.logit_scale.exp().item()}

    n_positions = 1 + (config.height // config.patch) * (config.width // config.patch) + config.context
    hashes = {"tokenizer": bpe.hash}
    return fit(run, "clip", model, stage, preset, batch_at, losses_at, seed, device, n_positions, hashes)


# --- the loop ------------------------------------------------------------------------------------------------------


def fit(
    run: Run, name: str, model: nn.Module, stage: StageConfig, preset: Preset, batch_at: Callable, losses_at: Callable,
    seed: int, device: torch.device, tokens_per_item: int, hashes: dict[str, str] | None = None,
    stop: Callable | None = None,
) -> nn.Module:  # fmt: skip
    """Train `model`, going on from the run's newest state if it has one; returns it with its EMA weights, to be used.

    batch_at(rng) -> tensors of one batch, on the CPU. losses_at(step, batch on the device, generator) -> (the loss,
    a function that returns the numbers to log). tokens_per_item: positions in one item, for tokens/s. stop(updates done,
    a function that returns a copy of the model with its EMA weights) -> whether to stop here, for a race.
    """
    optimizers = make_optimizers(model, stage)
    average = {key: value.clone() for key, value in model.state_dict().items()}
    autocast, scaler = precision(device)
    step, seconds, seen = restore(run, name, model, average, optimizers, scaler)
    cells = stage.batch_size * tokens_per_item
    watch = Watch(name, stage, min(cells, preset.dvae.codebook_size) if name == "dvae" else 0, seen)
    model.train()

    def save():
        info = {
            "stage": name, "step": step, "seconds": seconds, "scaler": scaler.state_dict(), "watch": watch.state
        }  # fmt: skip
        tensors = {"weights": model.state_dict(), "ema": average, "optimizer": flatten(optimizers)}
        run.save_state(info, tensors)
        save_weights()

    def averaged():
        twin = copy.deepcopy(model)
        twin.load_state_dict(average)
        return twin.eval()

    def save_weights():
        save_model(run.folder / f"{name}.safetensors", model, average, **(hashes or {}))

    with Interrupt() as interrupt, tqdm(total=stage.updates, initial=step, desc=name, unit="update") as bar:
        done = step == stage.updates
        while not done:
            started = time.perf_counter()
            set_learning_rate(optimizers, stage, step)
            batch = [t.to(device) for t in batch_at(random.Random(seed_of(seed, name, step)))]
            generator = torch.Generator(device).manual_seed(seed_of(seed, name, step))
            buffers = [buffer.clone() for buffer in model.buffers()]
            with out_of_memory_as_advice(name, stage.batch_size):
                with autocast:
                    loss, numbers = losses_at(step, batch, generator)
                scaler.scale(loss).backward()
            step += 1
            if not update(model, optimizers, scaler, stage.clip, watch, loss.item(), step):
                for buffer, before in zip(model.buffers(), buffers):  # the forward pass has moved them
                    buffer.copy_(before)
            if step % stage.ema_every == 0:  # a short average at first, or the first weights would stay in it (O)
                average_weights(average, model, min(stage.ema_decay, step / (step + 10)))
            logged = step % preset.train.log_every == 0 or step in (1, stage.updates)
            if logged:  # before the clock is read: reading the loss waits for a GPU
                record = {"stage": name, "step": step, "loss": loss.item(), **numbers()}
                record["skipped_updates"] = watch.state["skipped"]
            seconds += time.perf_counter() - started
            if logged:
                speed = round(step * cells / seconds)
                run.log(record | {"seconds": round(seconds, 3), "tokens_per_s": speed})
                watch.look(record)
                bar.set_postfix(loss=f"{record['loss']:.3f}")
            bar.update()
            done = (stop is not None and stop(step, averaged)) or step == stage.updates
            if step % preset.train.save_every == 0 or done or interrupt.asked:
                save()
            if interrupt.asked:
                raise KeyboardInterrupt(f"stopped and saved after update {step} of {stage.updates} of the {name}")
    save_weights()  # also when the run was killed between the last state and its weights
    run.stages[name] = {"updates": step, "seconds": seconds, "skipped": watch.state["skipped"]}
    model.load_state_dict(average)
    return model.eval()


def update(model: nn.Module, optimizers: list, scaler, clip: float, watch: Watch, loss: float, step: int) -> bool:
    """One step of every optimizer from the gradients that `backward` left, clipped to the norm `clip` unless it is 0; none
    where the loss or their norm is not a finite number. Returns whether it was made."""
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    accepted = watch.accepts(loss, norm.item(), model, step, scaler.get_scale())
    if accepted and clip:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip, norm)
    for optimizer in optimizers:
        if accepted:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return accepted


def make_optimizers(model: nn.Module, stage: StageConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything (P A.2, B.2); or, O, Muon for the matrices of the blocks and AdamW for the rest."""
    named = list(model.named_parameters())
    for_muon = [p for name, p in named if stage.muon_lr and "blocks." in name and p.dim() == 2]
    taken = {id(p) for p in for_muon}
    rest = [p for _, p in named if id(p) not in taken]
    optimizers = [
        torch.optim.AdamW(rest, stage.lr, stage.betas, stage.eps, weight_decay=stage.weight_decay, fused=True)
    ]
    if for_muon:
        optimizers.append(Muon(for_muon, stage.muon_lr, weight_decay=stage.weight_decay))
    for optimizer in optimizers:
        optimizer.full_rate = optimizer.param_groups[0]["lr"]
    return optimizers


def set_learning_rate(optimizers: list, stage: StageConfig, step: int):
    """AdamW's rate for this step; Muon's follows it in proportion."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.full_rate * learning_rate(stage, step) / stage.lr


def learning_rate(stage: StageConfig, step: int) -> float:
    """Half a cosine from step 0 (P A.2), or halving at given updates (P B.2); times a linear warm-up."""
    warm = min((step + 1) / stage.warmup, 1.0) if stage.warmup else 1.0
    if stage.halve_at:
        return warm * stage.lr * 0.5 ** sum(step >= at for at in stage.halve_at)
    return warm * cosine(step, stage.lr_updates, stage.lr, stage.lr_end)


@torch.no_grad()
def average_weights(average: dict[str, torch.Tensor], model: nn.Module, decay: float):
    """average <- decay * average + (1 - decay) * weights, buffers too; what is no fraction is copied."""
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


# --- resuming ------------------------------------------------------------------------------------------------------


def restore(run: Run, name: str, model, average: dict, optimizers: list, scaler) -> tuple[int, float, dict | None]:
    """Put the run's newest state into the arguments; returns (updates done, seconds so far, what was watched) of the stage."""
    info, folder = run.latest()
    if name in info["stages"]:  # this stage is over: its weights are all that is wanted
        copy_into(average, load_tensors(run.folder / f"{name}.safetensors")[0])
        stage = info["stages"][name]
        return stage["updates"], stage["seconds"], {"skipped": stage.get("skipped", 0), "in_a_row": 0}
    if info["stage"] != name:  # it has not been saved yet: from the start
        run.forget_after(name, 0)
        return 0, 0.0, None
    weights, ema, moments = (load_tensors(folder / f"{n}.safetensors")[0] for n in ("weights", "ema", "optimizer"))
    try:
        model.load_state_dict(weights)
        copy_into(average, ema)
        unflatten(optimizers, moments)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{folder} does not hold the {name} of these settings ({reason}): remove it, and --resume takes the state before it"
        ) from None
    if info["scaler"]:
        scaler.load_state_dict(info["scaler"])
    run.forget_after(name, info["step"])
    return info["step"], info["seconds"], info.get("watch")


def copy_into(tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor]):
    for key, value in values.items():
        tensors[key].copy_(value)


def flatten(optimizers: list) -> dict[str, torch.Tensor]:
    """The state of the optimizers as flat tensors: "0.17.exp_avg" is the first optimizer's for its parameter 17."""
    return {
        f"{i}.{parameter}.{key}": value
        for i, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def unflatten(optimizers: list, tensors: dict[str, torch.Tensor]):
    """The inverse of `flatten`, into the optimizers."""
    states = [{} for _ in optimizers]
    for name, value in tensors.items():
        i, number, key = name.split(".")
        parameter = optimizers[int(i)].param_groups[0]["params"][int(number)]
        value = value.clone()  # off the file, which will be deleted
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)  # in the parameter's memory layout
        states[int(i)].setdefault(int(number), {})[key] = value
    for optimizer, state in zip(optimizers, states):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class Interrupt:
    """Inside the `with` block, Ctrl-C and SIGTERM do not break off an update: the first is noted in `asked`.

    A second one breaks off at once, unless it comes within `grace` seconds: then it is taken for the first one over again.
    """

    def __init__(self, grace: float = 0.0):
        self.grace, self.asked = grace, False

    def __enter__(self):
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.note)
        return self

    def note(self, number, frame):
        if not self.asked:
            self.asked, self.since = True, time.monotonic()
        elif time.monotonic() > self.since + self.grace:
            raise KeyboardInterrupt

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# --- small things --------------------------------------------------------------------------------------------------


def seed_of(*parts) -> int:
    """A seed in 0 … 2⁶³ - 1 that depends on all `parts`, such as (run's seed, "dvae", 17)."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises ValueError for "cuda" without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but this torch finds no CUDA GPU: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def precision(device: torch.device):
    """(autocast, gradient scaler): bfloat16 on GPUs that have it, float16 and scaling on older ones, float32 on the CPU."""
    on_gpu = device.type == "cuda"
    half = torch.bfloat16 if on_gpu and torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    autocast = torch.autocast("cuda", half) if on_gpu else contextlib.nullcontext()
    return autocast, torch.amp.GradScaler(device.type, enabled=on_gpu and half is torch.float16)


@contextlib.contextmanager
def out_of_memory_as_advice(name: str, batch_size: int):
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            f"out of GPU memory in the {name} with batches of {batch_size}: "
            f"try --train.{name}.batch_size={max(1, batch_size // 2)}"
        ) from None


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 in 0 … 255 -> float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1] -> uint8 in 0 … 255, rounded."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def to_array(images: torch.Tensor) -> np.ndarray:
    """images (N, 3, height, width), uint8 or float in [0, 1] -> (N, height, width, 3) uint8."""
    images = to_uint8(images) if images.is_floating_point() else images
    return images.permute(0, 2, 3, 1).cpu().numpy()


def split_to_fit(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """images (N, 3, height, width) in parts of about 2¹⁸ pixels, which a dVAE can take at once: 4 pictures of 256 x 256."""
    return images.split(max(1, 2**18 // (images.shape[2] * images.shape[3])))


@torch.no_grad()
def encode_all(dvae: DVAE, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """images (N, 3, height, width) uint8 -> codes (N, rows, grid) int64, on the CPU."""
    parts = split_to_fit(images)
    return torch.cat([dvae.encode(to_float(part.to(device))).cpu() for part in tqdm(parts, desc="encode", leave=False)])


def decode_all(dvae: DVAE, codes: torch.Tensor, device: torch.device) -> torch.Tensor:
    """codes (N, rows, grid) int64 -> images (N, 3, height, width) float32 in [0, 1], on the CPU."""
    parts = codes.split(max(1, 2**18 // (codes[0].numel() * dvae.config.downsample**2)))
    return torch.cat(
        [
            dvae.decode(part.to(device)).cpu()
            for part in tqdm(parts, desc="decode", leave=False, disable=len(parts) == 1)
        ]
    )
