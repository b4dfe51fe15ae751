"""Which images a data set has: any edit makes another, a copy does not, and what is known is not read again."""

import errno
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_sets import make_folder, make_shards, pixels, write_image
from PIL import Image

from difformer.data import create_dataset
from difformer.data import identity as identity_module
from difformer.engine.loop.course import _Course
from difformer.engine.loop.resuming import SavedState


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """An own cache folder, in which every image that was left alone for no time is worth remembering; what is read."""
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(identity_module, "_WORTH_BYTES", 1)
    monkeypatch.setattr(identity_module, "_SETTLED", 0)
    read, count = identity_module._content_bytes, []
    monkeypatch.setattr(identity_module, "_content_bytes", lambda content: count.append(content) or read(content))
    return count


@pytest.fixture
def root(tmp_path):
    """Uncompressed, so that an edit changes neither the size nor the ends."""
    folder = tmp_path / "set"
    for i, name in enumerate(["a/0", "a/1", "b/2"]):
        write_image(folder / f"train/{name}.bmp", i, height=100, width=100)
    return folder


def opened(root, **changes):
    return create_dataset({"name": "folder", "root": str(root), "size": 8} | changes)


def edit(path: Path) -> None:
    """Changes a pixel far from both ends, and nothing else that can be set."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_edit_in_the_middle_of_an_image_is_seen(root, reads):
    dataset = opened(root)
    before = dataset.digest, dataset.former_digest
    edit(root / "train/a/1.bmp")
    after = opened(root)
    assert after.former_digest == before[1], "the size and both ends are the same"
    assert after.digest != before[0]


def test_nothing_is_read_twice_and_what_changed_is(root, reads):
    first = opened(root).digest
    assert len(reads) == 3
    assert opened(root).digest == first
    assert len(reads) == 3, "nothing was read again"
    edit(root / "train/b/2.bmp")
    assert opened(root).digest != first
    assert [Path(path).name for path in reads[3:]] == ["2.bmp"]
    edit(root / "train/b/2.bmp")
    assert opened(root).digest == first


def test_a_touched_or_copied_image_is_the_same(root, reads, tmp_path):
    first = opened(root).digest
    os.utime(root / "train/a/0.bmp")
    assert opened(root).digest == first
    assert len(reads) == 4
    assert opened(shutil.copytree(root, tmp_path / "copy")).digest == first


def test_a_part_is_known_from_the_whole_and_adds_to_it(root, reads):
    opened(root, k_shot=1).digest  # noqa: B018
    assert len(reads) == 2
    opened(root).digest  # noqa: B018
    assert len(reads) == 3
    opened(root, k_shot=1).digest  # noqa: B018
    assert len(reads) == 3


def test_what_changed_just_now_is_not_yet_known(root, reads, monkeypatch):
    """A file system may give two changes in short order the same time."""
    monkeypatch.setattr(identity_module, "_SETTLED", 3_600_000_000_000)
    first = opened(root).digest
    assert opened(root).digest == first
    assert len(reads) == 6


def test_what_was_read_before_a_stop_is_kept(root, reads, monkeypatch):
    counted = identity_module._content_bytes

    def stop(content):
        if Path(content).name == "2.bmp":
            raise KeyboardInterrupt
        return counted(content)

    monkeypatch.setattr(identity_module, "_content_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        opened(root).digest  # noqa: B018
    monkeypatch.setattr(identity_module, "_content_bytes", counted)
    before = len(reads)
    opened(root).digest  # noqa: B018
    assert len(reads) == before + 1


def test_shards_are_known_by_their_files(reads, tmp_path):
    root = make_shards(tmp_path / "shards", [3, 4])
    spec = {"name": "webdataset", "stream": False}
    first = opened(root, **spec).digest
    assert len(reads) == 7
    assert opened(root, **spec).digest == first
    assert len(reads) == 7
    os.utime(root / "set-train-001.tar")
    assert opened(root, **spec).digest == first
    assert len(reads) == 11, "all of the shard that was touched"


def test_tables_are_known_by_their_files(reads, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    make_folder(tmp_path / "images", {"train/a": 2, "train/b": 1})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    images = [{"bytes": (tmp_path / f"images/train/a/a_{i}.png").read_bytes(), "path": None} for i in range(2)]
    table = datasets.Dataset.from_dict({"img": images, "label": [0, 0]}, features=features)
    table.save_to_disk(tmp_path / "saved")
    first = opened(tmp_path / "saved", name="huggingface").digest
    assert opened(tmp_path / "saved", name="huggingface").digest == first
    assert len(reads) == 2


def test_a_cache_folder_that_cannot_be_written_costs_time_only(root, reads, tmp_path, monkeypatch, caplog):
    first = opened(root).digest
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "file"))
    assert opened(root).digest == first
    assert "will be read again" in caplog.text


def test_the_digest_of_pixels_is_as_it_was(tmp_path):
    """Of data sets in memory, the content has always counted."""
    from difformer.data.identity import former_digest, samples_digest
    from difformer.data.source import Pixels, Source

    images = np.stack([pixels(i) for i in range(3)])
    source = Source("x", np.asarray([0, 1, 0]), ("a", "b"), Pixels(images))
    digest = samples_digest(source, source.ids)
    assert digest == former_digest(source, source.ids)
    assert digest == "dfd5a932113fadadfbaa8e6e08c411ca20479ddbc1eeb381958c167e8fd69a8b"


@pytest.mark.parametrize(("begun", "same"), [("new", True), ("former", True), ("other", False)])
def test_a_run_of_an_earlier_version_is_the_same_run(begun, same):
    images = SimpleNamespace(former_digest="former")
    run = SimpleNamespace(
        sources={"training images": "new"}, images={"train": images}, trainer=SimpleNamespace(restore=lambda *_: None),
        resume=lambda: None,
    )  # fmt: skip
    progress = SimpleNamespace(finished=True)
    state = SimpleNamespace(sources={"training images": begun}, history=[{"epoch": 1}], progress=progress)
    folder = SimpleNamespace(path="run", state="run/state.pt")
    if same:
        assert _Course(None, folder, None, run, SavedState(state, "run/state.pt")).history == state.history
    else:
        with pytest.raises(ValueError, match="training images are not those that the run in run was begun with"):
            _Course(None, folder, None, run, SavedState(state, "run/state.pt"))


def test_the_time_of_the_last_change(root):
    before = time.time()
    os.utime(root / "train/a/0.bmp", (before + 60, before + 60))
    assert opened(root).last_change == pytest.approx(before + 60, abs=1e-3)
    Image.new("RGB", (9, 9)).save(root / "train/a/3.png")
    (root / "train/a/1.bmp").unlink()
    assert opened(root).last_change == pytest.approx(before + 60, abs=1e-3)


def test_an_image_that_is_replaced_with_its_time_is_a_change(root):
    for path in root.rglob("*.bmp"):
        os.utime(path, (10**9, 10**9))
    before = time.time()
    shutil.copy2(root / "train/a/0.bmp", root / "train/a/1.bmp")
    assert opened(root).last_change >= before - 1


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_systems_without_locks(root, reads, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    first = opened(root).digest
    shutil.rmtree(os.environ["DIFFORMER_CACHE"])
    monkeypatch.setattr("fcntl.flock", refuse)
    assert opened(root).digest == first
