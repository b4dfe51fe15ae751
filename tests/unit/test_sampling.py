import numpy as np
import pytest
from PIL import Image
from support import small_unet

from difformer import create_backbone
from difformer.cli import main


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    create_backbone(small_unet(), schedule="linear").save(folder / "plain.safetensors")
    create_backbone(small_unet(num_classes=4), schedule="linear").save(folder / "classes.safetensors")
    return {"plain": str(folder / "plain.safetensors"), "classes": str(folder / "classes.safetensors")}


def pixels(path):
    with Image.open(path) as image:
        return image.size, image.convert("RGB").tobytes()


def test_a_grid_of_samples_is_written_and_depends_on_the_seed(backbones, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        options = ["--count", "4", "--steps", "2", "--seed", str(seed)]
        assert main(["sample", backbones["plain"], str(tmp_path / f"{name}.png"), *options]) == 0
    # Two by two images of 32 pixels, each twice as large, with white between.
    assert pixels(tmp_path / "one.png")[0] == (2 * 68 + 4, 2 * 68 + 4)
    assert pixels(tmp_path / "one.png") == pixels(tmp_path / "again.png")
    assert pixels(tmp_path / "one.png") != pixels(tmp_path / "other.png")


def test_samples_for_fid_are_the_images_one_by_one(backbones, tmp_path, capsys):
    options = ["--count", "3", "--steps", "2"]
    for name in ("grid.png", "samples.npz"):
        assert main(["sample", backbones["plain"], str(tmp_path / name), *options]) == 0
    images = np.load(tmp_path / "samples.npz")["arr_0"]
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), np.uint8)
    assert len({image.tobytes() for image in images}) == 3
    assert main(["sample", backbones["plain"], str(tmp_path / "samples"), *options]) == 1
    assert (
        "must end in .png, for one picture of all images, or in .npz, for the images one by one"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("method", [[], ["--method", "ddim", "--eta", "1"]])
def test_samples_do_not_depend_on_the_batch(backbones, tmp_path, method):
    for size in (3, 1):
        options = ["--count", "3", "--steps", "2", "--batch_size", str(size), *method]
        assert main(["sample", backbones["plain"], str(tmp_path / f"{size}.png"), *options]) == 0
    ours, theirs = (Image.open(tmp_path / f"{size}.png").convert("RGB").tobytes() for size in (3, 1))
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def test_labels_and_guidance_change_the_samples(backbones, tmp_path):
    shown = set()
    for i, options in enumerate((["--label", "0"], ["--label", "1"], ["--label", "1", "--guidance", "2"], [])):
        path = tmp_path / f"{i}.png"
        assert main(["sample", backbones["classes"], str(path), "--count", "2", "--steps", "2", *options]) == 0
        shown.add(pixels(path))
    assert len(shown) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plain", ["--label", "1"], "is not class-conditional"),
        ("classes", ["--label", "4"], r"label must lie in [0, 4)"),
        ("classes", ["--label", "3", "--guidance", "1"], r"label must lie in [0, 3)"),
        ("plain", ["--count", "0"], "count must be at least 1"),
        ("plain", ["--steps", "1001"], "steps must be at most 1000"),
        ("plain", ["--method", "ddim", "--eta", "2"], "eta must lie in [0, 1]"),
        ("plain", ["--eta", "1"], "eta is the noise of ddim"),
    ],
)
def test_what_cannot_be_sampled_is_said(backbones, tmp_path, capsys, name, options, message):
    assert main(["sample", backbones[name], str(tmp_path / "out.png"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
