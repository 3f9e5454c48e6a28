"""Every size and constant of a run, in one place: frozen dataclasses, named presets, overrides.

In: a preset's name ("tiny", "small", "dalle-12b", …), the data it is for, overrides such as
`transformer.n_layer=4`, and a budget that multiplies the number of updates. Out: one `Preset`.

The defaults of the dataclasses are the paper's constants, so that the preset "dalle-12b" is almost
empty and "tiny" shows exactly what a small run changes. Each field names its mark in SPEC.md;
"O" marks what is this project's own choice and not the paper's.
"""

import dataclasses
import difflib
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataConfig:
    name: str = "shapes"  # which captioned pictures, O: see minidalle/data
    folder: str = ""  # where they are, if the name is "folder", O
    height: int = 256  # pixels, P 2.1
    width: int = 256  # pixels, P 2.1
    pool: int = 4_000  # pictures drawn for training, O
    vocab_size: int = 16_384  # BPE entries asked for, P 2.2; a small corpus fills fewer
    filter: bool = False  # P C, O: drop a folder's captions that are too short, boilerplate, …; see data/filter.py
    blocklist: str = ""  # O: a file of words, one a line, whose captions the filter drops too
    fold: int = 0  # O: in a drawn world, which combinations are never trained on; see shapes.held_out


