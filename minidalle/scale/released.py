"""Weights that others have published: OpenAI's dVAE, and CLIP ViT-B/32, in our own classes.

    load_dvae("released/")                                       encoder.pkl and decoder.pkl  ->  DVAE
    load_clip("clip.safetensors", "tokenizer.json")              ->  (CLIP, Vocabulary)

The dVAE's two files are pickled *modules* (SPEC 2): to open them as they were meant to be opened takes their package, and
runs whatever code the file asks for. Here torchfile.py reads them, which builds tensors and nothing else.

CLIP's weights come as safetensors with the release's names (open_clip publishes such files), its vocabulary as the
tokenizer.json of the `tokenizers` library. A run keeps both, if it was given them (`keep_clip`). The README says where to
obtain the files; none of them is part of this project.
"""

import hashlib
import shutil
from pathlib import Path

import torch

from minidalle import checkpoint
from minidalle.checkpoint import LARGEST_JSON, check_hash, load_model, load_tensors, replacing, save_model
from minidalle.clip import CLIP, PIXEL_MEAN, PIXEL_STD
from minidalle.config import CLIPConfig, DVAEConfig
from minidalle.dvae import DVAE
from minidalle.scale.torchfile import module_tensors
from minidalle.sequence import pack_text

# --- the dVAE ------------------------------------------------------------------------------------------------------


def load_dvae(folder: str | Path) -> DVAE:
    """The released dVAE from a folder with encoder.pkl and decoder.pkl, in evaluation mode.

    Raises ValueError, naming the file, where one is missing, holds anything but modules and tensors, or other weights.
    """
    with torch.device("meta"):
        dvae = DVAE(DVAEConfig())
    for name in ("encoder", "decoder"):
        put(getattr(dvae, name), module_tensors(Path(folder) / f"{name}.pkl"), Path(folder) / f"{name}.pkl")
    return dvae.to(memory_format=torch.channels_last).eval()


def dvae_from(source: str) -> DVAE:
    """The dVAE of a run's folder, or of "released:FOLDER"."""
    kind, _, folder = source.partition(":")
    return load_dvae(folder) if kind == "released" else checkpoint.load_dvae(Path(source))


def put(model: torch.nn.Module, tensors: dict[str, torch.Tensor], path: Path):
    """Let the tensors be the weights of `model`. Raises ValueError for the first name or shape that does not fit."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            raise ValueError(
                f"{path} is not the released {type(model).__name__}: {name} should "
                f"{f'have shape {wanted[name]}' if name in wanted else 'not be there'}, and "
                f"{f'has {given[name]}' if name in given else 'is not there'}"
            )
    model.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)


# --- CLIP ----------------------------------------------------------------------------------------------------------


class Vocabulary:
    """CLIP's own tokenizer, of the release: text to ids, as `CLIP.encode_text` takes them."""

    def __init__(self, path: str | Path, context: int):
        """path: a tokenizer.json. Raises ValueError where it is not there, or no such file."""
        from tokenizers import Tokenizer  # in requirements-extra.txt

        try:
            if Path(path).stat().st_size > LARGEST_JSON:
                raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MB")
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises this very class
            raise ValueError(f"{path} is no vocabulary of the tokenizers library (tokenizer.json): {error}") from None
        self.path, self.context = Path(path), context
        self.hash = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if self.tokenizer.token_to_id("<|endoftext|>") != CLIPConfig().vocab_size - 1:
            raise ValueError(f"{path} is not CLIP's vocabulary: <|endoftext|> should be {CLIPConfig().vocab_size - 1}")
        self.marks = {self.tokenizer.token_to_id(mark) for mark in ("<|startoftext|>", "<|endoftext|>")}
        if None in self.marks:
            raise ValueError(f"{path} is not CLIP's vocabulary: it has no <|startoftext|>")

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """captions -> text (B, context) int64: start-of-text, the caption's ids, then -1. `encode_text` adds the end."""
        start = self.tokenizer.token_to_id("<|startoftext|>")
        lists = [self.tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions]
        return pack_text([[start, *(i for i in ids if i not in self.marks)] for ids in lists], self.context)


def load_clip(weights: str | Path, vocabulary: str | Path, quick_gelu: bool = True) -> tuple[CLIP, Vocabulary]:
    """CLIP ViT-B/32 from a safetensors file with the release's names, in evaluation mode, and its vocabulary.

    quick_gelu: x sigmoid(1.702 x), as the release was trained; False for open re-trainings with the exact GELU. Raises
    ValueError, naming the file, where one is missing or another.
    """
    if not Path(weights).exists():
        raise ValueError(
            f"{weights} does not exist: expected CLIP ViT-B/32, a safetensors file; README.md says where to get it"
        )
    tensors, _ = load_tensors(Path(weights))
    config = CLIPConfig(quick_gelu=quick_gelu)
    with torch.device("meta"):
        clip = CLIP(config)
    put(clip, tensors, Path(weights))
    clip.mean, clip.std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return clip.eval(), Vocabulary(vocabulary, config.context)


def clip_from(source: str) -> tuple[CLIP, Vocabulary]:
    """CLIP ViT-B/32 from "released:FILE" (the release's GELU) or "openclip:FILE" (the exact one), with tokenizer.json beside it."""
    kind, _, file = source.partition(":")
    if kind not in ("released", "openclip") or not file:
        raise ValueError(f"--clip must be released:FILE or openclip:FILE, got {source!r}")
    return load_clip(file, Path(file).parent / "tokenizer.json", quick_gelu=kind == "released")


VOCABULARY = "clip_tokenizer.json"  # in a run's folder, beside clip.safetensors


def keep_clip(clip: CLIP, vocabulary: Vocabulary, run: Path):
    """Make this CLIP that of a run: `generate --rerank` and `rank` use it from there on."""
    with replacing(Path(run) / VOCABULARY) as aside:
        shutil.copy(vocabulary.path, aside)
    save_model(Path(run) / "clip.safetensors", clip, clip.state_dict(), vocabulary=vocabulary.hash)


def kept_clip(run: Path) -> tuple[CLIP, Vocabulary] | None:
    """What `keep_clip` has kept in this run, if anything. Raises ValueError where the two files do not belong together."""
    path = Path(run) / "clip.safetensors"
    if not (Path(run) / VOCABULARY).exists():
        return None
    clip, metadata = load_model(path, CLIP, CLIPConfig)
    vocabulary = Vocabulary(Path(run) / VOCABULARY, clip.config.context)
    check_hash(path, metadata, "vocabulary", vocabulary.hash, VOCABULARY)
    return clip, vocabulary
