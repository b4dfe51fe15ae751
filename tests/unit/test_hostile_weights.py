"""Small files that would fill the memory, or never end: refused before anything is allocated."""

import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile

import pytest
import torch
from example_classifiers import linear, plain
from safetensors.torch import save_file
from support import UNSEEN, rewrite_metadata, small_unet

from difformer import (
    CheckpointError,
    DiffusionClassifier,
    NoiseSchedule,
    UNetBackbone,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.checkpoints import describe, read_pickle, read_weights
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import read_description
from difformer.classifier.published import is_published
from difformer.heads import DifFormerHead, MLPHead

ZEROS = bytes(1 << 20)


@pytest.fixture(scope="module")
def backbone():
    return UNetBackbone(small_unet(), NoiseSchedule.linear(), name="small")


def in_little_time(seconds=2.0):
    """Fails when what it surrounds takes long; the memory is watched by the test that runs a process."""

    class Clock:
        def __enter__(self):
            self.start = time.process_time()

        def __exit__(self, *error):
            assert time.process_time() - self.start < seconds

    return Clock()


def change_part(path, part, changes):
    description = json.loads(read_metadata(path)["description"])
    description[part] = {**(description[part] or {}), **changes}
    rewrite_metadata(path, {"description": json.dumps(description)})


DIFFORMER = {"width": 32, "heads": 4, "layers": 1, "pool": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 200_000}, "more parameters than the"),
        ({"layers": 2**40}, "more parameters than the"),
        ({"width": 20_000}, "does not fit"),
        ({"width": 10**12}, "does not fit|cannot be rebuilt"),
        ({"mlp_ratio": 1e6}, "does not fit"),
        ({"mlp_ratio": 1e300}, "cannot be rebuilt"),
        ({"mlp_ratio": 10**400}, "cannot be rebuilt.*mlp_ratio must be a finite number"),
        ({"dropout": 10**400}, "cannot be rebuilt.*dropout must be a number"),
    ],
)
def test_heads_larger_than_their_file_are_refused(backbone, tmp_path, arguments, message):
    path = tmp_path / "c.safetensors"
    extractor = plain(backbone, ["mid"], [90, 10])
    save_classifier(path, DiffusionClassifier(extractor, DifFormerHead(extractor.specs, 3, **DIFFORMER)))
    change_part(path, "head", {"arguments": {**DIFFORMER, **arguments}})
    with in_little_time(), pytest.raises(CheckpointError, match=message) as refused:
        load_classifier(path, backbone=backbone)
    assert str(refused.value).count(str(path)) == 1


@pytest.mark.parametrize("hidden", [[8] * 100_000, [2**62], [10**7] * 8])
def test_layers_of_any_number_and_width_are_refused(backbone, tmp_path, hidden):
    path = tmp_path / "c.safetensors"
    extractor = plain(backbone, ["mid"], [90])
    save_classifier(path, DiffusionClassifier(extractor, MLPHead(extractor.specs, 3, hidden=[8])))
    change_part(path, "head", {"arguments": {"hidden": hidden}})
    with in_little_time(), pytest.raises(CheckpointError, match=r"cannot be rebuilt|does not fit|more parameters"):
        load_classifier(path, backbone=backbone)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name in ("size", "resize")
        for size in (100_000, float("inf"), float("nan"), -1, 0, "32", None, [32], 2**80, 32.5)
        if (name, size) != ("resize", None)
    ],
)
def test_sizes_of_no_image_are_refused(backbone, tmp_path, name, size):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    change_part(path, "preprocessing", {name: size})
    for read in (read_description, lambda path: load_classifier(path, backbone=backbone)):
        with pytest.raises(CheckpointError, match=rf"malformed.*{name} must be"):
            read(path)


def deep(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [900, 200_000])
@pytest.mark.parametrize("key", ["config", "schedule", "provenance"])
def test_descriptions_of_many_levels_are_refused(backbone, tmp_path, key, levels):
    path = tmp_path / "b.safetensors"
    backbone.save(path)
    for text in (deep(levels), json.dumps({"name": "linear"})[:-1] + f', "betas": {deep(levels)}}}'):
        rewrite_metadata(path, {key: text})
        for read in (create_backbone, describe):
            if key == "provenance" and text[0] == "{" and levels < 1000:
                continue  # whose values are nobody's business
            with pytest.raises(CheckpointError, match=r"b\.safetensors"):
                read(path)


@pytest.mark.parametrize("levels", [900, 200_000])
@pytest.mark.parametrize("part", ["backbone", "extractor", "head", "class_names", "preprocessing"])
def test_classifiers_of_many_levels_are_refused(backbone, tmp_path, part, levels):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    description = json.loads(read_metadata(path)["description"])
    description[part] = "here"
    for value in (deep(levels), f'{{"type": "LinearHead", "arguments": {{"pool": {deep(levels)}}}}}'):
        rewrite_metadata(path, {"description": json.dumps(description).replace('"here"', value)})
        with pytest.raises(CheckpointError, match=r"c\.safetensors"):
            load_classifier(path, backbone=backbone)


