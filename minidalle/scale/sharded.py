"""The transformer on many GPUs: the update of `train.py`, with the model cut into shards by PyTorch's FSDP2.

    torchrun --nproc-per-node 8 -m minidalle train --preset dalle-12b --shards 'shards-{00000..00099}.tar' --dvae released:DIR

Why: at 12 billion parameters, weights, gradients, moments and average take 246 GB, more than any GPU of plan.py has. So every process
keeps 1/N of each tensor. A block's weights are gathered when it is their turn, used, and let go; its gradient is summed
over all processes and each keeps its part (`fully_shard`; the paper does the same in its own way: P E). What is computed
is what one process would compute: losses are sums over the whole batch divided by counts of the whole batch (SPEC 5), and
which samples a batch holds does not depend on N (`shards.py`). Hence a run can go on with another number of processes.

Checkpoints are safetensors: every process writes the shards that it has, and reads those that it needs. No GPU has run
this; its tests run two processes on a CPU.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from minidalle.bpe import BPE
from minidalle.checkpoint import Run, fingerprint, read_json, save_model, write_json
from minidalle.config import Preset
from minidalle.dvae import DVAE
from minidalle.scale import shards
from minidalle.sequence import PAD, tokenize
from minidalle.train import Interrupt, average_weights, learning_rate, pick_device, seed_of, split_to_fit, to_float
from minidalle.transformer import DALLE, projected

CAPTIONS = 100_000  # of the shards, from which a tokenizer is learned
KEPT = 2  # states
NAMED = 10  # so many of the samples that a process skips are named

# --- processes -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def processes(device: str):
    """Join the processes that torchrun has started, or be the only one. Yields (rank, how many, this process's device)."""
    where = pick_device(device)
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    patience = timedelta(hours=2)  # for the others, while process 0 learns a tokenizer or writes 50 GB
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=patience)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=patience)
    try:
        yield dist.get_rank(), dist.get_world_size(), where
    finally:
        dist.destroy_process_group()


def by_the_first(work: Callable):
    """Let process 0 do the work, and all have its result; an error of its is raised in all."""
    answer = [None, None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except Exception as error:
            kind = next((k for k in (ValueError, OSError, ImportError) if isinstance(error, k)), RuntimeError)
            answer[1:] = kind, str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1](answer[2])
    return answer[0]


def summed(*values: float) -> list[float]:
    """The sums of these numbers over all processes."""
    total = torch.tensor(values, dtype=torch.float64)  # on the CPU, whatever computes
    dist.all_reduce(total)
    return total.tolist()


# --- the model in shards -------------------------------------------------------------------------------------------


