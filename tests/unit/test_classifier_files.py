"""Classifiers in files, in folders and on the hub."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from example_classifiers import CLASSIFIERS, IDS, linear, plain
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from support import recipe_input, rewrite_metadata, small_unet

from difformer import (
    CheckpointError,
    DiffusionClassifier,
    FeatureExtractor,
    FeedbackExtractor,
    NoiseSchedule,
    UNetBackbone,
    create_backbone,
    load_classifier,
    save_classifier,
)
from difformer.checkpoints import read_weights, weights
from difformer.classifier import read_description
from difformer.cli import main
from difformer.data import Preprocessing
from difformer.heads import LinearHead


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture(scope="module")
def images():
    return recipe_input(1, 3, 3, 32, 32).clamp(-1, 1)


@pytest.fixture(params=CLASSIFIERS)
def classifier(request, backbone):
    torch.manual_seed(0)
    extractor, head = CLASSIFIERS[request.param](backbone)
    return DiffusionClassifier(extractor, head(extractor.specs), class_names=["cat", "dog", "bird"])


def rewrite(path, change):
    """Changes the description in a classifier's file, as if it had been written so."""
    description = json.loads(read_weights(path).metadata["description"])
    change(description)
    rewrite_metadata(path, {"description": json.dumps(description)})


def test_save_and_load_give_equal_logits(classifier, images, tmp_path, backbone):
    classifier.train()
    classifier(images, IDS)  # moves batch statistics, which must be kept too
    classifier.eval()
    save_classifier(tmp_path / "c.safetensors", classifier, accuracy=0.5, recipe={"lr": 0.1})
    again = load_classifier(tmp_path / "c.safetensors", backbone=backbone)
    assert torch.equal(again(images, IDS), classifier(images, IDS))
    assert again.class_names == ("cat", "dog", "bird")
    assert again.preprocessing == Preprocessing(32)
    assert not again.training
    description = read_description(tmp_path / "c.safetensors")
    assert description["metadata"] == {"accuracy": 0.5, "recipe": {"lr": 0.1}}
    assert description["backbone"]["name"] == "UNet"
    assert description["backbone"]["digest"] == backbone.digest
    assert description["backbone"]["schedule"] == {"name": "linear", "num_timesteps": 1000}
    names = load_file(tmp_path / "c.safetensors").keys()
    assert {name.partition(".")[0] for name in names} <= {"head", "feedback"}


