"""The feature cache on the disk, without extraction."""

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from difformer import FeatureKey
from difformer.features import CachedFeatures, FeatureCacheError, collate_features
from difformer.features import shards as shards_module
from difformer.features.shards import CacheManifest, Shard, is_whole, remove_stale, shard_path, write_shard

A, B = FeatureKey("mid", 90), FeatureKey("out04", 150)
SHAPES = {B: (3, 4, 4), A: (5, 2, 2)}
IMAGES, SHARD = 10, 4


def manifest(**changes):
    arguments = {
        "identity": {"split": "train"}, "images": IMAGES, "shard_size": SHARD, "shapes": SHAPES,
        "dtype": torch.bfloat16, "class_names": ("a", "b", "ä"),
    }  # fmt: skip
    return CacheManifest(**arguments | changes)


def content(view, rows, dtype=torch.bfloat16):
    """Features that say where they belong: the view in the first channel, the row in the second."""
    features = {}
    for key, shape in SHAPES.items():
        features[key] = torch.randn(len(rows), *shape, generator=torch.Generator().manual_seed(view)).to(dtype)
        features[key][:, 0] = view
        features[key][:, 1] = torch.tensor(list(rows), dtype=dtype)[:, None, None]
    ids = torch.tensor([100 + row for row in rows])
    return features, ids % 3, ids


def make(folder, views=2, **changes):
    it = manifest(**changes)
    it.write(folder)
    for view in range(views):
        for shard in range(it.num_shards):
            write_shard(folder, it, view, shard, *content(view, it.rows(shard), it.dtype))
    return it


