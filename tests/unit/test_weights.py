"""Damaged, foreign and hostile weight files."""

import os
import pickle
import random
import time
import warnings

import pytest
import torch
from processes import joined, start
from safetensors.torch import save_file
from support import UNSEEN, rewrite_metadata, small_unet

from difformer import CheckpointError, NoiseSchedule, UNetBackbone, create_backbone
from difformer.checkpoints import describe, load_strictly, read_pickle, read_weights, weights_digest
from difformer.checkpoints.weights import unwrapped


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
        ({"format_version": "99"}, "backbone format 99.*reads 1 and 2"),
        ({"config": "{"}, "metadata is malformed"),
        ({"config": "{}"}, "metadata is malformed.*image_size"),
        ({"schedule": '{"name": "sigmoid", "num_timesteps": 3}'}, "malformed.*sigmoid"),
        ({"weights_sha256": None}, "lacks 'weights_sha256'"),
        ({"weights_sha256": "0"}, "is corrupt"),
    ],
)
def test_damaged_metadata(ours, change, message):
    rewrite_metadata(ours, change)
    with pytest.raises(CheckpointError, match=rf"small\.safetensors.*{message}"):
        create_backbone(ours)


def test_the_digest_is_of_the_weights_not_of_the_file(ours, openais, backbone):
    digests = {weights_digest(read_weights(path).state) for path in (ours, openais)}
    assert digests == {backbone.digest}
    other = dict(backbone.unet.state_dict())
    other["out.2.bias"] = other["out.2.bias"] + 1e-7
    assert weights_digest(other) not in digests


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to(torch.complex64), "sparse or complex"),
        (lambda x: x.to_sparse(), "sparse or complex"),
        (lambda x: x.to("meta"), "without values"),
        (lambda x: x.round().long(), "holds integers where weights belong: out.2.bias"),
    ],
)
def test_tensors_that_cannot_be_weights(backbone, change, message):
    state = dict(backbone.unet.state_dict())
    state["out.2.bias"] = change(state["out.2.bias"])
    with pytest.raises(CheckpointError, match=message):
        load_strictly(small_unet(), state, "some.pt")


@pytest.mark.parametrize(
    "content",
    [
        {1: torch.zeros(1)},
        {"x": torch.zeros(3).to_sparse()},
        {"x": torch.zeros(3, device="meta")},
        {"x": torch.zeros(3, dtype=torch.complex64)},
    ],
    ids=["numbers for names", "sparse", "meta", "complex"],
)
def test_state_dicts_that_nothing_can_be_done_with(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt (must hold tensors by name|holds sparse or complex)"):
        read_weights(tmp_path / "other.pt")


def test_keys_of_any_depth_are_named(tmp_path):
    key = ()
    for _ in range(300):
        key = (key,)
    for value in (torch.zeros(1), 3):
        torch.save({key: value}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"holds (some under|the entries) \(\(\(\("):
            read_weights(tmp_path / "other.pt")


def test_a_modules_own_integers_are_fine():
    module = torch.nn.BatchNorm2d(3)
    state = {name: tensor.clone() + 1 for name, tensor in module.state_dict().items()}
    load_strictly(module, state, "some.pt")
    assert module.num_batches_tracked == 1
    with pytest.raises(CheckpointError, match="holds weights where integers belong: num_batches_tracked"):
        load_strictly(module, state | {"num_batches_tracked": torch.tensor(1.5)}, "some.pt")


def test_a_torchscript_archive_is_named_as_such(tmp_path):
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    for verify in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(CheckpointError, match=r"script\.pt is a TorchScript archive") as caught:
                read_weights(path, verify=verify)
        assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_anywhere_is_a_checkpoint_error(tmp_path, kind, verify):
    path = tmp_path / "fuzzed.pt"
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2, dtype=torch.float16)}
    if kind == "safetensors":
        save_file(state, path, {"format": "pt"})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content, chance, messages = path.read_bytes(), random.Random(0), []
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path, verify=verify)
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert all("fuzzed.pt" in message and "weights_only" not in message for message in messages)


def test_running_out_of_memory_is_not_taken_for_damage(openais, monkeypatch):
    def fail(*args, **options):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        read_weights(openais)


def cut_off(file):
    file.truncate(100)


def zero(file):
    file.write(bytes(os.fstat(file.fileno()).st_size))


def change_what_was_opened(path, given, change):
    backbone = create_backbone(path, **given)
    x = torch.ones(1, 3, 32, 32)
    before = backbone(x, 10)
    with open(path, "r+b") as file:
        change(file)
    assert torch.equal(backbone(x, 10), before)


@pytest.mark.parametrize("kind", ["ours", "openais"])
@pytest.mark.parametrize("change", [cut_off, zero])
def test_a_file_may_change_after_it_was_opened(kind, change, request):
    """In a process of its own, which a mapped file would kill."""
    path = request.getfixturevalue(kind)
    given = {} if kind == "ours" else {"config": UNSEEN, "schedule": NoiseSchedule.cosine(1000)}
    assert joined(start(change_what_was_opened, path, given, change)) == 0


def test_absurd_metadata_is_refused_at_once(ours):
    weights = read_weights(ours)
    for key, value in [
        ("schedule", '{"name": "cosine", "num_timesteps": 100000000000}'),
        ("config", weights.metadata["config"].replace('"num_res_blocks": 2', '"num_res_blocks": 100000000')),
        ("provenance", "[1]"),
    ]:
        rewrite_metadata(ours, {**weights.metadata, key: value})
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=r"small\.safetensors"):
            create_backbone(ours)
        assert time.monotonic() - start < 5