@dataclass(frozen=True)
class DVAEConfig:
    """Architecture of the dVAE (SPEC 2)."""

    codebook_size: int = 8192  # K, P 2.1
    n_hid: int = 256  # width of the first group; each group doubles it, C
    n_init: int = 128  # width of a codebook vector, C
    n_group: int = 4  # the picture is halved between groups, C
    n_block: int = 2  # residual blocks in a group, C
    input_kernel: int = 7  # of the encoder's first convolution, C
    patch: int = 1  # O: fold patch x patch pixels into channels first; 1 = off
    normalize_logits: bool = False  # O: normalise each code's logit over the batch, against collapse
    likelihood: str = "logit_laplace"  # P A.3; O: "bernoulli" or "gaussian"

    def check(self):
        """Raise ValueError where no model can be built; DVAE and `load_preset` call it."""
        if self.likelihood not in ("logit_laplace", "bernoulli", "gaussian"):
            raise ValueError(
                f"dvae.likelihood must be 'logit_laplace', 'bernoulli' or 'gaussian', got {self.likelihood!r}"
            )
        if self.input_kernel % 2 == 0:
            raise ValueError(f"dvae.input_kernel must be odd, to keep the picture's size, got {self.input_kernel}")
        if self.n_hid % 4 or self.n_hid < 4:
            raise ValueError(
                f"dvae.n_hid must be a multiple of 4 (the blocks' bottleneck is a quarter), got {self.n_hid}"
            )

    @property
    def downsample(self) -> int:
        """Pixels per code along one side: 8 in the paper."""
        return self.patch * 2 ** (self.n_group - 1)


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture of the transformer (SPEC 5).

    A run takes rows and grid of its pictures, vocab_size of its text, codebook_size of its dVAE; no override sets these four.
    """

    n_layer: int = 64  # P B.1
    n_head: int = 62  # P B.1
    n_embd: int = 3968  # C, 62 heads of width 64, P B.1
    text_len: int = (
        256  # positions of text, the last of them [SEP], P 2.2; O: 0 = what the captions need, see fit_text_len
    )
    rows: int = 32  # rows of image codes, P 2.1
    grid: int = 32  # G, image codes in a row, P 2.1
    vocab_size: int = 16_384  # V, text tokens, P 2.2
    codebook_size: int = 8192  # K, image tokens, P 2.1
    masks: str = "dalle"  # the paper's row, column and conv masks, P B.1; O: "causal" everywhere
    kernel_size: int = 11  # of the conv mask, P Fig. 11
    recompute: bool = False  # O: compute the MLPs' hidden layers again in the backward pass instead of keeping them
    backend: str = (
        "auto"  # O: what computes attention: "triton", "sdpa" (means PyTorch), or the first on a GPU that can
    )

    def check(self):
        """Raise ValueError where no model can be built; DALLE and `load_preset` call it."""
        if self.n_head < 1 or self.n_embd % self.n_head:
            raise ValueError(f"transformer.n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")
        if self.kernel_size % 2 == 0 or self.text_len == 1:
            raise ValueError(
                f"transformer.kernel_size must be odd and text_len at least 2 (or 0), got {self.kernel_size}, {self.text_len}"
            )
        if self.masks not in ("dalle", "causal"):
            raise ValueError(f"transformer.masks must be 'dalle' or 'causal', got {self.masks!r}")
        if self.backend not in ("auto", "triton", "sdpa"):
            raise ValueError(f"transformer.backend must be 'auto', 'triton' or 'sdpa', got {self.backend!r}")

    @property
    def n_image(self) -> int:
        return self.rows * self.grid


@dataclass(frozen=True)
class CLIPConfig:
    """Architecture of CLIP (SPEC 6b); the defaults are the released ViT-B/32.

    A run takes height and width of its pictures, context and vocab_size of its text; no override sets these four.
    """

    embed_dim: int = 512  # E, width of the space that both towers end in, SPEC 6b
    height: int = 224  # pixels, SPEC 6b
    width: int = 224  # pixels, SPEC 6b
    patch: int = 32  # pixels, side of a square patch, SPEC 6b
    image_width: int = 768  # SPEC 6b
    image_layers: int = 12  # SPEC 6b
    image_heads: int = 12  # SPEC 6b
    context: int = 77  # positions of text, SPEC 6b
    vocab_size: int = 49_408  # of text, with the end-of-text token as its last id, SPEC 6b
    text_width: int = 512  # SPEC 6b
    text_layers: int = 12  # SPEC 6b
    text_heads: int = 8  # SPEC 6b
    quick_gelu: bool = True  # x * sigmoid(1.702 x), as released; false: the exact GELU of open re-trainings, SPEC 6b

    def check(self):
        """Raise ValueError where no model can be built; CLIP and `load_preset` call it."""
        for tower in ("image", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"clip.{tower}_width {width} must be a multiple of {tower}_heads {heads}")
        if self.image_width % 4:
            raise ValueError(f"clip.image_width {self.image_width} must be a multiple of 4: see clip.sinusoids")
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(
                f"pictures of {self.height} x {self.width} cannot be cut into patches of clip.patch = {self.patch}: "
                "use a divisor of both"
            )


@dataclass(frozen=True)
class StageConfig:
    """How one model is trained. Lengths are in updates, so that a budget can scale them all."""

    updates: int  # in all: SPEC 2, 5
    batch_size: int  # pictures in an update: SPEC 2, 5
    lr: float  # of AdamW: SPEC 2, 5
    lr_end: float  # after `lr_updates`, along half a cosine: SPEC 2
    lr_updates: int  # SPEC 2
    warmup: int = 0  # updates of linear warm-up: SPEC 5
    halve_at: tuple = ()  # updates at which the rate is halved, in place of the cosine: SPEC 5
    betas: tuple = (0.9, 0.999)  # P A.2
    eps: float = 1e-8  # P A.2, B.2
    weight_decay: float = 1e-4  # P A.2
    clip: float = 0.0  # largest norm of the gradient, P B.2; 0 = no clipping
    ema_decay: float = 0.999  # P A.2
    ema_every: int = 1  # updates between two steps of the average, P B.2
    muon_lr: float = 0.0  # O: rate of Muon for the blocks' matrices; 0 = AdamW for everything, as the paper


@dataclass(frozen=True)
class DVAEStage(StageConfig):
    """SPEC 2, "schedules" and "augmentation" (P A.1, A.2)."""

    updates: int = 3_000_000  # P A.2
    batch_size: int = 512  # P A.2
    lr: float = 1e-4  # P A.2
    lr_end: float = 1.25e-6  # P A.2
    lr_updates: int = 1_200_000  # P A.2
    tau_start: float = 1.0  # temperature of the relaxation, P A.2
    tau_end: float = 1 / 16  # P A.2
    tau_updates: int = 150_000  # P A.2
    kl_weight: float = 6.6  # beta, P A.2
    kl_updates: int = 5_000  # P A.2
    mirror: bool = True  # show half of the pictures mirrored, P A.1
    noise_updates: int = 0  # O: fade the Gumbel noise in over so many updates; 0 = full noise throughout


@dataclass(frozen=True)
class TransformerStage(StageConfig):
    """SPEC 5, "optimizer" and "loss" (P B.2, P 2.2)."""

    updates: int = 430_000  # P B.2
    batch_size: int = 1024  # P B.2
    lr: float = 4.5e-4  # P B.2
    lr_end: float = 4.5e-4  # the paper halves on plateau instead, P B.2; when is not stated
    lr_updates: int = 430_000  # O: of no effect, as the rate is halved instead
    warmup: int = 5_000  # P B.2
    halve_at: tuple = (250_000, 290_000, 330_000, 370_000, 400_000)  # five times (P B.2); the updates are O
    betas: tuple = (0.9, 0.96)  # P B.2
    weight_decay: float = 4.5e-2  # P B.2
    clip: float = 4.0  # P B.2
    ema_decay: float = 0.99  # P B.2
    ema_every: int = 25  # P B.2
    text_weight: float = 1 / 8  # of the text loss; the image loss has the rest, P 2.2
    bpe_dropout: float = 0.1  # P 2.2
    caption_dropout: float = 0.0  # O: share of captions emptied, which guidance needs
    codebook_std: float = 0.0  # O: image tokens start as the dVAE's codebook, projected, of this deviation; 0 = off


@dataclass(frozen=True)
class CLIPStage(StageConfig):
    """Radford et al. 2021, tables 18 and 19, for ViT-B/32: 32 passes over 400 million pairs."""

    updates: int = 390_625  # Radford: 32 · 400 million / batch_size
    batch_size: int = 32_768  # Radford, table 18
    lr: float = 5e-4  # Radford, table 19
    lr_end: float = 0.0  # Radford: a cosine to 0
    lr_updates: int = 390_625  # Radford, as updates
    warmup: int = 2_000  # Radford, table 18
    betas: tuple = (0.9, 0.98)  # Radford, table 18
    eps: float = 1e-6  # Radford, table 18
    weight_decay: float = 0.2  # Radford, table 18
    ema_decay: float = 0.0  # no average, Radford
    alike: int = 1  # O: nearly equal captions that stand together in a batch, as hard negatives; 1 = off
    reconstructed: float = 0.0  # O: share of the pictures that are shown as the dVAE paints them


@dataclass(frozen=True)
class TrainConfig:
    dvae: DVAEStage = field(default_factory=DVAEStage)
    transformer: TransformerStage = field(default_factory=TransformerStage)
    clip: CLIPStage = field(default_factory=CLIPStage)
    log_every: int = 50  # updates between two lines of metrics.jsonl, O
    save_every: int = 1_000  # updates between two saved states, O


@dataclass(frozen=True)
class SampleConfig:
    temperature: float = 1.0  # P 3
    top_k: int = 0  # 0 = all codes, P 3
    top_p: float = 1.0  # 1 = all codes, P 3
    guidance: float = 1.0  # O: 1 = none

    def check(self):
        """Raise ValueError for settings that nothing can be drawn with; `generate` and `load_preset` call it."""
        if self.temperature != 0 and not 1e-3 <= self.temperature < float("inf"):  # what is smaller overflows float32
            raise ValueError(f"temperature must be 0 (greedy) or at least 0.001, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all codes) or positive, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}; 1 keeps all codes")
        if not 0 <= self.guidance <= 1000:
            raise ValueError(f"guidance must lie in 0 … 1000, got {self.guidance}; 1 is off")


@dataclass(frozen=True)
class Preset:
    name: str
    data: DataConfig = field(default_factory=DataConfig)
    dvae: DVAEConfig = field(default_factory=DVAEConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    edit: SampleConfig = field(default_factory=SampleConfig)  # the same, where the top of the picture is given


# --- presets -------------------------------------------------------------------------------------------------------

TINY = Preset(
    name="tiny",
    data=DataConfig(height=24, width=24, pool=30_000, vocab_size=315),  # 315: each word is one token
    dvae=DVAEConfig(
        codebook_size=88, n_hid=64, n_init=64, n_group=2, n_block=1, input_kernel=3,
        patch=2, normalize_logits=True, likelihood="bernoulli",
    ),
    # 18 positions: nine words, their spaces, and [SEP]. That leaves no room for BPE dropout, which would want 32.
    transformer=TransformerConfig(n_layer=3, n_head=3, n_embd=96, text_len=18),
    clip=CLIPConfig(
        embed_dim=128, patch=4, image_width=96, image_layers=3, image_heads=3, text_width=96, text_layers=3,
        text_heads=3, quick_gelu=False,
    ),
    train=TrainConfig(
        dvae=DVAEStage(
            updates=8_500, batch_size=32, lr=8e-3, lr_end=0.0, lr_updates=8_500, betas=(0.9, 0.99),
            tau_end=0.5, tau_updates=5_950, kl_weight=0.0, noise_updates=6_800, mirror=False,
        ),
        transformer=TransformerStage(
            updates=3_600, batch_size=32, lr=2e-3, lr_end=0.0, lr_updates=3_600, warmup=100, halve_at=(),
            betas=(0.9, 0.99), weight_decay=0.05, clip=1.0, ema_decay=0.995, ema_every=1, muon_lr=0.02,
            text_weight=0.02, bpe_dropout=0.0, caption_dropout=0.1, codebook_std=0.1,
        ),
        clip=CLIPStage(
            updates=750, batch_size=64, lr=1e-3, lr_updates=750, warmup=50, weight_decay=0.3, clip=1.0, muon_lr=0.01,
            alike=4, reconstructed=0.5,
        ),
    ),
    sample=SampleConfig(top_p=0.7, guidance=1.5),
    edit=SampleConfig(top_p=0.7, guidance=1.5),
)  # fmt: skip

# Not yet run: what it carries over from TINY, what not, and why, stands in experiments.md.
SMALL = Preset(
    name="small",
    data=DataConfig(pool=4_000),
    dvae=DVAEConfig(codebook_size=2048, n_hid=64, normalize_logits=True),
    transformer=TransformerConfig(n_layer=12, n_head=8, n_embd=512),
    clip=CLIPConfig(
        embed_dim=256, patch=16, image_width=256, image_layers=6, image_heads=4, text_width=256, text_layers=6,
        text_heads=4, quick_gelu=False,
    ),
    train=TrainConfig(
        dvae=DVAEStage(
            updates=50_000, batch_size=16, lr=3e-4, lr_end=3e-6, lr_updates=50_000, tau_updates=30_000,
            warmup=500,
        ),
        transformer=TransformerStage(
            updates=50_000, batch_size=16, lr_end=4.5e-6, lr_updates=50_000, warmup=1_000, halve_at=(), clip=1.0,
            ema_decay=0.999, ema_every=1, caption_dropout=0.1, codebook_std=0.1,
        ),
        clip=CLIPStage(
            updates=20_000, batch_size=128, lr_updates=20_000, warmup=500, clip=1.0, alike=2, reconstructed=0.5
        ),
    ),
)  # fmt: skip

# The paper's three sizes, all of 64 layers with heads of 64 (P E, Table 1; SPEC 5). Everything else is the default.
PAPER = [
    Preset(name="dalle-2.8b", transformer=TransformerConfig(n_head=30, n_embd=1920)),
    Preset(name="dalle-5.6b", transformer=TransformerConfig(n_head=42, n_embd=2688)),
    Preset(name="dalle-12b"),
]

PRESETS = {preset.name: preset for preset in (TINY, SMALL, *PAPER)}

DATA = ("shapes", "scenes", "openmoji")  # the pictures there are, beside folders of one's own: see minidalle/data
DRAWN = ("shapes", "scenes")  # of these, the worlds drawn by rules, which the oracle can read
TWICE = ("scenes", "openmoji")  # of these, where a thing can be on top and the same as a sketch below


def lasting(**updates: int) -> dict[str, int]:
    """Overrides for stages of so many updates; but for the warm-up, schedules keep the shares that they have in TINY."""
    parts = {}
    for stage, n in updates.items():
        parts |= {f"train.{stage}.updates": n, f"train.{stage}.lr_updates": n}
        if stage == "dvae":
            parts |= {"train.dvae.tau_updates": round(0.7 * n), "train.dvae.noise_updates": round(0.8 * n)}
    return parts


# What other pictures change in a preset, as overrides.
NOT_SHAPES = {  # TINY's values of these were settled on shapes alone
    "transformer.text_len": 0, "train.clip.alike": 2, "train.clip.weight_decay": 0.05,
}  # fmt: skip
REAL = {  # drawings by people: more to spell than in a drawn world
    **NOT_SHAPES, "data.height": 32, "data.width": 32, "data.pool": 20_000, "data.vocab_size": 1536, "dvae.codebook_size": 512,
    "train.transformer.bpe_dropout": 0.1, **lasting(dvae=3_200, transformer=2_200, clip=500),
}  # fmt: skip
FOR_DATA = {
    ("tiny", "scenes"): {
        **NOT_SHAPES, "data.height": 32, "data.width": 32, "data.vocab_size": 324, "dvae.codebook_size": 64,
        **lasting(dvae=7_000, transformer=7_000, clip=800),
    },
    ("tiny", "openmoji"): {
        **REAL, "data.height": 64, "clip.patch": 8,  # two squares of 32 x 32
        "train.dvae.batch_size": 8, "train.transformer.batch_size": 16,
        "data.pool": 12_000, **lasting(dvae=9_000, transformer=2_200, clip=150),
        "edit.temperature": 0.5, "edit.top_p": 0.4, "edit.guidance": 1.0,  # there is one right line art
    },
    ("tiny", "folder"): {**REAL, "train.dvae.mirror": True},
    ("small", "openmoji"): {"data.height": 512, "train.dvae.mirror": False, "train.dvae.batch_size": 8},
    ("small", "shapes"): {"train.dvae.mirror": False},
    ("small", "scenes"): {"train.dvae.mirror": False},
}  # fmt: skip


TAKEN_OVER = {  # from the pictures, the dVAE and the text
    *(f"clip.{key}" for key in ("height", "width", "context", "vocab_size")),
    *(f"transformer.{key}" for key in ("rows", "grid", "vocab_size", "codebook_size")),
}


def load_preset(name: str, data: str = "shapes", overrides: dict | None = None, budget: float = 1.0) -> Preset:
    """The preset `name` for the pictures `data` (one of `DATA`, or a folder).

    `overrides` such as {"transformer.n_layer": "4"} are applied, and every schedule's length multiplied by `budget`.

    Raises ValueError for unknown names and keys, values that do not fit, or a budget that is not positive.
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise ValueError(f"unknown preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    if not 0 < budget < float("inf"):
        raise ValueError(f"--budget must be a positive number, got {budget}: 1.0 is the preset's own length")
    if data not in DATA and not Path(data).is_dir():
        raise ValueError(
            f"unknown data {data!r}{nearest(data, DATA)}: there is no such folder, and the pictures that come with this "
            f"project are {', '.join(DATA)}"
        )
    if {"data.name", "data.folder"} & {*(overrides or {})}:
        raise ValueError("data.name and data.folder are no settings of their own: choose the pictures with --data")
    if taken := TAKEN_OVER & {*(overrides or {})}:
        raise ValueError(
            f"{', '.join(sorted(taken))} cannot be set: each follows from the pictures, the dVAE or the text"
        )
    source, folder = (data, "") if data in DATA else ("folder", str(data))
    given = {"data.name": source, "data.folder": folder}
    for key, value in (given | FOR_DATA.get((name, source), {}) | (overrides or {})).items():
        preset = override(preset, key, value)
    check_numbers(preset)
    if preset.data.fold and source not in DRAWN:
        raise ValueError(f"data.fold is for {' and '.join(DRAWN)}, whose combinations are held out; got --data {data}")
    height, width, step = preset.data.height, preset.data.width, preset.dvae.downsample
    for part in (preset.dvae, preset.transformer, preset.sample, preset.edit):
        part.check()
    if height % step or width % step:
        raise ValueError(
            f"pictures of {height} x {width} cannot be cut into codes of {step} x {step}: use multiples of {step}"
        )
    dataclasses.replace(preset.clip, height=height, width=width).check()  # as `train_clip` will build it
    return scale_updates(preset, budget)


def override(config, key: str, value):
    """A copy of the dataclass `config` with the field at the dotted `key` set to `value`, which may be a string."""
    head, _, rest = key.partition(".")
    names = [f.name for f in fields(config)]
    if head not in names:
        raise ValueError(f"unknown setting {head!r}{nearest(head, names)}; there are {', '.join(names)}")
    old = getattr(config, head)
    if rest and not is_dataclass(old):
        raise ValueError(f"{head!r} has no setting {rest!r}: it is a plain value")
    new = override(old, rest, value) if rest else convert(head, value, old)
    return dataclasses.replace(config, **{head: new})


def convert(name: str, value, old):
    """`value` (often a string from the command line) as the type of the `old` value of the setting `name`."""
    if is_dataclass(old):
        raise ValueError(f"{name!r} is a group of settings: name one of them, as in {name}.{fields(old)[0].name}")
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if isinstance(old, tuple):
            items = value.split(",") if isinstance(value, str) else value
            kind = type(old[0]) if old else int
            return tuple(kind(item) for item in items if item != "")
        return type(old)(value)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} must be of type {type(old).__name__}, such as {old!r}, got {value!r}") from None


