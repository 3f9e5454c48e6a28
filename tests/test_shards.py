"""Tar shards: the same batches whatever the number of processes and workers, a place to go on from, and what is skipped."""

import gzip
import io
import json
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from minidalle.__main__ import main
from minidalle.config import DVAEConfig
from minidalle.data.filter import CaptionRules
from minidalle.dvae import DVAE
from minidalle.scale import packing, shards


def jpeg(number: int, size=(20, 16)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, "JPEG", quality=95)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    """Six shards of 5, 6, … 10 samples, as img2dataset writes them: .jpg with .txt, of every third .json alone."""
    number = 0
    for shard in range(6):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for _ in range(5 + shard):
                add(tar, f"{number:09d}.jpg", jpeg(number))
                if number % 3:
                    add(tar, f"{number:09d}.txt", f"picture {number}".encode())
                else:
                    add(tar, f"{number:09d}.json", json.dumps({"caption": f"picture {number}", "width": 20}).encode())
                number += 1
    return tmp_path


def read(sample, rng):
    return shards.image_of(sample, 8, 8, rng)


def stream(folder, rank=0, world=1, batch_size=6, positions=None, seed=3):
    return shards.Stream(shards.find(f"{folder}/*.tar"), batch_size, read, seed, rank, world, positions or {})


def take(reader, n):
    return [next(reader) for _ in range(n)]


def contents(parts) -> list[tuple]:
    """(caption, its picture) of all samples of several parts of one update, in no order."""
    return sorted((c, image.numpy().tobytes()) for part in parts for c, image in zip(part.captions, part.images))


def test_an_epoch_holds_every_sample_once(folder):
    reader = shards.batches(stream(folder, batch_size=1))  # one lane
    captions = [next(reader).captions[0] for _ in range(90)]
    assert sorted(captions[:45]) == sorted(captions[45:]) == sorted(f"picture {n}" for n in range(45))
    assert captions[:45] != captions[45:] and captions[:45] != sorted(captions[:45])


@pytest.mark.parametrize("world, workers", [(2, 0), (3, 0), (6, 0), (1, 2), (2, 2)])
def test_batches_do_not_depend_on_who_reads(folder, world, workers):
    alone = take(shards.batches(stream(folder)), 12)
    shared = [take(shards.batches(stream(folder, rank, world), workers), 12) for rank in range(world)]
    for k, batch in enumerate(alone):
        assert contents([batch]) == contents([mine[k] for mine in shared])
        positions = {lane: at for mine in shared for lane, at in mine[k].positions.items()}
        assert positions == batch.positions and len(positions) == 6


@pytest.mark.parametrize("done", [1, 7, 20])
def test_it_goes_on_where_it_stopped_with_another_number_of_processes(folder, done):
    alone = take(shards.batches(stream(folder)), done + 6)
    positions = alone[done - 1].positions
    for world in (1, 2):
        resumed = [take(shards.batches(stream(folder, rank, world, positions=positions)), 6) for rank in range(world)]
        for k in range(6):
            assert contents([alone[done + k]]) == contents([mine[k] for mine in resumed])


def test_other_seeds_are_other_batches(folder):
    one, other = (next(shards.batches(stream(folder, seed=seed))) for seed in (3, 4))
    assert contents([one]) != contents([other])


def test_lanes_follow_from_shards_and_batch():
    assert shards.lanes_of(100, 1024) == 64 and shards.lanes_of(3, 1024) == 2 and shards.lanes_of(5000, 1024) == 1024
    assert shards.lanes_of(10, 12) == 6 and shards.lanes_of(1, 12) == 1 and shards.lanes_of(500, 1000) == 500


def test_fewer_shards_than_processes_is_refused(folder):
    with pytest.raises(ValueError, match="6 shards and a batch of 6 make 6 lanes, which 4 processes cannot share"):
        stream(folder, world=4)


def test_a_pattern_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file .*none-01.tar"):
        shards.find(f"{tmp_path}/none-{{01..03}}.tar")
    with pytest.raises(ValueError, match=r"there is no file .*\*.tar"):
        shards.find(f"{tmp_path}/*.tar")


