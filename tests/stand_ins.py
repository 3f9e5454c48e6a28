"""Stand-ins for OpenAI's two dVAE files, with the exact names, shapes and pickle structure; and what they should compute."""

import re
import sys
import types
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

KEYS = Path(__file__).parent / "keys"


def make_dvae_files(folder: Path, formats=(True, False)) -> dict[str, dict[str, torch.Tensor]]:
    """Write encoder.pkl and decoder.pkl, each in torch's present format (True) or the older one; returns what is in them."""
    tensors = {}
    for seed, (part, zipped) in enumerate(zip(("encoder", "decoder"), formats)):
        tensors[part] = random_tensors(shapes_of("dvae.txt", part), 1.2, seed)
        save_module(folder / f"{part}.pkl", tensors[part], part.title(), zipped)
    return tensors


def shapes_of(file: str, part: str = "") -> dict[str, tuple[int, ...]]:
    """{name: shape} as noted from the released files; of the dVAE's two parts, one."""
    text = (KEYS / file).read_text()
    text = text.split(f"-- {part}:")[1].split("\n-- ")[0] if part else text
    found = re.findall(r"^ *([\w.]+) +\[(.*)\]$", text, re.MULTILINE)
    return {name: tuple(int(n) for n in shape.split(",") if n) for name, shape in found}


def save_module(path: Path, tensors: dict[str, torch.Tensor], kind: str, zipped: bool = True):
    """torch.save a module of the package dall_e, which is there for as long as that takes."""
    package = {name: types.ModuleType(name) for name in ("dall_e", "dall_e.encoder", "dall_e.decoder", "dall_e.utils")}
    sys.modules.update(package)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these classes have no source
            torch.save(as_module(tensors, kind), path, _use_new_zipfile_serialization=zipped)
    finally:
        for name in package:
            del sys.modules[name]


def as_module(tensors: dict[str, torch.Tensor], kind: str) -> nn.Module:
    """Classes and nesting as in the released files."""
    classes = {}

    def named(name):
        if name not in classes:
            home = "dall_e.utils" if name == "Conv2d" else f"dall_e.{kind.lower()}"
            classes[name] = type(name, (nn.Module,), {"__module__": home})
            setattr(sys.modules[home], name, classes[name])
        return classes[name]()

    def grow(node, path, tensor):
        head, *rest = path
        if not rest:
            node.register_parameter(head, nn.Parameter(tensor, requires_grad=False))
            return
        if head not in node._modules:
            leaf = len(rest) == 1
            child = named("Conv2d") if leaf else nn.Sequential() if head in ("blocks", "res_path") else named("Block")
            child.device, child.use_float16, child.n_layers = torch.device("cpu"), True, {1, 2}
            node.add_module(head, child)
        grow(node._modules[head], rest, tensor)

    module = named(kind)
    for name, tensor in tensors.items():
        grow(module, name.split("."), tensor)
    return module


def random_tensors(shapes: dict, scale: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator)
        * (scale / torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 0.05)
        for name, shape in shapes.items()
    }


def by_formula(tensors: dict, x: torch.Tensor, encoder: bool) -> torch.Tensor:
    """The released networks from SPEC 2, without our classes."""

    def conv(name, x):
        w = tensors[f"{name}.w"]
        return F.conv2d(x, w, tensors[f"{name}.b"], padding=w.shape[-1] // 2)

    x = conv("blocks.input", x)
    for group in range(1, 5):
        for block in (1, 2):
            at = f"blocks.group_{group}.block_{block}"
            y = x
            for i in range(1, 5):
                y = conv(f"{at}.res_path.conv_{i}", torch.relu(y))
            straight = conv(f"{at}.id_path", x) if f"{at}.id_path.w" in tensors else x
            x = straight + y / 64
        if group < 4:
            x = F.max_pool2d(x, 2) if encoder else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("blocks.output.conv", torch.relu(x))


def differences(dvae, tensors: dict[str, dict[str, torch.Tensor]], image: torch.Tensor) -> dict[str, float]:
    """How far `dvae` is from the formula for one image (1, 3, height, width): largest differences of logits, relative to the largest
    logit, and of pixels; and how many codes are others."""
    with torch.no_grad():
        logits = by_formula(tensors["encoder"], 0.8 * image + 0.1, encoder=True)
        codes = logits.argmax(dim=1)
        mu = by_formula(tensors["decoder"], F.one_hot(codes, 8192).permute(0, 3, 1, 2).float(), encoder=False)[:, :3]
        pixels = ((mu.sigmoid() - 0.1) / 0.8).clamp(0, 1)
        return {
            "logits": ((dvae.logits(image) - logits).abs().max() / logits.abs().max()).item(),
            "pixels": (dvae.decode(codes) - pixels).abs().max().item(),
            "codes": (dvae.encode(image) != codes).sum().item(),
        }
