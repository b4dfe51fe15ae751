"""`difformer fid`: feature spaces, sources of images, statistics that are shared, and what is refused."""

import io
import json
import logging
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib

import numpy as np
import pytest
import timm
import torch
from data_sets import make_shards, pixels, write_image, write_shard
from PIL import Image
from safetensors.torch import save_file
from support import tiny_unet

from difformer import create_backbone
from difformer.analysis import (
    frechet_distance_of_features,
    inception_score,
    kernel_distance_in_blocks,
    neighbourhoods,
)
from difformer.checkpoints.weights import CheckpointError
from difformer.cli import main
from difformer.data import DataError, ImageError
from difformer.verbs.fid.fid import compare_images
from difformer.verbs.fid.images import ArrayImages, open_images
from difformer.verbs.fid.spaces import INCEPTION, BackboneSpace, InceptionSpace, Read, TimmSpace
from difformer.verbs.fid.table import text_table

CPU = torch.device("cpu")
FEW = {"resamples": 3, "batch_size": 16}


class Stand:
    """A space of a few pixels' values, in place of Inception or of another network."""

    def __init__(self, name="stand", digest="0" * 64, width=4):
        self.name, self.digest, self.width, self.device, self.caution = name, digest, width, CPU, ""
        self.spatial_width = 3 if name == INCEPTION else None

    def read(self, images):
        values = images.flatten(1).float() / 64
        inception = self.name == INCEPTION
        return Read(
            values[:, : self.width], values[:, 50:53] if inception else None, values[:, 100:105] if inception else None
        )


def images(seed, count=48, side=16):
    """(N, H, W, 3) uint8; sets differ a little in their mean."""
    rng = np.random.default_rng(seed)
    return rng.normal(120 + 5 * seed, 40, (count, side, side, 3)).clip(0, 255).astype(np.uint8)


