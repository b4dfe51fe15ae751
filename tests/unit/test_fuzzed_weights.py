"""Damaged weight files, classifiers, descriptions and conversions: an error that names the file, or what was written.

Seconds by default and minutes with `-m slow`; what came out is counted, and printed with `-s`.
"""

import copy
import json
import random
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import torch
from example_classifiers import CLASSIFIERS
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support import UNSEEN, rewrite_metadata, small_unet, tiny_unet

from difformer import (
    DiffusionClassifier,
    FeatureExtractor,
    FeedbackExtractor,
    LinearHead,
    NoiseSchedule,
    UNetBackbone,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.checkpoints import describe, read_weights
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import read_description
from difformer.classifier.published import PublishedOptions, is_published, read_published
from difformer.cli import main

# Nothing else may come out of reading a file: CheckpointError is a ValueError.
ALLOWED = (ValueError, FileNotFoundError)
OUTCOMES = ("refused", "same", "altered")

TIERS = [pytest.param(48, id="seconds"), pytest.param(4_000, id="minutes", marks=pytest.mark.slow)]
EXAMPLES = [pytest.param(12, id="seconds"), pytest.param(3_000, id="minutes", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def backbone():
    known = {"name": "small", "digest": "0" * 64, "provenance": {"made_by": "a test"}}
    return UNetBackbone(tiny_unet(), NoiseSchedule.linear(), **known)


@pytest.fixture(scope="module")
def larger():
    """With the blocks that classifiers of every kind read."""
    return UNetBackbone(small_unet(), NoiseSchedule.linear(), digest="0" * 64)


def linear(backbone):
    extractor = FeatureExtractor(backbone, taps=["mid"], timesteps=[90], seed=3)
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 2, pool=1), class_names=["cat", "dog"])
    for parameter in classifier.head.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    return classifier


def feedback(backbone):
    arguments = {"feedback_taps": ["out02"], "taps": ["mid"], "timesteps": [90], "norm": "group", "gate": True}
    extractor = FeedbackExtractor(backbone, **arguments)
    return DiffusionClassifier(extractor, LinearHead(extractor.specs, 2, pool=1))


def state_of(module):
    return {name: (str(x.dtype), x.numpy().tobytes()) for name, x in module.state_dict().items()}


def seen_backbone(backbone):
    """Everything about a backbone that was read."""
    about = (backbone.name, backbone.config, backbone.schedule.to_dict(), backbone.digest, backbone.provenance)
    return about, state_of(backbone.unet)


def seen_classifier(path, backbone):
    """Everything about a classifier that was read."""
    classifier = load_classifier(path, backbone=backbone)
    built = (classifier.extractor.arguments, classifier.head.arguments, list(classifier.head.specs))
    return built, classifier.class_names, classifier.preprocessing, state_of(classifier.trained_parts)


def mutations(content, count, chance):
    """Ways to damage a file: pieces of it replaced, from a place on, half of them single bits."""
    size = len(content)
    for number in range(count):
        # As much in the header, or the pickle, as in all the rest.
        place = chance.randrange(min(size, 4096) if number % 2 else size)
        if number % 4 < 2:
            yield place, bytes([content[place] ^ 1 << chance.randrange(8)])
        else:
            yield place, bytes(chance.randrange(256) for _ in range(chance.choice([1, 1, 2, 8])))


def fuzz(path, read, count, name, record_property):
    """Reads a file under many mutations and truncations, and counts what came out."""
    content, expected, outcomes, errors = path.read_bytes(), read(path), Counter(), []

    def attempt():
        try:
            outcomes["same" if read(path) == expected else "altered"] += 1
        except ALLOWED as error:
            outcomes["refused"] += 1
            errors.append(str(error))

    chance = random.Random(0)
    for place, piece in mutations(content, count, chance):
        if content[place : place + len(piece)] == piece or place + len(piece) > len(content):
            continue
        with path.open("r+b") as file:
            file.seek(place)
            file.write(piece)
        attempt()
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content[place : place + len(piece)])
    for _ in range(count // 10):
        path.write_bytes(content[: chance.randrange(len(content))])
        attempt()
    path.write_bytes(content)
    assert read(path) == expected
    told = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES)
    record_property(name, told)
    print(f"\n{name}: {told}")
    assert [error for error in errors if path.name not in error] == []
    assert errors
    return outcomes


