"""Sampling on several processes, and killed at any moment."""

import os
import signal

import numpy as np
import pytest
from processes import joined, run_command, run_ranks, start, variables_of_ranks, wait_for
from support import tiny_unet

from difformer import create_backbone
from difformer.cli import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "classes.safetensors"
    create_backbone(tiny_unet(num_classes=4), schedule="linear").save(path)
    return str(path)


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "out.npz"
    assert main(["sample", weights, str(path), *OPTIONS]) == 0
    return path


# Four parts; the batches of one process do not fit into them.
OPTIONS = ["--count", "200", "--steps", "2", "--batch_size", "50", "--seed", "3"]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_images(weights, whole, tmp_path, processes):
    done = run_ranks(processes, "sample", weights, tmp_path / "out.npz", *OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]
    assert done.stdout.count("wrote") == 1
    assert "200/200" in done.stderr
    ours, theirs = np.load(tmp_path / "out.npz"), np.load(whole)
    assert np.array_equal(ours["arr_1"], theirs["arr_1"])
    difference = np.abs(ours["arr_0"].astype(int) - theirs["arr_0"])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_more_processes_than_parts(weights, tmp_path):
    options = ["--count", "3", "--steps", "1"]
    run_ranks(3, "sample", weights, tmp_path / "out.npz", *options)
    assert main(["sample", weights, str(tmp_path / "one.npz"), *options]) == 0
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--steps", "1001"]])
def test_an_error_ends_all_processes(weights, tmp_path, options):
    done = run_ranks(2, "sample", weights, tmp_path / "out.npz", *OPTIONS, *options, check=False)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_killed_and_resumed(weights, whole, tmp_path, parts):
    """To the same file, whenever it is killed."""
    out, folder = tmp_path / "out.npz", tmp_path / "out.npz.parts"
    child = start(run_command, "sample", weights, str(out), *OPTIONS, output=tmp_path)
    wait_for(lambda: (folder / "samples.json").exists() and len(list(folder.glob("part-*"))) >= parts, child)
    child.kill()
    joined(child)
    assert child.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert main(["sample", weights, str(out), *OPTIONS]) == 0
    # The batches hold other images than without the kill.
    difference = np.abs(np.load(out)["arr_0"].astype(int) - np.load(whole)["arr_0"])
    assert difference.max() <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "stderr", "stdout"]


def fail_on_the_second(weights, out):
    """In one of two processes, generating fails at once."""
    from difformer.verbs.sample import sample

    def broken(*arguments):
        raise OSError("the device is gone")

    if os.environ["RANK"] == "1":
        sample.generate = broken
    run_command("sample", weights, out, *OPTIONS)


def test_what_fails_on_one_process_ends_the_other_after_its_batch(weights, tmp_path):
    children = [
        start(fail_on_the_second, weights, str(tmp_path / "out.npz"), variables=variables, output=tmp_path)
        for variables in variables_of_ranks(2)
    ]
    assert [joined(child) for child in children] == [1, 1]
    assert "the device is gone" in (tmp_path / "stderr").read_text()
    # Of the first process's 128 images, a batch of 50 holds no whole part.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stderr", "stdout"]
