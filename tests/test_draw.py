"""The verbs that draw, with the small run of the lessons: what they write, and one sentence for whatever cannot be done."""

import errno
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidalle.__main__ import main
from minidalle.checkpoint import load_tensors, save_tensors
from minidalle.studio import draw, provenance, sheet
from minidalle.studio.draw import LoadedRun

RUN = Path("lessons/weights")
CAPTION = "a photo of a red circle above a blue square"


@pytest.fixture(scope="module")
def run():
    return LoadedRun(RUN, "cpu")


@pytest.fixture
def copy(tmp_path):
    """The run's folder, to break something in it."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def call(capsys, *arguments) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m minidalle …`."""
    code = 0
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def generate(capsys, tmp_path, *arguments) -> tuple[int, str, str]:
    return call(capsys, "generate", "--run", RUN, "--out", tmp_path / "out", *arguments)


def refused(said: tuple[int, str, str], sentence: str, code: int = 2):
    """The last line of stderr is the one sentence."""
    *_, last = said[2].strip().splitlines()
    assert said[0] == code and re.search(sentence, last), said


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_codes_are_the_same_in_any_company(run):
    options, seeds = run.options(), range(10)
    together = run.draw(CAPTION, seeds, options)
    assert torch.equal(together, run.draw(CAPTION, seeds[::-1], options).flip(0))
    assert torch.equal(together, torch.cat([run.draw(CAPTION, [k], options) for k in seeds]))
    assert run.model.image_head.weight.dtype == torch.float64 and len({*map(str, together.tolist())}) > 5


def test_a_large_transformer_stays_in_float32(monkeypatch):
    monkeypatch.setattr(draw, "SMALL", 1000)
    large = LoadedRun(RUN, "cpu")
    assert large.model.image_head.weight.dtype == torch.float32
    assert large.draw(CAPTION, [0], large.options()).shape == (1, 8, 8)


def test_many_captions_with_scores_and_a_sheet(capsys, tmp_path, monkeypatch):
    sheets, real = [], sheet.contact_sheet
    monkeypatch.setattr(draw, "contact_sheet", lambda *a: sheets.append(a) or real(*a))
    captions = [CAPTION, "a sketch of a green cross left of a red triangle"]
    code, out, err = generate(capsys, tmp_path, *captions, "-n", 2, "--rerank", 5, "--seed", 3)
    (rows, note), lines = sheets[0], out.splitlines()
    assert code == 0 and len(lines) == 6 and "draw: 100%" in err and "token/s" in err
    assert re.fullmatch(r"640 tokens drawn in [\d.]+ s, [\d,]+ tokens/s", lines[-1])  # 2 captions, 5 pictures, 64 codes
    assert [caption for caption, _, _ in rows] == captions and "top_p 0.7" in note
    printed = [re.search(r"^ *(\S+) .*seed(\d+)\.png$", line).groups() for line in lines[:4]]
    assert [f"seed {seed}: {score}" for score, seed in printed] == [label for row in rows for label in row[2]]
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 5 and all(provenance.verify(path)[0] == 0 for path in files)  # the sheet too
    shown = np.asarray(Image.open(files[0]))
    assert any(np.array_equal(shown, picture) for picture in rows[0][1])


def test_a_sheet_holds_every_picture_and_its_label():
    pictures = [np.full((32, 32, 3), (10 * k, 200, 100), np.uint8) for k in range(1, 12)]
    page = sheet.contact_sheet([("one", pictures, [f"seed {k}" for k in range(11)]), ("two", pictures[:1], ["x"])], "n")
    found = [(page == (10 * k, 200, 100)).all(2).sum() for k in range(1, 12)]
    assert found[1:] == [96 * 96] * 10 and found[0] == 2 * 96 * 96  # three times as large
    blank = sheet.contact_sheet([("one", pictures, [""] * 11), ("two", pictures[:1], [""])], "n")
    assert (page != blank).any()
    many = sheet.contact_sheet([("one", pictures[:1] * 300, ["x"] * 300)] * 3)
    assert (many == (10, 200, 100)).all(2).sum() == sheet.MOST * 96 * 96
    odd = sheet.contact_sheet([("a\0b\u202e" + "x" * 5000, pictures[:1], ["\ud800"])])
    assert odd.shape[1] == page.shape[1] or odd.shape[0] < 400