def test_the_backbone_is_found_by_its_name(backbone, tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    backbone.save(tmp_path / "checkpoints" / "UNet.safetensors")
    save_classifier("c.safetensors", linear(backbone))
    expected = linear(backbone).eval()(images, IDS)
    assert torch.equal(load_classifier("c.safetensors")(images, IDS), expected)
    given = load_classifier("c.safetensors", backbone="checkpoints/UNet.safetensors", dtype=torch.bfloat16)
    assert given.backbone.dtype == torch.bfloat16
    shutil.move(tmp_path / "checkpoints", tmp_path / "elsewhere")
    assert torch.equal(load_classifier("c.safetensors", folder="elsewhere")(images, IDS), expected)
    with pytest.raises(FileNotFoundError, match="UNet"):
        load_classifier("c.safetensors")


def test_another_backbone_is_refused(backbone, tmp_path):
    save_classifier(tmp_path / "c.safetensors", linear(backbone))
    other = create_backbone(small_unet(seed=8), schedule="linear")
    with pytest.raises(
        CheckpointError, match=f"trained on the backbone UNet with digest {backbone.digest}.*verify=False"
    ):
        load_classifier(tmp_path / "c.safetensors", backbone=other)
    assert load_classifier(tmp_path / "c.safetensors", backbone=other, verify=False)
    for same_weights, part in (
        (create_backbone(small_unet(), schedule="cosine"), "schedule"),
        (create_backbone(small_unet(use_new_attention_order=True), schedule="linear"), "config"),
    ):
        assert same_weights.digest == backbone.digest
        with pytest.raises(CheckpointError, match=f"trained on the backbone UNet with {part}"):
            load_classifier(tmp_path / "c.safetensors", backbone=same_weights)
    narrow = create_backbone(small_unet(channel_mult=(1, 1, 1)), schedule="linear")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_classifier(tmp_path / "c.safetensors", backbone=narrow, verify=False)
    shallow = create_backbone(
        small_unet(channel_mult=(1,), num_res_blocks=1, attention_resolutions=(32,)), schedule="linear"
    )
    with pytest.raises(CheckpointError, match=r"cannot be rebuilt on this backbone.*unknown tap"):
        load_classifier(tmp_path / "c.safetensors", backbone=shallow, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "difformer.backbone"}, "difformer.backbone, not a classifier"),
        ({"format_version": "9"}, "classifier format 9"),
        ({"description": "{"}, "malformed"),
        ({"description": "{}"}, "malformed: the description lacks 'backbone'"),
        ({"description": "null"}, "malformed: the description must be keys and values"),
        ({"description": None}, "malformed: the description must be keys and values"),
        ({"weights_sha256": "0"}, "is corrupt"),
    ],
)
def test_damaged_files_raise(backbone, tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    rewrite_metadata(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_classifier(path, backbone=backbone)


def test_descriptions_that_do_not_fit_raise(backbone, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    written = path.read_bytes()
    for part, changes, message in (
        ("head", {"type": "os.system"}, "cannot be rebuilt.*os.system"),
        ("head", {"type": "Nope"}, "this version knows no head 'Nope', only .*LinearHead, MLPHead"),
        ("extractor", {"type": "Nope"}, "this version knows no extractor 'Nope', only FeatureExtractor"),
        ("head", {"keys": [{"tap": "mid", "t": 90}]}, r"the head reads .*mid.*, but the extractor gives .*out02"),
        ("head", {"arguments": {"pool": 3}}, "does not fit"),
        ("extractor", {"arguments": {}}, "cannot be rebuilt.*taps"),
        ("extractor", {"type": 3}, "type of extractor must not be int"),
    ):
        path.write_bytes(written)
        rewrite(path, lambda description, part=part, changes=changes: description[part].update(changes))
        with pytest.raises(CheckpointError, match=message):
            load_classifier(path, backbone=backbone)


def test_what_cannot_be_rebuilt_is_not_saved(backbone, tmp_path):
    class Own(LinearHead):
        pass

    extractor = plain(backbone, ["out02"], [90])
    with pytest.raises(ValueError, match="Own cannot be found again by its name: define it at the top of a module"):
        save_classifier(tmp_path / "c", DiffusionClassifier(extractor, Own(extractor.specs, 3)))
    for value in (torch.tensor(1.0), float("nan"), [{"loss": float("inf")}]):
        with pytest.raises(ValueError, match=r"metadata accuracy=.* must be JSON types with finite numbers"):
            save_classifier(tmp_path / "c", linear(backbone), epoch=3, accuracy=value)
    unwritable = UNetBackbone(small_unet(), NoiseSchedule.linear(), name=Path("x"))
    with pytest.raises(ValueError, match=r"cannot be stored as JSON.*Path"):
        save_classifier(tmp_path / "c", linear(unwritable))
    assert not list(tmp_path.iterdir())


def test_saving_replaces_whole_files_only(backbone, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone), step=1)
    save_classifier(path, linear(backbone), step=2)
    assert read_description(path)["metadata"] == {"step": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_full_disk_leaves_what_was_there(backbone, tmp_path, monkeypatch):
    """Of classifiers and of backbones: they are written by the same helper."""
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone), step=1)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    for write in (lambda: save_classifier(path, linear(backbone)), lambda: backbone.save(path, overwrite=True)):
        with pytest.raises(OSError, match=r"c\.safetensors could not be written: No space left"):
            write()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cls", [FeatureExtractor, FeedbackExtractor])
def test_what_features_are_made_with_is_saved(backbone, tmp_path, images, cls):
    """Seed, draws and type of the features; files of before the type was kept have float32."""
    own = {"feedback_taps": ["out01"]} if cls is FeedbackExtractor else {}
    extractor = cls(backbone, taps=["out02"], timesteps=[90], seed=5, draws=2, dtype=torch.bfloat16, **own)
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 3)).eval()
    path = tmp_path / "c.safetensors"
    save_classifier(path, classifier)
    again = load_classifier(path, backbone=backbone)
    assert (again.extractor.seed, again.extractor.noising.draws, again.extractor.noising.clean) == (5, 2, False)
    assert again.extractor.dtype == torch.bfloat16
    logits = classifier(images, IDS)
    assert torch.equal(again(images, IDS), logits)
    for change in ({"seed": 0}, {"draws": 1}):
        other = cls(backbone, **extractor.arguments | change)
        assert not torch.equal(DiffusionClassifier(other, classifier.head).eval()(images, IDS), logits)
    rewrite(path, lambda description: description["extractor"]["arguments"].pop("dtype"))
    assert load_classifier(path, backbone=backbone).extractor.dtype == torch.float32


