"""The transformer on many GPUs: the update of `train.py`, with the model cut into shards by PyTorch's FSDP2.

    with processes("auto") as team:                           the processes that torchrun has started, or one alone
        training = Training(preset, config, team, …)          weights, average and moments, each process 1/N of them
        training.update(text, codes, streams)                 one update of all;  run.py is the loop around it

Why: at 12 billion parameters, weights, gradients, moments and average take 246 GB, more than any GPU of plan.py has. So every process
keeps 1/N of each tensor. A block's weights are gathered when it is their turn, used, and let go; its gradient is summed
over all processes and each keeps its part (`fully_shard`; the paper does the same in its own way: P E). What is computed
is what one process would compute: losses are sums over the whole batch divided by counts of the whole batch (SPEC 5), and
which samples a batch holds does not depend on N (`shards.py`). Hence a run can go on with another number of processes.

Checkpoints are safetensors: every process writes the shards that it has, and reads those that it needs. No GPU has run
this; its tests run two processes on a CPU.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from minidalle.checkpoint import flush, flush_folder, opened, read_json, remove, write_json
from minidalle.config import Preset
from minidalle.sequence import PAD
from minidalle.train import average_weights, learning_rate, pick_device, seed_of
from minidalle.transformer import DALLE, projected
from minidalle.watch import Watch

KEPT = 2  # states

# --- processes -----------------------------------------------------------------------------------------------------


class Processes(NamedTuple):
    """All processes of a job, seen from one of them."""

    rank: int
    count: int
    device: torch.device  # of this process
    group: object  # in which they speak of files and counts, on the CPU

    def by_the_first(self, work: Callable):
        """Let process 0 do the work, and all have its result; an error of its is raised in all."""
        answer = [None, None, None]
        if self.rank == 0:
            try:
                answer[0] = work()
            except Exception as error:
                kind = next((k for k in (ValueError, OSError, ImportError) if isinstance(error, k)), RuntimeError)
                answer[1:] = kind, str(error)
        dist.broadcast_object_list(answer, group=self.group, device=torch.device("cpu"))
        if answer[1] is not None:
            raise answer[1](answer[2])
        return answer[0]

    def summed(self, *values: float) -> list[float]:
        """The sums of these numbers over all processes."""
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()


@contextlib.contextmanager
def processes(device: str):
    """Join the processes that torchrun has started, or be the only one. Yields `Processes`."""
    where = pick_device(device)
    patience = timedelta(hours=2)  # for the others, while process 0 learns a tokenizer or writes 50 GB
    options = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(where)
        dist.init_process_group("nccl", device_id=where, **options)
        group = dist.new_group(backend="gloo", timeout=patience)
    else:
        dist.init_process_group("gloo", timeout=patience, **options)
        group = dist.group.WORLD
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), where, group)
    except BaseException:
        if where.type == "cpu":  # on GPUs it would wait for the others, which wait for this one: torchrun stops them
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


# --- the model in shards -------------------------------------------------------------------------------------------


def shard(model: DALLE, recompute: bool, half: bool) -> DALLE:
    """Cut the model's parameters, block by block, over all processes, in place.

    half: attention and MLP compute in bfloat16, from float32 weights, and their gradients are summed in float32; the
    residual stream, all norms, embeddings and heads are float32. (The paper keeps embeddings, gains and biases in 32 bits, P D;
    here all weights are, and biases are added in bfloat16.) recompute: keep only the input of each block for the
    backward pass, and run it again there.
    """
    # Both return views, on which nobody may compute in place; nobody does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    for block in model.blocks:
        if recompute:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        fully_shard([block.attn, block.mlp], mesh=mesh, mp_policy=policy)
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
        self, preset: Preset, config, team: Processes, seed: int, recompute: bool, codebook: torch.Tensor,
        saved: Path | None = None,
    ):  # fmt: skip
        """codebook (K, n_init): of the dVAE, from which image tokens may start (see `initialise`). saved: a folder that `save`
        wrote, with any number of processes, to go on from; raises ValueError where it is not whole."""
        stage, device = preset.train.transformer, team.device
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            raise ValueError("this GPU has no bfloat16: sharded training needs an A100, an RTX 30 or newer")
        self.stage, self.team, self.seed, self.config = stage, team, seed, config
        with torch.device("meta"):
            model = DALLE(config)
        self.model = shard(model, recompute, half=device.type == "cuda")
        if saved:
            self.model.to_empty(device=device)
        else:
            initialise(self.model, device, seed, codebook, stage.codebook_std)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), stage.lr, stage.betas, stage.eps, weight_decay=stage.weight_decay, fused=True
        )
        self.step, self.seconds, self.positions = 0, 0.0, {}
        self.watch = Watch("transformer", stage)
        self.skipped = 0  # samples that this process passed over; process 0 counts those before a resume too
        if saved:
            self.restore(saved)

    def update(self, text: torch.Tensor, codes: torch.Tensor, streams: int) -> dict[str, float]:
        """One update from this process's share of the batch, text (b, text_len) and codes (b, rows * grid), `streams` at a
        time. Returns the losses of the whole batch, in nats, and the gradient's norm."""
        n_processes, device = self.team.count, self.team.device
        targets = self.team.summed((text[:, 1:-1] != PAD).sum().item(), codes.numel())
        counts = [max(1.0, n) / n_processes for n in targets]  # FSDP takes the mean over processes, we want the sum
        rate = learning_rate(self.stage, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = torch.zeros(2, dtype=torch.float64)
        for part_of_text, part in zip(text.split(streams), codes.split(streams)):
            loss = self.model.loss(
                part_of_text.to(device), part.to(device), text_weight=self.stage.text_weight, counts=counts
            )
            loss.total.backward()
            losses += torch.stack([loss.text, loss.image]).detach().double().cpu() / n_processes
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        on_text, on_image = self.team.summed(*losses.tolist())
        total = self.stage.text_weight * on_text + (1 - self.stage.text_weight) * on_image
        self.step += 1
        if self.watch.accepts(total, norm.item(), self.model, self.step):  # the same answer in every process
            if self.stage.clip:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.stage.clip, norm)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.step % self.stage.ema_every == 0:
            average_weights(self.average, self.model, min(self.stage.ema_decay, self.step / (self.step + 10)))
        numbers = {"loss": total, "text": on_text, "image": on_image, "gradient": norm.item(), "lr": rate}
        return numbers | {"skipped_updates": self.watch.state["skipped"]}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything of a checkpoint that is in shards: weights, average and AdamW's two moments by parameter."""
        parts = {f"weights.{name}": value for name, value in self.model.state_dict().items()}
        parts |= {f"ema.{name}": value for name, value in self.average.items()}
        for name, p in self.model.named_parameters():
            state = self.optimizer.state[p]
            if not state:  # before the first update
                state |= {
                    "step": torch.zeros((), device=self.team.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
            parts |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        return {name: value.detach() for name, value in parts.items()}

    def save(self, folder: Path):
        """Write folder/STEP: a file from each process, then, by process 0, state.json and the name."""
        aside, path = folder / f".writing-{self.step:09d}", folder / f"{self.step:09d}"
        if self.team.by_the_first(lambda: (path / "state.json").exists()):
            return  # it was saved just before somebody asked to stop

        def begin():
            shutil.rmtree(aside, ignore_errors=True)  # what a killed run had not finished writing
            aside.mkdir(parents=True)

        self.team.by_the_first(begin)
        tensors = self.tensors()
        files = {name: 1 + i // 16 for i, name in enumerate(tensors)}  # several, as each is put together in memory
        with warnings.catch_warnings(), failures(f"{path} could not be written", OSError):
            warnings.simplefilter("ignore")  # of one process alone, the library remarks that it is alone
            writer = dcp.HuggingFaceStorageWriter(str(aside), files, save_distributed=True)
            dcp.save(tensors, storage_writer=writer, process_group=self.team.group)
        everyone = [None] * self.team.count
        dist.all_gather_object(everyone, self.positions, group=self.team.group)
        info = {
            "step": self.step, "seconds": self.seconds, "watch": self.watch.state, "skipped": int(self.team.summed(self.skipped)[0]),
            "positions": {lane: position for mine in everyone for lane, position in mine.items()},
        }  # fmt: skip

        def finish():
            write_json(aside / "state.json", info)
            flush(aside)
            os.replace(aside, path)
            flush_folder(folder)
            for old in states(folder)[:-KEPT]:
                remove(old)

        self.team.by_the_first(finish)

    def restore(self, path: Path):
        """Take everything from a folder that `save` wrote."""
        broken = f"{path} is no whole state (remove it, and --resume takes the one before it)"

        def check():  # or torch would report one that is cut off with a traceback of its own
            for file in sorted(path.glob("*.safetensors")):
                try:
                    with opened(file):
                        pass
                except ValueError as error:
                    raise ValueError(f"{broken}: {error}") from None

        self.team.by_the_first(check)
        tensors = self.tensors()
        with warnings.catch_warnings(), failures(broken, ValueError):
            warnings.simplefilter("ignore")
            reader = dcp.HuggingFaceStorageReader(str(path))
            dcp.load(tensors, storage_reader=reader, process_group=self.team.group)
        self.model.load_state_dict({n[8:]: t for n, t in tensors.items() if n.startswith("weights.")})
        info = self.team.by_the_first(lambda: read_json(path / "state.json"))
        try:
            self.step, self.seconds = int(info["step"]), float(info["seconds"])
            self.watch = Watch("transformer", self.stage, state=info.get("watch"))
            self.skipped = int(info["skipped"]) if self.team.rank == 0 else 0
            self.positions = {int(lane): tuple(map(int, position)) for lane, position in info["positions"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{path}/state.json is not as a run writes it: remove {path}, and --resume takes the state before it"
            ) from None
        for p in self.model.parameters():
            self.optimizer.state[p]["step"] = torch.tensor(float(self.step), device=self.team.device)


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
