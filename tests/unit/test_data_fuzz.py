"""Damaged files under every reader of data: an error of its own, or nothing wrong; never another error.

But for MATLAB's, which SciPy reads: of thousands of damaged ones, some crash it.
"""

import io
import json
import random
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from data_sets import (
    encoded,
    make_birds,
    make_coco,
    make_elpv,
    make_folder,
    make_keypoints,
    make_masks,
    make_voc,
    write_image,
    write_json,
    write_shard,
)

from difformer.data import DataError, ImageError, LabelSubset, create_dataset, few_shot, read_source
from difformer.data import identity as identity_module
from difformer.data.images import decode_image

# What may come out of reading a damaged file. `ValueError` alone is none of them: it would be a library's.
EXPECTED = (DataError, ImageError, FileNotFoundError)
TIERS = [pytest.param(120, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)]
# Numbers and nestings that readers are known to stumble over.
TOKENS = [
    b"-1", b"1e999", b"NaN", b"null", b"true", b"9" * 30, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"\x00",
    b"\xff\xfe", b"../", b"\n\n", b" ", b"/", b"\x80" + b"\xff" * 11,
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A copy with a flipped bit, a part missing, doubled or moved, or something put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        place, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place : min(other, place + 40)]
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = data[place : min(other, place + 600)]
        elif kind == 4:
            data[place:place] = rng.choice(TOKENS)
        else:
            token = rng.choice(TOKENS)
            data[place : place + len(token)] = token
    return bytes(data)


def outcomes(content: bytes, count: int, read: Callable[[bytes], object]) -> Counter[str]:
    """How often which error came out, for as many damaged copies; other errors are raised."""
    found, messages = Counter[str](), []
    for seed in range(count):
        copy = damaged(content, random.Random(seed))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(copy)
            found["read"] += 1
        except EXPECTED as error:
            found[type(error).__name__] += 1
            messages.append(str(error))
    print(dict(found))
    assert sum(found.values()) == count
    assert messages, "no damage was noticed"
    assert not [text for text in messages if " object at 0x" in text], "an address in memory says nothing to a reader"
    return found


def opened(root: Path, name: str, **changes: object) -> None:
    """Reads a split, and all of its images."""
    source = read_source({"name": name, "root": str(root), **changes}, "train")
    for i in range(len(source)):
        source.read(i)


def samples(root: Path, name: str, **changes: object) -> None:
    """Reads all samples of a split, with their targets."""
    dataset = create_dataset({"name": name, "root": str(root), "size": 8, **changes}, "train")
    for i in range(len(dataset)):
        dataset[i]


