"""What a picture says of its origin: written, read back, altered, signed; and what survives."""

import io
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from minidalle.__main__ import main
from minidalle.studio import provenance

FACTS = {"prompt": "a photo of a red circle — ünï", "seed": 7, "options": {"temperature": 1.0}, "model": "0" * 64}


@pytest.fixture
def image():
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def key(tmp_path):
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    path, how = tmp_path / "key.pem", (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(*how, serialization.NoEncryption()))
    return path


def words_of(path) -> dict:
    return json.loads(Image.open(path).info["minidalle"])


def rewrite(path, words, picture=None):
    """The file with other metadata or pixels, as somebody without the key would write it."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("minidalle", words if isinstance(words, str) else json.dumps(words))
    old = Image.open(path)
    (old if picture is None else Image.fromarray(picture)).save(path, pnginfo=info)


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("upscale", [1, 4])
def test_a_written_picture_is_intact_and_shows_the_drawing(image, tmp_path, mark, upscale):
    path = tmp_path / "a.png"
    provenance.save(path, image, FACTS, mark, upscale)
    code, sentence = provenance.verify(path)
    assert (
        code == 0 and "a photo of a red circle — ünï" in sentence and "seed 7" in sentence and "not signed" in sentence
    )
    pixels, words = np.asarray(Image.open(path)), words_of(path)
    assert words["mark"] is mark and words["digital_source_type"].endswith("trainedAlgorithmicMedia")
    assert "trainedAlgorithmicMedia" in Image.open(path).info["XML:com.adobe.xmp"]
    drawn = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[: 32 * upscale : upscale, ::upscale], drawn)
    assert pixels.shape == (32 * upscale + 4 * upscale * mark, 32 * upscale, 3)
    assert provenance.has_mark(pixels) is mark


def test_any_changed_pixel_and_any_changed_word_is_reported(image, tmp_path):
    path = tmp_path / "a.png"
    provenance.save(path, image, FACTS)
    original = np.asarray(Image.open(path)).copy()
    for row, column, channel in ((0, 0, 0), (15, 20, 1), (35, 31, 2)):
        changed = original.copy()
        changed[row, column, channel] ^= 1
        provenance.save(path, image, FACTS)
        rewrite(path, words_of(path), changed)
        assert provenance.verify(path)[0] == 1 and "its pixels" in provenance.verify(path)[1]
    for name, value in {"prompt": "another", "seed": 8, "model": "1" * 64, "mark": False, "more": 1}.items():
        provenance.save(path, image, FACTS)
        rewrite(path, words_of(path) | {name: value})
        assert provenance.verify(path)[0] == 1 and "its metadata" in provenance.verify(path)[1]
    provenance.save(path, image, FACTS)
    rewrite(path, words_of(path))  # the same words and pixels, written by another program
    assert provenance.verify(path)[0] == 0


def test_a_signature_holds_the_metadata_and_the_pixels_together(image, tmp_path, key):
    path = tmp_path / "a.png"
    provenance.save(path, image, FACTS, key=key)
    code, sentence = provenance.verify(path)
    public = words_of(path)["public_key"]
    assert code == 0 and sentence.endswith(f"; signed with the key {public}")
    assert provenance.verify(path, public)[0] == 0 and provenance.verify(path, "0" * 64)[0] == 2
    forged = words_of(path) | {"prompt": "another"}
    forged["sha256"] = provenance.words_sha256(forged)  # whoever forges can compute the hash, not the signature
    rewrite(path, forged)
    assert provenance.verify(path) == (1, f"{path} was altered: its signature does not fit")
    for broken in ({"signature": "zz"}, {"signature": None}, {"public_key": "00"}, {"public_key": 5}):
        provenance.save(path, image, FACTS, key=key)
        rewrite(path, words_of(path) | broken)
        assert provenance.verify(path)[0] == 1
    provenance.save(path, image, FACTS)
    assert provenance.verify(path, public)[0] == 2


def test_pictures_without_a_word_are_unknown_not_altered(image, tmp_path):
    path = tmp_path / "a.png"
    provenance.save(path, image, FACTS, upscale=8)
    Image.open(path).convert("RGB").save(tmp_path / "a.jpg", quality=80)
    code, sentence = provenance.verify(tmp_path / "a.jpg")
    assert code == 2 and "the mark is there" in sentence
    Image.fromarray(np.asarray(Image.open(path))[:200]).save(tmp_path / "cropped.png")
    assert provenance.verify(tmp_path / "cropped.png") == (2, f"{tmp_path}/cropped.png says nothing of its origin")


def test_pictures_of_anything_else_have_no_mark():
    rng = np.random.default_rng(0)
    sides = (10, 15, 16, 23, 24, 64)
    noise = [rng.integers(0, 256, (50, side, side, 3), np.uint8) for side in sides]
    for picture in (*noise, np.full((1, 64, 64, 3), 255, np.uint8)):
        assert not any(provenance.has_mark(p) for p in picture)
    assert not provenance.has_mark(np.zeros((1, 1, 3), np.uint8)) and not provenance.has_mark(
        np.zeros((3, 900, 3), np.uint8)
    )


@pytest.mark.parametrize("width", [10, 16, 20, 23, 24, 33, 64])
def test_the_mark_is_found_at_every_width_and_is_taken_off_whole(width):
    drawing = np.full((20, width, 3), 200, np.uint8)
    marked = provenance.with_mark(drawing)
    assert provenance.has_mark(marked) and not provenance.has_mark(drawing)
    assert np.array_equal(np.asarray(provenance.without_mark(Image.fromarray(marked))), drawing)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_hostile_files_are_one_sentence(image, tmp_path):
    path = tmp_path / "a.png"
    for words in (
        "{",
        "[]",
        "5",
        "null",
        '"x"',
        "[" * 60_000,
        '{"generator": "minidalle"}',
        json.dumps({"sha256": 1, "x": "y" * 9_999}),
    ):
        provenance.save(path, image, FACTS)
        rewrite(path, words)
        assert provenance.verify(path)[0] == 1, words[:20]
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", (40_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
    bad = {
        "bomb.png": header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000)) + chunk(b"IEND", b""),
        "text.png": b"not a picture", "empty.png": b"", "cut.png": path.read_bytes()[:100],
        "large-text.png": path.read_bytes()[:33] + chunk(b"zTXt", b"minidalle\0\0" + zlib.compress(b"x" * 50_000_000)),
    }  # fmt: skip
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            provenance.verify(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        provenance.verify(tmp_path / "none.png")


def test_a_bad_key_is_one_sentence(image, tmp_path):
    pytest.importorskip("cryptography")
    (tmp_path / "bad.pem").write_text("no key")
    for name, sentence in (("none.pem", "cannot be read"), ("bad.pem", "is no Ed25519 key")):
        with pytest.raises(ValueError, match=sentence):
            provenance.save(tmp_path / "a.png", image, FACTS, key=tmp_path / name)
        assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("verb", ["generate", "edit"])
def test_drawn_pictures_verify_and_can_be_watched(tmp_path, verb, capsys):
    caption = "a photo of a red circle above a blue square"
    Image.new("RGB", (32, 32), "white").save(tmp_path / "top.png")
    more = ["--image", str(tmp_path / "top.png"), "--rows", "3"] if verb == "edit" else []
    out = tmp_path / "out"
    main(
        [
            verb,
            caption,
            *more,
            "--run",
            "lessons/weights",
            "-n",
            "2",
            "--seed",
            "5",
            "--upscale",
            "3",
            "--gif",
            "--out",
            str(out),
        ]
    )
    names = sorted(path.name for path in out.iterdir())
    slug = "01-a-photo-of-a-red-circle-above-a-blue-square-seed"
    assert names == sorted([f"{slug}{k}.{end}" for k in (5, 6) for end in ("png", "gif")] + ["sheet.png"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out / f"{slug}5.png")])
    assert stop.value.code == 0 and "is intact" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(out / "sheet.png"), str(out / f"{slug}6.png"), str(out / f"{slug}5.gif")])
    said = capsys.readouterr().out.splitlines()
    assert stop.value.code == 2 and len(said) == 3 and f"drawn by minidalle from '{caption}', seed 5" in said[0]
    picture = Image.open(out / f"{slug}5.png")
    assert picture.size == (96, 96 + 12) and words_of(out / f"{slug}5.png")["verb"] == verb
    assert words_of(out / f"{slug}5.png").get("kept_rows", 0) == (3 if verb == "edit" else 0)
    film = Image.open(out / f"{slug}5.gif")
    first = np.asarray(film.convert("RGB"))[:96]  # above the mark
    assert film.n_frames == (64 if verb == "generate" else 64 - 24) + 1 or film.n_frames > 10  # equal frames are joined
    grey = np.abs(first.astype(int) - 217).max(2) < 8
    assert grey.mean() == pytest.approx(1 if verb == "generate" else 5 / 8, abs=0.02)
    film.seek(film.n_frames - 1)
    last, still = (np.asarray(p.convert("RGB")).astype(int) for p in (film, picture))
    assert np.abs(last - still).mean() < 8  # a GIF has 256 colours


def test_verify_says_altered_and_unknown_by_its_exit_code(image, tmp_path, capsys):
    provenance.save(tmp_path / "a.png", image, FACTS)
    rewrite(tmp_path / "a.png", words_of(tmp_path / "a.png") | {"seed": 1})
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    for name, code in (("a.png", 1), ("b.png", 2), ("none.png", 2)):
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(tmp_path / name)])
        said = capsys.readouterr()
        assert stop.value.code == code and (said.out + said.err).count("\n") == 1


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    caption = "a sketch of a green circle left of a red square"
    files = []
    for n in ("1", "3"):
        main(["generate", caption, "--run", "lessons/weights", "-n", n, "--out", str(tmp_path / n)])
        files.append(next((tmp_path / n).glob("*seed0.png")).read_bytes())
    assert files[0] == files[1]
    assert Image.open(io.BytesIO(files[0])).format == "PNG"