def test_the_digest_does_not_depend_on_the_precision_of_the_file(backbone, tmp_path):
    half = {name: tensor.half() for name, tensor in backbone.unet.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    opened = create_backbone(tmp_path / "half.pt", config=backbone.config, schedule=NoiseSchedule.linear())
    opened.save(tmp_path / "full.safetensors")
    assert create_backbone(tmp_path / "full.safetensors").digest == opened.digest == weights_digest(half)
    double = {name: tensor.double() for name, tensor in half.items()}
    assert weights_digest(double) != opened.digest


def test_pickles_of_any_structure_can_be_read(tmp_path):
    content = {"model": {"x": torch.ones(2)}, "step": 3}
    for zipped in (True, False):
        torch.save(content, tmp_path / "other.pt", _use_new_zipfile_serialization=zipped)
        found = read_pickle(tmp_path / "other.pt")
        assert found["step"] == 3
        assert torch.equal(found["model"]["x"], torch.ones(2))
    torch.save(Bomb(tmp_path / "victim"), tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="was refused"):
        read_pickle(tmp_path / "other.pt")


def test_the_description_is_under_a_digest_too(ours):
    content = ours.read_bytes()
    for old, new in (
        (rb"\"num_timesteps\": 1000", rb"\"num_timesteps\": 1001"),
        (rb"\"num_head_channels\": 16", rb"\"num_head_channels\": 32"),
        (b'"name":"small"', b'"name":"smell"'),
        (b"a test", b"a rest"),
    ):
        assert content.count(old) == 1
        ours.write_bytes(content.replace(old, new))
        for read in (create_backbone, describe):
            with pytest.raises(CheckpointError, match=r"small\.safetensors is damaged or was altered"):
                read(ours)
    assert create_backbone(ours, verify=False).provenance == {"made_by": "a rest"}


def test_files_of_the_first_format_have_a_digest_of_their_weights_alone(ours, backbone):
    rewrite_metadata(ours, {"format_version": "1", "content_sha256": None})
    again = create_backbone(ours)
    assert (again.name, again.config, again.digest) == ("small", backbone.config, backbone.digest)
    again.save(ours, overwrite=True)
    assert read_weights(ours).metadata["format_version"] == "2"


def test_a_file_of_ours_that_does_not_say_so_is_not_read_as_another(ours, backbone):
    weights = read_weights(ours)
    for kind in ("difformer.backbonf", ""):
        save_file(dict(weights.state), ours, {**weights.metadata, "format": kind})
        with pytest.raises(CheckpointError, match="its metadata is difformer's, but its format is"):
            create_backbone(ours, config=backbone.config, schedule=backbone.schedule)


def test_the_old_format_is_said_to_have_no_checksum(backbone, tmp_path, caplog):
    for legacy in (False, True):
        torch.save(backbone.unet.state_dict(), tmp_path / "own.pt", _use_new_zipfile_serialization=not legacy)
        read_weights(tmp_path / "own.pt")
        assert [record.levelname for record in caplog.records] == ["WARNING"] * legacy
    assert "own.pt is of PyTorch's old format, which has no checksum" in caplog.text


def test_names_lose_the_prefixes_of_wrappers():
    x, y = torch.zeros(1), torch.ones(1)
    for names in (
        ("module.a.b", "module.c"), ("_orig_mod.a.b", "_orig_mod.c"), ("module._orig_mod.a.b", "module._orig_mod.c"),
        ("_orig_mod.module.a.b", "_orig_mod.module.c"), ("a._orig_mod.b", "c"),
        ("module.module.a.b", "module.module.c"),
    ):  # fmt: skip
        assert unwrapped(dict(zip(names, (x, y), strict=True))) == {"a.b": x, "c": y}
    for kept in ({"module.a": x, "b": y}, {"a._orig_mod.b": x, "a.b": y}, {"my_orig_mod.a": x}, {}):
        assert unwrapped(kept) == kept


def test_one_of_several_state_dicts_is_chosen(tmp_path):
    path = tmp_path / "own.pt"
    whole = {
        "model": {"x": torch.zeros(2)}, "ema": {"x": torch.ones(2)}, "step": 3,
        "nested": {"deeper": {"x": torch.ones(2) * 2}, "rate": 0.5},
        "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    whole["itself"] = whole
    torch.save(whole, path)
    with pytest.raises(CheckpointError, match="the entries model, ema") as caught:
        read_weights(path)
    offer = "it has model (1 tensors), ema (1 tensors), nested.deeper (1 tensors): choose one of them with"
    assert f"{offer} entry='model' (--entry model)" in str(caught.value)
    for entry, value in (("model", 0), ("ema", 1), ("nested.deeper", 2)):
        assert read_weights(path, entry=entry).state["x"].tolist() == [value, value]
    with pytest.raises(CheckpointError, match="has no state dict 'opt'; it has model"):
        read_weights(path, entry="opt")
    torch.save(whole["model"], path)
    with pytest.raises(CheckpointError, match="has no state dict 'model'; it has none by name"):
        read_weights(path, entry="model")
    save_file(whole["model"], path)
    with pytest.raises(CheckpointError, match="a safetensors file, which has no entries"):
        read_weights(path, entry="model")