def test_clean_images_are_saved_as_such(backbone, tmp_path, images):
    extractor = FeatureExtractor(backbone, taps=["out02"], timesteps=[90], clean=True)
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 3)).eval()
    save_classifier(tmp_path / "c.safetensors", classifier)
    again = load_classifier(tmp_path / "c.safetensors", backbone=backbone)
    assert again.extractor.noising.clean
    assert torch.equal(again(images, [1, 2, 3]), classifier(images, [4, 5, 6]))


def test_pretrained_folders_and_the_hub(backbone, tmp_path, images, monkeypatch):
    """The hub's client is replaced by a folder: what is uploaded is what is downloaded again."""
    classifier = linear(backbone).eval()
    calls = []
    folder = classifier.save_pretrained(tmp_path / "saved", accuracy=0.5, repo_id="kept")
    assert 'from_pretrained("path/of/this/folder")' in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["metadata"] == {"accuracy": 0.5, "repo_id": "kept"}
    again = DiffusionClassifier.from_pretrained(folder, backbone=backbone)
    assert torch.equal(again(images, IDS), classifier(images, IDS))

    class Hub:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            calls.append(("create_repo", repo_id, private))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def create_branch(self, repo_id, branch, exist_ok):
            assert exist_ok
            calls.append(("create_branch", repo_id, branch))

        def upload_folder(self, repo_id, folder_path, commit_message, revision, create_pr):
            calls.append(("upload_folder", repo_id, commit_message, revision, create_pr))
            shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)
            return f"https://hub/{repo_id}"

    def hf_hub_download(repo_id, file, **options):
        calls.append((repo_id, True, options))
        return str(tmp_path / repo_id / file)

    def try_to_load_from_cache(repo_id, file, **options):
        calls.append((repo_id, False, options))
        return str(tmp_path / repo_id / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    assert classifier.push_to_hub("net", private=True, token="secret") == "https://hub/me/net"
    assert calls == [("create_repo", "net", True), ("upload_folder", "me/net", "Upload classifier", None, False)]
    assert 'from_pretrained("me/net")' in (tmp_path / "me/net/README.md").read_text()
    del calls[:]
    classifier.push_to_hub("net", token="secret", branch="next", step=3)
    classifier.push_to_hub("net", token="secret", branch="next", create_pr=True, commit_message="better")
    assert calls[1:3] == [
        ("create_branch", "me/net", "next"),
        ("upload_folder", "me/net", "Upload classifier", "next", False),
    ]
    assert calls[4:] == [("upload_folder", "me/net", "better", "next", True)]
    del calls[:]
    again = DiffusionClassifier.from_pretrained("me/net", backbone=backbone)
    assert torch.equal(again(images, IDS), classifier(images, IDS))
    given = {"revision": "next", "token": "secret", "cache_dir": tmp_path}
    DiffusionClassifier.from_pretrained("me/net", backbone=backbone, download=False, **given)
    DiffusionClassifier.from_pretrained("me/net@next", backbone=backbone)
    nothing = {"revision": None, "token": None, "cache_dir": None}
    assert calls == [
        ("me/net", True, nothing),
        ("me/net", False, {name: given[name] for name in ("revision", "cache_dir")}),
        ("me/net", True, nothing | {"revision": "next"}),
    ]
    with pytest.raises(ValueError, match="names the revision old, which revision='next' contradicts"):
        DiffusionClassifier.from_pretrained("me/net@old", backbone=backbone, **given)
    with pytest.raises(ValueError, match="is a folder here, which has no revision 'next'"):
        DiffusionClassifier.from_pretrained(folder, backbone=backbone, revision="next")


def test_the_hub_shows_metrics(backbone, tmp_path):
    metrics = {"top1": 0.84, "ece": 0.03, "epoch": 12, "name": "best"}
    folder = linear(backbone).save_pretrained(tmp_path / "saved", metrics=metrics, dataset="ELPV: cells")
    card = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert card.library_name == "difformer"
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in card.eval_results}
    assert found == {"top1": ("accuracy", 0.84), "ece": ("ece", 0.03), "epoch": ("epoch", 12)}
    assert {result.dataset_name for result in card.eval_results} == {"ELPV: cells"}
    plain = linear(backbone).save_pretrained(tmp_path / "plain")
    assert huggingface_hub.ModelCard.load(plain / "README.md").data.eval_results is None