@pytest.mark.parametrize("name", ["image_size", "model_channels", "num_res_blocks", "num_classes", "in_channels"])
@pytest.mark.parametrize("value", [2**64, 10**6, 10**4000])
def test_architectures_beyond_their_file_are_refused(backbone, tmp_path, name, value):
    path = tmp_path / "b.safetensors"
    backbone.save(path)
    config = json.loads(read_metadata(path)["config"]) | {name: value, "attention_resolutions": []}
    rewrite_metadata(path, {"config": json.dumps(config)})
    for read in (create_backbone, describe):
        with in_little_time(), pytest.raises(CheckpointError, match=r"b\.safetensors"):
            read(path)


def write_archive(path, entries, compression):
    """A `.pt` with further entries, each of so many MiB of zeros."""
    torch.save(small_unet().state_dict(), path)
    with zipfile.ZipFile(path, "a", compression) as archive:
        for name, size in entries.items():
            with archive.open(name, "w") as file:
                for _ in range(size):
                    file.write(ZEROS)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
@pytest.mark.parametrize("read", [read_weights, read_pickle, is_published, describe, create_backbone])
def test_archives_that_inflate_are_refused(tmp_path, compression, read):
    path = tmp_path / "own.pt"
    write_archive(path, {"own/data/unused": 4}, compression)
    with in_little_time(), pytest.raises(CheckpointError, match=r"own\.pt was refused: its .* bytes expand to"):
        read(path)


def test_tensors_that_share_values_are_refused_with_a_remedy(tmp_path):
    one = torch.zeros(100_000)
    torch.save({"a": one, "b": one}, tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match="values are shared; save it again with every tensor cloned"):
        read_weights(tmp_path / "own.pt")


def test_pickles_that_inflate_are_refused(tmp_path):
    path = tmp_path / "own.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("own/data.pkl", b"\x80\x02" + b"}0" * 4_000_000 + b"}.")
    for read in (read_weights, is_published):
        with in_little_time(), pytest.raises(CheckpointError, match="bytes expand to 8,000,0"):
            read(path)


def test_entries_that_overlap_are_refused(tmp_path):
    path = tmp_path / "own.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("own/data/0", ZEROS)
        whole = archive.getinfo("own/data/0")
        archive.filelist += [whole] * 50
    with pytest.raises(CheckpointError, match="expand to"):
        read_weights(path)


def test_tensors_marked_as_folders_are_refused(tmp_path):
    """torch would leave whatever its memory held in their place."""
    path = tmp_path / "own.pt"
    torch.save({"w": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries, start = archive.infolist(), archive.start_dir
    number = next(n for n, entry in enumerate(entries) if entry.filename.endswith("/data/0"))
    for entry in entries[:number]:
        start += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)
    content[start + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"own\.pt is corrupt: entries with data are marked as folders"):
        read_weights(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_one_value_does_not_stand_for_many(tmp_path, legacy):
    path = tmp_path / "own.pt"
    for state in (
        {"x": torch.zeros(1).expand(2**20, 2**20)},
        {f"x{i}": shared for shared in [torch.zeros(10_000)] for i in range(100)},
    ):
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        with in_little_time(), pytest.raises(CheckpointError, match="since values are shared"):
            read_weights(path)


def test_pipes_are_no_weight_files(tmp_path):
    path = tmp_path / "own.pt"
    os.mkfifo(path)
    for read in (
        read_weights, read_pickle, read_metadata, is_published, read_description, load_classifier, describe,
        lambda path: create_backbone(path, config=UNSEEN, schedule=NoiseSchedule.linear()),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"own\.pt is a pipe or device"):
            read(path)


def test_refusing_takes_no_memory(backbone, tmp_path):
    """A whole process, for several of the files above at their worst."""
    extractor = plain(backbone, ["mid"], [90])
    path = tmp_path / "c.safetensors"
    save_classifier(path, DiffusionClassifier(extractor, DifFormerHead(extractor.specs, 3, **DIFFORMER)))
    change_part(path, "head", {"arguments": {**DIFFORMER, "width": 20_000, "mlp_ratio": 1e4, "layers": 2**40}})
    backbone.save(tmp_path / "b.safetensors")
    write_archive(tmp_path / "own.pt", {"own/data/unused": 200}, zipfile.ZIP_DEFLATED)
    script = f"""
        import resource, pathlib, difformer
        from difformer.checkpoints import read_weights
        folder = pathlib.Path({str(tmp_path)!r})
        backbone = difformer.create_backbone(folder / "b.safetensors")
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        for attempt in (
            lambda: difformer.load_classifier(folder / "c.safetensors", backbone=backbone),
            lambda: read_weights(folder / "own.pt"),
        ):
            try:
                attempt()
            except difformer.CheckpointError:
                print("refused")
        assert peak() - before < 100_000, peak() - before  # KiB
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n" * 2), done.stderr


def test_tensors_of_a_header_alone(tmp_path):
    """Names without values are cheap to write, and cheap to refuse."""
    path = tmp_path / "own.safetensors"
    save_file({f"input_blocks.{i}.0.x": torch.zeros(0) for i in range(5_000)}, path)
    with in_little_time(), pytest.raises(CheckpointError, match="does not hold a guided-diffusion U-Net"):
        create_backbone(path, config=UNSEEN, schedule=NoiseSchedule.linear())