def shard(model: DALLE, recompute: bool, half: bool) -> DALLE:
    """Cut the model's parameters, block by block, over all processes, in place.

    half: inside a block everything, its residual sums too, is bfloat16, from float32 weights, and its gradient is summed in
    float32; embeddings, the last norm and the heads are float32 (O). recompute: keep only the input of each block
    for the backward pass, and run it again there.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32) if half else MixedPrecisionPolicy()
    device = "cuda" if dist.get_backend() != "gloo" else "cpu"
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    for block in model.blocks:
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "loss")  # it is what we call in place of `forward`
    return model


@torch.no_grad()
def initialise(model: DALLE, device: torch.device, seed: int, codebook: torch.Tensor, std: float) -> DALLE:
    """Give a model on the meta device, already in shards, memory on `device` and its first weights, as `DALLE` does.

    One tensor at a time is drawn whole, from a generator of its own, and each process keeps its part of it: so the weights do
    not depend on how many processes there are, and none ever holds all of them. std: see `DALLE.start_from_codebook`; 0 = off.
    """
    model.to_empty(device=device)
    for name, p in model.named_parameters():
        generator = torch.Generator().manual_seed(seed_of(seed, "transformer", name))
        if "ln_" in name and name.endswith("weight"):
            full = torch.ones(p.shape)
        elif name.endswith("bias"):
            full = torch.zeros(p.shape)
        elif std and name in ("embed.image_token.weight", "image_head.weight"):
            full = projected(codebook.cpu(), p.shape[1], std, generator)
        else:
            adds_up = name.endswith(("attn.proj.weight", "mlp.2.weight"))  # into the residual stream
            full = torch.randn(p.shape, generator=generator) * (0.02 / (2 * model.config.n_layer * adds_up or 1) ** 0.5)
        part = distribute_tensor(full.to(device), p.device_mesh, p.placements, src_data_rank=None)
        p.to_local().copy_(part.to_local())
    return model


def whole(tensors: dict[str, torch.Tensor], device="cpu") -> dict[str, torch.Tensor]:
    """The full tensors, gathered one by one; process 0 keeps them, the others take part."""
    gathered = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() == 0:
            gathered[name] = full.to(device)
    return gathered


class Training:
    """Model, average and optimizer in shards, and where the data stand: all that a checkpoint holds."""

    def __init__(
        self, preset: Preset, config, device: torch.device, seed: int, recompute: bool, codebook: torch.Tensor
    ):
        """codebook (K, n_init): of the dVAE, from which image tokens may start (see `initialise`)."""
        stage = preset.train.transformer
        if stage.muon_lr:
            raise ValueError("Muon needs whole matrices, here in shards: set --train.transformer.muon_lr=0")
        self.stage, self.device, self.seed, self.config = stage, device, seed, config
        with torch.device("meta"):
            model = DALLE(config)
        self.model = shard(model, recompute, half=device.type == "cuda")
        initialise(self.model, device, seed, codebook, stage.codebook_std)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), stage.lr, stage.betas, stage.eps, weight_decay=stage.weight_decay
        )
        self.step, self.seconds, self.positions = 0, 0.0, {}

    def update(self, text: torch.Tensor, codes: torch.Tensor, streams: int) -> dict[str, float]:
        """One update from this process's share of the batch, text (b, text_len) and codes (b, rows * grid), `streams` at a
        time. Returns the losses of the whole batch, in nats, and the gradient's norm."""
        n_processes = dist.get_world_size()
        targets = summed((text[:, 1:-1] != PAD).sum().item(), codes.numel())
        counts = [max(1.0, n) / n_processes for n in targets]  # FSDP takes the mean over processes, we want the sum
        rate = learning_rate(self.stage, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = torch.zeros(2, dtype=torch.float64)
        for part_of_text, part in zip(text.split(streams), codes.split(streams)):
            loss = self.model.loss(
                part_of_text.to(self.device), part.to(self.device), text_weight=self.stage.text_weight, counts=counts
            )
            loss.total.backward()
            losses += torch.stack([loss.text, loss.image]).detach().double().cpu() / n_processes
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.stage.ema_every == 0:
            average_weights(self.average, self.model, min(self.stage.ema_decay, self.step / (self.step + 10)))
        on_text, on_image = summed(*losses.tolist())
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        total = self.stage.text_weight * on_text + (1 - self.stage.text_weight) * on_image
        return {"loss": total, "text": on_text, "image": on_image, "gradient": norm.item(), "lr": rate}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything of a checkpoint that is in shards: weights, average and AdamW's two moments by parameter."""
        parts = {f"weights.{name}": value for name, value in self.model.state_dict().items()}
        parts |= {f"ema.{name}": value for name, value in self.average.items()}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            if not state:  # before the first update
                state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            parts |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        return {name: value.detach() for name, value in parts.items()}

    def save(self, folder: Path):
        """Write folder/STEP: a file from each process, then, by process 0, state.json and the name."""
        aside, path = folder / f".writing-{self.step:09d}", folder / f"{self.step:09d}"
        if by_the_first(lambda: (path / "state.json").exists()):
            return  # it was saved just before somebody asked to stop

        def begin():
            shutil.rmtree(aside, ignore_errors=True)  # what a killed run had not finished writing
            aside.mkdir(parents=True)

        by_the_first(begin)
        tensors = self.tensors()
        files = {name: 1 + i // 16 for i, name in enumerate(tensors)}  # several, as each is put together in memory
        with warnings.catch_warnings(), failures(f"{path} could not be written", OSError):
            warnings.simplefilter("ignore")  # of one process alone, the library remarks that it is alone
            writer = dcp.HuggingFaceStorageWriter(str(aside), files, save_distributed=True)
            dcp.save(tensors, storage_writer=writer)
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, self.positions)
        positions = {lane: position for mine in everyone for lane, position in mine.items()}

        def finish():
            info = {"step": self.step, "seconds": self.seconds, "positions": positions}
            write_json(aside / "state.json", info)
            os.replace(aside, path)
            for old in states(folder)[:-KEPT]:
                shutil.rmtree(old)

        by_the_first(finish)

    def restore(self, path: Path):
        """Take everything from a folder that `save` wrote, with any number of processes."""
        tensors = self.tensors()
        with warnings.catch_warnings(), failures(f"{path} is no whole state", ValueError):
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)))
        self.model.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("weights.")})
        info = by_the_first(lambda: read_json(path / "state.json"))
        self.step, self.seconds = info["step"], info["seconds"]
        self.positions = {int(lane): tuple(position) for lane, position in info["positions"].items()}
        for p in self.model.parameters():
            self.optimizer.state[p]["step"] = torch.tensor(float(self.step))


