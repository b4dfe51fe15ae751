"""WebDataset shards: streamed to any number of processes and workers, or with random access."""

import pickle
import re
from hashlib import sha256

import numpy as np
import pytest
import torch
from data_sets import encoded, ids_of, make_shards, shard_spec, write_shard
from processes import joined, start
from torch.utils.data import DataLoader

from difformer.data import ImageDataset, ShardDataset, collate, create_dataset, read_source

# Sizes that divide by nothing, fewer shards than consumers, and one shard that is smaller than their number.
SIZES = (7, 11, 2)
TOTAL = sum(SIZES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_exactly_once(root, processes, workers):
    everything = create_dataset(shard_spec(root), "train").ids.tolist()
    assert len(set(everything)) == TOTAL
    for augment in (False, True):
        parts = [
            create_dataset(shard_spec(root), augment=augment, process_index=i, num_processes=processes)
            for i in range(processes)
        ]
        seen = [ids_of(part, workers) for part in parts]
        assert sorted(i for part in seen for i in part) == sorted(everything)
        assert [len(part) for part in seen] == [len(part) for part in parts]
        assert max(map(len, seen)) - min(map(len, seen)) <= 1


def test_more_processes_than_samples(root):
    seen = [ids_of(create_dataset(shard_spec(root), process_index=i, num_processes=50)) for i in range(50)]
    assert sum(map(len, seen)) == len({i for part in seen for i in part}) == TOTAL


def write_share(rank, root, folder):
    """What one of two processes reads, without being told which it is but by torch."""
    init = f"file://{folder / 'init'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    ids = ids_of(create_dataset({"name": "webdataset", "root": str(root), "size": 8}, "train"), workers=1)
    (folder / str(rank)).write_text("\n".join(map(str, ids)))
    torch.distributed.destroy_process_group()


def test_processes_of_torch_distributed_divide_it(root, tmp_path):
    runs = [start(write_share, rank, root, tmp_path) for rank in range(2)]
    assert [joined(run) for run in runs] == [0, 0]
    seen = [[int(line) for line in (tmp_path / str(rank)).read_text().splitlines()] for rank in range(2)]
    assert [len(part) for part in seen] == [TOTAL // 2, TOTAL // 2]
    assert sorted(seen[0] + seen[1]) == sorted(create_dataset(shard_spec(root)).ids.tolist())


class TestOrder:
    def test_evaluation_follows_the_shards(self, root):
        dataset = create_dataset(shard_spec(root), augment=False)
        assert ids_of(dataset) == dataset.ids.tolist()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_training_is_shuffled_anew_each_epoch_and_reproducibly(self, root, workers):
        dataset, again = create_dataset(shard_spec(root)), create_dataset(shard_spec(root))
        first = ids_of(dataset, workers)
        assert first != dataset.ids.tolist()
        assert ids_of(dataset, workers) == first
        dataset.set_epoch(1)
        second = ids_of(dataset, workers)
        assert second != first
        again.set_epoch(1)
        assert ids_of(again, workers) == second
        assert ids_of(create_dataset(shard_spec(root, seed=1)), workers) != first

    def test_persistent_workers_see_the_epoch(self, root):
        dataset = create_dataset(shard_spec(root))
        loader = DataLoader(dataset, 3, num_workers=2, persistent_workers=True, collate_fn=collate)
        first, second = ([i for batch in loader for i in batch.ids.tolist()] for _ in range(2))
        assert first == second
        dataset.set_epoch(3)
        third = [i for batch in loader for i in batch.ids.tolist()]
        assert third != first
        assert sorted(third) == sorted(first)


class TestRandomAccess:
    def test_the_same_samples_as_the_stream(self, root):
        stream, places = create_dataset(shard_spec(root)), create_dataset(shard_spec(root, stream=False))
        assert isinstance(stream, ShardDataset)
        assert isinstance(places, ImageDataset)
        there = {sample.id: sample for sample in (places[i] for i in range(len(places)))}
        for sample in stream:
            assert sample.label == there[sample.id].label
            assert torch.equal(sample.image, there[sample.id].image), "augmentation depends on seed, epoch and id alone"

    def test_a_copy_for_a_worker(self, root):
        dataset = create_dataset(shard_spec(root, stream=False))
        assert torch.equal(pickle.loads(pickle.dumps(dataset))[13].image, dataset[13].image)
        stream = create_dataset(shard_spec(root))
        assert ids_of(pickle.loads(pickle.dumps(stream))) == ids_of(stream)


class TestShardNumbersAndDigest:
    def test_shards_of_the_samples(self, root):
        dataset = create_dataset(shard_spec(root, stream=False))
        assert np.bincount(dataset.shards).tolist() == list(SIZES)
        few = create_dataset(shard_spec(root, stream=False, k_shot=2))
        assert few.shards.tolist() == [dataset.shards[dataset.ids.tolist().index(i)] for i in few.ids]

    def test_the_digest_is_of_the_samples(self, tmp_path):
        samples = [("a", 0, encoded(0)), ("b", 1, encoded(1)), ("c", 0, encoded(2))]

        def digest(samples, **changes):
            write_shard(tmp_path / "train-0.tar", samples)
            return create_dataset(shard_spec(tmp_path, stream=False, **changes)).digest

        first = digest(samples)
        assert re.fullmatch("[0-9a-f]{64}", first)
        assert digest(samples) == first
        others = [
            digest(samples, k_shot=1),
            digest(samples, class_names=["x", "y"]),
            digest([("a", 0, encoded(0)), ("b", 1, encoded(9)), ("c", 0, encoded(2))]),
            digest([("a", 1, encoded(0)), ("b", 1, encoded(1)), ("c", 0, encoded(2))]),
            digest([("A", 0, encoded(0)), ("b", 1, encoded(1)), ("c", 0, encoded(2))]),
            digest(samples[::-1]),
        ]
        assert len({first, *others}) == 7


def test_what_printing_shows(root):
    assert re.fullmatch(
        rf"ImageDataset\(webdataset train in {root}: 6 images, 3 classes, subset \{{'k_shot': 2\}}\)",
        repr(create_dataset(shard_spec(root, stream=False, k_shot=2))),
    )
    shown = repr(create_dataset(shard_spec(root), process_index=1, num_processes=2))
    assert shown == f"ShardDataset(webdataset train in {root}, process 1 of 2: 10 images, 3 classes)"
    assert repr(read_source(shard_spec(root), "train")) == f"Source(webdataset train in {root}: 20 images, 3 classes)"


class TestIds:
    def test_they_stay_when_shards_are_packed_anew(self, root, tmp_path):
        make_shards(tmp_path, (5, 5, 5, 5))
        assert create_dataset(shard_spec(tmp_path)).ids.tolist() == create_dataset(shard_spec(root)).ids.tolist()

    def test_they_are_63_bits_and_fixed(self, root):
        ids = create_dataset(shard_spec(root)).ids
        assert ids.dtype == np.int64
        assert (ids >= 0).all()
        # The first 63 bits of the SHA-256 of "000000".
        assert ids[0] == int(sha256(b"000000").hexdigest()[:16], 16) >> 1

    def test_shards_that_repeat_keys(self, tmp_path, caplog):
        for i in range(2):
            write_shard(tmp_path / f"train-{i}.tar", [("0", 0, encoded(0)), ("1", 1, encoded(1))])
        dataset = create_dataset(shard_spec(tmp_path))
        assert len(set(dataset.ids.tolist())) == 4
        assert "2 sample keys are in several shards" in caplog.text


class TestSubsets:
    def test_few_shot_of_a_stream(self, root):
        dataset = create_dataset(shard_spec(root, k_shot=2))
        assert np.bincount(dataset.labels).tolist() == [2, 2, 2]
        parts = [ids_of(create_dataset(shard_spec(root, k_shot=2), process_index=i, num_processes=2)) for i in range(2)]
        assert sorted(parts[0] + parts[1]) == sorted(dataset.ids.tolist())
        assert len(dataset.subset.indices) == 6

    def test_holdout_of_a_stream(self, root):
        train, held = (create_dataset(shard_spec(root, holdout=0.25), split) for split in ("train", "holdout"))
        assert len(held) == 5
        assert sorted(ids_of(train) + ids_of(held)) == sorted(create_dataset(shard_spec(root)).ids.tolist())

    def test_a_list_of_keys(self, root, tmp_path):
        (tmp_path / "list.txt").write_text("000003.png\n000012.png\n")
        assert len(create_dataset(shard_spec(root, list_file=str(tmp_path / "list.txt")))) == 2