def test_what_cannot_be_used_is_skipped_and_named(tmp_path):
    bomb = io.BytesIO()
    Image.new("1", (40_000, 40_000)).save(bomb, "PNG")
    broken = {
        "a.jpg": jpeg(1)[:50], "a.txt": b"cut", "b.jpg": jpeg(2), "c.jpg": jpeg(3), "c.txt": b"\xff\xfe bad",
        "d.jpg": jpeg(4), "d.json": b"{", "e.png": bomb.getvalue(), "e.txt": b"large", "f.txt": b"no picture",
        "g.jpg": jpeg(5, (90, 16)), "g.txt": b"long", "h.jpg": jpeg(6), "h.json": b'{"caption": null}',
        "i.jpg": jpeg(6), "i.json": b"[" * 100_000, "j.jpg": jpeg(7), "j.txt": b"good",
    }  # fmt: skip
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in broken.items():
            add(tar, name, data)
    part = next(shards.batches(stream(tmp_path, batch_size=2)))
    assert part.captions == ["good", "good"]
    reasons = {name.rpartition(":")[2]: reason for name, reason in part.skipped}
    assert reasons == {
        "a": "does not decode", "b": "no caption", "c": "caption not readable as UTF-8", "d": "its JSON holds no caption",
        "e": "over 100 megapixels", "f": "no picture", "g": "aspect ratio beyond 1:2", "h": "its JSON holds no caption",
        "i": "its JSON holds no caption",
    }  # fmt: skip


def test_the_rest_of_a_shard_that_was_cut_is_lost_and_said(folder):
    path = folder / "00005.tar"
    path.write_bytes(path.read_bytes()[:9_000])
    parts = take(shards.batches(stream(folder, batch_size=1)), 60)
    said = [entry for part in parts for entry in part.skipped]
    assert any(name.endswith("00005.tar") and "cut off" in reason for name, reason in said)
    assert {c for part in parts for c in part.captions} >= {f"picture {n}" for n in range(35)}
    (folder / "00004.tar").write_bytes(b"no tar file at all")
    assert len(take(shards.batches(stream(folder)), 30)) == 30  # also where a lane has one shard in each epoch
    assert take(shards.batches(stream(folder, batch_size=1)), 30)


def test_a_shard_that_gzip_packed_is_read_as_it_was(folder):
    plain, packed, skipped = folder / "00000.tar", folder / "packed.tar.gz", []
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    samples = [
        [
            {key: value for key, value in sample.items() if key != "__url__"}
            for sample in shards.raw_samples(path, skipped)
        ]
        for path in (plain, packed)
    ]
    assert samples[0] and samples[0] == samples[1]
    assert not skipped


def test_nothing_usable_stops_with_a_reason(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for k in range(120):
            add(tar, f"{k}.jpg", b"no picture")
            add(tar, f"{k}.txt", b"text")
    with pytest.raises(ValueError, match="101 of 101 samples cannot be used"):
        next(shards.batches(stream(tmp_path, batch_size=1)))
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="there is no sample in 0.tar"):
        next(shards.batches(stream(tmp_path, batch_size=1)))


