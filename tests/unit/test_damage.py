"""Files that are read back after a crash, with a bit flipped or cut off anywhere: they are refused or as they were."""

import contextlib
import random
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from difformer import CheckpointError, FeatureKey
from difformer.engine.loop import state as state_module
from difformer.engine.loop.state import Progress, TrainingState
from difformer.engine.runtime.result_folder import read_measurements, table_digests
from difformer.engine.runtime.run_folder import RunFolder
from difformer.features.shards import CacheManifest, FeatureCacheError, Shard, shard_path, write_shard
from difformer.files import read_json, sealed
from difformer.taps import TapSpec
from difformer.verbs.quickstart.methods import seconds_of
from difformer.verbs.sweep.scores import Score
from difformer.verbs.sweep.sweep import _read_scores

# Changes of each file, two thirds of them flips.
COUNTS = [150, pytest.param(3000, marks=pytest.mark.slow)]
RECORDS = [{"epoch": epoch, "train_loss": 1 / epoch, "validation_top1": 0.1 * epoch} for epoch in (1, 2, 3)]
RESULTS = {"epochs": 3, "seed": 0, "last": RECORDS[-1], "test": {"top1": 0.75, "confusion": [[3, 1], [0, 4]]}}


def changed(content, count):
    """The content with one bit flipped, or cut off, at random places; the last byte and the empty file among them."""
    rng = random.Random(0)
    for number in range(count):
        if number % 3 == 2:
            yield content[: len(content) - 1 if number == 2 else 0 if number == 5 else rng.randrange(len(content))]
        else:
            place = rng.randrange(8 * len(content))
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
            yield bytes(damaged)


def outcomes(file, read, count):
    """What reading a file gives for each change: whether it is refused in order. Whatever loads must be as it was."""
    content, whole = file.read_bytes(), read()
    found = Counter()
    for damaged in changed(content, count):
        file.write_bytes(damaged)
        try:
            result = read()
        except (ValueError, OSError) as error:
            found["refused" if str(file.parent) in str(error) else "refused without its name"] += 1
        else:
            assert result == whole, "silently altered"
            found["as it was"] += 1
    file.write_bytes(content)
    assert read() == whole
    assert found.total() == count
    assert not found["refused without its name"]
    print(f"{file.name}: {dict(found)}")
    return found


def training_state():
    generator = torch.Generator().manual_seed(0)
    weights = {"head.weight": torch.randn(8, 16, generator=generator), "head.bias": torch.randn(8, generator=generator)}
    return TrainingState(
        recipe={"training": {"epochs": 3}},
        sources={"training images": "0123"},
        progress=Progress(epoch=2, images=72, best=0.25, best_epoch=1),
        weights=weights,
        optimizer={"state": {0: {"momentum_buffer": weights["head.weight"] / 2}}, "param_groups": [{"lr": 0.1}]},
        task={"kept": {"weights": weights, "record": RECORDS[0]}},
        history=RECORDS[:2],
    )


