"""Two nodes, each with a launcher of its own on the loopback address: they come to what one process does."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from processes import variables_of_ranks
from training import assert_same_run, make_recipe, run_result, write_workplace

from difformer.config.reading import dump
from difformer.features.shards import MANIFEST
from difformer.verbs.eval.evaluate import evaluate_classifier
from difformer.verbs.eval.recipe import EvaluationRecipe
from difformer.verbs.extract.extract import extract
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.sweep.sweep import sweep
from difformer.verbs.train.train import train

pytestmark = pytest.mark.slow
SECONDS = 600


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Images, a backbone and the values of a recipe that caches features, and what one process comes to."""
    folder = tmp_path_factory.mktemp("nodes")
    values = write_workplace(folder) | {"features": "cached", "cache": {"folder": str(folder / "cache")}}
    train(make_recipe(values, output=str(folder / "alone")))
    return folder, values


def started(*words, restarts=0):
    """Two launchers that find each other, one for each node, with one process each."""
    port = variables_of_ranks(1)[0]["MASTER_PORT"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", f"--max-restarts={restarts}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "-m", "difformer", *map(str, words)]
    return [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]


def ended(launchers):
    """Waits for both; they must have gone well.

    The store by which they find each other lies in one of them. Where that one ends first, the other may find it gone
    at its own end, after the work is done.
    """
    errors = [launcher.communicate(timeout=SECONDS)[1] for launcher in launchers]
    failed = [error for launcher, error in zip(launchers, errors, strict=True) if launcher.returncode]
    assert len(failed) < len(launchers), failed[0][-3000:]
    assert all("The connection to the C10d store has failed" in error for error in failed), failed[0][-3000:]


def written(folder, recipe):
    (folder / "recipe.yaml").write_text(dump(recipe))
    return folder / "recipe.yaml"


def assert_close_runs(one, other):
    (weights, records, test), (weights2, records2, test2) = run_result(one), run_result(other)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights2[name], tensor, rtol=1e-4, atol=1e-5)
    assert [record["train_loss"] for record in records2] == pytest.approx([r["train_loss"] for r in records], rel=1e-4)
    assert test2["nll"] == pytest.approx(test["nll"], rel=1e-4)
    assert test2["num_images"] == test["num_images"]


def test_training(work, tmp_path):
    folder, values = work
    recipe = make_recipe(values, output=str(tmp_path / "run"))
    ended(started("train", written(tmp_path, recipe)))
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert_close_runs(folder / "alone", tmp_path / "run")


def test_a_worker_that_is_killed_is_started_again_and_the_run_ends_as_another(work, tmp_path):
    _, values = work
    training = {"epochs": 30, "save_minutes": 0.0}
    ended(started("train", written(tmp_path, make_recipe(values, output=str(tmp_path / "whole"), training=training))))
    recipe = make_recipe(values, output=str(tmp_path / "run"), training=training)
    launchers = started("train", written(tmp_path, recipe), restarts=2)
    records, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + SECONDS
    while not records.exists() or len(records.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        assert all(launcher.poll() is None for launcher in launchers)
        time.sleep(0.01)
    (worker,) = psutil.Process(launchers[1].pid).children()
    worker.send_signal(signal.SIGKILL)
    ended(launchers)
    assert len(records.read_text().splitlines()) == 30
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_extraction(work, tmp_path):
    _, values = work
    recipe = make_recipe(values, cache={"folder": str(tmp_path / "cache"), "shard_size": 4})
    ended(started("extract", written(tmp_path, recipe)))
    alone = make_recipe(values, cache={"folder": str(tmp_path / "alone"), "shard_size": 4})
    extract(alone)
    found = {file.relative_to(tmp_path / "cache") for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert found
    for name in found:
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert len(list((tmp_path / "cache").glob(f"*/{MANIFEST}"))) == 3


def test_evaluation(work, tmp_path):
    folder, values = work
    options = ["--output", tmp_path / "both", "--features", "live"]
    ended(started("eval", folder / "alone", *options))
    recipe = EvaluationRecipe(
        classifier=str(folder / "alone"),
        data=make_recipe(values).data,
        backbone=make_recipe(values).backbone,
        output=str(tmp_path / "alone"),
        workers=0,
    )
    evaluate_classifier(recipe)
    found, expected = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("both", "alone"))
    assert found["environment"]["processes"] == 2
    assert found["data"] == expected["data"]
    assert found["metrics"]["top1"] == expected["metrics"]["top1"]
    assert found["metrics"]["nll"] == pytest.approx(expected["metrics"]["nll"], rel=1e-5)


def test_a_sweep(work, tmp_path):
    _, values = work
    recipe = SweepRecipe(
        data=make_recipe(values).data,
        backbone=make_recipe(values).backbone,
        output=str(tmp_path / "both"),
        timesteps=(30, 90),
        pools=(1, 2),
        workers=0,
    )
    ended(started("sweep", written(tmp_path, recipe)))
    shutil.move(tmp_path / "both" / "scores.csv", tmp_path / "both.csv")
    sweep(SweepRecipe(**{**vars(recipe), "output": str(tmp_path / "alone")}))
    assert (tmp_path / "both.csv").read_text() == (tmp_path / "alone" / "scores.csv").read_text()