def test_a_card_says_what_goes_in_and_what_comes_out(backbone, tmp_path):
    few = linear(backbone, class_names=["cat", "`dog`\nor wolf", "bird"])
    text = (few.save_pretrained(tmp_path / "few") / "README.md").read_text()
    assert "3 classes: `cat`, `'dog' or wolf`, `bird`." in text
    assert "RGB images of 32×32 pixels (height × width), in [-1, 1]." in text
    assert "until they just cover 32×32 pixels" in text
    assert "Measured" not in text
    extractor = plain(backbone, ["out02"], [90])
    names = [f"class{number}" for number in range(25)]
    how = Preprocessing((32, 48), resize=40)
    many = DiffusionClassifier(extractor, LinearHead(extractor.specs, 25), class_names=names, preprocessing=how)
    text = (many.save_pretrained(tmp_path / "many") / "README.md").read_text()
    assert "25 classes: `class0`, " in text
    assert "`class19` and 5 more, in `config.json`." in text
    assert "`class20`" not in text
    assert "RGB images of 32×48 pixels" in text
    assert "cover 40×60 pixels" in text


def test_a_card_says_what_was_measured(backbone, tmp_path):
    metrics = {
        "top1": 0.84, "loss": 0.378, "own": 2.0, "num_images": 1656,
        "top1_interval": {"low": 0.809, "high": 0.867, "level": 0.95}, "loss_interval": {"low": "?"},
    }  # fmt: skip
    folder = linear(backbone).save_pretrained(tmp_path / "saved", metrics=metrics, dataset="elpv")
    text = (folder / "README.md").read_text()
    table = text.partition("## Measured")[2].split("\n\n")
    assert table[1] == "1,656 images of elpv:"
    assert table[2].splitlines()[2:] == [
        "| top-1 | 84.0% | 80.9% … 86.7% with 95% confidence |",
        "| cross-entropy | 0.378 |  |",
        "| own | 2 |  |",
    ]
    card = huggingface_hub.ModelCard.load(folder / "README.md").data
    assert {result.metric_name for result in card.eval_results} == {"top1", "loss", "own"}


def test_backbones_on_the_hub(backbone, tmp_path, monkeypatch):
    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id, folder_path, commit_message, revision, create_pr):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert backbone.push_to_hub("net", licence="apache-2.0") == "https://hub/me/net"
    card = huggingface_hub.ModelCard.load(tmp_path / "me/net/README.md")
    assert card.data.license == "apache-2.0"
    assert 'create_backbone("hf://me/net", download=True)' in card.text
    download = partial(Path.joinpath, tmp_path / "me/net")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **options: str(download(file)))
    assert create_backbone("hf://me/net", download=True).digest == backbone.digest


def test_subclasses_are_loaded_as_such(backbone, tmp_path):
    class Own(DiffusionClassifier):
        pass

    folder = linear(backbone).save_pretrained(tmp_path / "saved")
    assert type(Own.from_pretrained(folder, backbone=backbone)) is Own
    assert type(load_classifier(folder / "model.safetensors", backbone=backbone, cls=Own)) is Own
    assert type(DiffusionClassifier.from_pretrained(folder, backbone=backbone)) is DiffusionClassifier


