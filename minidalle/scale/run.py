"""A run of sharded training, from tar shards to a folder that `generate` can draw with: the verb `train`.

    torchrun --nproc-per-node 8 -m minidalle train --preset dalle-12b --shards 'shards-{00000..00099}.tar' --dvae released:DIR --out runs/12b

Every process runs this file from top to bottom. Process 0 alone writes the run's folder; what it decides, and any error of
its, all learn (`Processes.by_the_first`), so that none waits for one that has stopped. The update is `sharded.py`'s, the
order of the data `shards.py`'s, and neither depends on how many processes there are.
"""

import contextlib
import dataclasses
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minidalle.bpe import BPE
from minidalle.checkpoint import Run, fingerprint, save_model
from minidalle.config import Preset, TransformerConfig
from minidalle.dvae import DVAE
from minidalle.scale import packing, released, shards
from minidalle.scale.plan import parameters, plural
from minidalle.scale.sharded import Training, processes, states, whole
from minidalle.sequence import tokenize
from minidalle.train import Interrupt, seed_of, split_to_fit, to_float
from minidalle.transformer import DALLE
from minidalle.watch import check_space

CAPTIONS = 100_000  # of the shards, from which a tokenizer is learned
NAMED = 10  # so many of the samples that a process skips are named
GRACE = 30  # seconds in which a second signal is the first one over again: a terminal and torchrun both send it


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


def prepare(
    run_folder: Path, settings: dict, resume: bool, bpe: Path | None, learn: Callable, dvae: DVAE, clip: str | None
) -> Run:
    """By process 0: the run's folder, with its settings, tokenizer (given, or learned now), dVAE and, if one is asked for,
    CLIP. Raises ValueError where the folder holds another run."""
    published = released.clip_from(clip) if clip else None  # a bad file is refused before there is a folder
    run = Run(run_folder, settings, resume)
    have = run.folder / "bpe.json"
    if not have.exists():
        (BPE.load(bpe) if bpe else learn()).save(have)
    elif bpe and BPE.load(bpe).hash != BPE.load(have).hash:
        raise ValueError(f"{run.folder} was begun with another tokenizer than {bpe}: leave out --bpe, it has its own")
    if not (run.folder / "dvae.safetensors").exists():
        save_model(run.folder / "dvae.safetensors", dvae, dvae.state_dict())
    if published:
        released.keep_clip(*published, run.folder)
    return run


def train(
    preset: Preset, pattern: str, dvae: DVAE, run_folder: Path, seed: int = 0, device: str = "auto", resume: bool = False,
    streams: int = 0, recompute: bool = True, workers: int = 0, bpe: Path | None = None,
    clip: str | None = None,
):  # fmt: skip
    """Train the preset's transformer on tar shards; every process calls this.

    streams: pictures that a process takes at a time; 0 = its whole share of the batch. bpe: a tokenizer; None = learned
    from the captions. clip: released:FILE or openclip:FILE, which is to rank the run's pictures. Raises ValueError
    for shards, settings or a folder that do not fit, before the run's folder is made.
    """
    check_layout(preset, dvae)
    preset = dataclasses.replace(preset, dvae=dvae.config, data=dataclasses.replace(preset.data, name="shards"))
    batch_size = preset.train.transformer.batch_size
    if preset.train.transformer.muon_lr:
        raise ValueError("Muon needs whole matrices, here in shards: set --train.transformer.muon_lr=0")
    with processes(device) as team:
        paths, runs = team.by_the_first(lambda: shards.find(pattern)), []
        shards.Stream(paths, batch_size, None, seed, team.rank, team.count, {})  # refuses more processes than lanes
        encoded = packing.are_encoded(paths, dvae, preset.data.height, preset.data.width)
        settings = {
            "preset": dataclasses.asdict(preset), "seed": seed, "dvae": fingerprint(dvae.state_dict()),
            "shards": [f"{path.name}, {path.stat().st_size} bytes" for path in paths],  # where they lie may change
        }  # fmt: skip
        learn = partial(learn_bpe, paths, preset.data.vocab_size)
        weights = 4 * sum(parameters(fitted(preset, preset.data.vocab_size)).values())
        team.by_the_first(lambda: check_space(run_folder, [weights]))
        team.by_the_first(lambda: runs.append(prepare(run_folder, settings, resume, bpe, learn, dvae, clip)))
        tokenizer = BPE.load(run_folder / "bpe.json")
        saved = team.by_the_first(lambda: [None, *states(run_folder / "state")][-1])
        training = Training(preset, fitted(preset, len(tokenizer)), team, seed, recompute, dvae.codebook, saved)
        read = partial(read_codes, training.config) if encoded else partial(read_image, preset)
        stream = shards.Stream(paths, batch_size, read, seed, team.rank, team.count, training.positions)
        training.positions = {lane: at for lane, at in training.positions.items() if lane in stream.lanes}
        dvae = dvae if encoded else dvae.to(team.device)
        for run in runs:  # of process 0 alone
            run.forget_after("transformer", training.step)
            tqdm.write(
                f"{plural(len(paths), 'shard')} of {'codes' if encoded else 'pictures'} in {plural(stream.n_lanes, 'lane')}; "
                f"{sum(parameters(training.config).values()):,} parameters, {team.count} x {team.device.type}; "
                f"{'resumed after' if training.step else 'before'} update {training.step} of {training.stage.updates}"
            )
        loop(training, shards.batches(stream, workers), tokenizer, dvae, preset, run_folder, streams, runs)


