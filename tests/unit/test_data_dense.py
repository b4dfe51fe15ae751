"""Data sets with masks, boxes and points: batches, subsets, digests, and what stays as it was."""

import json
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_sets import labels_of, make_coco, make_keypoints, make_masks, opened, write_image, write_json, write_mask
from PIL import Image
from torch.utils.data import DataLoader

from difformer.config.reading import plain
from difformer.data import (
    Boxes,
    DataConfig,
    DataError,
    DenseBatch,
    Mask,
    Source,
    collate,
    create_dataset,
    read_source,
    transform_description,
)
from difformer.tasks.classification.task import Classification
from difformer.tasks.registry import check_labels

OBJECTS = [[(2, 3, 10, 8, 0), (5, 5, 6, 6, 1)], [], [(0, 0, 30, 24, 1)]]
# Of data sets with classes: whether for training, what is given, and of the description the name, resize and seed.
CLASSES = [
    (False, {}, ("none", 32, None)),
    (False, {"resize": 40}, ("none", 40, None)),
    (False, {"augmentation": "crop", "resize": 40}, ("none", 40, None)),
    (False, {"augmentation": "shift", "resize": 40}, ("none", 40, None)),
    (False, {"augmentation": "none", "resize": 40}, ("none", 40, None)),
    (False, {"augmentation": "flip"}, ("none", 32, None)),
    (False, {"size": [16, 24], "resize": 20}, ("none", 20, None)),
    (True, {}, ("published", [32, 40], 0)),
    (True, {"resize": 40}, ("published", [32, 40], 0)),
    (True, {"augmentation": "crop", "resize": 40}, ("crop", None, 0)),
    (True, {"augmentation": "shift", "resize": 40}, ("shift", 40, 0)),
    (True, {"augmentation": "none", "resize": 40}, ("none", 40, None)),
    (True, {"augmentation": "flip"}, ("flip", None, 0)),
    (True, {"size": [16, 24], "resize": 20}, ("published", [16, 20], 0)),
]


@pytest.fixture(autouse=True)
def cache(anywhere):
    """Digests of images are remembered there."""


@pytest.fixture
def root(tmp_path):
    return make_masks(tmp_path / "roads", {"train": 10, "val": 2})


def roads(root, split="train", **changes):
    return create_dataset({"name": "masks", "root": str(root), "size": 16} | changes, split)


class TestBatches:
    def test_masks_are_stacked(self, root):
        batch = next(iter(DataLoader(roads(root), batch_size=3, collate_fn=collate)))
        assert isinstance(batch, DenseBatch)
        assert batch.images.shape == (3, 3, 16, 16)
        assert batch.labels.shape == (3, 16, 16)
        assert batch.labels.dtype == torch.int64
        assert batch.ids.tolist() == [0, 1, 2]
        assert batch.origins == (None, None, None)

    def test_boxes_and_points_stay_records(self, tmp_path):
        boxes = opened("coco", make_coco(tmp_path / "a", OBJECTS), "train")
        batch = collate([boxes[i] for i in range(3)])
        assert batch.images.shape == (3, 3, 16, 16)
        assert [type(label) for label in batch.labels] == [Boxes] * 3
        points = opened("points", make_keypoints(tmp_path / "b", [[1, 1, 2] * 3] * 2), "train")
        assert len(collate([points[0], points[1]]).labels) == 2

    def test_annotations_travel_to_workers(self, tmp_path):
        sets = {"coco": make_coco(tmp_path / "a", OBJECTS), "points": make_keypoints(tmp_path / "b", [[1, 1, 2] * 3])}
        for name, root in sets.items():
            dataset = opened(name, root, "train")
            (batch,) = DataLoader(dataset, 3, collate_fn=collate, num_workers=1)
            for i, label in enumerate(batch.labels):
                assert vars(label).keys() == vars(dataset[i].label).keys()
                for key, value in vars(label).items():
                    other = vars(dataset[i].label)[key]
                    assert torch.equal(value, other) if torch.is_tensor(value) else value == other

    def test_evaluation_knows_the_way_back(self, root):
        batch = collate(list(roads(root, "val")))
        for i, origin in enumerate(batch.origins):
            assert torch.equal(origin.target.labels, torch.from_numpy(labels_of(10 + i)).byte())
            assert origin.maps(torch.zeros(5, 4, 4), (16, 16)).shape == (5, 24, 30)

    def test_images_of_several_sizes(self, root):
        write_image(root / "images/val/val_1.png", 1, height=27, width=30)
        write_mask(root / "masks/val/val_1.png", labels_of(1, height=27))
        dataset = roads(root, "val", fit="keep")
        assert dataset[1].image.shape == (3, 27, 30)
        with pytest.raises(ValueError, match=r"one size, got \[\(24, 30\), \(27, 30\)\]; read them one by one"):
            collate([dataset[0], dataset[1]])

    def test_workers_give_the_same(self, root):
        dataset = roads(root)
        alone = list(DataLoader(dataset, 4, collate_fn=collate))
        workers = list(DataLoader(dataset, 4, collate_fn=collate, num_workers=2))
        for one, other in zip(alone, workers, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].image, dataset[3].image)


