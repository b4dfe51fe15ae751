"""Writing files: whole or not at all, and as other files are."""

import errno
import json
import os
import resource
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch
from processes import joined, start
from support import small_unet

from difformer import NoiseSchedule, UNetBackbone, create_backbone
from difformer.checkpoints import (
    StoredBackbone,
    contiguous_state,
    describe,
    weights_digest,
    write_backbone,
)
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import check_target, read_json, sealed, write_atomically


@pytest.fixture(scope="module")
def backbone():
    return UNetBackbone(small_unet(), NoiseSchedule.cosine(), name="small", provenance={"made_by": "a test"})


@pytest.fixture
def ours(backbone, tmp_path):
    backbone.save(tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_nothing_is_overwritten_unasked(ours, backbone):
    before = ours.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        backbone.save(ours)
    assert ours.read_bytes() == before
    backbone.save(ours, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        backbone.save(ours.parent / "missing" / "small.safetensors")
    with pytest.raises(FileExistsError, match="is a folder"):
        backbone.save(ours.parent)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail_half_way():
        with write_atomically(target, overwrite=True) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def save_on_a_full_disk(path):
    """A limit on file sizes stands in for it: writing fails part way."""
    backbone = create_backbone(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(OSError, match=r"small\.safetensors"):
        backbone.save(path, overwrite=True)


def test_a_full_disk_leaves_what_was_there(ours):
    before = ours.read_bytes()
    assert joined(start(save_on_a_full_disk, ours)) == 0
    assert ours.read_bytes() == before
    assert list(ours.parent.iterdir()) == [ours]


def be_killed_while_writing(path):
    with write_atomically(path, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_leaves_what_was_there(ours):
    before = ours.read_bytes()
    assert joined(start(be_killed_while_writing, ours)) == -signal.SIGKILL
    assert ours.read_bytes() == before


def test_tensors_that_share_memory_are_stored(ours, backbone, tmp_path):
    state = dict(backbone.unet.state_dict())
    both = torch.stack([state["out.2.bias"]] * 2)
    state["out.2.bias"] = both[0]
    state["time_embed.0.bias"] = state["time_embed.2.bias"]
    assert all(x.is_contiguous() for x in contiguous_state(state).values())
    stored = create_backbone(ours)
    described = StoredBackbone("shared", stored.config, stored.schedule, weights_digest(state), {})
    write_backbone(tmp_path / "shared.safetensors", state, described)
    again = create_backbone(tmp_path / "shared.safetensors").unet.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_written_files_have_the_permissions_of_any_other(backbone, tmp_path):
    (tmp_path / "plain").touch()
    backbone.save(tmp_path / "new.safetensors")
    mode = (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "new.safetensors").stat().st_mode == mode
    (tmp_path / "new.safetensors").chmod(0o640)
    backbone.save(tmp_path / "new.safetensors", overwrite=True)
    assert stat.S_IMODE((tmp_path / "new.safetensors").stat().st_mode) == 0o640


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with write_atomically(link, overwrite=True) as temporary:
        assert temporary.parent == target.parent  # renaming must not cross file systems
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_threads_may_write_the_same_file(tmp_path):
    target, barrier, errors = tmp_path / "file", threading.Barrier(8), []

    def write(number):
        try:
            with write_atomically(target, overwrite=True) as temporary:
                temporary.write_text(str(number) * 1000)
                barrier.wait(10)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(target.read_text())) == 1
    assert list(tmp_path.iterdir()) == [target]


def test_targets_can_be_checked_before_long_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_target(tmp_path / "new")
    (tmp_path / "old").touch()
    for target in (tmp_path / "old", Path("~/old")):
        with pytest.raises(FileExistsError, match="exists already"):
            check_target(target)
        check_target(target, overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_target(tmp_path / "missing" / "new")
    with pytest.raises(FileExistsError, match="is a folder"):
        check_target(tmp_path, overwrite=True)


def test_the_home_folder_is_understood(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone.save("~/small.safetensors")
    assert create_backbone("~/small.safetensors").digest == backbone.digest
    assert describe("~/small.safetensors")[0] == backbone.config


def test_a_full_disk_is_named_by_the_file(tmp_path):
    """The system's error names nothing, or what the file is called until it is whole."""
    for error in (OSError(28, "No space left on device"), "temporary"):
        with (
            pytest.raises(OSError, match=rf"^\[Errno \d+\] .*: '{tmp_path}/file'$"),
            write_atomically(tmp_path / "file") as temporary,
        ):
            raise error if isinstance(error, OSError) else OSError(5, "Input/output error", str(temporary))
    assert not list(tmp_path.iterdir())
    run = RunFolder(tmp_path)
    run.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        run.append({"epoch": 1})


def test_an_error_that_names_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), write_atomically(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()


@pytest.mark.parametrize("check", [check_target, lambda path: RunFolder(path).check()])
def test_a_place_where_nothing_can_be_written_is_found_beforehand(check):
    with pytest.raises(OSError, match=r"nothing can be written there .*; choose another place: '/proc'"):
        check(Path("/proc/results"))


def test_what_is_replaced_can_be_kept(tmp_path):
    for text in ("one", "two", "three"):
        with write_atomically(tmp_path / "file", overwrite=True, keep=tmp_path / "before") as temporary:
            temporary.write_text(text)
    assert [(tmp_path / name).read_text() for name in ("file", "before")] == ["three", "two"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_failure_in_keeping_leaves_the_target(tmp_path, monkeypatch, links):
    target, keep = tmp_path / "file", tmp_path / "before"
    target.write_text("old")
    replace = os.replace

    def refuse(*_):
        raise PermissionError(errno.EPERM, "refused")

    def refuse_the_new(source, place):
        # With links, there is a target at every moment.
        assert target.exists() or not links
        if str(source).endswith(".tmp"):
            refuse()
        replace(source, place)

    monkeypatch.setattr("os.replace", refuse_the_new)
    if not links:
        monkeypatch.setattr("os.link", refuse)
    with (
        pytest.raises(PermissionError, match="refused"),
        write_atomically(target, overwrite=True, keep=keep) as temporary,
    ):
        temporary.write_text("new")
    assert target.read_text() == "old"


def test_what_is_replaced_is_kept_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "refused")

    monkeypatch.setattr("os.link", refuse)
    test_what_is_replaced_can_be_kept(tmp_path)


def test_an_error_that_names_nothing_is_not_blamed_on_the_file(tmp_path):
    with (
        pytest.raises(OSError, match=r"Connection refused$"),
        write_atomically(tmp_path / "file"),
    ):
        raise OSError(errno.ECONNREFUSED, "Connection refused")


def test_a_seal_is_that_of_what_is_read(tmp_path):
    """JSON makes text of keys that are numbers, which sorts otherwise."""
    (tmp_path / "x.json").write_text(json.dumps(sealed({"by_count": {9: 0.5, 10: 0.25}})))
    assert read_json(tmp_path / "x.json", "") == {"by_count": {"9": 0.5, "10": 0.25}}