def comparable(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("version", [1, 2])
def test_training_states(tmp_path, monkeypatch, version, count):
    """Those of version 1, without a digest, have checksums of their parts."""
    file = tmp_path / "state.pt"
    if version == 1:
        monkeypatch.setattr(state_module, "FORMAT_VERSION", 1)
        monkeypatch.setattr(state_module, "_seal", lambda archive: None)
    training_state().save(file)
    monkeypatch.undo()
    found = outcomes(file, lambda: comparable(vars(TrainingState.load(file)) | {"progress": None}), count)
    assert version == 1 or found["as it was"] == 0


def test_a_state_whose_digest_was_cut_off_is_no_older_one(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "_seal", lambda archive: None)
    training_state().save(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged: the digest at its end is missing"):
        TrainingState.load(tmp_path / "state.pt")


def test_the_state_before_stays_beside_it(tmp_path):
    state, files = training_state(), (tmp_path / "state.pt", tmp_path / "state.previous.pt")
    for epoch in (0, 1, 2):
        state.progress.epoch = epoch
        state.save(*files)
    assert [TrainingState.load(file).progress.epoch for file in files] == [2, 1]
    # It is an archive as any other.
    assert torch.load(files[0], weights_only=True)["progress"]["epoch"] == 2


A = FeatureKey("mid", 90)


def cache(folder):
    manifest = CacheManifest({"split": "train"}, 6, 6, {A: (4, 2, 2)}, torch.bfloat16, ("a", "b"))
    manifest.write(folder)
    features = {A: torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()}
    write_shard(folder, manifest, 0, 0, features, torch.arange(6) % 2, torch.arange(6) + 100)
    return manifest


@pytest.mark.parametrize("count", COUNTS)
def test_manifests_of_caches(tmp_path, count):
    cache(tmp_path)
    outcomes(tmp_path / "manifest.json", lambda: CacheManifest.read(tmp_path).digest, count)


@pytest.mark.parametrize("count", COUNTS)
def test_shards_of_caches(tmp_path, count):
    manifest = cache(tmp_path)

    def read():
        shard = Shard(tmp_path, manifest, 0, 0)
        shard.verify()
        rows = [shard.row(row)[A].tolist() for row in range(shard.rows)]
        return rows, [numbers.tolist() for numbers in shard.numbers()]

    outcomes(shard_path(tmp_path, 0, 0), read, count)


@pytest.mark.parametrize("count", COUNTS)
def test_shards_that_are_not_verified_end_in_order(tmp_path, count):
    """Opening alone does not find every flip, but nothing worse than an error comes of one."""
    manifest = cache(tmp_path)
    file = shard_path(tmp_path, 0, 0)
    for damaged in changed(file.read_bytes(), count):
        file.write_bytes(damaged)
        with contextlib.suppress(FeatureCacheError):
            shard = Shard(tmp_path, manifest, 0, 0)
            assert [shard.row(row)[A].shape for row in range(shard.rows)] == [(4, 2, 2)] * shard.rows


def finished_run(folder):
    run = RunFolder(folder)
    run.write_history(RECORDS)
    run.write_results(RESULTS, [run.metrics])
    return run


@pytest.mark.parametrize("count", COUNTS)
def test_results_of_runs(tmp_path, count):
    run = finished_run(tmp_path)
    # An entry of an unknown name, as the digest's becomes by a flip, changes nothing that is read.
    outcomes(run.results, lambda: {name: run.read_results()[name] for name in (*RESULTS, "files")}, count)


@pytest.mark.parametrize("count", COUNTS)
def test_records_of_epochs(tmp_path, count):
    run = finished_run(tmp_path)
    found = outcomes(run.metrics, run.read_history, count)
    assert found["as it was"] == 0


def test_records_without_results_are_read_as_far_as_they_are_any(tmp_path):
    run = RunFolder(tmp_path)
    run.write_history(RECORDS)
    assert run.read_history() == RECORDS
    for damage in ("{", "[1]", "[" * 100_000):
        run.metrics.write_text(damage)
        with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
            run.read_history()


@pytest.mark.parametrize("count", COUNTS)
def test_scores_of_sweeps(tmp_path, count):
    scores = [Score("mid", 19, t, 1, {"C": 0.1}, 0.5 + t / 1000, 1.5) for t in (10, 90)]
    file, taps = tmp_path / "scores-0010.json", {"mid": TapSpec("mid", 19, 8, 4, 1_500_000_000)}
    RunFolder(tmp_path).write_json(file.name, sealed({"scores": [asdict(score) for score in scores]}))
    assert _read_scores(file, taps) == scores
    outcomes(file, lambda: _read_scores(file, taps), count)
    # As earlier versions wrote them.
    RunFolder(tmp_path).write_json(file.name, [asdict(score) for score in scores])
    assert _read_scores(file, taps) == scores


@pytest.mark.parametrize("count", COUNTS)
def test_seconds_of_quickstarts(tmp_path, count):
    seconds = {"svm": 1.5, "knn": 20.25}
    RunFolder(tmp_path).write_json("seconds.json", sealed(seconds))
    folder = SimpleNamespace(path=tmp_path)
    outcomes(tmp_path / "seconds.json", lambda: {name: seconds_of(folder)[name] for name in seconds}, count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "confusion.csv"])
def test_measurements(tmp_path, name, count):
    for table in ("per_class.csv", "confusion.csv", "predictions.csv"):
        (tmp_path / table).write_text("id,label,predicted\n1,a,b\n2,b,b\n")
    report = {"metrics": {"top1": 0.5}, "data": {"split": "test"}, "tables": table_digests(tmp_path)}
    RunFolder(tmp_path).write_json("metrics.json", sealed(report))
    outcomes(
        tmp_path / name,
        lambda: {key: read_measurements(tmp_path, "metrics.json", "evaluate again")[key] for key in report},
        count,
    )


def test_files_without_a_digest_are_read_as_they_are(tmp_path):
    (tmp_path / "old.json").write_text('{"top1": 0.5}')
    assert read_json(tmp_path / "old.json", "") == {"top1": 0.5}
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json is damaged .*; make it anew"):
        read_json(tmp_path / "deep.json", "make it anew")