def test_epochs_and_seeds_move_image_and_mask(root):
    dataset = roads(root)
    first = dataset[0]
    dataset.set_epoch(1)
    other = dataset[0]
    assert not torch.equal(first.image, other.image)
    dataset.set_epoch(0)
    assert torch.equal(dataset[0].label.labels, first.label.labels)
    assert not torch.equal(roads(root, seed=1)[0].image, first.image)


class TestSubsets:
    def test_images_are_drawn(self, root):
        assert len(roads(root, k_shot=3)) == 3
        assert len(roads(root, percent=50)) == 5
        train, holdout = roads(root, holdout=0.2), roads(root, "holdout", holdout=0.2)
        assert (len(train), len(holdout)) == (8, 2)
        assert sorted([*train.ids, *holdout.ids]) == list(range(10))
        assert set(roads(root, k_shot=3).ids) < set(roads(root, k_shot=5).ids)
        assert set(roads(root, k_shot=3, seed=1).ids) != set(roads(root, k_shot=3).ids)

    def test_a_saved_subset_is_of_this_version(self, root):
        subset = roads(root, k_shot=3).subset
        assert create_dataset({"name": "masks", "root": str(root), "size": 16}, subset=subset).ids.tolist() == list(
            subset.indices
        )

    def test_a_list_file(self, root, tmp_path):
        (tmp_path / "list.txt").write_text("train_3.png\nimages/train/train_5.png\n")
        assert roads(root, list_file=str(tmp_path / "list.txt")).ids.tolist() == [3, 5]

    @pytest.mark.parametrize("changes", [{"holdout": 0.3}, {"test_fraction": 0.3}])
    def test_objects_of_one_image_stay_together(self, tmp_path, changes):
        names = (
            self.people(tmp_path, "train", **changes),
            self.people(tmp_path, "holdout" if "holdout" in changes else "test", **changes),
        )
        images = [set(part) for part in names]
        assert not images[0] & images[1]
        assert [len(part) for part in images] == [7, 3]
        assert [len(part) for part in names] == [14, 6], "each has two people"

    def test_images_of_several_objects_are_drawn(self, tmp_path):
        assert len(set(self.people(tmp_path, k_shot=3))) == len(self.people(tmp_path, k_shot=3)) / 2 == 3
        assert len(set(self.people(tmp_path, percent=40))) == len(self.people(tmp_path, percent=40)) / 2 == 4
        (tmp_path / "list.txt").write_text("3.png\nimages/5.png\n")
        assert sorted(set(self.people(tmp_path, list_file=str(tmp_path / "list.txt")))) == [
            "images/3.png",
            "images/5.png",
        ]

    def test_a_saved_subset_of_people(self, tmp_path):
        dataset = self.opened(tmp_path, "train", k_shot=3, holdout=0.2)
        again = create_dataset(self.config(tmp_path, holdout=0.2), "train", subset=dataset.subset)
        assert again.names == dataset.names
        with pytest.raises(DataError, match="are not among those to choose from"):
            create_dataset(self.config(tmp_path, holdout=0.2), "holdout", subset=dataset.subset)

    def config(self, root, **changes):
        return {"name": "points", "root": str(root), "size": 16, "box_scale": 1.2} | changes

    def opened(self, root, split, **changes):
        """Ten images of two people; the second ones are at the end of the file."""
        make_keypoints(root, [[1, 1, 2] * 3] * 20)
        content = json.loads((root / "keypoints_train.json").read_text())
        for place, one in enumerate(content["annotations"]):
            one["image_id"] = place % 10 + 1
        content["images"] = content["images"][:10]
        write_json(root / "keypoints_train.json", content)
        return create_dataset(self.config(root, **changes), split)

    def people(self, root, split="train", **changes):
        return self.opened(root, split, **changes).names

    def test_parts(self, root):
        part = roads(root).part(np.asarray([4, 2]))
        assert part.ids.tolist() == [4, 2]
        assert part.target_type is Mask