def test_an_animation_carries_the_mark_and_says_what_it_is(capsys, tmp_path):
    assert generate(capsys, tmp_path, CAPTION, "-n", 1, "--gif")[0] == 0
    film = Image.open(next((tmp_path / "out").glob("*.gif")))
    assert provenance.has_mark(np.asarray(film.convert("RGB"))) and b"trainedAlgorithmicMedia" in film.info["comment"]
    assert generate(capsys, tmp_path, CAPTION, "-n", 1, "--gif", "--no-mark")[0] == 0
    assert Image.open(next((tmp_path / "out").glob("*.gif"))).size == (32, 32)


def test_upscale_repeats_pixels(capsys, tmp_path):
    for up in (1, 5):
        call(capsys, "generate", CAPTION, "-n", 1, "--upscale", up, "--run", RUN, "--out", tmp_path / str(up))
    small, large = (np.asarray(Image.open(next((tmp_path / up).glob("*seed0.png")))) for up in ("1", "5"))
    assert np.array_equal(small.repeat(5, 0).repeat(5, 1), large)


def test_greedy_drawing_needs_no_seed(capsys, tmp_path):
    assert generate(capsys, tmp_path, CAPTION, "-n", 2, "--temperature", 0)[0] == 0
    a, b = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*seed*.png")))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("extreme", [["--temperature", 0.001, "--guidance", 1000], ["--temperature", 1e300], ["--top-p", 1e-300],
                                     ["--top-k", 10**20], ["--seed", 2**63 - 2]])  # fmt: skip
def test_settings_at_the_edge_are_drawn(capsys, tmp_path, extreme):
    assert generate(capsys, tmp_path, CAPTION, "-n", 2, *extreme)[0] == 0