def check_layout(preset: Preset, dvae: DVAE):
    """Raise ValueError for a dVAE of more or fewer codes than the preset's: it would make another model, or longer streams."""
    shape = {
        name: (getattr(preset.dvae, name), getattr(dvae.config, name)) for name in ("codebook_size", "n_group", "patch")
    }
    if other := {name: (expected, have) for name, (expected, have) in shape.items() if expected != have}:
        raise ValueError(
            f"the preset {preset.name} is for a dVAE of {preset.dvae.codebook_size} codes, ÷{preset.dvae.downsample}, and this one has "
            f"{dvae.config.codebook_size}, ÷{dvae.config.downsample}: give another --dvae, or say that you mean it with "
            + " ".join(f"--dvae.{name}={have}" for name, (_, have) in other.items())
        )


def fitted(preset: Preset, vocab_size: int) -> TransformerConfig:
    """The transformer's settings, for pictures, codes and a vocabulary of this size."""
    step = preset.dvae.downsample
    return dataclasses.replace(
        preset.transformer, vocab_size=vocab_size, codebook_size=preset.dvae.codebook_size,
        rows=preset.data.height // step, grid=preset.data.width // step, text_len=preset.transformer.text_len or 256,
    )  # fmt: skip


def read_image(preset: Preset, sample: dict, rng):
    return shards.image_of(sample, preset.data.height, preset.data.width, rng)


def read_codes(config: TransformerConfig, sample: dict, rng):
    return shards.codes_of(sample, config.rows, config.grid, config.codebook_size)


def loop(
    training: Training, reader, bpe: BPE, dvae: DVAE, preset: Preset, run_folder: Path, streams: int, runs: list[Run]
):
    """Update after update, until the stage is over, somebody asks to stop, or there is nothing more to read."""
    stage, team, named = training.stage, training.team, 0
    with Interrupt(GRACE) as interrupt, tqdm(
        total=stage.updates, initial=training.step, desc="transformer", unit="update", disable=team.rank > 0
    ) as bar:  # fmt: skip
        while training.step < stage.updates:
            started, part, broken = time.perf_counter(), None, None
            try:
                part = next(reader)
            except (ValueError, OSError) as error:
                broken = error
            if team.summed(interrupt.asked or broken is not None)[0]:  # all have to stop at the same update
                keep(training, run_folder, bpe, dvae)
                raise broken or KeyboardInterrupt(f"stopped and saved after update {training.step} of {stage.updates}")
            text, codes = as_tokens(part, training, bpe, dvae)
            numbers = training.update(text, codes, streams or len(text))
            training.positions |= part.positions
            training.seconds += time.perf_counter() - started
            for name, reason in part.skipped[: max(0, NAMED - named)]:
                tqdm.write(f"warning: skipped {name}: {reason}", file=sys.stderr)
            named, training.skipped = named + len(part.skipped), training.skipped + len(part.skipped)
            last = training.step == stage.updates
            if training.step % preset.train.log_every == 0 or training.step == 1 or last:
                record = numbers | {"skipped": int(team.summed(training.skipped)[0])}
                bar.set_postfix(loss=f"{numbers['loss']:.3f}")
                for run in runs:
                    run.log({"stage": "transformer", "step": training.step, **record, **speed(training)})
            bar.update()
            if training.step % preset.train.save_every == 0 or last:
                keep(training, run_folder, bpe, dvae)
        if not (run_folder / "transformer.safetensors").exists():  # its last state was saved, and then it was killed
            keep(training, run_folder, bpe, dvae)
        for _ in runs:
            tqdm.write(
                f"{stage.updates} of {stage.updates} updates are done: {run_folder} is a run that `generate` can draw with"
            )
        if (skipped := training.watch.state["skipped"]) and team.rank == 0:
            print(f"skipped {skipped} updates, whose loss or gradient was not a finite number", file=sys.stderr)


def speed(training: Training) -> dict:
    positions = training.stage.batch_size * (training.config.text_len + training.config.n_image) * training.step
    return {"seconds": round(training.seconds, 3), "tokens_per_s": round(positions / training.seconds)}


def as_tokens(part: shards.Part, training: Training, bpe: BPE, dvae: DVAE) -> tuple[torch.Tensor, torch.Tensor]:
    """text (b, text_len) and codes (b, rows * grid) of this process's share of an update."""
    stage, texts = training.stage, []
    for lane, caption in zip(lanes_in_order(part), part.captions):
        rng = random.Random(seed_of(training.seed, "caption", training.step, lane))
        dropped = rng.random() < stage.caption_dropout
        texts.append(tokenize(bpe, ["" if dropped else caption], training.config.text_len, stage.bpe_dropout, rng))
    codes = part.images
    if codes.dim() == 4:  # pictures
        images = split_to_fit(codes)
        codes = torch.cat([dvae.encode(to_float(x.to(training.team.device))).cpu() for x in images])
    return torch.cat(texts), codes.flatten(1)


def lanes_in_order(part: shards.Part) -> list[str]:
    """For each sample of a part, its lane and its place there: what its chance is seeded with, whoever reads it."""
    each = len(part.captions) // len(part.positions)
    return [f"{lane} {k}" for lane in part.positions for k in range(each)]


def keep(training: Training, run_folder: Path, bpe: BPE, dvae: DVAE):
    """Save a state to go on from, and the whole average in one file, so that `generate` can draw with it."""
    training.save(run_folder / "state")
    tensors = whole(training.average)
    hashes = {"tokenizer": bpe.hash, "dvae": fingerprint(dvae.state_dict())}
    with torch.device("meta"):
        model = DALLE(training.config)
    file = run_folder / "transformer.safetensors"
    training.team.by_the_first(lambda: save_model(file, model, tensors, **hashes))