class TestDigests:
    def test_an_edited_mask_is_seen(self, root):
        before = roads(root).digest, roads(root).former_digest
        labels = labels_of(3)
        labels[0, 0] = (labels[0, 0] + 1) % 3
        write_mask(root / "masks/train/train_3.png", labels)
        assert roads(root).digest != before[0]
        assert roads(root).former_digest != before[1]
        write_mask(root / "masks/train/train_3.png", labels_of(3))
        assert roads(root).digest == before[0]

    def test_an_edited_box_and_point_are_seen(self, tmp_path):
        moved = [[(2, 3, 10, 8, 0), (5, 5, 6, 7, 1)], *OBJECTS[1:]]
        sources = [
            read_source({"name": "coco", "root": str(make_coco(tmp_path / str(i), objects))}, "train").digest
            for i, objects in enumerate((OBJECTS, OBJECTS, moved))
        ]
        assert sources[0] == sources[1] != sources[2]
        faces = [
            read_source({"name": "points", "root": str(make_keypoints(tmp_path / f"p{i}", [points]))}, "train").digest
            for i, points in enumerate(([1, 1, 2] * 3, [1, 1, 2] * 3, [1, 1, 2] * 2 + [1, 1, 0]))
        ]
        assert faces[0] == faces[1] != faces[2]

    def test_what_the_numbers_of_a_mask_mean_counts(self, root):
        digest = read_source({"name": "masks", "root": str(root)}, "train").digest
        (root / "classes.txt").write_text("0 0 0 sky\n1 1 1 road\n2 2 2 car\n")
        assert read_source({"name": "masks", "root": str(root)}, "train").digest != digest

    def test_masks_are_known_by_their_files(self, root, monkeypatch):
        from difformer.data import identity

        for name in ("_SETTLED", "_WORTH_BYTES"):
            monkeypatch.setattr(identity, name, 0)
        read = []
        monkeypatch.setattr(identity, "_content_bytes", lambda content: read.append(content) or content.read_bytes())
        digest = roads(root).digest
        assert len(read) == 10
        write_mask(root / "masks/train/train_3.png", labels_of(4))
        assert roads(root).digest != digest
        assert len(read) == 11, "the one whose mask changed"