@contextlib.contextmanager
def failures(what: str, kind: type):
    """What goes wrong in torch's checkpoints, in whichever process, as an error of this kind in one sentence."""
    try:
        yield
    except CheckpointException as error:  # a BaseException, which says what went wrong in which process
        rank, (first, _) = next(iter(error.failures.items()))
        raise kind(f"{what}: {str(first).splitlines()[0][:200]} (process {rank})") from None


def states(folder: Path) -> list[Path]:
    """The complete states, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").exists())


# --- the run -------------------------------------------------------------------------------------------------------


def learn_bpe(paths: list[Path], vocab_size: int) -> BPE:
    """A tokenizer from the first captions of the shards."""
    captions, skipped = [], []
    for path in paths:
        for sample in shards.raw_samples(path, skipped):
            with contextlib.suppress(ValueError):
                captions.append(shards.caption_of(sample))
        if len(captions) >= CAPTIONS:
            break
    if not captions:
        raise ValueError(f"there is no caption in {paths[0]} … to learn a tokenizer from: give one with --bpe")
    return BPE.train(captions, vocab_size)


def prepare(run_folder: Path, settings: dict, resume: bool, make_bpe: Callable[[], BPE], dvae: DVAE) -> None:
    """By process 0: the run's folder, with its settings, tokenizer and dVAE."""
    folder = Run(run_folder, settings, resume).folder
    if not (folder / "bpe.json").exists():
        make_bpe().save(folder / "bpe.json")
    if not (folder / "dvae.safetensors").exists():
        save_model(folder / "dvae.safetensors", dvae, dvae.state_dict())


def train(
    preset: Preset, pattern: str, dvae: DVAE, run_folder: Path, seed: int = 0, device: str = "auto", resume: bool = False,
    streams: int = 0, recompute: bool = True, workers: int = 0, make_bpe: Callable[[], BPE] | None = None,
):  # fmt: skip
    """Train the preset's transformer on tar shards; every process calls this.

    streams: pictures that a process takes at a time; 0 = its whole share of the batch. Raises ValueError for shards,
    settings or a folder that do not fit.
    """
    stage = preset.train.transformer
    preset = dataclasses.replace(preset, data=dataclasses.replace(preset.data, name="shards", folder=pattern))
    with processes(device) as (rank, n_processes, where):
        paths = by_the_first(lambda: shards.find(pattern))
        encoded = (paths[0].parent / shards.ENCODED).exists()
        if encoded:
            shards.check_encoded(paths[0].parent, dvae)
        settings = {
            "preset": dataclasses.asdict(preset), "seed": seed, "dvae": fingerprint(dvae.state_dict()),
            "shards": [path.name for path in paths],
        }  # fmt: skip
        make_bpe = make_bpe or (lambda: learn_bpe(paths, preset.data.vocab_size))
        by_the_first(lambda: prepare(run_folder, settings, resume, make_bpe, dvae))
        bpe = BPE.load(run_folder / "bpe.json")
        step = preset.dvae.downsample
        config = dataclasses.replace(
            preset.transformer, vocab_size=len(bpe), codebook_size=preset.dvae.codebook_size,
            rows=preset.data.height // step, grid=preset.data.width // step, text_len=preset.transformer.text_len or 256,
        )  # fmt: skip
        training = Training(preset, config, where, seed, recompute, dvae.codebook)
        saved = by_the_first(lambda: states(run_folder / "state"))
        if saved:
            training.restore(saved[-1])
        read = partial(read_codes, config) if encoded else partial(read_image, preset)
        stream = shards.Stream(paths, stage.batch_size, read, seed, rank, n_processes, training.positions)
        training.positions = {lane: at for lane, at in training.positions.items() if lane in stream.lanes}
        dvae = dvae if encoded else dvae.to(where)
        reader = shards.batches(stream, workers)
        log = run_log(run_folder, training.step) if rank == 0 else None
        loop(training, reader, bpe, dvae, preset, run_folder, streams, log)
        finish(training, run_folder, bpe, dvae)


