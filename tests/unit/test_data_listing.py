"""What is data below a folder: one rule for every reader, for predictions and for the quickstart's folders."""

import logging
import os
from pathlib import Path

import pytest
from data_sets import encoded, make_folder, write_image, write_lines, write_shard
from PIL import Image

from difformer.data import IMAGE_SUFFIXES, DataConfig, DataError, ImageError, create_dataset, read_source
from difformer.data.listing import find_images, in_words
from difformer.verbs.predict.predict import list_images
from difformer.verbs.quickstart.folders import with_splits

HIDDEN = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".hidden"]


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})


def litter(folder: Path) -> None:
    """What systems leave in a folder."""
    for name in HIDDEN:
        write_image(folder / name / "x.png")
        write_image(folder / name / "deep" / "y.png")
    write_image(folder / "_.png").rename(folder / "._x.png")


def spec(root, **changes):
    return {"name": "folder", "root": str(root), "size": 8} | changes


class TestHidden:
    @pytest.mark.parametrize("name", ["folder", "imagenet"])
    def test_no_image_and_no_class(self, root, name):
        before = create_dataset(spec(root, name=name))
        litter(root / "train")
        litter(root / "train/cat")
        after = create_dataset(spec(root, name=name))
        assert (after.class_names, after.names, after.digest) == (before.class_names, before.names, before.digest)

    def test_no_split(self, root):
        litter(root)
        with pytest.raises(DataError, match=r"it has train\. Name"):
            create_dataset(spec(root), "val")
        assert with_splits(DataConfig(name="folder"), root).splits == {"train": "train"}
        litter(root / "train")
        for name in ("cat", "dog"):
            (root / "train" / name).rename(root / name)
        assert with_splits(DataConfig(name="folder"), root).splits == {"train": "."}

    def test_no_prediction(self, root):
        before, _ = list_images(root)
        litter(root)
        litter(root / "train/cat")
        paths, left_out = list_images(root)
        assert paths == before
        assert not left_out

    def test_no_sample_of_a_shard_and_no_shard(self, tmp_path):
        keys = ["0", ".ipynb_checkpoints/1", "@eaDir/2", "a/__MACOSX/3", "._4", "./5"]
        path = write_shard(tmp_path / "train-0.tar", [(key, i, encoded(i)) for i, key in enumerate(keys)])
        (tmp_path / "._train-1.tar").write_bytes(path.read_bytes())
        source = read_source(spec(tmp_path, name="webdataset", class_names=list("abcdef")), "train")
        assert source.labels.tolist() == [0, 5]

    def test_folders_above_are_not_hidden(self, tmp_path):
        write_shard(tmp_path / ".data/train-0.tar", [("0", 0, encoded(0))])
        (tmp_path / ".data/other").mkdir()
        for pattern in ("../train-*.tar", "../train-0.tar", ".././train-*.tar"):
            assert len(create_dataset(spec(tmp_path / ".data/other", name="webdataset"), pattern)) == 1

    def test_nothing_of_a_set_that_torchvision_lists(self, tmp_path):
        counts = {"eurosat/2750/Forest": 3, "eurosat/2750/River": 3}
        make_folder(tmp_path, counts)
        before = read_source(spec(tmp_path, name="eurosat"), "all")
        for folder in ("eurosat/2750", "eurosat/2750/River"):
            litter(tmp_path / folder)
        after = read_source(spec(tmp_path, name="eurosat"), "all")
        assert (after.class_names, after.digest) == (before.class_names, before.digest)