class TestDescription:
    def test_what_inputs_depend_on(self):
        base = DataConfig("masks", size=32)
        keys = [
            base, DataConfig("masks", size=32, resize=48), DataConfig("masks", size=32, scales=(1, 2)),
            DataConfig("masks", size=32, category_ratio=1), DataConfig("masks", size=32, augmentation="jitter"),
            DataConfig("masks", size=32, fit="pad"), DataConfig("masks", size=32, seed=1),
        ]  # fmt: skip
        augmented = [str(transform_description(config, True)) for config in keys]
        assert len(set(augmented)) == len(keys)
        evaluation = [str(transform_description(config, False)) for config in keys]
        assert len(set(evaluation)) == 3, "the size, resize and fit count"

    def test_classes_are_described_as_before(self):
        assert transform_description({"name": "folder", "size": 32}, True) == {
            "name": "published", "size": 32, "resize": [32, 40], "random_erasing": 0.0, "seed": 0,
        }  # fmt: skip

    def test_a_data_set_of_ones_own(self):
        own = transform_description({"name": "mine.sets:reader", "size": 32, "fit": "pad"}, False)
        assert own["fit"] == "pad"

    @pytest.mark.parametrize("name", ["masks", "coco", "mine.sets:reader"])
    def test_the_native_size_is_not_a_short_side_of_the_size(self, name):
        kept = {"name": name, "size": 32, "fit": "keep"}
        for augment in (False, True):
            native, scaled = (transform_description(kept | {"resize": side}, augment) for side in (None, 32))
            assert native != scaled

    def test_a_window_of_a_data_set_of_ones_own(self):
        base = {"name": "mine.sets:reader", "size": 32}
        for changes, dense in (({"scales": (1, 2)}, None), ({"fit": "pad"}, None), ({}, True)):
            one, other = (
                transform_description(base | changes | {"resize": side}, True, dense=dense) for side in (None, 48)
            )
            assert one != other

    @pytest.mark.parametrize("dense", [None, False])
    @pytest.mark.parametrize("name", ["folder", "mine.sets:reader"])
    def test_classes_keep_their_bytes(self, name, dense):
        """Caches have them in their keys."""
        for augment, changes, expected in CLASSES:
            described = transform_description({"name": name, "size": 32} | changes, augment, dense=dense)
            augmentation, resize, seed = expected
            written = {"name": augmentation, "size": changes.get("size", 32), "resize": resize, "random_erasing": 0.0}
            assert json.dumps(described) == json.dumps(written | {"seed": seed})


class TestConfiguration:
    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("folder", {"fit": "pad"}), ("cifar10", {"scales": (1, 2)}), ("webdataset", {"box_scale": 1.2}),
            ("pairs", {"fit": "keep"}), ("voc", {"object_masks": True}), ("masks", {"annotation_file": "x.json"}),
            ("voc_segmentation", {"on_bad_box": "skip"}), ("coco", {"category_ratio": 0.5}),
            ("coco", {"flip_pairs": {}}),
        ],
    )  # fmt: skip
    def test_what_a_data_set_does_not_read_is_refused(self, name, changes):
        (key,) = changes
        with pytest.raises(DataError, match=rf"{name}: {key} is for .*data sets of your own, .*leave {key} out"):
            read_source({"name": name, "root": "nowhere"} | changes, "train")

    def test_a_data_set_of_ones_own_may_read_anything(self, monkeypatch, root):
        given = []
        source = read_source({"name": "masks", "root": str(root)}, "train")
        monkeypatch.setitem(
            sys.modules, "mine", SimpleNamespace(reader=lambda config, split: given.append(config) or source)
        )
        options = {"fit": "pad", "box_scale": 1.2, "annotation_file": "x", "object_masks": True, "flip_pairs": {}}
        assert read_source({"name": "mine:reader"} | options, "train") is source
        assert (given[0].annotation_file, given[0].box_scale) == ("x", 1.2)

    def test_a_recipe_of_before_is_written_as_before(self):
        assert set(plain(DataConfig("folder"))) == {
            "name", "root", "splits", "class_names", "holdout", "test_fraction", "k_shot", "percent", "list_file",
            "seed", "split_seed", "on_bad_image", "check_images", "size", "resize", "augmentation", "random_erasing",
            "stream", "shuffle_buffer", "configuration", "image_column", "label_column", "first_label", "download",
        }  # fmt: skip
        assert plain(DataConfig("masks", fit="pad"))["fit"] == "pad"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fit": "crop"}, "fit must be one of stretch, pad, keep, got 'crop'"),
            ({"on_bad_box": "ignore"}, "on_bad_box must be one of raise, skip"),
            ({"object_masks": "yes"}, "object_masks must be true or false"),
            ({"annotation_file": ""}, "annotation_file must be a word"),
            ({"scales": 2}, "scales must be two numbers"),
            ({"scales": (2, 1)}, "scales must be above 0 and in order"),
            ({"scales": (0, 1)}, "every entry of scales must be a finite number above 0, got 0"),
            ({"scales": ("a", 1)}, "every entry of scales must be a finite number above 0"),
            ({"category_ratio": 0}, "category_ratio must be a number above 0"),
            ({"category_ratio": float("nan")}, "category_ratio must be a number above 0"),
            ({"box_scale": 0}, "box_scale must be a number above 0"),
            ({"flip_pairs": [["a", "b"]]}, "flip_pairs must map names"),
        ],
    )
    def test_bad_values(self, changes, message):
        with pytest.raises(ValueError, match=message):
            DataConfig(**({"name": "masks"} | changes))