def edited(path, old, new):
    """Changes a text in the header by hand, to one of the same length."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"\"timesteps\": [90]", rb"\"timesteps\": [91]"),
        (rb"\"seed\": 0", rb"\"seed\": 1"),
        (rb"\"draws\": 1", rb"\"draws\": 9"),
        (rb"\"cat\"", rb"\"cap\""),
        (rb"\"size\": 32", rb"\"size\": 33"),
        (rb"\"digest\"", rb"\"figest\""),
        (b'"format_version":"2"', b'"format_version":"1"'),
        (b'"content_sha256"', b'"content_sha257"'),
        (b'"weights_sha256"', b'"weights_sha257"'),
    ],
)
def test_one_digest_covers_weights_and_description(backbone, tmp_path, old, new):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone, class_names=["cat", "dog", "bird"]))
    edited(path, old, new)
    for read in (lambda: load_classifier(path, backbone=backbone), lambda: read_description(path)):
        with pytest.raises(CheckpointError, match=r"c\.safetensors is damaged or was altered.*content_sha256"):
            read()
    if b"igest" not in old and b"timesteps" not in old:  # which the rest contradicts
        assert load_classifier(path, backbone=backbone, verify=False)


def test_a_file_without_its_digest_is_not_taken_for_an_older_one(backbone, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    weights = read_weights(path)
    metadata = {name: text for name, text in weights.metadata.items() if name != "content_sha256"}
    save_file(dict(weights.state), path, metadata)
    with pytest.raises(CheckpointError, match="was altered"):
        load_classifier(path, backbone=backbone)


def as_format_1(path):
    rewrite_metadata(path, {"format_version": "1", "content_sha256": None})


def test_files_of_the_first_format_are_read_and_rewritten(classifier, images, tmp_path, backbone, capsys):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_classifier(old, classifier, accuracy=0.5)
    as_format_1(old)
    assert main(["convert", str(old), str(new)]) == 0
    assert "a classifier" in capsys.readouterr().out
    assert read_weights(new).metadata["format_version"] == "2"
    for path in (old, new):
        assert read_description(path)["metadata"] == {"accuracy": 0.5}
        again = load_classifier(path, backbone=backbone)
        assert torch.equal(again(images, IDS), classifier.eval()(images, IDS))
    edited(old, rb'"digest\"', rb'"figest\"')
    assert main(["convert", str(old), str(new), "--overwrite"]) == 1
    assert "backbone lacks 'digest'" in capsys.readouterr().err
    assert main(["convert", str(new), str(tmp_path / "x"), "--preset=lsun_cat"]) == 1
    assert "is a classifier" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize(
    ("part", "name"),
    [(part, name) for part in ("backbone",) for name in ("name", "digest", "config", "schedule")]
    + [(None, name) for name in ("backbone", "extractor", "head", "class_names", "preprocessing", "metadata")]
    + [("extractor", "type"), ("extractor", "arguments"), ("head", "type"), ("head", "keys"), ("head", "arguments")],
)
def test_what_a_description_must_say(backbone, tmp_path, version, part, name):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    if version == "1":
        as_format_1(path)
    rewrite(path, lambda description: (description[part] if part else description).pop(name))
    for verify in (True, False):
        with pytest.raises(CheckpointError, match=rf"c\.safetensors.*malformed: .*lacks '{name}'"):
            load_classifier(path, backbone=backbone, verify=verify)


def test_preprocessing_may_be_missing_and_classes_may_not(backbone, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    rewrite(path, lambda description: description.update(preprocessing=None))
    assert read_description(path)["preprocessing"] is None
    assert load_classifier(path, backbone=backbone)
    rewrite(path, lambda description: description.update(class_names=[]))
    assert read_description(path)["class_names"] == []
    with pytest.raises(CheckpointError, match="num_classes must be a positive integer"):
        load_classifier(path, backbone=backbone)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (part, value)
        for part in ("backbone", "extractor", "head", "class_names", "preprocessing", "metadata")
        for value in (5, "name", [], None, True)
        if (part, value) not in [("preprocessing", None), ("class_names", [])]
    ],
)
def test_parts_of_another_kind_are_refused(backbone, tmp_path, part, value):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    rewrite(path, lambda description: description.update({part: value}))
    for read in (read_description, lambda path: load_classifier(path, backbone=backbone)):
        with pytest.raises(CheckpointError, match=f"malformed: {part}"):
            read(path)


def test_building_a_head_to_fill_draws_no_random_numbers(backbone, tmp_path):
    path = tmp_path / "c.safetensors"
    save_classifier(path, linear(backbone))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_classifier(path, backbone=backbone)
    assert torch.equal(torch.get_rng_state(), before)