@pytest.mark.parametrize("caption", ["😀", "عربي فوق שלום", "red " * 1000, "​\u202e", "'; rm -rf / \\ $HOME ../../x"])
def test_odd_captions_are_drawn_and_kept_in_the_metadata(capsys, tmp_path, caption):
    code, _, err = generate(capsys, tmp_path, caption, "-n", 1)
    path = next((tmp_path / "out").glob("*seed0.png"))
    assert code == 0 and provenance.verify(path)[0] == 0 and path.parent == tmp_path / "out"
    assert json.loads(Image.open(path).info["minidalle"])["prompt"] == caption
    assert len(err.replace("\r", "\n").splitlines()[-1]) < 500


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["-n", "0"], "must be greater than 0"), (["-n", "x"], "invalid positive int value"),
        (["-n", 10**9], "1000000000 pictures of 32 x 32 would be .* pixels, over 100,000,000: draw fewer"),
        (["--rerank", 10**30], "would be .* pixels"), (["--upscale", 100_000], "--upscale 100000 would be .* choose a smaller"),
        (["--upscale", 100, "--gif"], "--upscale 100 with --gif would be"), (["--upscale", "0"], "must be greater than 0"),
        (["--temperature", "-1"], "temperature must be 0 .greedy. or at least 0.001, got -1.0"),
        (["--temperature", "nan"], "temperature must be"), (["--temperature", "inf"], "temperature must be"),
        (["--temperature", "1e-30"], "temperature must be"), (["--top-p", "2"], "top_p must lie in"),
        (["--top-p", "nan"], "top_p must lie in"), (["--top-p", "0"], "top_p must lie in"), (["--top-k", "-1"], "top_k must be"),
        (["--guidance", "nan"], "guidance must lie in 0 … 1000"), (["--guidance", "1e30"], "guidance must lie"),
        (["--seed", "-1"], "a seed must lie in"), (["--seed", 2**63], "a seed must lie in"), (["--seed", "1.5"], "invalid int"),
        (["--rerank", "4"], "--rerank 4 is fewer than the 9"), (["--rows", "3"], "unknown argument '--rows'"),
        (["--out", "FILE"], "is a file, expected a folder"), (["--out", "a\0b"], "holds a NUL byte"),
        (["--run", "a\0b"], "holds a NUL byte"), (["--run", "FILE"], "is .*file the folder of a run"),
        (["--run", "/nowhere"], "is /nowhere the folder of a run"), (["--dvae", "/nowhere"], "/nowhere"),
        (["--clip", "x", "--rerank", "9"], "released:FILE or openclip:FILE"), (["--clip", "x"], "say how many to draw with --rerank"),
        (["--key", "FILE"], "is no Ed25519 key"), (["--key", "/nowhere"], "--key /nowhere cannot be read"),
        (["--key", "."], "cannot be read"), (["--public-key", "0"], "unknown argument '--public-key'"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence_before_anything_is_drawn(capsys, tmp_path, arguments, sentence):
    if "--key" in arguments:
        pytest.importorskip("cryptography")
    (tmp_path / "file").write_text("no key")
    said = generate(capsys, tmp_path, CAPTION, *(tmp_path / "file" if a == "FILE" else a for a in arguments))
    refused(said, sentence)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "caption, sentence",
    [
        ("", "a caption is empty"), ("a\0b", "control characters"), ("a\x01b", r"no text: 'a\\x01b'; type it anew"), (" \t\n", "a caption is empty"), ("word " * 10_000, "has 50,000 bytes, over 4,096"),
        ("a" * 10_000_000, "has 10,000,000 bytes"), ("\udcff cat", r"is not text in UTF-8: '\\udcff cat'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["generate", "edit", "rank"])
def test_bad_captions_are_one_sentence_for_every_verb(capsys, tmp_path, verb, caption, sentence):
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    more = {"generate": [], "edit": ["--image", tmp_path / "in.png"], "rank": [tmp_path / "in.png"]}[verb]
    refused(call(capsys, verb, caption, *more, "--run", RUN), sentence)


@pytest.mark.parametrize("rows", ["99", "8", "0", "-1"])
def test_rows_that_are_not_there_cannot_be_kept(capsys, tmp_path, rows):
    Image.new("RGB", (32, 32)).save(tmp_path / "in.png")
    said = call(
        capsys, "edit", CAPTION, "--image", tmp_path / "in.png", "--rows", rows, "--run", RUN, "--out", tmp_path / "out"
    )
    refused(said, f"--rows must lie in 1 … 7, as this run draws 8 rows, got {rows}")


def picture(path: Path) -> Path:
    """A file of the kind that its name says."""
    red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    kinds = {
        "text.png": lambda: path.write_text("not a picture"), "empty.png": lambda: path.write_bytes(b""),
        "moving.gif": lambda: red.save(path, save_all=True, append_images=[blue], duration=100),
        "cmyk.jpg": lambda: red.convert("CMYK").save(path), "dot.png": lambda: Image.new("RGB", (1, 1)).save(path),
        "long.png": lambda: Image.new("RGB", (20_000, 10)).save(path), "folder": path.mkdir, "none.png": lambda: None,
        "small.png": lambda: red.resize((16, 16)).save(path), "a\0b.png": lambda: None,
        "cut.png": lambda: path.write_bytes(as_bytes(red)[:60]), "grey.png": lambda: red.convert("LA").save(path),
    }  # fmt: skip
    kinds[path.name]()
    return path


def as_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


SHAPE = "20000 wide and 10 high, expected width to height as 32:32"


@pytest.mark.parametrize(
    "name, drawn, verified",
    [  # None: it is drawn, and said to be unknown
        ("text.png", "does not decode; expected a JPEG, PNG or WebP", "cannot be read as a picture"),
        ("empty.png", "does not decode", "cannot be read as a picture"), ("cut.png", "does not decode", "cannot be read"),
        ("moving.gif", "does not decode; expected a JPEG, PNG or WebP", None), ("cmyk.jpg", None, None), ("dot.png", None, None),
        ("long.png", SHAPE, None), ("folder", "is no file", "is a folder"), ("none.png", "is no file", "does not exist"),
        ("a\0b.png", "holds a NUL byte", "holds a NUL byte"), ("small.png", None, None), ("grey.png", None, None),
    ],
)  # fmt: skip
def test_odd_pictures_are_used_or_refused_in_one_sentence(capsys, tmp_path, name, drawn, verified):
    path = picture(tmp_path / name)
    edited = call(capsys, "edit", CAPTION, "--image", path, "--run", RUN, "-n", 1, "--out", tmp_path / "out")
    ranked = call(capsys, "rank", CAPTION, path, "--run", RUN)
    for said in (edited, ranked):
        refused(said, drawn) if drawn else None
        assert said[0] == (2 if drawn else 0)
    if drawn is None:
        codes = LoadedRun(RUN, "cpu").top_rows(path)
        assert codes.shape == (4, 8)
    code, out, err = call(capsys, "verify", path)
    assert code == 2 and (verified or "says nothing of its origin") in out + err and (out + err).count("\n") <= 3


def test_verify_takes_only_keys_of_64_digits(capsys, tmp_path):
    provenance.save(tmp_path / "a.png", torch.zeros(3, 32, 32), {"prompt": "x", "seed": 0})
    for bad in ("", "0" * 63, "g" * 64, "0" * 65):
        refused(
            call(capsys, "verify", tmp_path / "a.png", "--public-key", bad), "is no public key: expected 64 hexadecimal"
        )


# --- runs that are not whole -------------------------------------------------------------------------------------------


def other_config(run: Path, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def other_weights(run: Path, **metadata: str):
    tensors, old = load_tensors(run / "transformer.safetensors")
    save_tensors(run / "transformer.safetensors", tensors, old | metadata)


def half(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "break_it, sentence",
    [
        (lambda run: (run / "config.json").unlink(), "config.json does not exist"),
        (lambda run: (run / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda run: (run / "config.json").write_text("[]"), "names no preset"),
        (lambda run: other_config(run, lambda c: c.pop("preset")), "names no preset"),
        (lambda run: other_config(run, lambda c: c["preset"]["dvae"].update(new=1)),
         "config.json: unknown setting 'new' of DVAEConfig: was this written by another version"),
        (lambda run: other_config(run, lambda c: c["preset"].update(data=7)), "settings of DataConfig must be an object"),
        (lambda run: other_config(run, lambda c: c["preset"]["data"].pop("height")), "pictures of 32 x 256, but the weights draw 32 x 32"),
        (lambda run: other_config(run, lambda c: c["preset"]["data"].update(height=float("inf"))), "height must be of type int"),
        (lambda run: other_config(run, lambda c: c["preset"]["sample"].update(top_p=7)), "top_p must lie in"),
        (lambda run: other_config(run, lambda c: c["preset"]["train"]["transformer"].update(caption_dropout=0)),
         "guidance 1.5 needs a transformer that was trained with dropped captions"),
        (lambda run: other_weights(run, format="minidalle DALLE 2"), "holds 'minidalle DALLE 2', expected 'minidalle DALLE 1'"),
        (lambda run: other_weights(run, config='{"n_layer": 3, "other": 1}'), "do not fit .*unknown setting 'other'"),
        (lambda run: other_weights(run, config='{"n_layer": 1, "n_head": 1, "n_embd": 8}'), "do not fit the architecture stored"),
        (lambda run: other_weights(run, dvae="0" * 64), "was trained with another dvae"),
        (lambda run: half(run / "transformer.safetensors"), "transformer.safetensors is not a whole safetensors file"),
        (lambda run: half(run / "dvae.safetensors"), "dvae.safetensors is not a whole safetensors file"),
        (lambda run: half(run / "clip.safetensors"), "clip.safetensors is not a whole safetensors file"),
        (lambda run: (run / "transformer.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        (lambda run: (run / "transformer.safetensors").unlink(), "was this run's training finished"),
        (lambda run: (run / "bpe.json").unlink(), "bpe.json does not exist"), (lambda run: half(run / "bpe.json"), "bpe.json"),
    ],
)  # fmt: skip
def test_a_run_that_is_broken_or_of_another_version_is_one_sentence(capsys, copy, break_it, sentence):
    break_it(copy)
    said = call(capsys, "generate", CAPTION, "--run", copy, "-n", 1, "--rerank", 1)
    refused(said, sentence)
    assert not list(copy.rglob("*.png"))


def test_a_run_of_an_older_version_has_the_defaults_for_what_it_does_not_name(capsys, copy):
    other_config(
        copy, lambda c: [c["preset"]["edit"].clear(), c["preset"]["train"]["dvae"].pop("mirror"), c.pop("budget")]
    )
    assert call(capsys, "generate", CAPTION, "--run", copy, "-n", 1)[0] == 0


# --- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number, sentence", [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_no_half_file(
    capsys, tmp_path, monkeypatch, number, sentence
):
    real, count = Image.Image.save, []

    def save(self, path, *a, **k):
        count.append(path)
        if len(count) == 3:
            Path(path).write_bytes(b"half of it")
            raise OSError(number, sentence)
        real(self, path, *a, **k)

    monkeypatch.setattr(Image.Image, "save", save)
    refused(generate(capsys, tmp_path, CAPTION, "-n", 4), sentence, code=1)
    left = sorted(path.name[-9:] for path in (tmp_path / "out").iterdir())
    assert left == ["seed0.png", "seed1.png"] and all(
        provenance.verify(p)[0] == 0 for p in (tmp_path / "out").iterdir()
    )


def test_a_folder_that_cannot_be_made_is_one_sentence_before_drawing(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(LoadedRun, "draw", lambda *a, **k: pytest.fail("drawn"))
    (tmp_path / "file").touch()
    for out, why in ((tmp_path / "file/below", "Not a directory"), ("/proc/nowhere", "No such file or directory")):
        said = call(capsys, "generate", CAPTION, "--run", RUN, "--out", out)
        refused(said, re.escape(f"--out {out} cannot be made ({why}): choose another folder"))
