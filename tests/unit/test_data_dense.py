"""Data sets with masks, boxes and points: batches, subsets, digests, and what stays as it was."""

import pickle

import numpy as np
import pytest
import torch
from data_sets import labels_of, make_coco, make_keypoints, make_masks, opened, write_image, write_mask
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
from difformer.tasks.task import check_labels

OBJECTS = [[(2, 3, 10, 8, 0), (5, 5, 6, 6, 1)], [], [(0, 0, 30, 24, 1)]]


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


class TestConfiguration:
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
        digest = "mine"

        def __init__(self, size=(24, 30)):
            self.size = size

        def __len__(self):
            return 2

        def __call__(self, index):
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
        with pytest.raises(DataError, match=r"image 1 is 24×31 .* but what is said of it is for 24×30"):
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
    with pytest.raises(DataError, match=r"2\.png is 30×24 .* what is said of it is for 24×30"):
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
