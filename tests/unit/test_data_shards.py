"""WebDataset shards: which are found, and what is wrong in them."""

import tarfile
from pathlib import Path

import pytest
from data_sets import encoded, ids_of, make_shards, shard_spec, write_shard

from difformer.data import DataError, ImageError, create_dataset
from difformer.data.webdataset import find_shards

SIZES = (7, 11, 2)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), SIZES)


class TestFindingShards:
    @pytest.mark.parametrize(
        ("split", "count"),
        [("train", TOTAL), ("set-train-{000..001}.tar", 18), ("*-{000,002}.tar", 9), ("set-train-00?.tar", TOTAL)],
    )
    def test_patterns(self, root, split, count):
        assert len(create_dataset(shard_spec(root), split)) == count

    def test_mapped_splits(self, root):
        assert len(create_dataset(shard_spec(root, splits={"test": "*-002.tar"}), "test")) == 2

    @pytest.mark.parametrize(
        ("names", "split", "found"),
        [
            (["retrieval-train-0", "retrieval-val-0"], "val", ["retrieval-val-0"]),
            (["latest-train-0", "latest-test-0"], "test", ["latest-test-0"]),
            (["pretrain-0", "train-0"], "train", ["train-0"]),
            (["set_train0000", "trainval-0"], "train", ["set_train0000"]),
            (["val2017", "cval-0"], "val", ["val2017"]),
            (["set-validation-0", "set-train-0"], "val", ["set-validation-0"]),
            (["fold1-0", "fold10-0"], "fold1", ["fold1-0"]),
            (["small.train.0", "small.val.0"], "small", ["small.train.0", "small.val.0"]),
        ],
    )
    def test_a_word_stands_between_separators(self, tmp_path, names, split, found):
        for i, name in enumerate(names):
            write_shard(tmp_path / f"{name}.tar", [(f"{i}", 0, encoded(0))])
        assert [path.stem for path in find_shards(str(tmp_path), split)] == found

    def test_no_longer_word(self, tmp_path):
        write_shard(tmp_path / "pretrain-0.tar", [("0", 0, encoded(0))])
        with pytest.raises(DataError, match=r"no split 'train'; it has pretrain-0\.tar"):
            create_dataset(shard_spec(tmp_path))

    def test_a_shard_of_two_splits(self, tmp_path):
        for name in ("test-set-train-0", "test-set-test-0"):
            write_shard(tmp_path / f"{name}.tar", [("0", 0, encoded(0))])
        with pytest.raises(DataError, match=r"test-set-train-0\.tar has both train and test in it; .*splits: \{train:"):
            create_dataset(shard_spec(tmp_path))
        assert len(create_dataset(shard_spec(tmp_path, splits={"train": "*-train-*.tar"}))) == 1
        write_shard(tmp_path / "a-b.tar", [("0", 0, encoded(0))])
        with pytest.raises(DataError, match="has both a and b in it"):
            create_dataset(shard_spec(tmp_path, splits={"train": "a", "test": "b"}))

    @pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.TAR.GZ"])
    def test_compressed_shards(self, tmp_path, name):
        write_shard(tmp_path / "train-1.tar", [("0", 0, encoded(0))]).rename(tmp_path / name)
        for split in ("train", "train-*"):
            with pytest.raises(DataError, match=rf"{name} is compressed.*gunzip|no split 'train-\*'"):
                create_dataset(shard_spec(tmp_path), split)
        with pytest.raises(DataError, match=f"no split 'dev'; it has {name}"):
            create_dataset(shard_spec(tmp_path), "dev")

    def test_capitals_in_the_suffix(self, tmp_path):
        write_shard(tmp_path / "train-0.TAR", [("0", 0, encoded(0))])
        assert len(create_dataset(shard_spec(tmp_path))) == 1

    @pytest.mark.parametrize("pattern", ["a-{0..99999999}.tar", "a-{0..999}-{0..999}.tar", "a-{0..9}" * 30 + ".tar"])
    def test_a_pattern_of_millions(self, root, pattern):
        with pytest.raises(DataError, match="names more than 300000 shards"):
            create_dataset(shard_spec(root), pattern)

    def test_no_such_split(self, root):
        with pytest.raises(DataError, match=r"no split 'dev'; it has set-train-000\.tar"):
            create_dataset(shard_spec(root), "dev")

    def test_a_shard_that_is_missing_from_a_range(self, root):
        with pytest.raises(DataError, match=r"no shard set-train-003\.tar; 2 of the shards"):
            create_dataset(shard_spec(root), "set-train-{000..004}.tar")
        with pytest.raises(DataError, match=r"no shard set-\*-003\.tar; 2 of the shards"):
            create_dataset(shard_spec(root), "set-*-{000..004}.tar")

    def test_a_range_without_the_ending(self, tmp_path):
        for name in ("shard-0", "shard-1", "shard-10", "old-shard-1"):
            write_shard(tmp_path / f"{name}.tar", [(name, 0, encoded(0))])
        found = find_shards(str(tmp_path), "shard-{0..1}")
        assert [path.name for path in found] == ["shard-0.tar", "shard-1.tar"]
        assert [path.name for path in find_shards(str(tmp_path), "old-*")] == ["old-shard-1.tar"]
        with pytest.raises(DataError, match=r"no shard shard-2\.tar; 1 of the shards"):
            find_shards(str(tmp_path), "shard-{0..2}")

    @pytest.mark.parametrize("name", ["train-0.tar.idx", "train-0.tar.md5", "train.targets.json"])
    def test_files_beside_shards(self, tmp_path, name):
        write_shard(tmp_path / "train-0.tar", [("0", 0, encoded(0))])
        (tmp_path / name).write_text("x")
        for split in ("train", "train-0.tar", "train*", "train-0.tar*"):
            assert [path.name for path in find_shards(str(tmp_path), split)] == ["train-0.tar"]

    def test_links_to_themselves_are_no_shards(self, tmp_path):
        write_shard(tmp_path / "train-0.tar", [("0", 0, encoded(0))])
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        assert len(find_shards(str(tmp_path), "train")) == 1

    def test_patterns_that_overlap_are_reported(self, tmp_path, caplog):
        for name in ("train-0", "test-0"):
            write_shard(tmp_path / f"{name}.tar", [(name, 0, encoded(0))])
        find_shards(str(tmp_path), "train-*.tar", ["train-*.tar", "test-*.tar", "{gone,test}-{0..9}.tar"])
        assert not caplog.text
        find_shards(str(tmp_path), "./*.tar", ["test-*.tar"])
        assert "1 shards of ./*.tar, such as test-0.tar, are in test-*.tar too" in caplog.text

    def test_addresses(self, root):
        with pytest.raises(DataError, match="download or mount https://host/data first"):
            create_dataset(shard_spec("https://host/data"))