def read_image(preset: Preset, sample: dict, rng):
    return shards.image_of(sample, preset.data.height, preset.data.width, rng)


def read_codes(config, sample: dict, rng):
    return shards.codes_of(sample, config.rows, config.grid, config.codebook_size)


def run_log(run_folder: Path, step: int) -> Callable:
    """A function that appends to metrics.jsonl, in which nothing beyond `step` is left."""
    run = Run.__new__(Run)
    run.metrics = run_folder / "metrics.jsonl"
    run.forget_after("transformer", step)
    return run.log


def loop(training: Training, reader, bpe: BPE, dvae: DVAE, preset: Preset, run_folder: Path, streams: int, log):
    """Update after update, until the stage is over, somebody asks to stop, or there is nothing more to read."""
    stage, seed, skipped = training.stage, training.seed, 0
    n_positions = stage.batch_size * (training.config.text_len + training.config.n_image)
    with Interrupt() as interrupt, tqdm(
        total=stage.updates, initial=training.step, desc="transformer", unit="update", disable=log is None
    ) as bar:  # fmt: skip
        while training.step < stage.updates:
            started, part, broken = time.perf_counter(), None, None
            try:
                part = next(reader)
            except ValueError as error:
                broken = error
            if summed(interrupt.asked or broken is not None)[0]:  # all processes have to stop at the same update
                training.save(run_folder / "state")
                raise broken or KeyboardInterrupt(f"stopped and saved after update {training.step} of {stage.updates}")
            text, codes = as_tokens(part, training, bpe, dvae, seed)
            numbers = training.update(text, codes, streams or len(text))
            training.positions |= part.positions
            training.seconds += time.perf_counter() - started
            for name, reason in part.skipped[: max(0, NAMED - skipped)]:
                print(f"warning: skipped {name}: {reason}", file=sys.stderr, flush=True)
            skipped += len(part.skipped)
            last = training.step == stage.updates
            if training.step % preset.train.log_every == 0 or training.step == 1 or last:
                everywhere = int(summed(skipped)[0])
                if log:
                    speed = {
                        "seconds": round(training.seconds, 3),
                        "tokens_per_s": round(n_positions * training.step / training.seconds),
                    }
                    log({"stage": "transformer", "step": training.step, **numbers, **speed, "skipped": everywhere})
                    bar.set_postfix(loss=f"{numbers['loss']:.3f}")
            bar.update()
            if training.step % preset.train.save_every == 0 or last:
                training.save(run_folder / "state")


def as_tokens(part: shards.Part, training: Training, bpe: BPE, dvae: DVAE, seed: int):
    """text (b, text_len) and codes (b, rows * grid) of this process's share of an update."""
    stage, texts = training.stage, []
    for lane, caption in zip(lanes_in_order(part), part.captions):
        rng = random.Random(seed_of(seed, "caption", training.step, lane))
        dropped = rng.random() < stage.caption_dropout
        texts.append(tokenize(bpe, ["" if dropped else caption], training.config.text_len, stage.bpe_dropout, rng))
    if part.images.dim() == 4:
        images = split_to_fit(part.images)
        codes = torch.cat([dvae.encode(to_float(x.to(training.device))).cpu() for x in images])
    else:
        codes = part.images
    return torch.cat(texts), codes.flatten(1)


def lanes_in_order(part: shards.Part) -> list[str]:
    """For each sample of a part, its lane and its place there: what its chance is seeded with, whoever reads it."""
    each = len(part.captions) // len(part.positions)
    return [f"{lane} {k}" for lane in part.positions for k in range(each)]


def finish(training: Training, run_folder: Path, bpe: BPE, dvae: DVAE):
    """The whole average in one file, so that `generate` can use the run."""
    tensors = whole(training.average)
    hashes = {"tokenizer": bpe.hash, "dvae": fingerprint(dvae.state_dict())}
    with torch.device("meta"):
        model = DALLE(training.config)
    by_the_first(lambda: save_model(run_folder / "transformer.safetensors", model, tensors, **hashes))