@pytest.mark.parametrize("count", TIERS)
@pytest.mark.parametrize("make", [linear, feedback])
def test_no_damage_changes_a_classifier_in_silence(backbone, tmp_path, count, make, record_property):
    path = tmp_path / "c.safetensors"
    save_classifier(path, make(backbone), accuracy=0.5)

    def read(path):
        return read_description(path), seen_classifier(path, backbone)

    outcomes = fuzz(path, read, count, f"classifier, {make.__name__}", record_property)
    assert outcomes["altered"] == 0


@pytest.mark.parametrize("count", TIERS)
def test_no_damage_changes_a_backbone_in_silence(backbone, tmp_path, count, record_property):
    path = tmp_path / "b.safetensors"
    backbone.save(path)
    outcomes = fuzz(path, lambda path: seen_backbone(create_backbone(path)), count // 2, "backbone", record_property)
    assert outcomes["altered"] == 0
    told = fuzz(path, lambda path: str(describe(path)), count // 2, "backbone, described", record_property)
    assert told["altered"] == 0


@pytest.mark.parametrize("count", TIERS)
def test_a_backbone_is_not_taken_for_a_foreign_file(backbone, tmp_path, count, record_property):
    """Told what a foreign file would have to be told, a damaged file of ours is refused all the same."""
    path = tmp_path / "b.safetensors"
    backbone.save(path)
    given = {"config": backbone.config, "schedule": backbone.schedule}
    outcomes = fuzz(
        path, lambda path: seen_backbone(create_backbone(path, **given)), count // 2, "backbone, told", record_property
    )
    assert outcomes["altered"] == 0


@pytest.mark.parametrize("count", TIERS)
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_damage_to_foreign_files(backbone, tmp_path, count, kind, record_property):
    """Archives have checksums. The old format has none: there, damage can stay unseen."""
    path = tmp_path / "own.pt"
    torch.save(backbone.unet.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    given = {"config": UNSEEN, "schedule": backbone.schedule}
    outcomes = fuzz(
        path, lambda path: state_of(create_backbone(path, **given).unet), count // 4, f"{kind} .pt", record_property
    )
    assert kind == "legacy" or outcomes["altered"] == 0


@pytest.mark.parametrize("count", TIERS)
def test_damage_to_files_of_the_first_format(backbone, tmp_path, count, record_property):
    """Their description has no digest, so that not all of it is seen; what is seen is an error of ours."""
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    rewrite_metadata(path, {"format_version": "1", "content_sha256": None})
    fuzz(path, lambda path: seen_classifier(path, backbone), count, "classifier, format 1", record_property)


@pytest.mark.parametrize("count", TIERS)
def test_conversions_of_damaged_files(backbone, tmp_path, count, record_property):
    """The command ends with a message, and what it writes can be read."""
    source, out = tmp_path / "own.pt", tmp_path / "out.safetensors"
    torch.save(backbone.unet.state_dict(), source)
    options = ["--arch.image_size=32", "--arch.num_head_channels=16", "--arch.use_new_attention_order=false"]
    options += ["--schedule=linear", "--num_timesteps=1000", "--overwrite"]

    def convert(path):
        errors = StringIO()
        with redirect_stderr(errors), redirect_stdout(StringIO()):
            status = main(["convert", str(path), str(out), *options])
        if status:
            assert "difformer: error: " in errors.getvalue()
            raise ValueError(errors.getvalue())
        return state_of(create_backbone(out).unet)

    assert fuzz(source, convert, count // 8, "conversion", record_property)["altered"] == 0


@pytest.mark.parametrize("count", TIERS)
def test_conversions_of_damaged_published_checkpoints(backbone, tmp_path, count, record_property):
    path = tmp_path / "latest.pth"
    head = {"fcs.0.weight": torch.ones(2, 32), "fcs.0.bias": torch.zeros(2)}
    torch.save({"model_head": head, "epoch": 3, "optimizer": {"state": {}}}, path)
    options = PublishedOptions(timesteps=(90,), taps=(5,))

    def read(path):
        if not is_published(path):
            raise ValueError(f"{path} is another file")
        return state_of(read_published(path, backbone, options).trained_parts)

    assert fuzz(path, read, count, "published head", record_property)["altered"] == 0


HOSTILE = st.sampled_from(
    [2**31, 2**62, 2**64, -1, 0, 10**400, 1e308, float("inf"), float("-inf"), float("nan"), 0.5, "", "0", "mid",
     "FeatureExtractor", "DifFormerHead", "../../x", "\udc80", "=1+1", None, True, [], {}, [[]], {"": {}}]
)  # fmt: skip
VALUES = st.recursive(
    HOSTILE | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=8,
)


def places(value, path=()):
    """Where in nested values anything stands."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def replaced(values, path, change):
    """Nested values with another value in one place, or without it."""
    if not path:
        return change["value"]
    values = copy.deepcopy(values)
    owner = values
    for key in path[:-1]:
        owner = owner[key]
    if change["how"] == "remove":
        del owner[path[-1]]
    elif change["how"] == "rename" and isinstance(owner, dict):
        owner[f"{path[-1]}x"] = owner.pop(path[-1])
    else:
        owner[path[-1]] = change["value"]
    return values


CHANGES = st.lists(
    st.fixed_dictionaries(
        {"place": st.integers(0, 999), "how": st.sampled_from(["replace"] * 3 + ["remove", "rename"]), "value": VALUES}
    ),
    min_size=1,
    max_size=2,
)


def try_descriptions(written, read, examples, name, record_property):
    """Reads a file with many made-up descriptions, whose digest is right."""
    outcomes = Counter()

    @seed(0)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CHANGES)
    def attempt(changes):
        values = written
        for change in changes:
            known = list(places(values))
            values = replaced(values, known[change["place"] % len(known)], change)
        try:
            read(values)
            outcomes["read"] += 1
        except ALLOWED:
            outcomes["refused"] += 1

    attempt()
    told = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("refused", "read"))
    record_property(name, told)
    print(f"\n{name}: {told}")
    assert outcomes["refused"]


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn", "joint", "difffeed group"])
def test_descriptions_of_classifiers(larger, tmp_path, kind, examples, record_property):
    extractor, head = CLASSIFIERS[kind](larger)
    path = tmp_path / "c.safetensors"
    save_classifier(path, DiffusionClassifier(extractor, head(extractor.specs)), accuracy=0.5)

    def read(description):
        rewrite_metadata(path, {"description": json.dumps(description)})
        try:
            load_classifier(path, backbone=larger)
        finally:
            read_description(path)

    written = read_description(path)
    try_descriptions(written, read, examples, f"descriptions, {kind}", record_property)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_descriptions_of_backbones(backbone, tmp_path, examples, record_property):
    path = tmp_path / "b.safetensors"
    backbone.save(path)
    metadata = read_metadata(path)

    def read(values):
        texts = {
            key: json.dumps(values[key]) if isinstance(values, dict) and key in values else None for key in written
        }
        rewrite_metadata(path, texts)
        try:
            create_backbone(path)
        finally:
            describe(path)

    written = {key: json.loads(metadata[key]) for key in ("config", "schedule", "provenance")}
    try_descriptions(written, read, examples, "descriptions of backbones", record_property)


def test_weights_under_any_name_are_read_or_refused(tmp_path):
    """Names are not trusted either."""
    for name in (
        "",
        ".",
        "module.",
        "input_blocks.-1.0.x",
        "output_blocks.0",
        "\udc80".encode("utf8", "replace").decode(),
    ):
        torch.save({name: torch.zeros(1)}, tmp_path / "own.pt")
        assert list(read_weights(tmp_path / "own.pt").state) == [name]
        with pytest.raises(ALLOWED):
            create_backbone(tmp_path / "own.pt", config=UNSEEN, schedule=NoiseSchedule.linear())