@pytest.mark.parametrize("count", TIERS)
class TestDamage:
    def test_shards(self, tmp_path, count):
        samples = [(f"{i}", {"label": i % 2} if i % 2 else i % 2, encoded(i)) for i in range(4)]
        path = write_shard(tmp_path / "train-0.tar", samples)
        headers = path.read_bytes()

        def read(content: bytes) -> None:
            path.write_bytes(content)
            opened(tmp_path, "webdataset")

        outcomes(headers, count, read)

    @pytest.mark.parametrize("kind", ["cls", "json"])
    def test_labels_of_shards(self, tmp_path, count, kind):
        def read(content: bytes) -> None:
            members = [("0", 0, encoded(0))]
            write_shard(tmp_path / "train-0.tar", members)
            self.add(tmp_path / "train-0.tar", {"1.png": encoded(1), f"1.{kind}": content})
            opened(tmp_path, "webdataset")

        outcomes(b"1\n" if kind == "cls" else json.dumps({"width": 3, "label": 1}).encode(), count, read)

    @staticmethod
    def add(path: Path, members: dict[str, bytes]) -> None:
        with tarfile.open(path, "a") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    def test_list_files(self, tmp_path, count):
        root = make_folder(tmp_path / "set", {"train/cat": 2, "train/dog": 2})
        lines = b"cat/cat_0.png\ndog_1.png\n" + str(root / "train/cat/cat_1.png").encode() + b"\n"

        def read(content: bytes) -> None:
            (tmp_path / "list.txt").write_bytes(content)
            chosen = create_dataset(
                {"name": "folder", "root": str(root), "size": 8, "list_file": str(tmp_path / "list.txt")}
            )
            written = [Path(line.strip()).stem for line in content.decode("utf-8-sig", "replace").splitlines()]
            assert {Path(name).stem for name in chosen.names} <= set(written), "an image that no line names"

        outcomes(lines, count, read)

    def test_subsets(self, tmp_path, count):
        labels = [0, 1] * 20
        path = tmp_path / "subset.json"
        LabelSubset(few_shot(labels, 4, 0), {"k_shot": 4}, 3, "0" * 64).save(path)
        whole = path.read_bytes()
        before = LabelSubset.load(path)

        def read(content: bytes) -> None:
            path.write_bytes(content)
            found = LabelSubset.load(path)
            assert (found.indices.tolist(), found.rule, found.seed, found.digest) == (
                before.indices.tolist(), before.rule, before.seed, before.digest
            ), "altered without a word"  # fmt: skip

        outcomes(whole, count, read)

    @pytest.mark.parametrize("name", ["classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt"])
    def test_the_files_of_birds(self, tmp_path, count, name):
        make_birds(tmp_path, {1: "001.Duck", 2: "002.Emu"}, [("a/0.png", 1, 1), ("b/1.png", 2, 1), ("b/2.png", 2, 0)])

        def read(content: bytes) -> None:
            (tmp_path / name).write_bytes(content)
            opened(tmp_path, "cub")

        outcomes((tmp_path / name).read_bytes(), count, read)

    def test_the_table_of_cells(self, tmp_path, count):
        make_elpv(tmp_path, 4)

        def read(content: bytes) -> None:
            (tmp_path / "labels.csv").write_bytes(content)
            opened(tmp_path, "elpv")

        outcomes((tmp_path / "labels.csv").read_bytes(), count // 4, read)

    @pytest.mark.parametrize("name", ["coco", "points"])
    def test_files_of_coco(self, tmp_path, count, name):
        if name == "coco":
            runs, polygon = {"size": [24, 30], "counts": "m36b0000000000S>"}, [[2, 3, 12, 3, 12, 11]]
            first = [(2, 3, 10, 8, 0, {"segmentation": polygon}), (5, 5, 6, 6, 1, {"segmentation": runs})]
            path = make_coco(tmp_path, [first, []]) / "annotations/instances_train.json"
        else:
            path = make_keypoints(tmp_path, [[4, 6, 2, 10, 6, 1, 0, 0, 0]] * 2) / "keypoints_train.json"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            changes = {"object_masks": True} if name == "coco" else {"box_scale": 1.2}
            samples(tmp_path, name, augmentation="jitter", **changes)

        outcomes(path.read_bytes(), count, read)

    def test_files_of_voc(self, tmp_path, count):
        make_voc(tmp_path, [[("cat", 1, 1, 9, 9), ("dog", 2, 2, 30, 24)]])
        path = tmp_path / "Annotations/0.xml"

        def read(content: bytes) -> None:
            path.write_bytes(content)
            samples(tmp_path, "voc")

        outcomes(path.read_bytes(), count, read)

    def test_lists_of_wflw(self, tmp_path, count):
        write_image(tmp_path / "images/1.png")
        line = " ".join(map(str, [*range(20), *[7] * 176, 2, 2, 20, 22, *[0] * 6, "1.png"]))

        def read(content: bytes) -> None:
            (tmp_path / "list_98pt_rect_attr_train.txt").write_bytes(content)
            samples(tmp_path, "points", box_scale=1.1)

        outcomes(f"{line}\n{line}\n".encode(), count, read)

    def test_pairs(self, tmp_path, count):
        for name in "ab":
            write_image(tmp_path / f"JPEGImages/cat/{name}.jpg")
        record = {
            "category": "cat", "src_imname": "a.jpg", "trg_imname": "b.jpg", "kps_ids": ["0"], "src_kps": [[1, 2]],
            "trg_kps": [[5, 6]], "src_bndbox": [0, 0, 9, 9], "trg_bndbox": [1, 2, 20, 20],
        }  # fmt: skip
        (tmp_path / "Layout/large").mkdir(parents=True)
        (tmp_path / "Layout/large/trn.txt").write_text("x\n")
        path = write_json(tmp_path / "PairAnnotation/trn/x.json", record)

        def read(content: bytes) -> None:
            path.write_bytes(content)
            opened(tmp_path, "pairs")

        outcomes(path.read_bytes(), count, read)

    @pytest.mark.parametrize("name", ["masks/train/train_0.png", "classes.txt"])
    def test_masks(self, tmp_path, count, name):
        make_masks(tmp_path, {"train": 1}, "P")
        (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")

        def read(content: bytes) -> None:
            (tmp_path / name).write_bytes(content)
            samples(tmp_path, "masks")

        outcomes((tmp_path / name).read_bytes(), count, read)

    def test_synset_files(self, tmp_path, count):
        make_folder(tmp_path, {"train/n01440764": 1, "train/n02012849": 1})
        lines = b"n01440764 tench, Tinca tinca\nn02012849 crane\n"

        def read(content: bytes) -> None:
            (tmp_path / "synset_words.txt").write_bytes(content)
            opened(tmp_path, "imagenet")

        outcomes(lines, count, read)

    @pytest.mark.parametrize("name", ["dataset_info.json", "state.json"])
    def test_descriptions_of_tables(self, tmp_path, count, name):
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        images = [{"bytes": encoded(i), "path": None} for i in range(2)]
        datasets.Dataset.from_dict({"img": images, "label": [0, 1]}, features=features).save_to_disk(tmp_path / "set")
        path = tmp_path / "set" / name

        def read(content: bytes) -> None:
            path.write_bytes(content)
            opened(tmp_path / "set", "huggingface")

        outcomes(path.read_bytes(), count, read)

    @pytest.mark.parametrize("suffix", ["png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm", "tga"])
    def test_images(self, count, suffix):
        content = encoded(0, suffix)

        def read(copy: bytes) -> None:
            image = decode_image(copy, "x")
            assert image.mode == "RGB"

        outcomes(content, count, read)

    def test_known_images(self, tmp_path, count, monkeypatch):
        """What is remembered of images only spares reading them again."""
        monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(identity_module, "_WORTH_BYTES", 1)
        monkeypatch.setattr(identity_module, "_SETTLED", -(1 << 60))
        source = read_source(
            {"name": "folder", "root": str(make_folder(tmp_path / "set", {"train/a": 3, "train/b": 2}))}, "train"
        )
        places = source.ids
        digest = identity_module.samples_digest(source, places)
        (path,) = (tmp_path / "cache/images").glob("*.npz")
        whole = path.read_bytes()
        for seed in range(count):
            path.write_bytes(damaged(whole, random.Random(seed)))
            assert identity_module.samples_digest(source, places) == digest
