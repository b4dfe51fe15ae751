import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from accelerate import PartialState
from PIL import Image
from support import tiny_unet

from difformer import create_backbone
from difformer.backbones import as_denoiser
from difformer.cli import main
from difformer.diffusion import guided, sample_ddim
from difformer.verbs.fid.images import open_images
from difformer.verbs.sample import Sampling, generate, sample_images
from difformer.verbs.sample import parts as parts_module
from difformer.verbs.sample import sample as sample_module


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    create_backbone(tiny_unet(), schedule="linear").save(folder / "plain.safetensors")
    create_backbone(tiny_unet(num_classes=4), schedule="linear").save(folder / "classes.safetensors")
    create_backbone(tiny_unet(out_channels=3), schedule="linear").save(folder / "fixed.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("plain", "classes", "fixed")}


def denoiser(path):
    return as_denoiser(create_backbone(path))


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts_module, "PART_IMAGES", 3)


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


def test_a_grid_of_samples_is_written_and_depends_on_the_seed(backbones, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        options = ["--count", "4", "--steps", "2", "--seed", str(seed)]
        assert main(["sample", backbones["plain"], str(tmp_path / f"{name}.png"), *options]) == 0
    # Two by two images of 16 pixels, each four times as large, with white between.
    assert pixels(tmp_path / "one.png")[0] == (2 * 72 + 8, 2 * 72 + 8)
    assert pixels(tmp_path / "one.png") == pixels(tmp_path / "again.png")
    assert pixels(tmp_path / "one.png") != pixels(tmp_path / "other.png")


def test_samples_for_fid_are_the_images_one_by_one(backbones, tmp_path, capsys):
    options = ["--count", "3", "--steps", "2"]
    for name in ("grid.png", "samples.npz"):
        assert main(["sample", backbones["plain"], str(tmp_path / name), *options]) == 0
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert (images.shape, images.dtype) == ((3, 16, 16, 3), np.uint8)
    assert len({image.tobytes() for image in images}) == 3
    assert main(["sample", backbones["plain"], str(tmp_path / "samples"), *options]) == 1
    assert (
        "must end in .png, for one picture of all images, or in .npz, for the images one by one"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("method", [[], ["--method", "ddim", "--eta", "1"], ["--method", "dpm++"]])
def test_samples_do_not_depend_on_the_batch(backbones, tmp_path, method):
    for size in (3, 1):
        options = ["--count", "3", "--steps", "2", "--batch_size", str(size), *method]
        assert main(["sample", backbones["plain"], str(tmp_path / f"{size}.png"), *options]) == 0
    ours, theirs = (Image.open(tmp_path / f"{size}.png").convert("RGB").tobytes() for size in (3, 1))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_classes_and_guidance_change_the_samples(backbones, tmp_path):
    shown = set()
    cases = (["--classes", "0"], ["--classes", "1"], ["--classes", "1", "--guidance", "2"], ["--classes", "0", "1"], [])
    for i, options in enumerate(cases):
        path = tmp_path / f"{i}.png"
        assert main(["sample", backbones["classes"], str(path), "--count", "4", "--steps", "2", *options]) == 0
        shown.add(pixels(path))
    assert len(shown) == len(cases)


def test_classes_come_in_turn_and_are_written_with_the_images(backbones, tmp_path):
    options = ["--count", "5", "--steps", "2"]
    for name, classes in (("all", []), ("two", ["--classes", "2", "0"]), ("null", ["--guidance", "1"])):
        assert main(["sample", backbones["classes"], str(tmp_path / f"{name}.npz"), *options, *classes]) == 0
    labels = {name: np.load(tmp_path / f"{name}.npz")["arr_1"] for name in ("all", "two", "null")}
    assert labels["all"].dtype == np.int64
    assert {name: found.tolist() for name, found in labels.items()} == {
        "all": [0, 1, 2, 3, 0], "two": [2, 0, 2, 0, 2], "null": [0, 1, 2, 0, 1],
    }  # fmt: skip
    # Image 0 of class 2 is what the network gives for that label and the noise of number 0.
    alone = generate(denoiser(backbones["classes"]), Sampling(steps=2, classes=(2,)), [0])
    found = np.load(tmp_path / "two.npz")["arr_0"][0]
    assert np.abs(alone[0].numpy().astype(int) - found).max() <= 1


def test_guidance_moves_away_from_the_null_label(backbones):
    """The formula of Ho & Salimans 2022 with the last class as the null label."""
    backbone = denoiser(backbones["classes"])

    def passes(label):
        return lambda x, t: backbone(x, t, y=torch.full((len(x),), label))

    by_hand = guided(passes(1), passes(3), 2.5)
    x = sample_ddim(by_hand, backbone.schedule, (2, 3, 16, 16), steps=3, seed=4)
    expected = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    found = generate(backbone, Sampling(method="ddim", steps=3, classes=(1,), guidance=2.5, seed=4), [0, 1])
    assert (found.int() - expected.int()).abs().max() <= 1


def recorded(backbone, label_dropout):
    backbone.provenance["recipe"] = json.dumps({"objective": {"label_dropout": label_dropout}})
    return backbone


def test_what_weights_say_of_their_null_label_is_heeded(backbones):
    backbone = recorded(denoiser(backbones["classes"]), 0.1)
    assert Sampling().labels(backbone, range(4)).tolist() == [0, 1, 2, 0]
    assert Sampling(classes=(3,)).labels(backbone, range(2)).tolist() == [3, 3]
    Sampling(guidance=1.0).check(backbone)
    with pytest.raises(ValueError, match="was trained without a null label, which guidance needs"):
        Sampling(guidance=1.0).check(recorded(backbone, 0.0))
    assert Sampling().labels(backbone, range(4)).tolist() == [0, 1, 2, 3]
    backbone.provenance["recipe"] = "by hand"
    Sampling(guidance=1.0).check(backbone)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plain", ["--classes", "1"], "is not class-conditional"),
        ("plain", ["--guidance", "1"], "is not class-conditional"),
        ("classes", ["--classes", "4"], "classes must lie in [0, 4), got 4"),
        ("classes", ["--classes", "0", "3", "--guidance", "1"], "classes must lie in [0, 3), got 3"),
        ("classes", ["--classes", "1", "1"], "classes must be one or more different numbers"),
        ("classes", ["--guidance", "-1"], "guidance must be a number of at least 0"),
        ("plain", ["--count", "0"], "count must be"),
        ("plain", ["--batch_size", "0"], "batch_size must be"),
        ("plain", ["--steps", "1001"], "steps must be at most 1000"),
        ("plain", ["--steps", "57", "--spacing", "ddim"], "give steps 56 or 59"),
        ("plain", ["--method", "ddim", "--eta", "2"], "eta must be a number in [0, 1]"),
        ("plain", ["--eta", "1"], "eta is the noise of ddim"),
        ("plain", ["--method", "dpm++", "--variance", "large"], "variance is that of ddpm's noise"),
        ("plain", ["--variance", "large", "--steps", "2"], "learned the variance of its noise"),
        ("plain", ["--seed", str(1 << 64)], "seed must fit into 64 bits"),
    ],
)
def test_what_cannot_be_sampled_is_said(backbones, tmp_path, capsys, name, options, message):
    assert main(["sample", backbones[name], str(tmp_path / "out.png"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_spacing_and_variance_change_the_samples(backbones, tmp_path):
    shown = set()
    cases = ([], ["--variance", "large"], ["--spacing", "ddim"], ["--spacing", "log_snr"], ["--method", "dpm++"],
             ["--method", "ddim"], ["--method", "ddim", "--eta", "0.5"])  # fmt: skip
    for i, options in enumerate(cases):
        path = tmp_path / f"{i}.png"
        assert main(["sample", backbones["fixed"], str(path), "--count", "1", "--steps", "4", *options]) == 0
        shown.add(pixels(path))
    assert len(shown) == len(cases)
    assert Sampling(method="dpm++").spacing == "log_snr"
    assert Sampling(method="ddim").spacing == "even"


def sampled(path, out, count=8, batch_size=2, overwrite=False, **settings):
    sampling = Sampling(**{"steps": 2, **settings})
    sample_images(
        denoiser(path), out, sampling, count=count, batch_size=batch_size, processes=PartialState(), overwrite=overwrite
    )
    return out.read_bytes()


def numbers_of_batches(monkeypatch):
    """The images that are generated, batch by batch."""
    seen = []
    monkeypatch.setattr(
        sample_module, "generate", lambda backbone, sampling, numbers, *rest: (
            seen.append(list(numbers)), generate(backbone, sampling, numbers, *rest)
        )[1],
    )  # fmt: skip
    return seen


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 20])
def test_batches_are_full_whatever_the_size_of_parts(backbones, tmp_path, monkeypatch, small_parts, batch_size):
    seen = numbers_of_batches(monkeypatch)
    sampled(backbones["plain"], tmp_path / "out.npz", batch_size=batch_size)
    assert seen == [list(range(start, min(start + batch_size, 8))) for start in range(0, 8, batch_size)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_the_file_is_what_numpy_and_fid_read(backbones, tmp_path, small_parts):
    sampled(backbones["classes"], tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as file:
        assert file.files == ["arr_0", "arr_1"]
        images = file["arr_0"]
    assert images.flags.c_contiguous
    read = torch.cat(list(open_images(tmp_path / "out.npz").batches(3))).permute(0, 2, 3, 1)
    assert np.array_equal(read.numpy(), images)
    by_number = [generate(denoiser(backbones["classes"]), Sampling(steps=2), [n])[0].numpy() for n in range(8)]
    assert np.abs(np.stack(by_number).astype(int) - images).max() <= 1


def stop_after(monkeypatch, batches):
    left = iter(range(batches))

    def stopped(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(sample_module, "generate", stopped)


def test_a_stop_is_resumed_to_the_same_file(backbones, tmp_path, monkeypatch, small_parts, caplog, capsys):
    whole = sampled(backbones["classes"], tmp_path / "whole.npz", batch_size=3)
    out, folder = tmp_path / "out.npz", tmp_path / "out.npz.parts"
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            sampled(backbones["classes"], out, batch_size=3)
    assert f"finished images stay in {folder}" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["part-00000.npz", "samples.json"]
    assert not out.exists()
    (tmp_path / ".out.npz.0123456789abcdef.tmp").write_bytes(b"half of the joined file")
    seen = numbers_of_batches(monkeypatch)
    assert sampled(backbones["classes"], out, batch_size=3) == whole
    assert "resuming: 1 of 3 parts are in" in capsys.readouterr().out
    assert seen == [[3, 4, 5], [6, 7]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "whole.npz"]


def test_a_stop_before_the_first_part_leaves_nothing(backbones, tmp_path, monkeypatch, small_parts):
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        sampled(backbones["plain"], tmp_path / "out.npz", batch_size=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "missing"])
def test_a_damaged_part_is_made_again(backbones, tmp_path, monkeypatch, small_parts, damage):
    whole = sampled(backbones["plain"], tmp_path / "whole.npz", batch_size=3)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            sampled(backbones["plain"], tmp_path / "out.npz", batch_size=3)
    part = tmp_path / "out.npz.parts" / "part-00001.npz"
    content = part.read_bytes()
    if damage == "cut":
        part.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        part.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "other":
        np.savez(part, arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    else:
        part.unlink()
    seen = numbers_of_batches(monkeypatch)
    assert sampled(backbones["plain"], tmp_path / "out.npz", batch_size=3) == whole
    assert seen == [[3, 4, 5], [6, 7]]


def test_no_flipped_bit_of_a_part_goes_unseen(tmp_path, small_parts):
    """Each either is found, or changes nothing of the images."""
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3), np.uint8)
    parts = parts_module.Parts(tmp_path / "out.npz", (3, 2, 2, 3), None)
    parts.folder.mkdir()
    parts.write(0, images)
    [path] = parts.folder.iterdir()
    content = path.read_bytes()
    found = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            read = parts.read(0)
        except ValueError:
            found += 1
        else:
            assert np.array_equal(read, images)
    assert found > len(images.tobytes())


def unfinished(backbones, out, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            sampled(backbones["plain"], out, batch_size=3, **settings)


def test_unfinished_images_of_other_settings_are_kept(backbones, tmp_path, monkeypatch, small_parts):
    out = tmp_path / "out.npz"
    unfinished(backbones, out, monkeypatch)
    for changed, message in (
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"count": 9}, "count was 8 and is now 9"),
        ({"method": "ddim"}, "method was 'ddpm' and is now 'ddim'"),
    ):
        with pytest.raises(ValueError, match=f"unfinished images that differ: {message}. Give the same"):
            sampled(backbones["plain"], out, **changed)
    with pytest.raises(ValueError, match="digest was"):
        sampled(backbones["fixed"], out)
    assert (tmp_path / "out.npz.parts" / "part-00000.npz").exists()
    fresh = sampled(backbones["plain"], tmp_path / "fresh.npz", batch_size=3, seed=1)
    assert sampled(backbones["plain"], out, batch_size=3, seed=1, overwrite=True) == fresh


def test_renamed_weights_resume(backbones, tmp_path, monkeypatch, small_parts):
    unfinished(backbones, tmp_path / "out.npz", monkeypatch)
    create_backbone(backbones["plain"]).save(tmp_path / "renamed.safetensors")
    assert sampled(str(tmp_path / "renamed.safetensors"), tmp_path / "out.npz")


def test_foreign_and_damaged_folders_are_refused(backbones, tmp_path, monkeypatch, small_parts):
    out, folder = tmp_path / "out.npz", tmp_path / "out.npz.parts"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is needed for unfinished images"):
            sampled(backbones["plain"], out, overwrite=overwrite)
    assert (folder / "thesis.tex").exists()
    (folder / "thesis.tex").unlink()
    unfinished(backbones, out, monkeypatch)
    record = folder / "samples.json"
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"samples\.json is damaged"):
        sampled(backbones["plain"], out)


