"""Published weights: stand-ins with the exact names, shapes and pickle structure; and files that try to do harm."""

import copyreg
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from minidalle.__main__ import main
from minidalle.clip import PIXEL_MEAN, PIXEL_STD
from minidalle.scale import released
from tests import hostile
from tests.stand_ins import differences, make_dvae_files, random_tensors, save_module, shapes_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder with encoder.pkl (torch's present format) and decoder.pkl (the older one), and what is in them."""
    folder = tmp_path_factory.mktemp("released")
    return folder, make_dvae_files(folder)


@pytest.mark.slow
def test_the_released_dvae_computes_what_the_formula_says(stand_in):
    folder, tensors = stand_in
    dvae = released.load_dvae(folder)
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(5))
    apart = differences(dvae, tensors, image)
    assert apart["logits"] < 1e-5 and apart["pixels"] < 1e-5 and apart["codes"] == 0
    corner = image[:, :, :64, :64]
    assert dvae.logits(corner).shape == (1, 8192, 8, 8) and dvae.encode(corner).unique().numel() > 4
    dvae.encoder.blocks.group_3.block_2.res_path.conv_2.b.data[7] += 0.1  # one number of 98 million
    assert differences(dvae, tensors, corner)["logits"] > 1e-5


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_any_module_of_torch_is_read_as_torch_reads_it(zipped, dtype, tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(4, 5), nn.ReLU())).to(dtype)
    module[2].tied = module[2][0]  # a module in two places
    module.turned = nn.Parameter(torch.randn(5, 4).to(dtype)[1:, ::2].T, requires_grad=False)  # a view
    torch.save(module, tmp_path / "m.pkl", _use_new_zipfile_serialization=zipped)
    tensors, wanted = released.module_tensors(tmp_path / "m.pkl"), module.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        n: (t.shape, t.dtype) for n, t in wanted.items()
    }
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted) and len(wanted) == 12


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


def test_hostile_files_are_refused_each_for_its_own_reason():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.hostile"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    count = re.search(r"refused (\d+) of (\d+)", done.stdout)
    assert done.returncode == 0 and count and count[1] == count[2] and int(count[1]) >= 25, done.stdout + done.stderr


def test_those_that_execute_something_do_so_when_loaded_as_usual(tmp_path):
    mark = tmp_path / "mark"
    copyreg.add_extension("posix", "system", 240)
    try:
        for name, _, program in hostile.executing(mark):
            pickle.loads(b"\x80\x02" + program)
            assert mark.exists(), name
            mark.rmdir() if mark.is_dir() else mark.unlink()
    finally:
        copyreg.remove_extension("posix", "system", 240)


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


@pytest.fixture(scope="module")
def small_run(clip_file, vocabulary, tmp_path_factory):
    """(what it takes to train for one update, the run's folder), trained with --clip."""
    (clip_file[0].parent / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    folder = tmp_path_factory.mktemp("small")
    (folder / "pictures").mkdir()
    for k in range(4):
        Image.effect_noise((32, 32), 60 * k).convert("RGB").save(folder / f"pictures/{k}.png")
        (folder / f"pictures/{k}.txt").write_text(f"a photo of {k} cats")
    main(["shards", str(folder / "pictures"), str(folder / "tars")])
    sizes = {"transformer.text_len": 48, "transformer.n_layer": 1, "transformer.n_head": 2, "transformer.n_embd": 32,
             "data.height": 32, "data.width": 32, "data.vocab_size": 260, "train.transformer.updates": 1,
             "train.transformer.batch_size": 4, "train.transformer.muon_lr": 0}  # fmt: skip
    train = ["train", "--preset", "tiny", "--dvae.codebook_size=64", "--shards", f"{folder}/tars/*.tar", "--dvae", str(ROOT / "lessons/weights"),
             "--device", "cpu", *(f"--{key}={value}" for key, value in sizes.items())]  # fmt: skip
    main([*train, "--out", str(folder / "run"), "--clip", f"openclip:{clip_file[0]}"])
    return train, folder / "run"


@pytest.mark.slow
def test_a_run_keeps_the_clip_that_it_was_given(small_run, clip_file, tmp_path, capsys):
    _, run = small_run
    drawn = ["generate", "a photo", "--run", str(run), "--rerank", "3", "-n", "2", "--out", str(tmp_path)]
    main([*drawn, "--device", "cpu"])
    pictures = sorted(map(str, tmp_path.glob("*seed*.png")))
    capsys.readouterr()
    said = []
    for more in ([], ["--clip", f"openclip:{clip_file[0]}"], ["--clip", f"released:{clip_file[0]}"]):
        main(["rank", "a cat", *pictures, "--run", str(run), *more])
        said.append(capsys.readouterr().out)
    assert len(pictures) == 2 and said[0] == said[1] != said[2]
    kept = run / released.VOCABULARY
    words = kept.read_text()
    kept.write_text(words + " ")
    with pytest.raises(ValueError, match="was trained with another vocabulary"):
        released.kept_clip(run)
    kept.write_text(words)


def test_training_with_a_bad_clip_leaves_nothing(small_run, tmp_path, capsys):
    train, run = small_run
    for clip, sentence in (("openclip:nowhere.safetensors", "does not exist"), ("mine", "must be released:FILE")):
        with pytest.raises(SystemExit) as stop:
            main([*train, "--out", str(tmp_path / "run"), "--clip", clip])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in said and said.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "clip, sentence", [("x", "must be released:FILE"), ("released:", "must be"), ("released:no", "not exist")]
)
def test_a_bad_clip_is_one_sentence(clip, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["rank", "a cat", str(tmp_path / "a.png"), "--clip", clip])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said and said.count("\n") == 1