class TestPrediction:
    def test_linked_folders_and_files_count_as_in_training(self, root, tmp_path):
        write_image(tmp_path / "elsewhere/deep/x.png")
        (root / "train/cat/folder").symlink_to(tmp_path / "elsewhere")
        (root / "train/cat/link.png").symlink_to(tmp_path / "elsewhere/deep/x.png")
        (root / "train/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
        found = [path.relative_to(root / "train").as_posix() for path in list_images(root / "train")[0]]
        assert sorted(found) == sorted(create_dataset(spec(root, check_images="none")).names)
        assert {"cat/folder/deep/x.png", "cat/link.png", "cat/gone.png"} < set(found)

    def test_a_link_back_is_refused(self, root):
        (root / "train/cat/back").symlink_to(root)
        with pytest.raises(DataError, match=r"back is a link to a folder above it"):
            list_images(root)

    def test_a_link_to_itself_is_neither_file_nor_folder(self, root):
        for folder in (root / "train", root / "train/cat"):
            (folder / "loop.txt").symlink_to(folder / "loop.txt")
        assert len(create_dataset(spec(root))) == 4
        (root / "train/cat/loop.png").symlink_to(root / "train/cat/loop.png")
        with pytest.raises(ImageError, match=r"loop\.png"):
            create_dataset(spec(root))

    def test_what_is_left_out_is_counted(self, root):
        write_lines(root / "notes.txt", ["x"])
        write_lines(root / "train/cat/clip.MP4", ["x"])
        write_lines(root / "train/README", ["x"])
        os.mkfifo(root / "train/pipe.png")
        _, left_out = list_images(root)
        assert in_words(left_out) == "1 without a suffix, 1 of .mp4, 1 of .png, 1 of .txt"
        for path in root.rglob("*_*.png"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match=r"holds no image; its files are .*1 of \.mp4"):
            list_images(root)


class TestSuffixes:
    def test_every_one_that_pillow_decodes_by_itself(self):
        """Others need another program, or are films or numbers; some suffixes are those of other files too."""
        Image.init()
        formats = {suffix: name for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
        others = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
        left_out = {s for s, name in formats.items() if s not in IMAGE_SUFFIXES and name not in others}
        ambiguous = {".bw", ".cur", ".ftc", ".ftu", ".gbr", ".im", ".pcd", ".ras", ".rgb", ".rgba"}
        assert left_out <= {".pfm"} | ambiguous
        assert not ambiguous & IMAGE_SUFFIXES

    def test_suffixes_of_other_files_stop_nothing(self, root):
        """Point clouds, raw pixels, circuits."""
        for name in ("cloud.pcd", "raw.rgb", "board.gbr"):
            write_lines(root / f"train/cat/{name}", ["x"])
        assert len(create_dataset(spec(root))) == 4

    @pytest.mark.parametrize("suffix", ["avif", "jp2", "jpe", "tga", "qoi", "dds"])
    def test_images_of_less_usual_formats(self, root, suffix):
        path = write_image(root / f"train/cat/z.{suffix}", height=16, width=16)
        names = create_dataset(spec(root, check_images="decode")).names
        assert f"cat/z.{suffix}" in names
        assert path in list_images(root)[0]

    def test_the_count_of_others_in_class_folders(self, root, caplog):
        write_lines(root / "train/cat/a.heic", ["x"])
        write_lines(root / "train/dog/deep/b.HEIC", ["x"])
        write_image(root / "train/stray.png")
        with caplog.at_level(logging.WARNING):
            assert len(create_dataset(spec(root))) == 4
        assert "left out 2 files that are no images: 2 of .heic" in caplog.text
        assert "left out 1 images that lie in no class folder" in caplog.text

    def test_a_class_of_nothing_else_names_them(self, root):
        write_lines(root / "train/emu/a.heic", ["x"])
        with pytest.raises(DataError, match=r"no image of emu \(whose files are 1 of \.heic\)"):
            create_dataset(spec(root))


def test_the_order_of_a_listing(tmp_path):
    make_folder(tmp_path, {"b": 1, "b/c": 1, "b-c": 1, "a": 1})
    assert find_images(tmp_path).images == ["a/a_0.png", "b/b_0.png", "b-c/b-c_0.png", "b/c/c_0.png"]