class TestErrors:
    def one(self, tmp_path, samples, **changes):
        write_shard(tmp_path / "train-0.tar", samples)
        return create_dataset(shard_spec(tmp_path, **changes))

    def test_class_names_and_labels_out_of_range(self, tmp_path):
        samples = [("a", 0, encoded(0)), ("b", 5, encoded(1))]
        assert self.one(tmp_path, samples).class_names == ("0", "1", "2", "3", "4", "5")
        with pytest.raises(DataError, match=r"b\.png has label 5, but with 2 classes"):
            self.one(tmp_path, samples, class_names=["x", "y"])

    def test_no_label(self, tmp_path):
        with pytest.raises(DataError, match=r"train-0\.tar: the sample a has no label"):
            self.one(tmp_path, [("a", None, encoded(0))])

    def test_a_label_that_is_no_integer(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.cls must hold an integer label, got b'cat'"):
            self.one(tmp_path, [("a", "cat", encoded(0))])

    def test_no_image(self, tmp_path):
        write_shard(tmp_path / "train-0.tar", [("a", 0, b"x")], suffix="txt")
        with pytest.raises(DataError, match="the sample a must have one image, but its members are txt, cls"):
            create_dataset(shard_spec(tmp_path))

    def test_a_key_that_repeats(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.png is there twice"):
            self.one(tmp_path, [("a", 0, encoded(0)), ("a", 1, encoded(1))])

    def test_an_empty_shard(self, tmp_path):
        with pytest.raises(DataError, match="holds no image"):
            self.one(tmp_path, [])

    def test_a_label_in_json(self, tmp_path):
        assert self.one(tmp_path, [("a", {"label": 0}, encoded(0))]).labels.tolist() == [0]
        other = [("a", {"class": 2, "width": 30}, encoded(0))]
        with pytest.raises(DataError, match="under 'label', but has 'class', 'width'; set label_column"):
            self.one(tmp_path, other)
        assert self.one(tmp_path, other, label_column="class").labels.tolist() == [2]

    @pytest.mark.parametrize("size", [0, 100, 3000])
    def test_a_truncated_shard(self, root, tmp_path, size):
        (tmp_path / "train-0.tar").write_bytes((root / "set-train-000.tar").read_bytes()[:size])
        with pytest.raises(DataError, match=r"train-0\.tar cannot be read as an uncompressed tar file"):
            create_dataset(shard_spec(tmp_path))

    @pytest.mark.parametrize("label", [True, 1.7, "2", None])
    def test_json_labels_that_are_no_integer(self, tmp_path, label):
        with pytest.raises(DataError, match=r"a\.json must hold an integer label"):
            self.one(tmp_path, [("a", {"label": label}, encoded(0))])

    def test_labels_from_1(self, tmp_path):
        samples = [("a", 1, encoded(0)), ("b", 2, encoded(1))]
        with pytest.raises(DataError, match=r"labels go from 1 to 2, so class 0 would have no image.*first_label: 1"):
            self.one(tmp_path, samples)
        with pytest.raises(DataError, match="first_label: 1"):
            self.one(tmp_path, samples, class_names=["x", "y"])
        dataset = self.one(tmp_path, samples, first_label=1)
        assert (dataset.labels.tolist(), dataset.class_names) == ([0, 1], ("1", "2"))
        assert self.one(tmp_path, samples, first_label=1, class_names=["x", "y"]).labels.tolist() == [0, 1]
        dataset = self.one(tmp_path, samples, first_label=0)
        assert (dataset.labels.tolist(), dataset.class_names) == ([1, 2], ("0", "1", "2"))
        with pytest.raises(DataError, match="label -1"):
            self.one(tmp_path, [("c", 0, encoded(0)), *samples], first_label=1)

    def test_nothing_but_negative_labels(self, tmp_path):
        with pytest.raises(DataError, match=r"a\.png has label -1, but labels count from 0"):
            self.one(tmp_path, [("a", -1, encoded(0))])

    def test_keys_end_at_the_first_dot(self, tmp_path):
        with pytest.raises(DataError, match=r"members are 1\.png, 1\.cls, 2\.png, 2\.cls; a key ends at the first dot"):
            self.one(tmp_path, [("cat.1", 0, encoded(0)), ("cat.2", 0, encoded(1))])

    def test_samples_without_image_or_label_may_be_left_out(self, tmp_path, caplog):
        samples = [("a", 0, encoded(0)), ("b", None, encoded(1)), ("c", 1, encoded(2))]
        with pytest.raises(DataError, match="leave such samples out with on_bad_image: skip"):
            self.one(tmp_path, samples)
        dataset = self.one(tmp_path, samples, on_bad_image="skip")
        assert dataset.labels.tolist() == [0, 1]
        assert "left out 1 samples without image or label, such as" in caplog.text

    @pytest.mark.parametrize("record", [{}, {"label": None}, {"other": 1}])
    def test_samples_whose_json_has_no_label_may_be_left_out(self, tmp_path, caplog, record):
        samples = [("a", {"label": 0}, encoded(0)), ("b", record, encoded(1))]
        with pytest.raises(DataError, match=r"b\.json must hold an integer label under 'label'.*on_bad_image: skip"):
            self.one(tmp_path, samples)
        assert len(self.one(tmp_path, samples, on_bad_image="skip")) == 1
        assert "left out 1 samples without image or label, such as" in caplog.text

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_links_in_a_shard(self, tmp_path, kind):
        path = write_shard(tmp_path / "train-0.tar", [("a", 0, encoded(0))])
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("b.png")
            link.type, link.linkname = kind, "a.png"
            archive.addfile(link)
        with pytest.raises(DataError, match=r"the member b\.png is a link"):
            create_dataset(shard_spec(tmp_path))

    @pytest.mark.parametrize("size", [b"\xff" * 10 + b"\xfe\0", b"\x80" + b"\x7f" * 11])
    @pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"S"])
    def test_sizes_that_are_none(self, tmp_path, size, kind):
        info = tarfile.TarInfo("a.png")
        info.type = kind
        header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header[:512])
        path = write_shard(tmp_path / "train-0.tar", [("b", 0, encoded(0))])
        path.write_bytes(bytes(header) + path.read_bytes())
        with pytest.raises(DataError, match=r"train-0\.tar"):
            create_dataset(shard_spec(tmp_path))

    def test_labels_with_line_ends_and_negative_ones(self, tmp_path):
        assert self.one(tmp_path, [("a", "3\r\n", encoded(0))]).labels.tolist() == [3]
        with pytest.raises(DataError, match=r"a\.png has label -1"):
            self.one(tmp_path, [("a", "-1\n", encoded(0))])

    def test_enormous_labels(self, tmp_path):
        with pytest.raises(DataError, match="has the label 2000000000; set class_names"):
            self.one(tmp_path, [("a", 2_000_000_000, encoded(0))])
        with pytest.raises(DataError, match="must hold an integer label"):
            self.one(tmp_path, [("a", 10**30, encoded(0))])

    def test_a_damaged_member_header_hides_nothing(self, root, tmp_path):
        content = bytearray((root / "set-train-000.tar").read_bytes())
        with tarfile.open(root / "set-train-000.tar") as archive:
            place = archive.getmembers()[4].offset
        content[place : place + 300] = b"\xff" * 300
        (tmp_path / "train-0.tar").write_bytes(content)
        with pytest.raises(DataError, match=f"damaged at byte {place}"):
            create_dataset(shard_spec(tmp_path))

    def test_two_archives_in_one_file(self, root, tmp_path):
        (tmp_path / "train-0.tar").write_bytes(b"".join(path.read_bytes() for path in sorted(root.glob("*.tar"))))
        with pytest.raises(DataError, match="several archives in one file"):
            create_dataset(shard_spec(tmp_path))

    def test_no_end_marker(self, root, tmp_path, caplog):
        with tarfile.open(root / "set-train-000.tar") as archive:
            last = archive.getmembers()[-1]
        content = (root / "set-train-000.tar").read_bytes()[: last.offset_data + 512]
        (tmp_path / "train-0.tar").write_bytes(content)
        assert len(create_dataset(shard_spec(tmp_path))) == SIZES[0]
        assert "no end marker" in caplog.text

    def test_a_damaged_image(self, tmp_path, caplog):
        samples = [("a", 0, encoded(0)), ("b", 0, b"no image"), ("c", 0, encoded(2))]
        with pytest.raises(ImageError, match=r"b\.png cannot be read"):
            self.one(tmp_path, samples)
        dataset = self.one(tmp_path, samples, check_images="none")
        with pytest.raises(ImageError, match=r"b\.png cannot be read"):
            ids_of(dataset)
        dataset = self.one(tmp_path, samples, check_images="none", on_bad_image="skip")
        assert len(ids_of(dataset, workers=1)) == 2
        assert dataset.skipped.tolist() == [dataset.ids[1]]
        assert len(self.one(tmp_path, samples, on_bad_image="skip")) == 2

    def test_a_shard_that_vanishes(self, tmp_path):
        dataset = self.one(tmp_path, [("a", 0, encoded(0))])
        Path(tmp_path / "train-0.tar").unlink()
        with pytest.raises(ImageError, match=r"train-0\.tar cannot be read any more"):
            list(dataset)

    @pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, None)])
    def test_processes_that_make_no_sense(self, root, index, count):
        with pytest.raises(ValueError, match="process"):
            create_dataset(shard_spec(root), process_index=index, num_processes=count)