def write_folder(folder, arrays, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{number:03}.{suffix}")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two sets in every form."""
    root = tmp_path_factory.mktemp("sets")
    for name, seed in (("fake", 0), ("real", 1)):
        write_folder(root / name, images(seed))
        np.savez(root / f"{name}.npz", images(seed))
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    create_backbone(tiny_unet(), schedule="linear").save(file)
    return str(file)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("timm") / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    return file


def vectors(seed, space):
    return space.read(torch.from_numpy(images(seed)).permute(0, 3, 1, 2)).vectors


class TestNumbers:
    def test_they_are_those_of_the_functions(self, place):
        space = Stand()
        found = compare_images(place / "fake", place / "real.npz", space, k=5, **FEW)
        x, y = vectors(0, space), vectors(1, space)
        assert found["FD(stand)"].value == pytest.approx(frechet_distance_of_features(x, y), rel=1e-9)
        assert found["FD(stand)"].low < found["FD(stand)"].value < found["FD(stand)"].high
        kernel, near = kernel_distance_in_blocks(x, y), neighbourhoods(x, y, k=5)
        assert found["KD(stand)"].value == kernel.mean
        assert found["KD(stand)"].standard_error == kernel.standard_error
        for name in ("precision", "recall", "density", "coverage"):
            measure = found[name]
            assert measure.value == getattr(near, name)
            assert measure.low - 1e-9 <= measure.value <= measure.high + 1e-9
            assert (measure.samples, measure.reference, measure.how) == (48, 48, "k = 5")
        assert found.measures[0].name == "KD(stand)"

    def test_only_inception_makes_a_fid(self, place):
        space = Stand(INCEPTION)
        found = compare_images(place / "fake", place / "real", space, split_size=20, **FEW)
        names = [measure.name for measure in found.measures]
        assert names == ["KID", "precision", "recall", "density", "coverage", "FID", "sFID", "Inception score"]
        read = [space.read(torch.from_numpy(images(seed)).permute(0, 3, 1, 2)) for seed in (0, 1)]
        spatial = frechet_distance_of_features(read[0].spatial, read[1].spatial)
        assert found["sFID"].value == pytest.approx(spatial, rel=1e-9)
        scores = inception_score(read[0].logits, split_size=20)
        assert len(scores) == 3
        assert found["Inception score"].value == pytest.approx(scores.mean(), rel=1e-9)
        assert found["sFID"].width == 3

    @pytest.mark.parametrize("form", ["fake", "fake.npz"])
    def test_batches_do_not_matter(self, place, form):
        found = [compare_images(place / form, place / "real", Stand(), resamples=0, batch_size=n) for n in (1, 7, 48)]
        for measure in found[1].measures:
            for other in (found[0], found[2]):
                assert other[measure.name].value == pytest.approx(measure.value, rel=1e-9)

    def test_a_set_of_your_own(self, place):
        class Generated:
            title, size = "made on the way", (16, 16)

            def __len__(self):
                return 48

            def batches(self, batch_size):
                yield from torch.from_numpy(images(0)).permute(0, 3, 1, 2).split(batch_size)

        found = compare_images(Generated(), place / "real", Stand(), **FEW)
        theirs = compare_images(place / "fake", place / "real", Stand(), **FEW)
        assert (found.samples, found.measures) == ("made on the way", theirs.measures)

    def test_features_that_are_kept_are_evenly_spaced(self, place):
        found = compare_images(place / "fake", place / "real", Stand(), keep=12, resamples=0, batch_size=16)
        assert found["precision"].samples == 12
        distance = found["FD(stand)"]
        whole = compare_images(place / "fake", place / "real", Stand(), **FEW)["FD(stand)"]
        assert (distance.value, distance.samples) == (pytest.approx(whole.value, rel=1e-9), 48)
        # Of some of the images there is no interval for all.
        assert distance.low is None
        assert compare_images(place / "fake", place / "real", Stand(), keep=12).options["resamples"] == 0
        with pytest.raises(ValueError, match=r"interval of 3 resamples needs the features of all samples.* --keep 12"):
            compare_images(place / "fake", place / "real", Stand(), keep=12, **FEW)

    def test_few_images(self, place, tmp_path, caplog):
        few = write_folder(tmp_path / "few", images(0, count=30))
        with caplog.at_level(logging.WARNING):
            compare_images(few, place / "real", Stand(), **FEW)
        assert caplog.text.count("30 samples are few for a Fréchet distance of 4 features") == 1
        space = Stand(width=30)
        with pytest.raises(ValueError, match=r"more than 30 images .* 30 samples\. Give more, .* --frechet false"):
            compare_images(few, place / "real", space, **FEW)
        found = compare_images(few, place / "real", space, frechet=False, **FEW)
        assert found.measures[0].name == "KD(stand)"
        assert "FD(stand)" not in {measure.name for measure in found.measures}
        with pytest.raises(ValueError, match="k = 40 need more than 40 samples, got 30"):
            compare_images(few, place / "real", space, k=40, frechet=False, **FEW)


class TestStatistics:
    def test_written_ones_give_the_same_numbers(self, place, tmp_path):
        file = tmp_path / "real.npz"
        first = compare_images(place / "fake", place / "real", Stand(), statistics=file, **FEW)
        again = compare_images(place / "fake", file, Stand(), **FEW)
        assert [m.value for m in again.measures] == [m.value for m in first.measures]
        assert again["FD(stand)"].reference == 48
        with pytest.raises(FileExistsError, match="exists already"):
            compare_images(place / "fake", place / "real", Stand(), statistics=file, **FEW)

    def test_others_are_refused(self, place, tmp_path):
        file = tmp_path / "real.npz"
        compare_images(place / "fake", place / "real", Stand(), statistics=file, **FEW)
        with pytest.raises(ValueError, match="statistics of stand, but other was expected"):
            compare_images(place / "fake", file, Stand("other"), **FEW)
        with pytest.raises(ValueError, match="of stand with other weights"):
            compare_images(place / "fake", file, Stand(digest="1" * 64), **FEW)
        with pytest.raises(ValueError, match="statistics of 4 numbers, but stand has 5"):
            compare_images(place / "fake", file, Stand(width=5), **FEW)

    def test_images_of_another_size(self, place, tmp_path):
        """Statistics cannot be scaled any more."""
        file = tmp_path / "real.npz"
        compare_images(place / "fake", place / "real", Stand(), statistics=file, **FEW)
        large = write_folder(tmp_path / "large", images(0, side=20))
        with pytest.raises(ValueError, match=r"samples of 20×20 and reference images of 16×16; give --size N, that of"):
            compare_images(large, file, Stand(), **FEW)
        with pytest.raises(ValueError, match=r"statistics of images of 16×16, which --size 20 cannot scale"):
            compare_images(large, file, Stand(), size=20, **FEW)
        found = compare_images(large, file, Stand(), size=16, **FEW)
        assert found.measures == compare_images(large, place / "real", Stand(), size=16, **FEW).measures
        assert "images of samples were scaled and cropped to 16×16" in found.notes

    def test_images_that_were_scaled(self, place, tmp_path):
        file = tmp_path / "real.npz"
        first = compare_images(place / "fake", place / "real", Stand(), size=8, statistics=file, **FEW)
        assert "images of samples and reference were scaled and cropped to 8×8" in first.notes
        assert "note: images of samples and reference were scaled" in text_table(first)
        again = compare_images(place / "fake", file, Stand(), size=8, **FEW)
        assert (again.measures, again.notes) == (first.measures, first.notes)
        small = write_folder(tmp_path / "small", images(0, side=8))
        assert "images of reference were scaled and cropped to 8×8" in compare_images(small, file, Stand(), **FEW).notes
        np.savez(tmp_path / "other.npz", **dict(np.load(file)) | {"scaling": "nearest"})
        with pytest.raises(ValueError, match="that were scaled in another way: 'nearest'"):
            compare_images(small, tmp_path / "other.npz", Stand(), **FEW)

    def test_files_that_do_not_say_the_size(self, place, tmp_path):
        bare = {"mu": np.zeros(4), "sigma": np.eye(4)}
        np.savez(tmp_path / "bare.npz", **bare)
        with pytest.raises(ValueError, match=r"does not say of what size .* --size 16 cannot scale"):
            compare_images(place / "fake", tmp_path / "bare.npz", Stand(INCEPTION), size=16, **FEW)
        np.savez(tmp_path / "with.npz", arr_0=images(1), **bare)
        with pytest.raises(ValueError, match=r"statistics of images of 16×16, which --size 8 cannot scale"):
            compare_images(place / "fake", tmp_path / "with.npz", Stand(INCEPTION), size=8, **FEW)
        compare_images(place / "fake", tmp_path / "with.npz", Stand(INCEPTION), size=16, **FEW)
        np.savez(tmp_path / "two.npz", arr_0=images(1), image_size=(8, 8), **bare)
        with pytest.raises(ValueError, match=r"statistics of 8×8 images, but arr_0 of 16×16"):
            compare_images(place / "fake", tmp_path / "two.npz", Stand(INCEPTION), **FEW)

    def test_no_sfid_without_the_file_s_own_spatial_statistics(self, place, tmp_path):
        np.savez(tmp_path / "with.npz", arr_0=images(1), mu=np.zeros(4), sigma=np.eye(4))
        found = compare_images(place / "fake", tmp_path / "with.npz", Stand(INCEPTION), **FEW)
        assert "sFID" not in {measure.name for measure in found.measures}

    def test_samples_without_features_have_no_interval(self, place, tmp_path):
        np.savez(tmp_path / "bare.npz", mu=np.zeros(4), sigma=np.eye(4))
        with pytest.raises(ValueError, match="interval of 3 resamples needs the features of all samples"):
            compare_images(tmp_path / "bare.npz", place / "real", Stand(INCEPTION), **FEW)

    def test_openai_s_reference_files(self, place, tmp_path):
        """mu, sigma, mu_s and sigma_s are of more images than arr_0 holds, and precision is of the latter."""
        space, rng = Stand(INCEPTION), np.random.default_rng(5)
        pooled, spatial = rng.normal(size=(500, 4)), rng.normal(size=(500, 3))
        arrays = {
            "mu": pooled.mean(0),
            "sigma": np.cov(pooled.T),
            "mu_s": spatial.mean(0),
            "sigma_s": np.cov(spatial.T),
        }
        np.savez(tmp_path / "reference.npz", arr_0=images(1), **arrays)
        found = compare_images(place / "fake.npz", tmp_path / "reference.npz", space, **FEW)
        read = space.read(torch.from_numpy(images(0)).permute(0, 3, 1, 2))
        expected = frechet_distance_of_features(read.vectors, pooled.astype(np.float64))
        assert found["FID"].value == pytest.approx(expected, rel=1e-9)
        assert found["sFID"].value == pytest.approx(frechet_distance_of_features(read.spatial, spatial), rel=1e-9)
        assert found["FID"].reference is None
        assert found["precision"].value == neighbourhoods(read.vectors, vectors(1, space)).precision
        assert " ? " in text_table(found)
        assert not any("how its images were resized" in note for note in found.notes)
        with pytest.raises(ValueError, match=r"does not say what features .*\['arr_0'\]\)"):
            compare_images(place / "fake.npz", tmp_path / "reference.npz", Stand(), **FEW)

    def test_statistics_alone(self, place, tmp_path):
        np.savez(tmp_path / "bare.npz", mu=np.zeros(4), sigma=np.eye(4))
        found = compare_images(place / "fake", tmp_path / "bare.npz", Stand(INCEPTION), **FEW)
        assert [measure.name for measure in found.measures] == ["FID", "Inception score"]
        assert any("only statistics" in note for note in found.notes)
        assert "bare.npz does not say how its images were resized; taken for ADM's" in found.notes

    def test_what_no_statistics_are(self, place, tmp_path):
        np.savez(tmp_path / "half.npz", mu=np.zeros(4))
        with pytest.raises(ValueError, match="holds no statistics, mu and sigma"):
            compare_images(place / "fake", tmp_path / "half.npz", Stand(INCEPTION), **FEW)
        bare = {"mu": np.zeros(4), "sigma": np.eye(4)}
        for name, value, message in (
            ("count", np.asarray([3, 4]), "holds no statistics"),
            ("count", np.asarray("many"), "holds no statistics"),
            ("count", np.asarray(np.inf), "holds no statistics"),
            ("mu", np.asarray(["a"] * 4), "holds no statistics"),
            ("image_size", np.asarray(16), "holds no statistics"),
            ("features", np.zeros(4, np.float32), "features must be"),
            ("features", np.full((2, 4), np.nan), "features must be"),
            ("features", np.zeros((2, 3)), "statistics of 3 numbers, but Inception has 4"),
        ):
            np.savez(tmp_path / "odd.npz", **bare | {name: value})
            with pytest.raises(ValueError, match=message):
                compare_images(place / "fake", tmp_path / "odd.npz", Stand(INCEPTION), **FEW)
        np.savez(tmp_path / "odd.npz", **bare, count=2, features=np.zeros((3, 4)))
        with pytest.raises(ValueError, match="features of 3 images, but statistics of 2"):
            compare_images(place / "fake", tmp_path / "odd.npz", Stand(INCEPTION), **FEW)
        np.savez(tmp_path / "objects.npz", mu=np.asarray([None]), sigma=np.eye(4))
        with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
            compare_images(place / "fake", tmp_path / "objects.npz", Stand(INCEPTION), **FEW)


class TestImages:
    def test_every_form_gives_the_same_images(self, place, tmp_path):
        samples = []
        for number, array in enumerate(images(0)):
            Image.fromarray(array).save(tmp_path / "one.png")
            samples.append((f"{number:03}", 1, (tmp_path / "one.png").read_bytes()))
        write_shard(tmp_path / "shards" / "fake-000.tar", samples[:30])
        write_shard(tmp_path / "shards" / "fake-001.tar", samples[30:])
        paths = [place / "fake", place / "fake.npz", tmp_path / "shards", tmp_path / "shards" / "fake-{000..001}.tar"]
        for path in paths:
            found = open_images(path)
            assert (len(found), found.size) == (48, (16, 16))
            np.testing.assert_array_equal(torch.cat(list(found.batches(7))).permute(0, 2, 3, 1), images(0))
        assert len(open_images(tmp_path / "shards" / "fake-000.tar")) == 30

    def test_sizes_and_kinds_may_be_made_alike(self, tmp_path):
        write_folder(tmp_path, images(0, count=2))
        write_image(tmp_path / "wide.jpg", height=20, width=40)
        Image.fromarray(pixels(0)[..., 0]).save(tmp_path / "grey.png")
        with pytest.raises(ImageError, match=r"grey\.png is of mode L, and 8-bit RGB was expected; give --convert"):
            open_images(tmp_path)
        with pytest.raises(ImageError, match=r"has 24×30, but the first image has 16×16; .* give --size N"):
            open_images(tmp_path, convert=True)
        found = open_images(tmp_path, convert=True, size=8)
        assert torch.cat(list(found.batches(3))).shape == (4, 3, 8, 8)
        np.savez(tmp_path / "large.npz", images(0, side=20))
        assert next(open_images(tmp_path / "large.npz", size=8).batches(5)).shape == (5, 3, 8, 8)

    @pytest.mark.parametrize(
        ("array", "mode"),
        [
            (np.zeros((16, 16), np.uint8), "L"),
            (np.zeros((16, 16), np.uint16), r"I;16"),
            (np.zeros((16, 16, 4), np.uint8), "RGBA"),
        ],
    )
    def test_images_that_are_not_8_bit_rgb(self, place, tmp_path, array, mode):
        write_folder(tmp_path / "odd", [array])
        with pytest.raises(ImageError, match=f"000.png is of mode {mode}, and 8-bit RGB was expected"):
            compare_images(tmp_path / "odd", place / "real", Stand(), **FEW)

    def test_colours_of_16_bits(self, tmp_path):
        """Pillow opens them as RGB and drops the lower 8 bits."""
        content = encoded_16_bits()
        (tmp_path / "deep.png").write_bytes(content)
        with Image.open(tmp_path / "deep.png") as image:
            assert image.mode == "RGB"
        with pytest.raises(ImageError, match=r"is of mode RGB;16"):
            open_images(tmp_path)
        assert len(open_images(tmp_path, convert=True)) == 1

    def test_sizes_are_those_of_upright_images(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for number in range(2):
            image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
            image.save(tmp_path / f"{number}.jpg", exif=exif)
        assert open_images(tmp_path).size == (30, 20)
        Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "2.jpg")
        assert next(open_images(tmp_path).batches(3)).shape == (3, 3, 30, 20)
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "3.jpg")
        with pytest.raises(ImageError, match=r"3\.jpg has 20×30, but the first image has 30×20"):
            open_images(tmp_path)

    def test_shards_beside_images(self, tmp_path):
        make_shards(tmp_path, (3,))
        write_folder(tmp_path / "more", images(0, count=2))
        with pytest.raises(
            ValueError, match=r"holds both shards, such as set-train-000\.tar, and images, .*more/000\.png"
        ):
            open_images(tmp_path)
        assert len(open_images(tmp_path / "*.tar", convert=True, size=8)) == 3
        assert len(open_images(write_folder(tmp_path / "x.tar_files", images(0, count=2)))) == 2

    def test_sets_of_two_sizes(self, place, tmp_path):
        write_folder(tmp_path / "large", images(0, side=20))
        with pytest.raises(ValueError, match=r"samples of 20×20 and reference images of 16×16; give --size N"):
            compare_images(tmp_path / "large", place / "real", Stand(), **FEW)

    def test_nothing_there(self, place, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "a.csv").write_text("")
        for name, message in (
            ("empty", "holds no image"),
            ("text", r"its files are 1 of \.csv"),
            ("none", "there is no"),
        ):
            with pytest.raises(FileNotFoundError, match=message):
                open_images(tmp_path / name)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            open_images(tmp_path / "none.npz")
        with pytest.raises(FileNotFoundError, match=r"is no folder, no \.npz file"):
            open_images(tmp_path / "text" / "a.csv")

    def test_an_image_that_cannot_be_read(self, tmp_path):
        write_folder(tmp_path, images(0, count=2))
        (tmp_path / "002.png").write_bytes(b"none")
        with pytest.raises(ImageError, match=r"002\.png cannot be read as an image"):
            open_images(tmp_path)

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    def test_an_image_that_was_cut_off(self, tmp_path, suffix):
        write_folder(tmp_path, images(0, count=3, side=64), suffix)
        assert len(open_images(tmp_path)) == 3
        last = tmp_path / f"002.{suffix}"
        last.write_bytes(last.read_bytes()[:-500])
        with pytest.raises(ImageError, match=rf"002\.{suffix} cannot be read as an image"):
            open_images(tmp_path)

    def test_damaged_shards(self, tmp_path):
        shard = make_shards(tmp_path, (3,)) / "set-train-000.tar"
        shard.write_bytes(b"none" + shard.read_bytes())
        with pytest.raises(DataError, match="cannot be read as an uncompressed tar file"):
            open_images(tmp_path)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((2, 8, 8, 1), np.uint8), r"must be \(N, H, W, 3\) of uint8"),
            (np.zeros((2, 8, 8), np.uint8), r"got \(2, 8, 8\) of uint8"),
            (np.zeros(2, np.uint8), r"got \(2,\) of uint8"),
            (np.zeros((2, 8), np.float32), r"got \(2, 8\) of float32"),
            (np.uint8(2), r"got \(\) of uint8"),
            (np.zeros((2, 3, 8, 8), np.uint8), r"got \(2, 3, 8, 8\)"),
            (np.zeros((0, 8, 8, 3), np.uint8), r"got \(0, 8, 8, 3\)"),
            (np.zeros((2, 8, 8, 3), np.uint16), "of uint16; of x in"),
            (np.zeros((2, 8, 8, 3), np.float32), r"of float32; of x in \[-1, 1\] write"),
            (np.asfortranarray(np.ones((2, 8, 8, 3), np.uint8)), "must be in C order"),
        ],
    )
    def test_arrays_that_are_no_images(self, tmp_path, array, message):
        np.savez(tmp_path / "x.npz", array)
        with pytest.raises(ValueError, match=message):
            open_images(tmp_path / "x.npz")

    def test_damaged_arrays(self, tmp_path):
        np.savez(tmp_path / "x.npz", images(0))
        whole = (tmp_path / "x.npz").read_bytes()
        cut, changed = tmp_path / "cut.npz", tmp_path / "changed.npz"
        cut.write_bytes(whole[: len(whole) // 2])
        middle = len(whole) // 2
        changed.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(ValueError, match=r"is damaged or no \.npz file"):
            open_images(cut)
        with pytest.raises(ValueError, match=r"arr_0\.npy does not have its checksum"):
            open_images(changed)
        np.savez(tmp_path / "labels.npz", labels=np.zeros(3))
        with pytest.raises(ValueError, match="has no arr_0, in which images are expected; it has labels"):
            open_images(tmp_path / "labels.npz")
        with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
            archive.writestr("arr_0.npy", "no array")
        with pytest.raises(ValueError, match="arr_0 has no header of an array"):
            open_images(tmp_path / "text.npz")

    @pytest.mark.parametrize("place", [0.001, 0.3, 0.6, 0.9])
    def test_damaged_compressed_arrays(self, tmp_path, place):
        np.savez_compressed(tmp_path / "x.npz", images(0))
        content = bytearray((tmp_path / "x.npz").read_bytes())
        start = 60 + int(place * len(content))
        content[start : start + 40] = bytes(byte ^ 255 for byte in content[start : start + 40])
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            open_images(tmp_path / "x.npz")
        np.savez_compressed(tmp_path / "s.npz", mu=np.random.default_rng(0).normal(size=4000), sigma=np.eye(4))
        content = bytearray((tmp_path / "s.npz").read_bytes())
        content[200:240] = bytes(byte ^ 255 for byte in content[200:240])
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            compare_images(tmp_path / "s.npz", tmp_path / "s.npz", Stand(INCEPTION))

    def test_arrays_shorter_than_their_header_says(self, tmp_path):
        """A whole archive, as a program leaves it that was stopped while it wrote the array."""
        content = io.BytesIO()
        np.save(content, images(0))
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("arr_0.npy", content.getvalue()[:-768])
        with pytest.raises(ValueError, match=r"arr_0 holds 36,096 bytes, and \(48, 16, 16, 3\) of uint8"):
            open_images(tmp_path / "x.npz")

    def test_arrays_are_read_bit_by_bit(self, tmp_path, monkeypatch):
        """Neither compressed ones nor those stored as they are come into memory whole."""
        monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("loaded whole"))
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "x.npz", images(0))
            np.testing.assert_array_equal(
                torch.cat(list(ArrayImages(tmp_path / "x.npz").batches(5))).permute(0, 2, 3, 1), images(0)
            )


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """A whole process: 40,000 images are 120 MB, and pass through it in batches."""
    script = f"""
        import resource, sys
        sys.path[:0] = {sys.path!r}
        import numpy as np
        from test_fid import Stand
        from difformer.verbs.fid.features import read_features
        from difformer.verbs.fid.images import open_images
        peaks = []
        for count in (2_000, 40_000):
            np.savez_compressed("x.npz", np.broadcast_to(np.uint8(7), (count, 32, 32, 3)))
            found = read_features(open_images("x.npz"), Stand(width=64), batch_size=100, keep=500, split_size=10)
            assert (found.pooled.count, len(found.features)) == (count, 500)
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        assert peaks[1] - peaks[0] < 50, peaks
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def encoded_16_bits():
    """A PNG file of one pixel with 16 bits a colour, which Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class TestSpaces:
    def test_a_backbone_s_tap(self, backbone):
        space = BackboneSpace(backbone, "mid", 50, CPU)
        assert space.name == "UNet/mid@50"
        assert "circular" in space.caution
        read = space.read(torch.from_numpy(images(0)).permute(0, 3, 1, 2)).vectors
        assert read.shape == (48, space.width)
        # The noise is the image's own.
        alone = space.read(torch.from_numpy(images(0)[5:6]).permute(0, 3, 1, 2)).vectors
        torch.testing.assert_close(alone[0], read[5], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(BackboneSpace(backbone, "mid", 50, CPU, seed=1).read(
            torch.from_numpy(images(0)[5:6]).permute(0, 3, 1, 2)).vectors, alone)  # fmt: skip
        assert BackboneSpace(backbone, "mid", 50, CPU, seed=1).digest != space.digest
        # Other sizes are resized.
        assert space.read(torch.zeros(1, 3, 24, 40, dtype=torch.uint8)).vectors.shape == (1, space.width)

    def test_a_timm_network(self, network):
        space = TimmSpace("resnet10t", network, CPU)
        model = timm.create_model("resnet10t", num_classes=0).eval()
        weights = torch.load(network, weights_only=True)
        model.load_state_dict({name: weights[name] for name in model.state_dict()})
        expected = timm.data.resolve_model_data_config(model)
        batch = torch.from_numpy(images(0, count=2, side=expected["input_size"][1])).permute(0, 3, 1, 2)
        mean, deviation = (torch.tensor(expected[name]).view(3, 1, 1) for name in ("mean", "std"))
        with torch.no_grad():
            theirs = model((batch / 255 - mean) / deviation)
        torch.testing.assert_close(space.read(batch).vectors, theirs)
        assert (space.name, space.width) == ("resnet10t", theirs.shape[1])

    def test_wrong_timm_networks(self, network, tmp_path):
        with pytest.raises(ValueError, match="timm has no network 'resnet_of_mine'"):
            TimmSpace("resnet_of_mine", network, CPU)
        with pytest.raises(FileNotFoundError, match="there is no file"):
            TimmSpace("resnet10t", tmp_path / "none.pth", CPU)
        with pytest.raises(ValueError, match="for timm's vit_tiny_patch16_224 does not fit the architecture"):
            TimmSpace("vit_tiny_patch16_224", network, CPU)
        (tmp_path / "text.pth").write_text("none")
        with pytest.raises(ValueError, match=r"text\.pth is not a weight file"):
            TimmSpace("resnet10t", tmp_path / "text.pth", CPU)
        np.savez(tmp_path / "jax.npz", x=np.zeros(3))
        with pytest.raises(ValueError, match=r"a file of NumPy's; give weights of resnet10t as \.safetensors or \.pth"):
            TimmSpace("resnet10t", tmp_path / "jax.npz", CPU)

    def test_a_pickle_of_a_timm_network_runs_nothing(self, network, tmp_path):
        ran = tmp_path / "ran"

        class Harmful:
            def __reduce__(self):
                return ran.touch, ()

        torch.save(torch.load(network, weights_only=True) | {"more": Harmful()}, tmp_path / "harmful.pth")
        with pytest.raises(CheckpointError, match="Python objects other than tensors, which could run code"):
            TimmSpace("resnet10t", tmp_path / "harmful.pth", CPU)
        assert not ran.exists()

    @pytest.mark.parametrize("form", ["safetensors", "training", "parallel", "half", "uncounted"])
    def test_files_of_timm_networks(self, network, tmp_path, form):
        state = torch.load(network, weights_only=True)
        other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        content = {
            "safetensors": state,
            "training": {"epoch": 3, "state_dict": other, "state_dict_ema": state},
            "parallel": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
            "half": {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
            "uncounted": {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        }[form]
        file = tmp_path / "weights.pth"
        (save_file if form == "safetensors" else torch.save)(content, file)
        batch = torch.from_numpy(images(0, count=2)).permute(0, 3, 1, 2)
        expected = TimmSpace("resnet10t", network, CPU).read(batch).vectors
        found = TimmSpace("resnet10t", file, CPU).read(batch).vectors
        torch.testing.assert_close(found, expected, rtol=0.02 if form == "half" else 1e-6, atol=1e-3 * (form == "half"))

    def test_another_file_is_not_inception(self, network, tmp_path):
        with pytest.raises(
            ValueError, match=r"is not Inception's published weights: its SHA-256 .*6726825d0af5f729… was"
        ):
            InceptionSpace(network, CPU)
        with pytest.raises(FileNotFoundError, match="published at https://github"):
            InceptionSpace(tmp_path / "none.pth", CPU)

    def test_inception_without_torch_fidelity(self, network, monkeypatch):
        monkeypatch.setattr("difformer.verbs.fid.spaces.sha256", lambda path: InceptionSpace.digest)
        for name in {"torch_fidelity", *(name for name in sys.modules if name.startswith("torch_fidelity."))}:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match="FID needs torch-fidelity"):
            InceptionSpace(network, CPU)


class TestCommand:
    def test_a_table_and_a_file(self, place, backbone, tmp_path, capsys):
        words = [
            "fid",
            str(place / "fake"),
            str(place / "real.npz"),
            "--backbone",
            backbone,
            "--tap",
            "in01",
            "--t",
            "50",
        ]
        options = ["--resamples", "3", "--json", str(tmp_path / "out.json"), "--statistics", str(tmp_path / "s.npz")]
        assert main([*words, *options]) == 0
        printed = capsys.readouterr().out
        assert "KD(UNet/in01@50)" in printed
        assert "FD(UNet/in01@50)" in printed
        assert "note: features of a diffusion model" in printed
        assert "FID" not in printed
        written = json.loads((tmp_path / "out.json").read_text())
        assert written["features"] == "UNet/in01@50"
        assert (written["samples"], written["reference"]) == ("fake", "real.npz")
        assert written["options"] == {
            "k": 3, "frechet": True, "resamples": 3, "keep": 50_000, "split_size": 5000, "batch_size": 32, "seed": 0,
            "size": None, "convert": False,
        }  # fmt: skip
        measures = {measure["name"]: measure for measure in written["measures"]}
        assert measures["FD(UNet/in01@50)"]["width"] == written["width"] == 32
        assert main(words) == 0
        words[2] = str(tmp_path / "s.npz")
        assert main([*words, "--resamples", "0"]) == 0
        assert main([*words, "--seed", "1"]) == 1
        assert "with other weights or another seed" in capsys.readouterr().err
        assert main([*words[:6], "in01", "--t", "60"]) == 1
        assert "has statistics of UNet/in01@50, but UNet/in01@60 was expected" in capsys.readouterr().err

    def test_a_timm_network(self, place, network, capsys):
        words = ["fid", str(place / "fake"), str(place / "real"), "--timm", "resnet10t", "--checkpoint", str(network)]
        assert main([*words, "--frechet", "false"]) == 0
        assert "KD(resnet10t)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ([], "give what to compare in, one of --inception FILE"),
            (["--timm", "resnet10t", "--backbone", "adm_elpv"], "got timm and backbone"),
            (["--timm", "resnet10t"], "--timm NAME and --checkpoint FILE go together"),
            (["--backbone", "adm_elpv", "--t", "5"], "--backbone, --tap and --t go together"),
            (["--inception", "none.pth", "--tap", "mid"], "--backbone, --tap and --t go together"),
            (["--inception", "none.pth"], "there is no file none.pth"),
            (["--inception", "none.pth", "--json", "x.txt"], "give it a name that ends in .json"),
        ],
    )
    def test_wrong_options(self, place, options, message, capsys):
        assert main(["fid", str(place / "fake"), str(place / "real"), *options]) == 1
        assert message in capsys.readouterr().err

    def test_numbers_that_make_no_sense(self, place):
        for values, message in (({"k": 0}, "k must be"), ({"resamples": -1}, "not be negative"), ({"keep": 0}, "keep")):
            with pytest.raises(ValueError, match=message):
                compare_images(place / "fake", place / "real", Stand(), **values)