class TestManifest:
    def test_it_comes_back(self, tmp_path):
        manifest().write(tmp_path)
        again = CacheManifest.read(tmp_path)
        assert again.digest == manifest().digest
        assert (again.shapes, again.dtype, again.class_names) == (SHAPES, torch.bfloat16, ("a", "b", "ä"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"identity": {"split": "val"}},
            {"images": 11},
            {"shard_size": 5},
            {"shapes": SHAPES | {A: (5, 2, 3)}},
            {"shapes": {A: SHAPES[A]}},
            {"dtype": torch.float16},
            {"class_names": ("a", "b", "c")},
        ],
    )
    def test_everything_in_it_is_in_the_digest(self, changes):
        assert manifest(**changes).digest != manifest().digest

    def test_the_order_of_features_is_not(self):
        assert manifest(shapes={A: SHAPES[A], B: SHAPES[B]}).digest == manifest().digest

    @pytest.mark.parametrize(("old", "new"), [('"train"', '"val"'), ("10", "9"), ('"mid"', "7"), ("{", ""), ("ä", "o")])
    def test_damage_is_noticed(self, tmp_path, old, new):
        manifest().write(tmp_path)
        path = tmp_path / "manifest.json"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(FeatureCacheError, match=r"manifest\.json is damaged"):
            CachedFeatures(tmp_path)

    def test_another_version_and_no_cache(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"not a feature cache: it has no manifest\.json"):
            CachedFeatures(tmp_path)
        manifest().write(tmp_path)
        path = tmp_path / "manifest.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises(FeatureCacheError, match=r"difformer\.features 2; this version of difformer reads"):
            CachedFeatures(tmp_path)

    def test_shards_divide_the_images(self):
        it = manifest()
        assert [list(it.rows(s)) for s in range(it.num_shards)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert it.image_bytes == 2 * (3 * 16 + 5 * 4) + 16


class TestReading:
    def test_every_row_of_every_view(self, tmp_path):
        make(tmp_path)
        cached = CachedFeatures(tmp_path)
        assert (len(cached), cached.views, cached.missing) == (IMAGES, 2, 0)
        assert cached.ids.tolist() == list(range(100, 110))
        assert cached.labels.tolist() == [number % 3 for number in range(100, 110)]
        for epoch in (0, 1, 2, 5):
            cached.set_epoch(epoch)
            for place in (9, 0, 3, 4, -1):
                sample = cached[place]
                assert (sample.id, sample.label) == (100 + place % IMAGES, (100 + place % IMAGES) % 3)
                for key, shape in SHAPES.items():
                    assert sample.features[key].shape == shape
                    assert sample.features[key].dtype == torch.bfloat16
                    assert (sample.features[key][0] == epoch % 2).all()
                    assert (sample.features[key][1] == place % IMAGES).all()

    def test_values_are_those_written(self, tmp_path):
        make(tmp_path, dtype=torch.float32)
        cached = CachedFeatures(tmp_path)
        features, _, _ = content(0, range(4, 8), torch.float32)
        for key in SHAPES:
            assert torch.equal(torch.stack([cached[place].features[key] for place in range(4, 8)]), features[key])

    def test_places_out_of_range(self, tmp_path):
        make(tmp_path)
        cached = CachedFeatures(tmp_path)
        for place in (IMAGES, -IMAGES - 1):
            with pytest.raises(IndexError):
                cached[place]
        with pytest.raises(ValueError, match="the epoch must not be negative, got -1"):
            cached.set_epoch(-1)
        with pytest.raises(ValueError, match="views must be at least 1, got 0"):
            CachedFeatures(tmp_path, views=0)

    def test_fewer_views_than_there_are(self, tmp_path):
        make(tmp_path, views=3)
        assert CachedFeatures(tmp_path).views == 3
        cached = CachedFeatures(tmp_path, views=2)
        cached.set_epoch(2)
        assert (cached[0].features[A][0] == 0).all()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_in_a_data_loader_whose_workers_follow_the_epoch(self, tmp_path, workers):
        make(tmp_path)
        cached = CachedFeatures(tmp_path)
        loader = DataLoader(
            cached, batch_size=4, collate_fn=collate_features, num_workers=workers, persistent_workers=workers > 0
        )
        for epoch in range(3):
            cached.set_epoch(epoch)
            batches = list(loader)
            assert [len(batch.ids) for batch in batches] == [4, 4, 2]
            assert torch.cat([batch.ids for batch in batches]).tolist() == cached.ids.tolist()
            assert torch.cat([batch.labels for batch in batches]).tolist() == cached.labels.tolist()
            assert batches[0].features[B].shape == (4, 3, 4, 4)
            assert all((batch.features[B][:, 0] == epoch % 2).all() for batch in batches)

    def test_it_can_be_pickled_while_open(self, tmp_path):
        make(tmp_path)
        cached = CachedFeatures(tmp_path)
        cached[0]
        again = pickle.loads(pickle.dumps(cached))
        assert torch.equal(again[5].features[A], cached[5].features[A])

    def test_it_is_read_to_the_cpu_whatever_the_default(self, tmp_path):
        make(tmp_path)
        with torch.device("meta"):
            cached = CachedFeatures(tmp_path)
            cached.verify()
            batch = collate_features([cached[0], cached[9]])
        assert batch.ids.tolist() == [100, 109]
        assert batch.labels.tolist() == [1, 1]
        assert batch.features[A].equal(torch.stack([cached[0].features[A], cached[9].features[A]]))

    def test_rows_left_out_where_images_could_not_be_read(self, tmp_path):
        it = make(tmp_path, views=1)
        write_shard(tmp_path, it, 0, 1, *content(0, [5, 7]))
        cached = CachedFeatures(tmp_path)
        assert (len(cached), cached.missing) == (8, 2)
        assert cached.ids.tolist() == [100, 101, 102, 103, 105, 107, 108, 109]
        assert [int(cached[place].features[A][1, 0, 0]) for place in range(8)] == [0, 1, 2, 3, 5, 7, 8, 9]
        assert [part.tolist() for part in cached.shard_numbers(1)] == [[105, 107], [105 % 3, 107 % 3]]

    def test_views_of_different_images_are_refused(self, tmp_path):
        it = make(tmp_path)
        write_shard(tmp_path, it, 1, 1, *content(1, [5, 7]))
        with pytest.raises(FeatureCacheError, match=r"view-01-shard-00001\.safetensors holds other images than view 0"):
            CachedFeatures(tmp_path)


class TestDamage:
    def test_the_same_content_gives_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            make(tmp_path / name)
        for path in (tmp_path / "a").iterdir():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()

    def test_a_missing_shard(self, tmp_path):
        it = make(tmp_path)
        cached = CachedFeatures(tmp_path)
        path = shard_path(tmp_path, 1, 2)
        path.unlink()
        assert not is_whole(tmp_path, it, 1, 2)
        cached.set_epoch(1)
        for use in (lambda: cached[9], lambda: CachedFeatures(tmp_path, views=2), cached.verify):
            with pytest.raises(FeatureCacheError, match=r"view-01-shard-00002\.safetensors is missing; extract again"):
                use()
        assert CachedFeatures(tmp_path).views == 1

    @pytest.mark.parametrize("kept", [0, 5, 100, 700, -1])
    def test_a_truncated_shard(self, tmp_path, kept):
        it = make(tmp_path)
        path = shard_path(tmp_path, 0, 1)
        path.write_bytes(path.read_bytes()[:kept])
        assert not is_whole(tmp_path, it, 0, 1)
        with pytest.raises(FeatureCacheError, match=r"view-00-shard-00001\.safetensors is truncated or damaged"):
            CachedFeatures(tmp_path)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_shard_that_is_cut_off_while_it_is_read(self, tmp_path, workers):
        """An error, where a mapped file would end the process."""
        make(tmp_path, views=1)
        cached = CachedFeatures(tmp_path)
        loader = DataLoader(cached, batch_size=1, collate_fn=collate_features, num_workers=workers)
        batches = iter(loader)
        next(batches)
        for shard in range(3):
            os.truncate(shard_path(tmp_path, 0, shard), 100)
        with pytest.raises(FeatureCacheError, match=r"was truncated while in use|is truncated or damaged"):
            list(batches)
        with pytest.raises(FeatureCacheError, match="view-00-shard-00000"):
            cached.verify()

    def test_any_flipped_byte_is_found(self, tmp_path):
        it = make(tmp_path)
        CachedFeatures(tmp_path).verify()
        path = shard_path(tmp_path, 0, 2)
        whole = path.read_bytes()
        for place in range(0, len(whole), 37):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
            with pytest.raises(FeatureCacheError, match=r"view-00-shard-00002\.safetensors is"):
                Shard(tmp_path, it, 0, 2).verify()
        path.write_bytes(whole)
        done = []
        CachedFeatures(tmp_path).verify(done.append)
        assert done == [4, 4, 2] * 2

    def test_a_shard_in_the_place_of_another(self, tmp_path):
        it = make(tmp_path)
        shard_path(tmp_path, 0, 1).write_bytes(shard_path(tmp_path, 0, 0).read_bytes())
        assert not is_whole(tmp_path, it, 0, 1)
        with pytest.raises(FeatureCacheError, match="a shard of another cache or place"):
            CachedFeatures(tmp_path)

    def test_a_shard_of_another_cache(self, tmp_path):
        it = make(tmp_path)
        other = manifest(identity={"split": "val"})
        write_shard(tmp_path, other, 0, 0, *content(0, other.rows(0)))
        assert not is_whole(tmp_path, it, 0, 0)

    def test_a_shard_of_other_shapes(self, tmp_path):
        it = make(tmp_path, views=1)
        features, labels, ids = content(0, it.rows(0))
        for wrong in (
            (features | {A: features[A][:, :, :1]}, labels, ids),
            (features, labels[:3], ids),
            content(0, range(SHARD + 1)),
        ):
            write_shard(tmp_path, it, 0, 0, *wrong)
            assert not is_whole(tmp_path, it, 0, 0)
            with pytest.raises(FeatureCacheError, match="of other shapes than expected"):
                CachedFeatures(tmp_path, views=1)

    def test_a_foreign_file(self, tmp_path):
        make(tmp_path)
        header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
        shard_path(tmp_path, 0, 0).write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(FeatureCacheError, match="truncated or damaged"):
            CachedFeatures(tmp_path)

    def test_a_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        it = manifest()

        def fail(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shards_module, "save_file", fail)
        with pytest.raises(OSError, match="No space left"):
            write_shard(tmp_path, it, 0, 0, *content(0, it.rows(0)))
        assert list(tmp_path.iterdir()) == []

    def test_writers_at_once(self, tmp_path):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: make(tmp_path), range(8)))
        CachedFeatures(tmp_path, views=2).verify()
        assert len(list(tmp_path.iterdir())) == 2 * 3 + 1

    def test_what_was_left_half_written_long_ago_is_removed(self, tmp_path, monkeypatch):
        make(tmp_path)
        before = sorted(path.name for path in tmp_path.iterdir())
        for name in (".view-00-shard-00000.safetensors.abc.tmp", ".tmpabc"):
            (tmp_path / name).write_bytes(b"half")
        remove_stale(tmp_path)
        assert len(list(tmp_path.iterdir())) == len(before) + 2
        monkeypatch.setattr(shards_module, "_STALE_SECONDS", -1)
        remove_stale(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        CachedFeatures(tmp_path, views=2).verify()