def scale_updates(config, budget: float):
    """Multiply every length that is counted in updates, at any depth; at least one update stays."""
    changes = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            changes[f.name] = scale_updates(value, budget)
        elif f.name == "updates" or f.name.endswith("_updates") or f.name == "warmup":
            changes[f.name] = max(1, round(value * budget)) if value else 0
        elif f.name == "halve_at":
            changes[f.name] = tuple(round(at * budget) for at in value)
    return dataclasses.replace(config, **changes)


MAY_BE_ZERO = {
    "text_len", "warmup", "lr_end", "tau_updates", "kl_weight", "kl_updates", "noise_updates", "muon_lr", "weight_decay",
    "clip", "ema_decay", "text_weight", "bpe_dropout", "caption_dropout", "temperature", "top_k", "guidance",
    "context", "reconstructed", "codebook_std", "fold",
}  # fmt: skip
SHARES = {"ema_decay", "text_weight", "bpe_dropout", "caption_dropout", "reconstructed"}  # at most 1


def check_numbers(config, group: str = ""):
    """Raise ValueError for a number, at any depth, that is negative, not finite, a share above 1, or 0 where it may not."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            check_numbers(value, f"{group}{f.name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            zero, share = f.name in MAY_BE_ZERO, f.name in SHARES
            if not 0 <= value < float("inf") or (value == 0 and not zero) or (share and value > 1):
                bounds = f"{'0 or more' if zero else 'greater than 0'}{' and at most 1' if share else ''}"
                raise ValueError(f"{group}{f.name} must be {bounds}, got {value}")


def from_dict(cls, values: dict):
    """The dataclass `cls` back from what `dataclasses.asdict` made of it. Raises ValueError on unknown keys."""
    if not isinstance(values, dict):
        raise ValueError(f"the settings of {cls.__name__} must be an object in braces, got {values!r}")
    default = Preset(name="") if cls is Preset else cls()
    changes = {}
    for key, value in values.items():
        if key not in (f.name for f in fields(cls)):
            raise ValueError(f"unknown setting {key!r} of {cls.__name__}: was this written by another version?")
        old = getattr(default, key)
        changes[key] = from_dict(type(old), value) if is_dataclass(old) else convert(key, value, old)
    return dataclasses.replace(default, **changes)


def nearest(name: str, names) -> str:
    """ " (did you mean 'tiny'?)" or nothing."""
    match = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