def test_a_name_with_dots_in_a_tar_writes_nothing(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    with tarfile.open(inside / "0.tar", "w") as tar:
        add(tar, "../../escaped.jpg", jpeg(1))
        add(tar, "../../escaped.txt", b"text")
        add(tar, "fine.jpg", jpeg(1))
        add(tar, "fine.txt", b"text")
    before = {path for path in tmp_path.rglob("*")}
    next(shards.batches(stream(inside, batch_size=1)))
    assert {path for path in tmp_path.rglob("*")} == before and not (tmp_path.parent / "escaped.jpg").exists()


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    source = tmp_path / "pictures"
    (source / "more").mkdir(parents=True)
    for k in range(7):
        path = source / ("more" if k % 2 else ".") / f"{k}.png"
        Image.fromarray(np.full((16, 16, 3), 30 * k, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"grey {k}")
    (source / "alone.png").write_bytes(b"x")
    return source


def test_a_folder_becomes_shards_and_comes_back(pictures, tmp_path, capsys):
    main(["shards", str(pictures), str(tmp_path / "out"), "--per-shard", "3"])
    said = capsys.readouterr()
    assert "7 pictures in 3 shards" in said.out and "1 × no caption file ('alone.png')" in said.err
    paths = shards.find(f"{tmp_path}/out/shard-{{00000..00002}}.tar")
    samples = [sample for path in paths for sample in shards.raw_samples(path, [])]
    assert len({sample["__key__"] for sample in samples}) == 7
    for sample in samples:
        level = int(shards.caption_of({"txt": sample["txt"]}).split()[1])
        assert (shards.image_of(sample, 16, 16, None) == 30 * level).all()
        assert json.loads(sample["json"])["key"].endswith(f"{level}.png")


def test_codes_in_shards_are_those_of_the_dvae(pictures, tmp_path, capsys):
    torch.manual_seed(0)
    config = DVAEConfig(codebook_size=12, n_hid=8, n_init=4, n_group=2, n_block=1, input_kernel=3, patch=2)
    dvae, device = DVAE(config).eval(), torch.device("cpu")
    packing.write(pictures, tmp_path / "tars", per_shard=4)
    paths = shards.find(f"{tmp_path}/tars/*.tar")
    assert packing.encode(paths, tmp_path / "codes", dvae, 16, 16, device)[0] == 7
    assert packing.encode(paths, tmp_path / "codes", dvae, 16, 16, device)[0] == 0  # all there already
    for path in paths:
        images = {s["__key__"]: shards.image_of(s, 16, 16, None) for s in shards.raw_samples(path, [])}
        for sample in shards.raw_samples(tmp_path / "codes" / path.name, []):
            image = torch.from_numpy(images[sample["__key__"]])[None].float() / 255
            assert np.array_equal(shards.codes_of(sample, 4, 4, 12), dvae.encode(image)[0].numpy())
            for wrong in ((4, 4, 3), (2, 8, 12)):
                with pytest.raises(ValueError, match="its codes are not"):
                    shards.codes_of(sample, *wrong)
    codes = shards.find(f"{tmp_path}/codes/*.tar")
    assert packing.are_encoded(codes, dvae, 16, 16) and not packing.are_encoded(paths, dvae, 16, 16)
    for wrong in ((DVAE(config), 16), (dvae, 24)):
        with pytest.raises(ValueError, match="come from another dVAE or another size"):
            packing.are_encoded(codes, wrong[0], wrong[1], wrong[1])
    with pytest.raises(ValueError, match="hold codes, those in .* pictures: give one kind"):
        packing.are_encoded(codes + paths, dvae, 16, 16)
    for wrong in ((DVAE(config), 16), (dvae, 24)):
        with pytest.raises(ValueError, match="codes of another dVAE or another size"):
            packing.encode(paths, tmp_path / "codes", wrong[0], wrong[1], wrong[1], device)
    rules = CaptionRules(blocklist=("grey 3", "5"))
    done, skipped = packing.encode(paths, tmp_path / "filtered", dvae, 16, 16, device, rules)
    assert done == 5 and [reason for _, reason in skipped] == ["blocklist"] * 2
    captions = [s["txt"] for path in paths for s in shards.raw_samples(tmp_path / "filtered" / path.name, [])]
    assert sorted(captions) == [f"grey {k}".encode() for k in (0, 1, 2, 4, 6)]
    for other in (None, CaptionRules()):
        with pytest.raises(ValueError, match="filtered otherwise"):
            packing.encode(paths, tmp_path / "filtered", dvae, 16, 16, device, other)
    for more, out in ((paths + paths, "new"), (paths, "tars")):
        with pytest.raises(ValueError, match="different names, and another folder"):
            packing.encode(more, tmp_path / out, dvae, 16, 16, device)


def test_broken_codes_are_a_reason_to_skip():
    evil, small = io.BytesIO(), io.BytesIO()
    np.save(evil, np.array([print], dtype=object), allow_pickle=True)
    np.save(small, np.zeros((4, 4), np.uint16))
    huge = small.getvalue().replace(b"(4, 4), }  ", b"(10**13,), }"[:11])
    for data in (evil.getvalue(), b"", b"\x93NUMPY", b"PK\x03\x04junk", small.getvalue()[:-1], huge):
        with pytest.raises(ValueError, match="its codes are not 4 x 4"):
            shards.codes_of({"npy": data}, 4, 4, 12)
    assert (shards.codes_of({"npy": small.getvalue()}, 4, 4, 12) == 0).all()
    with pytest.raises(ValueError, match="no codes"):
        shards.codes_of({}, 4, 4, 12)


def test_files_too_large_and_names_given_twice_are_skipped_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "LARGEST", 1000)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.jpg", b"1"), ("a.txt", b"one"), ("b.jpg", bytes(1001)), ("b.txt", b"two"), ("b.txt", b"x"),
                           ("../../c.txt", b"three")):  # fmt: skip
            add(tar, name, data)
    skipped = []
    samples = {s["__key__"]: s for s in shards.raw_samples(tmp_path / "0.tar", skipped)}
    assert samples["a"]["jpg"] == b"1" and samples["b"]["txt"] == b"two" and "jpg" not in samples["b"]
    assert "1,001 bytes, over 1,000" in skipped[0][1] and "duplicate" in skipped[1][1] and len(skipped) == 3
    assert "../../c.txt" in skipped[2][0] and "its name leads out of the shard" in skipped[2][1]
    assert not (tmp_path.parent.parent / "c.txt").exists()


