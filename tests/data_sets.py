"""Tiny data sets on the disk, in the formats that the readers read; how tests open and check them."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from difformer.data import collate, create_dataset


def pixels(number: int, height: int = 24, width: int = 30) -> np.ndarray:
    """(h, w, 3) uint8 noise; each number gives another image."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, number: int = 0, **size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, **size)).save(path)
    return path


def encoded(number: int, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, suffix)
    return buffer.getvalue()


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def make_folder(root: Path, counts: dict[str, int], suffix: str = "png") -> Path:
    """`root/class/0.png`, …; classes may be paths, so that splits can be among them."""
    number = 0
    for name, count in counts.items():
        for i in range(count):
            write_image(root / name / f"{name.rpartition('/')[2]}_{i}.{suffix}", number)
            number += 1
    return root


def write_shard(path: Path, samples: Sequence[tuple[str, Any, bytes]], suffix: str = "png") -> Path:
    """A tar file of (key, label, image); a label that is a mapping is written as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, label, image in samples:
            members = {suffix: image}
            if label is not None:
                members |= (
                    {"json": json.dumps(label).encode()} if isinstance(label, dict) else {"cls": str(label).encode()}
                )
            for name, content in members.items():
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def make_shards(root: Path, sizes: Sequence[int], classes: int = 3) -> Path:
    """`root/set-train-000.tar`, …: shards of the sizes given, with keys that count through."""
    number = 0
    for shard, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            samples.append((f"{number:06}", number % classes, encoded(number)))
            number += 1
        write_shard(root / f"set-train-{shard:03}.tar", samples)
    return root


def make_birds(root: Path, classes: dict[int, str], images: Sequence[tuple[str, int, int]]) -> Path:
    """CUB's and NABirds' files: class numbers and names; (file, class, whether it is for training) of each image."""
    write_lines(root / "classes.txt", [f"{number} {name}" for number, name in classes.items()])
    write_lines(root / "images.txt", [f"{i} {name}" for i, (name, _, _) in enumerate(images, 1)])
    write_lines(root / "image_class_labels.txt", [f"{i} {label}" for i, (_, label, _) in enumerate(images, 1)])
    write_lines(root / "train_test_split.txt", [f"{i} {training}" for i, (*_, training) in enumerate(images, 1)])
    for i, (name, _, _) in enumerate(images):
        write_image(root / "images" / name, i)
    return root


def make_elpv(root: Path, count: int) -> Path:
    """`count` images of each of the eight combinations of level and cell type."""
    lines = []
    for level in ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0"):
        for kind in ("mono", "poly"):
            for _ in range(count):
                name = f"images/cell{len(lines):04}.png"
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(len(lines))[..., 0]).save(path)
                lines.append(f"{name}  {level:<19} {kind}")
    write_lines(root / "labels.csv", lines)
    return root


def write_json(path: Path, content: Any) -> Path:
    return write_lines(path, [json.dumps(content)])


def opened(name, root, split, **changes):
    return create_dataset({"name": name, "root": str(root), "size": 16} | changes, split)


def check_samples(dataset):
    """Every image can be read, in a copy as a worker has it too, and ids are places in the split."""
    copy = pickle.loads(pickle.dumps(dataset))
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample.id for sample in samples] == list(range(len(dataset)))
    assert [sample.label for sample in samples] == dataset.labels.tolist()
    for i, sample in enumerate(samples):
        assert sample.image.shape == (3, 16, 16)
        assert torch.equal(sample.image, copy[i].image)


def shard_spec(root, **changes):
    """The configuration of shards in a folder."""
    return {"name": "webdataset", "root": str(root), "size": 8, "shuffle_buffer": 4} | changes


def ids_of(dataset, workers=0, **options):
    """The ids that a loader gives, in its order."""
    loader = DataLoader(dataset, 3, num_workers=workers, collate_fn=collate, **options)
    return [i for batch in loader for i in batch.ids.tolist()]


def write_mask(path, labels, mode="L"):
    """A mask as PNG: grey, `P` with a palette, or `RGB` with the colour (label, 0, 0)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.asarray(labels, dtype=np.uint8)
    if mode == "RGB":
        Image.fromarray(np.stack([labels, 0 * labels, 0 * labels], axis=2)).save(path)
        return path
    picture = Image.fromarray(labels)
    if mode == "P":
        # All 256 colours: a shorter palette would take bits off the numbers.
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        assert picture.mode == "P"
    picture.save(path)
    return path


def labels_of(number, height=24, width=30, classes=3):
    """(h, w) blocks of classes; each number gives others."""
    rng = np.random.default_rng(number)
    return np.kron(rng.integers(0, classes, (height // 3, width // 3)), np.ones((3, 3), dtype=int))


def make_masks(root, counts, mode="L", images="images/{split}", masks="masks/{split}"):
    """Images with masks of the three classes sky, road and car."""
    write_lines(root / "classes.txt", ["sky", "road", "car"])
    number = 0
    for split, count in counts.items():
        for i in range(count):
            write_image(root / images.format(split=split) / f"{split}_{i}.png", number)
            write_mask(root / masks.format(split=split) / f"{split}_{i}.png", labels_of(number), mode)
            number += 1
    return root


def make_coco(root, objects, split="train", categories=("cat", "dog"), **changes):
    """Images and `instances_SPLIT.json`.

    Args:
        objects: of each image, (x, y, width, height, category's place) and what else an annotation has.
        categories: names; their ids are 7, 17, ….
        changes: keys of the file.
    """
    images, annotations = [], []
    for number, of_image in enumerate(objects, start=1):
        name = f"{split}_{number}.png"
        write_image(root / "images" / split / name, number)
        images.append({"id": number, "file_name": name, "height": 24, "width": 30})
        for x, y, width, height, category, *more in of_image:
            annotation = {
                "id": len(annotations) + 1, "image_id": number, "category_id": 10 * category + 7,
                "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0,
            }  # fmt: skip
            annotations.append(annotation | (more[0] if more else {}))
    named = [{"id": 10 * place + 7, "name": name} for place, name in enumerate(categories)]
    content = {"images": images, "annotations": annotations, "categories": named} | changes
    write_json(root / "annotations" / f"instances_{split}.json", content)
    return root


def make_voc(root, objects):
    """PASCAL VOC's folders.

    Args:
        objects: of each image, (class, xmin, ymin, xmax, ymax) and what else an object has, as XML.
    """
    for number, of_image in enumerate(objects):
        write_image(root / "JPEGImages" / f"{number}.jpg", number)
        text = "".join(
            f"<object><name>{name}</name>{''.join(more)}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, x1, y1, x2, y2, *more in of_image
        )
        size = "<size><width>30</width><height>24</height></size>"
        write_lines(root / "Annotations" / f"{number}.xml", [f"<annotation>{size}{text}</annotation>"])
    write_lines(root / "ImageSets/Main/train.txt", [str(number) for number in range(len(objects))])
    return root


def make_keypoints(root, points, names=("left_eye", "right_eye", "nose"), **changes):
    """Images and `keypoints_train.json`; of each image, the numbers x, y, v of its points."""
    images, annotations = [], []
    for number, numbers in enumerate(points, start=1):
        write_image(root / "images" / f"{number}.png", number)
        images.append({"id": number, "file_name": f"{number}.png", "height": 24, "width": 30})
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "keypoints": numbers, "bbox": [4, 4, 10, 12]}
        )
    categories = [{"id": 1, "name": "face", "keypoints": list(names)}]
    write_json(
        root / "keypoints_train.json",
        {"images": images, "annotations": annotations, "categories": categories} | changes,
    )
    return root