class TestOwnReader:
    """What a reader of one's own must give."""

    class Annotations:
        kind, digest = Mask, "mine"

        def __init__(self, size=(24, 30)):
            self.size = size

        def __len__(self):
            return 2

        def __call__(self, index, size=None):
            return Mask(torch.full(self.size, index, dtype=torch.uint8))

        def files(self, index):
            return ()

    def source(self, root, annotations):
        images = read_source({"name": "masks", "root": str(root)}, "val")
        return Source("mine", [], ("a", "b"), images.content, annotations=annotations)

    def test_a_source_with_annotations(self, root):
        source = self.source(root, self.Annotations())
        assert source.labels.tolist() == [0, 0]
        assert source.label(0).size == (24, 30)
        assert source.label(1, (24, 30)).labels.unique().tolist() == [1]
        with pytest.raises(DataError, match=r"image 1 is 24×31 .* but its annotation says 24×30"):
            source.label(1, (24, 31))

    def test_numbers_that_differ(self, root):
        source = read_source({"name": "masks", "root": str(root)}, "train")
        with pytest.raises(DataError, match="10 images need as many annotations, got 2"):
            Source("mine", source.labels, ("a",), source.content, annotations=self.Annotations())


def test_a_transform_of_ones_own(root):
    def halves(image, target, rng):
        return torch.zeros(3, 12, 15), target.resize(12, 15), None

    dataset = create_dataset({"name": "masks", "root": str(root), "size": 16}, transform=halves)
    assert dataset[0].label.size == (12, 15)


@pytest.mark.parametrize("name", ["coco", "points"])
def test_boxes_and_points_are_of_the_upright_image(tmp_path, name):
    root = make_coco(tmp_path, OBJECTS) if name == "coco" else make_keypoints(tmp_path, [[1, 1, 2] * 3] * 2)
    path = root / ("images/train/train_2.png" if name == "coco" else "images/2.png")
    upright, exif = Image.open(path).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    sample = opened(name, root, "train", size=[24, 30], augmentation="none")[1]
    assert torch.equal(sample.image, torch.from_numpy(np.asarray(upright).copy()).permute(2, 0, 1) / 127.5 - 1)
    upright.save(path, exif=exif)
    with pytest.raises(DataError, match=r"2\.png is 30×24 .*_train\.json says 24×30"):
        opened(name, root, "train")


def test_a_task_of_classes_is_refused(root):
    with pytest.raises(ValueError, match="has a Mask an image, which the task Classification does not predict"):
        check_labels(Classification(), roads(root))


def test_an_image_that_cannot_be_read(root):
    (root / "images/train/train_3.png").write_text("no image")
    with pytest.raises(ValueError, match=r"train_3\.png cannot be read as an image"):
        roads(root)
    dataset = roads(root, on_bad_image="skip")
    assert (len(dataset), dataset.skipped.tolist()) == (9, [3])