def test_a_buffer_of_large_samples_is_small():
    samples, taken, most = [{"txt": bytes(100)} for _ in range(50)], 0, 0

    def counted():
        nonlocal taken
        for sample in samples:
            taken += 1
            yield sample

    for given, _ in enumerate(shards.shuffled(counted(), 20, 500, random.Random(0))):
        most = max(most, taken - given)
    assert most == 6 and given == 49  # 500 bytes, and the one that was over


def test_a_shard_that_vanishes_stops_the_reading_with_its_name(folder):
    reader = shards.batches(shards.Stream(shards.find(f"{folder}/*.tar"), 1, read, 0, 0, 1, {}), workers=1)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(OSError, match=r"\.tar"):
        for _ in range(50):
            next(reader)


def test_a_file_whose_name_is_a_command_runs_nothing(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "00000.tar").rename("pipe:touch INJECTED; cat 00000.tar")
    reader = shards.batches(shards.Stream(shards.find("*.tar"), 1, read, 0, 0, 1, {}))
    assert len({next(reader).captions[0] for _ in range(45)}) == 45 and not (folder / "INJECTED").exists()


def test_an_error_of_a_worker_is_the_same_sentence(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="^there is no sample in"):
        next(shards.batches(stream(tmp_path, batch_size=2), workers=2))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["shards", "no-such-folder", "out"], "is no folder"),
        (["encode", "--shards", "x-*.tar", "--dvae", "lessons/weights", "out"], "there is no file x-*.tar"),
        (["encode", "--shards", "x", "--dvae", "nowhere", "out"], "nowhere/dvae.safetensors does not exist"),
        (["encode", "--shards", "x", "--dvae", "released:nowhere", "out"], "encoder.pkl does not exist"),
        (["train", "--shards", "x", "--dvae", "lessons/weights", "--out", "o", "--preset", "huge"], "unknown preset"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in said and said.count("\n") == 1


def test_shards_are_not_mixed_with_others_and_a_folder_is_no_shard(pictures, tmp_path):
    packing.write(pictures, tmp_path / "out", per_shard=3)
    with pytest.raises(ValueError, match="holds shards already"):
        packing.write(pictures, tmp_path / "out", per_shard=4)
    with pytest.raises(ValueError, match=r"out is a folder: give '.*out/\*\.tar'"):
        shards.find(str(tmp_path / "out"))


def test_of_a_shard_that_is_cut_off_no_codes_are_made_until_it_is_whole(pictures, tmp_path):
    torch.manual_seed(0)
    dvae = DVAE(DVAEConfig(codebook_size=12, n_hid=8, n_init=4, n_group=2, n_block=1, input_kernel=3, patch=2)).eval()
    packing.write(pictures, tmp_path / "tars", per_shard=4)
    first, second = shards.find(f"{tmp_path}/tars/*.tar")
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    arguments = [first, second], tmp_path / "codes", dvae, 16, 16, torch.device("cpu")
    done, skipped = packing.encode(*arguments)
    assert done == 3 and [path.name for path in (tmp_path / "codes").glob("*.tar")] == [second.name]
    assert any(name == str(first) and reason.startswith("cut off") for name, reason in skipped)
    first.write_bytes(whole)
    assert packing.encode(*arguments) == (4, [])


@pytest.mark.parametrize("damage", ["gzip", "pax"])
def test_bytes_at_which_the_library_stumbles_end_their_shard_alone(damage, tmp_path):
    """An error that is none of tarfile's own: a size in a header that is no number, a gzip head without its name's end."""
    path = tmp_path / "0.tar"
    if damage == "gzip":
        path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"name that does not end")
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo("a.txt")
            info.pax_headers = {"comment": "x" * 20}
            tar.addfile(info, io.BytesIO())
        path.write_bytes(path.read_bytes().replace(b" comment=", b"l comment=", 1))
    skipped = []
    assert [*shards.raw_samples(path, skipped)] == [] or damage == "pax"
    assert len(skipped) == 1 and skipped[0][0] == str(path)
