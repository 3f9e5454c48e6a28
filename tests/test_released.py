"""Published weights: stand-ins with the exact names, shapes and pickle structure; and files that try to do harm."""

import collections
import io
import json
import os
import pickle
import re
import resource
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minidalle.__main__ import main
from minidalle.clip import PIXEL_MEAN, PIXEL_STD
from minidalle.scale import released

KEYS = Path(__file__).parent / "keys"


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


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with encoder.pkl (torch's present format) and decoder.pkl (the older one), and what is in them."""
    folder, tensors = tmp_path_factory.mktemp("released"), {}
    for seed, (part, zipped) in enumerate((("encoder", True), ("decoder", False))):
        tensors[part] = random_tensors(shapes_of("dvae.txt", part), 1.2, seed)
        save_module(folder / f"{part}.pkl", tensors[part], part.title(), zipped)
    return folder, tensors


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


def test_the_released_dvae_computes_what_the_formula_says(stand_in):
    folder, tensors = stand_in
    dvae = released.load_dvae(folder)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = by_formula(tensors["encoder"], 0.8 * image + 0.1, encoder=True)
        ours = dvae.logits(image)
        assert ours.shape == (1, 8192, 32, 32)
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5 * logits.abs().max().item())
        codes = dvae.encode(image)
        assert torch.equal(codes, ours.argmax(dim=1)) and codes.unique().numel() > 10
        z = F.one_hot(codes, 8192).permute(0, 3, 1, 2).float()
        mu = by_formula(tensors["decoder"], z, encoder=False)[:, :3]
        torch.testing.assert_close(dvae.decode(codes), ((mu.sigmoid() - 0.1) / 0.8).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_reading_does_not_import_the_package(stand_in):
    released.module_tensors(stand_in[0] / "encoder.pkl")
    assert not [name for name in sys.modules if name.startswith("dall_e")]


def test_weights_of_another_shape_are_refused(stand_in, tmp_path):
    tensors = dict(stand_in[1]["encoder"])
    tensors["blocks.input.w"] = torch.zeros(256, 3, 5, 5)
    for part in ("encoder", "decoder"):
        save_module(tmp_path / f"{part}.pkl", tensors, part.title())
    with pytest.raises(ValueError, match=r"encoder.pkl is not the released Encoder: blocks.input.w should have shape"):
        released.load_dvae(tmp_path)


def test_a_missing_or_cut_file_is_named(stand_in, tmp_path):
    with pytest.raises(ValueError, match="encoder.pkl does not exist"):
        released.load_dvae(tmp_path)
    for name in ("encoder", "decoder"):
        whole = (stand_in[0] / f"{name}.pkl").read_bytes()
        for share in (0.0, 0.001, 0.5, 0.999):
            path = tmp_path / "cut.pkl"
            path.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(ValueError, match="cut.pkl cannot be read as a pickled module"):
                released.module_tensors(path)


# --- files that try to do harm --------------------------------------------------------------------------------------


class Calls:
    """Pickled, it asks for a function to be called with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(tmp_path) -> dict[str, bytes]:
    """Pickles of which each would leave the file `mark` behind, or call something, if it were loaded as usual."""
    mark = str(tmp_path / "mark")
    direct = {
        "os.system": Calls(os.system, f"touch {mark}"),
        "open": Calls(open, mark, "w"),
        "eval": Calls(eval, f"open({mark!r}, 'w')"),
        "exec": Calls(exec, f"open({mark!r}, 'w')"),
        "getattr": Calls(getattr, "text", "upper"),
        "import": Calls(__import__, "os"),
        "mkdir": Calls(os.mkdir, mark),
        "torch.load": Calls(torch.load, mark),
        "nested": {"a": [Calls(os.system, f"touch {mark}")]},
        "in a state": collections.OrderedDict(weights=Calls(os.mkdir, mark)),
    }
    pickles = {name: pickle.dumps(value, protocol=2) for name, value in direct.items()}
    touch = f"touch {mark}".encode()
    pickles["posix by hand"] = b"cposix\nsystem\n(S'" + touch + b"'\ntR."
    pickles["build of a class attribute"] = (
        b"ctorch.nn.modules.linear\nLinear\n)\x81}(S'__class__'\ncposix\nsystem\nub."
    )
    pickles["inert with a dotted name"] = b"\x80\x04\x8c\x10torch.nn.modules\x8c\x12linear.math.system\x93."
    pickles["extension registry"] = b"\x80\x02\x82\x01."
    pickles["torch function"] = b"ctorch.hub\nload\n(S'x'\nS'y'\ntR."
    pickles["dunder of an inert"] = b"ctorch.nn.modules.linear\n__reduce__\n(tR."
    return pickles


def test_what_calls_anything_is_refused(tmp_path):
    for number, (name, data) in enumerate(harmful(tmp_path).items()):
        raw, zipped = tmp_path / f"{number}.pkl", tmp_path / f"{number}.zip"
        raw.write_bytes(data)
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        for path in (raw, zipped):
            with pytest.raises(ValueError, match="cannot be read as a pickled module|holds no module") as refused:
                released.module_tensors(path)
            assert "\n" not in str(refused.value), name
    assert not (tmp_path / "mark").exists()


def test_the_same_pickles_do_act_when_loaded_as_usual(tmp_path):
    pickle.loads(harmful(tmp_path)["posix by hand"])
    assert (tmp_path / "mark").exists()


class Described:
    """Pickled with `Pickles`, a tensor of a storage that the file does not have."""

    def __init__(self, storage, offset, size, stride):
        self.parts = storage, offset, size, stride

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (*self.parts, False, {})


class Numbers(NamedTuple):
    key: str
    count: int


class Pickles(pickle.Pickler):
    def persistent_id(self, value):
        return ("storage", torch.FloatStorage, value.key, "cpu", value.count) if isinstance(value, Numbers) else None


def archive_of(path: Path, value, storage: bytes = b"\0" * 16) -> Path:
    """A file in torch's format whose module has `value` as its only parameter, and one storage, "0"."""
    module, file = nn.Identity(), io.BytesIO()
    module.__dict__["_parameters"] = {"w": value}
    Pickles(file, protocol=2).dump(module)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/data/0", storage)
    return path


def test_a_described_tensor_is_read(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    path = archive_of(tmp_path / "a.zip", Described(Numbers("0", 4), 1, (3,), (1,)), data)
    assert released.module_tensors(path)["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "storage, offset, size, stride",
    [
        (Numbers("0", 2**60), 0, (2**60,), (1,)), (Numbers("0", 4), 2, (4,), (1,)), (Numbers("0", 4), 0, (10**8,), (0,)),
        (Numbers("0", -4), 0, (1,), (1,)), (Numbers("0", 0), 0, (0,), (1,)), (Numbers("0", 4), -1, (1,), (1,)),
        (Numbers("0", 8), 0, (8,), (1,)), (Numbers("1", 4), 0, (4,), (1,)), (Numbers("0", 4), 0, (4, 1), (1,)),
        ("no storage", 0, (1,), (1,)), (Numbers("0", 4), 0, (2.0,), (1,)), (Numbers("0", 4), 0, "ab", (1, 1)),
    ],
)  # fmt: skip
def test_sizes_are_checked_before_memory_is_taken(tmp_path, storage, offset, size, stride):
    path = archive_of(tmp_path / "a.zip", Described(storage, offset, size, stride))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="cannot be read"):
        released.module_tensors(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_bombs_of_other_kinds_are_refused(tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ValueError, match="compressed"):
        released.module_tensors(bomb)
    tower = nn.Identity()  # twenty levels of ten children that are all the same one
    for _ in range(20):
        above = nn.Identity()
        above.__dict__["_modules"] = {str(k): tower for k in range(10)}
        tower = above
    torch.save(tower, tmp_path / "tower.pkl")
    with pytest.raises(ValueError, match="too many"):
        released.module_tensors(tmp_path / "tower.pkl")
    (tmp_path / "deep.pkl").write_bytes(b"(" * 2_000_000 + b".")
    with pytest.raises(ValueError, match="cannot be read"):
        released.module_tensors(tmp_path / "deep.pkl")
    (tmp_path / "memo.pkl").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # a memo of 2^31 places
    with pytest.raises(ValueError, match="cannot be read"):
        released.module_tensors(tmp_path / "memo.pkl")


def test_no_state_is_given_to_what_is_not_inert(tmp_path):
    names = ["torch._utils\n_rebuild_parameter", "collections\nOrderedDict", "__builtin__\nset", "torch\nFloatStorage"]
    for number, name in enumerate(names):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(f"c{name}\n(S'changed'\nI1\ndb.".encode())
        with pytest.raises(ValueError, match="it gives a state to"):
            released.module_tensors(path)
    assert not any(hasattr(builder, "changed") for builder in released.KNOWN.values())
    path = archive_of(tmp_path / "t.zip", Stateful())
    with pytest.raises(ValueError, match="it gives a state to View"):
        released.module_tensors(path)


class Stateful:
    """Pickled, a tensor that is given a state, which torch.Tensor would take for another size."""

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Numbers("0", 4), 0, (4,), (1,), False, {}), {"size": 10**6}


# --- CLIP ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    ids = {word: i for i, word in enumerate(["a", "photo", "cat", *(f"unused{i}" for i in range(3, 49_406))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    from safetensors.torch import save_file

    tensors = random_tensors(shapes_of("clip.txt"), 1.0, 7)
    for name in tensors:
        if re.search(r"ln_\w+\.weight$", name):
            tensors[name] = 1 + 0.1 * tensors[name]
    tensors["logit_scale"] = torch.tensor(4.0)
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(tensors, path)
    return path, tensors


def tower(tensors: dict, prefix: str, x: torch.Tensor, heads: int, causal: bool, quick: bool) -> torch.Tensor:
    """Twelve blocks from SPEC 6b, without our classes."""
    n, T, width = x.shape
    for layer in range(12):
        at = f"{prefix}transformer.resblocks.{layer}."
        y = F.layer_norm(x, (width,), tensors[f"{at}ln_1.weight"], tensors[f"{at}ln_1.bias"])
        qkv = y @ tensors[f"{at}attn.in_proj_weight"].T + tensors[f"{at}attn.in_proj_bias"]
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        scores = q @ k.transpose(2, 3) / 8
        if causal:
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf"))
        y = (scores.softmax(dim=3) @ v).transpose(1, 2).flatten(2)
        x = x + y @ tensors[f"{at}attn.out_proj.weight"].T + tensors[f"{at}attn.out_proj.bias"]
        y = F.layer_norm(x, (width,), tensors[f"{at}ln_2.weight"], tensors[f"{at}ln_2.bias"])
        y = y @ tensors[f"{at}mlp.c_fc.weight"].T + tensors[f"{at}mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        x = x + y @ tensors[f"{at}mlp.c_proj.weight"].T + tensors[f"{at}mlp.c_proj.bias"]
    return x


@pytest.mark.parametrize("quick", [True, False])
def test_the_released_clip_computes_what_the_formula_says(clip_file, vocabulary, quick):
    path, t = clip_file
    clip, tokenize = released.load_clip(path, vocabulary, quick_gelu=quick)
    text = tokenize(["a photo", "a cat a cat"])
    assert text.shape == (2, 77) and text[0, :4].tolist() == [49_406, 0, 1, -1]
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = (image - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(PIXEL_STD).view(3, 1, 1)
        x = F.conv2d(x, t["visual.conv1.weight"], stride=32).flatten(2).transpose(1, 2)
        x = torch.cat([t["visual.class_embedding"].expand(2, 1, -1), x], 1) + t["visual.positional_embedding"]
        x = F.layer_norm(x, (768,), t["visual.ln_pre.weight"], t["visual.ln_pre.bias"])
        x = tower(t, "visual.", x, 12, False, quick)[:, 0]
        x = F.layer_norm(x, (768,), t["visual.ln_post.weight"], t["visual.ln_post.bias"]) @ t["visual.proj"]
        torch.testing.assert_close(clip.encode_image(image), F.normalize(x, dim=1), rtol=1e-4, atol=1e-5)
        for caption, ids in zip(text, ([49_406, 0, 1, 49_407], [49_406, 0, 2, 0, 2, 49_407])):
            y = t["token_embedding.weight"][ids] + t["positional_embedding"][: len(ids)]
            y = tower(t, "", y[None], 8, True, quick)[:, -1]
            y = F.layer_norm(y, (512,), t["ln_final.weight"], t["ln_final.bias"]) @ t["text_projection"]
            torch.testing.assert_close(clip.encode_text(caption[None]), F.normalize(y, dim=1), rtol=1e-4, atol=1e-5)


def test_bad_clip_files_are_named(clip_file, vocabulary, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="none.safetensors does not exist"):
        released.load_clip(tmp_path / "none.safetensors", vocabulary)
    with pytest.raises(ValueError, match="is no vocabulary of the tokenizers library"):
        released.load_clip(clip_file[0], tmp_path / "none.json")
    save_file({**clip_file[1], "visual.proj": torch.zeros(768, 640)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is not the released CLIP: visual.proj should have shape"):
        released.load_clip(tmp_path / "other.safetensors", vocabulary)
    (tmp_path / "other.json").write_text(json.dumps(json.loads(vocabulary.read_text()) | {"added_tokens": []}))
    with pytest.raises(ValueError, match="is not CLIP's vocabulary|is no vocabulary"):
        released.load_clip(clip_file[0], tmp_path / "other.json")


def test_only_known_names_are_found():
    read = released.Weights(io.BytesIO(b""))
    for module, name in (
        ("os", "system"),
        ("torch", "load"),
        ("dall_e", "x.y"),
        ("dall_e.utils", "a.b"),
        ("builtins", "eval"),
    ):
        with pytest.raises(ValueError, match="neither a tensor nor"):
            read.find_class(module, name)
    assert issubclass(read.find_class("dall_e.encoder", "Encoder"), released.Inert)


def test_it_ranks_pictures_and_drawings(clip_file, vocabulary, tmp_path, capsys):
    (clip_file[0].parent / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    paths = []
    for k, size in enumerate([(300, 200), (64, 64), (40, 90)]):
        paths.append(tmp_path / f"{k}.png")
        Image.effect_noise(size, 20 + 60 * k).convert("RGB").save(paths[-1])
    main(["rank", "a cat", *map(str, paths), "--clip", f"released:{clip_file[0]}"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(path for _, path in lines) == sorted(map(str, paths))
    clip, tokenize = released.load_clip(*clip_file[:1], vocabulary)
    square = np.asarray(Image.open(paths[0]).crop((50, 0, 250, 200)).resize((224, 224), Image.Resampling.BICUBIC))
    wanted = clip.rank(tokenize(["a cat"])[0], torch.from_numpy(square.copy()).permute(2, 0, 1)[None] / 255)
    assert dict((path, float(score)) for score, path in lines)[str(paths[0])] == pytest.approx(wanted.item(), abs=2e-3)

    weights = Path(__file__).parent.parent / "lessons/weights"
    ranked = ["--rerank", "3", "-n", "2", "--clip", f"openclip:{clip_file[0]}", "--out", str(tmp_path / "out")]
    main(["generate", "a photo of a red circle above a blue square", "--run", str(weights), *ranked])
    scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert len(scores) == 2 and scores[0] >= scores[1] and len(list((tmp_path / "out").glob("*seed*.png"))) == 2


@pytest.mark.parametrize(
    "clip, sentence", [("x", "must be released:FILE"), ("released:", "must be"), ("released:no", "not exist")]
)
def test_a_bad_clip_is_one_sentence(clip, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rank", "a cat", str(tmp_path / "a.png"), "--clip", clip])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said and said.count("\n") == 1