def test_a_part_that_is_damaged_before_joining_keeps_the_others(backbones, tmp_path, monkeypatch, small_parts):
    out = tmp_path / "out.npz"
    with monkeypatch.context() as patch:
        write = parts_module.Parts.write
        patch.setattr(
            parts_module.Parts,
            "write",
            lambda self, part, images: write(self, part, images[:1] if part == 1 else images),
        )
        with pytest.raises(ValueError, match=r"part-00001.npz is damaged: it holds \(1, 16, 16, 3\)"):
            sampled(backbones["plain"], out, batch_size=3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz.parts"]
    assert sampled(backbones["plain"], out, batch_size=3) == sampled(
        backbones["plain"], tmp_path / "b.npz", batch_size=3
    )


def test_too_small_a_disk_is_said_first(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5000})())
    with pytest.raises(OSError, match=r"the images need 0\.0 GB for a while"):
        sampled(backbones["plain"], tmp_path / "out.npz")
    assert not list(tmp_path.iterdir())


def test_the_bar_counts_images(backbones, tmp_path, monkeypatch, small_parts, capsys):
    unfinished(backbones, tmp_path / "out.npz", monkeypatch)
    capsys.readouterr()
    sampled(backbones["plain"], tmp_path / "out.npz")
    shown = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "sampling" in line]
    assert "3/8" in shown[0]
    assert "8/8" in shown[-1]


def test_an_archive_of_many_parts_is_stored_plainly(backbones, tmp_path, small_parts):
    sampled(backbones["plain"], tmp_path / "out.npz")
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["arr_0.npy"]
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
