"""Damaged, foreign and hostile weight files, and the writing of our own."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from support import small_unet

from difformer import CheckpointError, NoiseSchedule, UNetBackbone, create_backbone
from difformer.checkpoints import load_strictly, read_weights, weights_digest
from difformer.files import write_atomically


@pytest.fixture(scope="module")
def backbone():
    return UNetBackbone(small_unet(), NoiseSchedule.cosine(), name="small", provenance={"made_by": "a test"})


@pytest.fixture
def ours(backbone, tmp_path):
    backbone.save(tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def openais(backbone, tmp_path):
    torch.save(backbone.unet.state_dict(), tmp_path / "small.pt")
    return tmp_path / "small.pt"


class Bomb:
    """A pickle that runs a command when it is loaded without care."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


def test_our_file_alone_is_enough(ours, backbone):
    again = create_backbone(ours)
    assert again.config == backbone.config
    assert again.schedule.to_dict() == {"name": "cosine", "num_timesteps": 1000}
    assert (again.name, again.provenance, again.digest) == ("small", {"made_by": "a test"}, backbone.digest)
    for name, tensor in backbone.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], tensor)


def test_headers_that_begin_like_a_pickle_are_read_as_ours(tmp_path):
    starts = set()
    for length in range(0, 256, 8):
        path = tmp_path / f"{length}.safetensors"
        save_file({"x": torch.zeros(1)}, path, {"padding": "x" * length})
        starts.add(path.read_bytes()[:1])
        assert read_weights(path).metadata == {"padding": "x" * length}
    assert b"\x80" in starts


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 200, 5000, -1])
@pytest.mark.parametrize("kind", ["ours", "openais"])
def test_truncated_files(kind, keep, request):
    path = request.getfixturevalue(kind)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path.name}.*(empty|not a weight file|truncated|refused)"):
        create_backbone(path)


def test_flipped_bits_are_found_in_our_files(ours):
    content = bytearray(ours.read_bytes())
    content[-1000] ^= 1
    ours.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"small\.safetensors is corrupt: the SHA-256"):
        create_backbone(ours)
    assert create_backbone(ours, verify=False).taps


def test_flipped_bits_are_found_in_pt_files(openais):
    content = bytearray(openais.read_bytes())
    content[len(content) // 2] ^= 1
    openais.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"small\.pt.*(corrupt|checksum)"):
        read_weights(openais)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(tmp_path, legacy):
    victim, path = tmp_path / "victim", tmp_path / "bomb.pt"
    torch.save({"x": torch.zeros(1), "y": Bomb(victim)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"bomb\.pt was refused.*Nothing in it was executed.*posix\.system"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Bomb(victim)))
    with pytest.raises(CheckpointError, match=r"bomb\.pt was refused"):
        read_weights(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"x": torch.zeros(1)}, "step": 3}, "flat state dict.*model, step"),
        ([torch.zeros(1)], "flat state dict.*list"),
        (torch.zeros(1), "flat state dict.*Tensor"),
    ],
)
def test_files_that_are_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "other.pt")


def test_files_that_are_no_weights(tmp_path):
    page = tmp_path / "page.pt"
    page.write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(CheckpointError, match=r"page\.pt is not a weight file: it starts with b'<!DOCTYPE"):
        read_weights(page)
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.pt"):
        read_weights(tmp_path / "nothing.pt")


def test_a_mismatch_shows_both_sides(backbone):
    state = dict(backbone.unet.state_dict())
    state["extra.weight"] = torch.zeros(2, 3)
    state["time_embed.0.bias"] = torch.zeros(5)
    del state["out.2.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_strictly(small_unet(), state, "some.pt")
    message = str(caught.value)
    assert message.startswith("some.pt does not fit")
    assert "missing from the file (1): out.2.bias (6,)" in message
    assert "in the file but not in the architecture (1): extra.weight (2, 3)" in message
    assert "other shapes (1): time_embed.0.bias (128,) expected, (5,) in the file" in message


def test_wrong_architecture_names_the_file(openais):
    config = small_unet(channel_mult=(1, 2, 2)).config
    with pytest.raises(CheckpointError, match=r"small\.pt does not fit(.|\n)*other shapes"):
        create_backbone(openais, config=config, schedule="linear")


def test_integer_weights_are_refused(backbone):
    state = {name: tensor.int() for name, tensor in backbone.unet.state_dict().items()}
    with pytest.raises(CheckpointError, match="holds integers"):
        load_strictly(small_unet(), state, "some.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": "99"}, "backbone format 99.*reads 1"),
        ({"config": "{"}, "metadata is malformed"),
        ({"config": "{}"}, "metadata is malformed.*image_size"),
        ({"schedule": '{"name": "sigmoid", "num_timesteps": 3}'}, "malformed.*sigmoid"),
        ({"weights_sha256": None}, "lacks 'weights_sha256'"),
        ({"weights_sha256": "0"}, "is corrupt"),
    ],
)
def test_damaged_metadata(ours, change, message):
    weights = read_weights(ours)
    metadata = {k: v for k, v in {**weights.metadata, **change}.items() if v is not None}
    save_file(dict(weights.state), ours, metadata)
    with pytest.raises(CheckpointError, match=rf"small\.safetensors.*{message}"):
        create_backbone(ours)


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


def test_a_full_disk_leaves_what_was_there(ours):
    """A limit on file sizes stands in for a full disk: writing fails part way."""
    before = ours.read_bytes()
    script = f"""
        import resource, signal
        from difformer import create_backbone
        backbone = create_backbone({str(ours)!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            backbone.save({str(ours)!r}, overwrite=True)
        except OSError as error:
            print("refused:", error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "refused:" in done.stdout
    assert "small.safetensors" in done.stdout
    assert ours.read_bytes() == before
    assert list(ours.parent.iterdir()) == [ours]


def test_a_kill_leaves_what_was_there(ours):
    before = ours.read_bytes()
    script = f"""
        import os, signal
        from pathlib import Path
        from difformer.files import write_atomically
        with write_atomically(Path({str(ours)!r}), overwrite=True) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    assert ours.read_bytes() == before


def test_the_digest_is_of_the_weights_not_of_the_file(ours, openais, backbone):
    digests = {weights_digest(read_weights(path).state) for path in (ours, openais)}
    assert digests == {backbone.digest}
    other = dict(backbone.unet.state_dict())
    other["out.2.bias"] = other["out.2.bias"] + 1e-7
    assert weights_digest(other) not in digests
