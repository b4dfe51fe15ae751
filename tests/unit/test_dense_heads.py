"""Contracts that every head keeps which gives maps, and what is particular to each."""

import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F
from example_dense_heads import (
    COARSE,
    DECODER,
    FINE,
    HEADS,
    MAPS,
    ONE,
    PYRAMID,
    SIZE,
    Reader,
    build,
    features_for,
)
from support import recipe_input, tiny_unet
from torch.distributions import Categorical

from difformer import DiffusionClassifier, FeatureExtractor, FeatureKey, create_backbone, load_classifier
from difformer import heads as difformer_heads
from difformer.checkpoints import CheckpointError
from difformer.classifier import save_classifier
from difformer.classifier.files import read_classifier, write_classifier
from difformer.cli import main
from difformer.data import DataConfig
from difformer.engine.config.build import build_head, build_task
from difformer.engine.config.recipe import HeadConfig, Recipe, TaskConfig
from difformer.heads import (
    DenseDifFormerHead,
    DetectionHead,
    DifFormerHead,
    HeatmapHead,
    LinearPixelHead,
    PixelMLPEnsemble,
    UperNetHead,
    what_it_gives,
)
from difformer.taps import TapSpec
from difformer.tasks import TASKS, Classification
from difformer.tasks.registry import check_head

SIDES = {"upernet of one block": (16, 24), "upernet group": (16, 24), "linear pixel plain": (16, 24),
         "pixel mlp majority": (64, 96), "dense difformer no skip": (16, 24), "heatmap": (16, 24),
         "heatmap finer": (64, 96)}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_maps_have_the_size_of_the_finest_level_and_grow_with_the_image(name):
    head = build(name).eval()
    height, width = SIDES.get(name, (32, 48))
    assert head(features_for(head)).shape == (3, 5, height, width)
    if name == "dense difformer published":
        # Its LayerNorm ties it to one grid of tokens, and not the maps.
        assert head(features_for(head, 1, (2, 2))).shape == (1, 5, 2 * height, 2 * width)
        return
    for scale in ((2, 2), (2, 1), (1, 3)):
        assert head(features_for(head, 1, scale)).shape == (1, 5, height * scale[0], width * scale[1])


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter_and_every_feature(name):
    head = build(name).train()
    features = {key: value.requires_grad_() for key, value in features_for(head, batch=4).items()}
    maps = head(features)
    assert maps.dtype == torch.float32
    (maps * recipe_input(9, *maps.shape)).sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, parameter_name
    for key, value in features.items():
        assert value.grad.isfinite().all()
        assert value.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", HEADS)
def test_images_do_not_affect_each_other(name):
    head = build(name).eval()
    features = features_for(head)
    maps = head(features)
    for i in range(3):
        alone = head({key: value[i : i + 1] for key, value in features.items()})
        torch.testing.assert_close(alone, maps[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_features_are_found_by_key_and_checked(name):
    head = build(name).eval()
    features = features_for(head)
    shuffled = dict(reversed(list(features.items()))) | {FeatureKey("in00", 1): torch.zeros(1)}
    assert torch.equal(head(shuffled), head(features))
    key, value = next(iter(features.items()))
    with pytest.raises(ValueError, match=r"features lack .*tap="):
        head({other: maps for other, maps in features.items() if other != key})
    for wrong in (value[:, :-1], value[0], value.flatten(2)):
        with pytest.raises(ValueError, match=rf"must have shape \(\d+, {head.specs[key].channels}, h, w\)"):
            head(features | {key: wrong})


@pytest.mark.parametrize("name", HEADS)
def test_a_head_can_be_rebuilt_from_its_arguments(name):
    head = build(name).eval()
    arguments = json.loads(json.dumps(head.arguments))
    again = type(head)(head.specs, head.num_classes, **arguments).eval()
    assert again.arguments == head.arguments == arguments
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(features_for(head)), head(features_for(head)))
    assert repr(head).startswith(f"{type(head).__name__}(")
    assert set(head.map_sizes) == set(head.specs)
    assert set(head.map_sizes.values()) == {None}


@pytest.mark.parametrize("name", MAPS)
def test_features_may_be_of_half_precision(name):
    head = build(name).eval()
    features = {key: value.bfloat16() for key, value in features_for(head).items()}
    assert torch.equal(head(features), head({key: value.float() for key, value in features.items()}))


CONVOLUTION = ["bn.bias", "bn.num_batches_tracked", "bn.running_mean", "bn.running_var", "bn.weight", "conv.weight"]
FUSION = [
    *(f"embeddings.{part}" for part in ("block", "time")),
    *(f"summary.blocks.*.{part}" for part in (
        "attn.proj.bias", "attn.proj.weight", "attn.qkv.weight", "mlp.fc*.bias", "mlp.fc*.weight", "norm*.bias",
        "norm*.weight")),
    *(f"summary.{part}" for part in ("cls_token", "norm.bias", "norm.weight")),
    *(f"tokenizers.TAP.{part}" for part in ("norm.bias", "norm.weight", "project.bias", "project.weight")),
]  # fmt: skip
NAMES = {
    "upernet": [
        *(f"{part}.{name}" for part in (
            "bottleneck", "fpn_bottleneck", "fpn_convs.*", "lateral_convs.*", "psp_modules.*.*",
        ) for name in CONVOLUTION),
        "conv_seg.bias", "conv_seg.weight",
    ],
    "linear pixel": [
        "fc.bias", "fc.weight",
        *(f"norms.*.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")),
    ],
    "pixel mlp": [
        f"members.*.*.{name}"
        for name in ("bias", "num_batches_tracked", "running_mean", "running_var", "weight")
    ],
    "dense difformer": [
        *FUSION, "conv_seg.bias", "conv_seg.weight",
        *(f"{part}.{name}" for part in (
            "fpn_bottleneck", "fpn_convs.*", "lateral_convs.*", "token_convs.*") for name in CONVOLUTION),
    ],
    "heatmap": [
        *(f"{part}.{name}" for part in ("convs.*", "lateral_convs.*") for name in CONVOLUTION),
        "heatmaps.bias", "heatmaps.weight",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_weights_keep_their_names(name):
    """Numbers of layers and names of taps aside."""
    names = {re.sub(r"\d+", "*", re.sub(r"(?<=tokenizers\.)\w+", "TAP", key)) for key in build(name).state_dict()}
    assert sorted(names) == sorted(NAMES[name])


def test_the_order_of_upernets_weights_is_that_of_mmseg():
    """As its published files have them, so that what is loaded by place fits, too."""
    parts = list(dict.fromkeys(key.partition(".")[0] for key in build("upernet").state_dict()))
    assert parts == ["conv_seg", "psp_modules", "bottleneck", "lateral_convs", "fpn_convs", "fpn_bottleneck"]
    assert list(build("upernet").psp_modules[0].state_dict())[:3] == ["1.conv.weight", "1.bn.weight", "1.bn.bias"]


BUILT = {
    "upernet": lambda specs: UperNetHead(specs, 3, width=16, auxiliary=True),
    "linear_pixel": lambda specs: LinearPixelHead(specs, 3),
    "pixel_mlp": lambda specs: PixelMLPEnsemble(specs, 3, members=2, image_size=16, stride=1),
    "dense_difformer": lambda specs: DenseDifFormerHead(specs, 3, **DECODER),
    "detection": lambda specs: DetectionHead(specs, 3, width=32, image_size=16, detector="fcos"),
    "heatmap": lambda specs: HeatmapHead(specs, 3, width=16, image_size=16),
}


@pytest.mark.parametrize("name", BUILT)
def test_it_is_saved_and_loaded(name, tmp_path):
    backbone = create_backbone(tiny_unet(), schedule="linear")
    extractor = FeatureExtractor(backbone, taps=["mid", "out02"], timesteps=[10, 50])
    head = BUILT[name](extractor.specs)
    classifier = DiffusionClassifier(extractor, head, task=Reader(reads=head.gives)).eval()
    save_classifier(tmp_path / "head.safetensors", classifier)
    loaded = load_classifier(tmp_path / "head.safetensors", backbone=backbone, trust="example_dense_heads")
    assert loaded.task.reads == head.gives
    assert type(loaded.head) is type(classifier.head) is difformer_heads.HEADS.find(name)
    assert loaded.head.arguments == classifier.head.arguments
    images = recipe_input(0, 2, 3, 16, 16).clamp(-1, 1)
    found, expected = loaded(images, [0, 1]), classifier(images, [0, 1])
    if name == "detection":
        found, expected = ([(one.boxes, one.scores, one.labels) for one in each] for each in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", BUILT)
def test_a_classification_recipe_with_a_dense_head_is_refused_before_anything_is_opened(name, tmp_path, capsys):
    recipe = Recipe(data=DataConfig(name="folder", root=str(tmp_path / "nowhere")), head=HeadConfig(name=name))
    gives = difformer_heads.HEADS.find(name).gives
    given, task = difformer_heads.OUTPUTS[gives]
    message = (
        f"head.name: {name} gives {given}, and the task Classification reads logits (B, num_classes); choose another "
        f"head.name ({', '.join(difformer_heads.heads_that_give('logits'))}), or task.name: {task}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        build_task(recipe)
    words = ["train", "--data.name", "folder", "--data.root", str(tmp_path / "nowhere"), "--head.name", name]
    assert main([*words, "--output", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_head_is_answered_with_those_that_give_what_the_task_reads(monkeypatch):
    data = DataConfig(name="folder", root="nowhere")

    def listed(head, task="classification"):
        with pytest.raises(ValueError, match=r"head\.name must be one of") as error:
            Recipe(data=data, head=HeadConfig(name=head), task=TaskConfig(name=task))
        return set(re.search("one of (.*), or one of your own", str(error.value))[1].split(", "))

    logits = {"linear", "mlp", "cnn", "attention", "difformer"}
    assert logits <= listed("upernt")
    assert not {"upernet", "detection", "heatmap"} & listed("upernt")

    class Segmentation(Classification):
        reads = "maps"

    monkeypatch.setitem(TASKS._things, "test_segmentation", Segmentation)
    assert {"upernet", "linear_pixel"} <= listed("upernt", "test_segmentation")
    assert not logits & listed("upernt", "test_segmentation")
    # What a task of one's own reads is not known yet.
    assert logits | {"upernet", "detection"} <= listed("upernt", "own.tasks:Depth")


def test_a_task_says_what_it_reads():
    class Segmentation(Classification):
        reads = "maps"

    check_head(Segmentation(), UperNetHead, "upernet")
    with pytest.raises(
        ValueError,
        match=r"gives logits .* Segmentation reads maps .* head.name \(.*upernet.*\), or task.name: classification$",
    ):
        check_head(Segmentation(), DifFormerHead, "difformer")
    assert what_it_gives(object()) == what_it_gives(torch.nn.Linear(1, 1)) == "logits"


@pytest.mark.parametrize(
    ("gives", "hint"),
    [("map", "did you mean 'maps'?"), (None, "did you mean"), (["maps"], "did you mean")],
)
def test_an_output_that_there_is_not_is_refused(gives, hint):
    class Own:
        pass

    Own.gives = gives
    for head in (Own, Own()):
        with pytest.raises(ValueError, match=re.escape(f"Own.gives: unknown output {gives!r}; {hint}")):
            what_it_gives(head)


def test_what_a_task_does_not_read_is_not_predicted_saved_or_loaded(tmp_path):
    backbone = create_backbone(tiny_unet(), schedule="linear")
    extractor = FeatureExtractor(backbone, taps=["mid", "out02"], timesteps=[10])
    classifier = DiffusionClassifier(extractor, UperNetHead(extractor.specs, 3, width=16)).eval()
    image, path = recipe_input(0, 3, 16, 16).clamp(-1, 1), tmp_path / "head.safetensors"
    message = (
        "UperNetHead gives maps of logits (B, num_classes, h, w), and the task Classification reads logits "
        "(B, num_classes); give DiffusionClassifier another head, or the task segmentation"
    )
    for refused in (lambda: classifier.predict(image), lambda: save_classifier(path, classifier)):
        with pytest.raises(ValueError, match=re.escape(message)):
            refused()
    assert not path.exists()
    classifier.task = Reader(reads="maps")
    (found,) = classifier.predict(image)
    assert found.shape == classifier(image[None], [0]).shape[2:]
    save_classifier(path, classifier)
    state, description = read_classifier(path)
    del description["task"]
    write_classifier(path, state, description)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_classifier(path, backbone=backbone)


def test_a_recipes_head_is_told_the_size_of_the_images():
    head = build_head(HeadConfig("upernet", {"finest_stride": 4, "width": 16}), PYRAMID, 5, SIZE)
    assert head.pyramid.strides == (4, 8)
    with pytest.raises(ValueError, match=r"unknown key 'head.arguments.finest_strid' .* did you mean 'finest_stride'"):
        build_head(HeadConfig("upernet", {"finest_strid": 4}), PYRAMID, 5, SIZE)


class Sized(torch.nn.Module):
    """A head of one's own that gives logits and knows the size of the images."""

    def __init__(self, specs, num_classes, *, image_size=7):
        super().__init__()
        self.specs, self.num_classes, self.map_sizes = specs, num_classes, dict.fromkeys(specs)
        self.arguments = {"image_size": image_size}


def test_any_head_with_such_an_argument_is_told_the_size():
    config = HeadConfig("test_dense_heads:Sized")
    assert build_head(config, PYRAMID, 5, SIZE).arguments == {"image_size": SIZE}
    # Its own default where no size is known.
    assert build_head(config, PYRAMID, 5).arguments == {"image_size": 7}
    given = HeadConfig("test_dense_heads:Sized", {"image_size": 9})
    assert build_head(given, PYRAMID, 5, SIZE).arguments == {"image_size": 9}


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (UperNetHead, {"width": 0}, "width must be a positive integer, got 0"),
        (UperNetHead, {"norm": "layer"}, "norm must be one of batch, group, got 'layer'"),
        (UperNetHead, {"norm": "group", "width": 100}, "a multiple of 64, got 100"),
        (
            UperNetHead,
            {"norm": "group", "width": 64, "auxiliary": True},
            "with norm='group' and auxiliary, which has half the width, width must be a multiple of 128, got 64",
        ),
        (UperNetHead, {"pool_scales": 3}, "pool_scales must be a sequence of numbers, got 3"),
        (UperNetHead, {"pool_scales": (0,)}, "every entry of pool_scales must be a positive integer, got 0"),
        (UperNetHead, {"dropout": 1}, "dropout must be a number of at least 0 and below 1, got 1"),
        (UperNetHead, {"auxiliary": "yes"}, "auxiliary must be true or false, got 'yes'"),
        (UperNetHead, {"finest_stride": 4}, "give image_size"),
        (LinearPixelHead, {"batch_norm": 1}, "batch_norm must be true or false, got 1"),
        (PixelMLPEnsemble, {"members": 0}, "members must be a positive integer, got 0"),
        (PixelMLPEnsemble, {"vote": "all"}, "vote must be one of majority, mean, got 'all'"),
        (PixelMLPEnsemble, {"hidden": 8}, "hidden must be a sequence of numbers, got 8"),
        (PixelMLPEnsemble, {"stride": 1}, "a stride counts pixels of the image: give image_size"),
        (PixelMLPEnsemble, {"stride": 4, "image_size": SIZE}, "stride must divide that of the finest level, 2, got 4"),
        (DenseDifFormerHead, {"variant": "both"}, "unknown variant 'both'"),
        (DenseDifFormerHead, {"width": 30}, "multiple of 4, got 30"),
        (DenseDifFormerHead, {"decoder_width": 0}, "decoder_width must be a positive integer, got 0"),
        (DenseDifFormerHead, {"decoder_norm": "layer"}, "norm must be one of batch, group"),
        (DenseDifFormerHead, {"decoder_dropout": -0.1}, "decoder_dropout must be"),
        (DenseDifFormerHead, {"skip": 1}, "skip must be true or false"),
        (HeatmapHead, {}, "finest_stride 4 counts pixels of the image: give image_size"),
        (HeatmapHead, {"image_size": SIZE, "width": 0}, "width must be a positive integer, got 0"),
        (HeatmapHead, {"image_size": SIZE, "stride": 3}, "finest_stride must be a multiple of the stride"),
        (DetectionHead, {}, "finest_stride 4 counts pixels of the image: give image_size"),
    ],
)
def test_bad_arguments_raise(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(PYRAMID, 5, **arguments)


@pytest.mark.parametrize("cls", [UperNetHead, LinearPixelHead, PixelMLPEnsemble, DenseDifFormerHead])
def test_classes_and_specs_are_checked(cls):
    with pytest.raises(ValueError, match="num_classes"):
        cls(PYRAMID, 0)
    with pytest.raises(ValueError, match="at least one feature"):
        cls({}, 5)


def test_upernets_auxiliary_logits_are_given_in_training_only():
    torch.manual_seed(0)
    head = UperNetHead(PYRAMID, 5, width=16, auxiliary=True, dropout=0).train()
    features = features_for(head)
    logits, auxiliary = head(features)
    assert (logits.shape, auxiliary.shape) == ((3, 5, 32, 48), (3, 5, 16, 24))
    (logits.sum() + auxiliary.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.eval()(features).shape == (3, 5, 32, 48)
    plain = UperNetHead(PYRAMID, 5, width=16)
    assert set(head.state_dict()) - set(plain.state_dict()) == {
        name for name in head.state_dict() if name.startswith("auxiliary_head.")
    }
    _, alone = UperNetHead(ONE, 5, width=16, auxiliary=True).train()(features_for(plain))
    assert alone.shape == (3, 5, 16, 24)


def test_batch_norm_of_one_image_says_what_helps():
    head = UperNetHead(PYRAMID, 5, width=16).train()
    with pytest.raises(ValueError, match=r"batch norm cannot learn from one image at a time.*norm='group'"):
        head(features_for(head, 1))
    tiny = {COARSE: TapSpec("mid", 10, 24, 1, 0)}
    with pytest.raises(ValueError, match="batch norm cannot learn from one image"):
        UperNetHead(tiny, 5, width=16, pool_scales=(2,)).train()({COARSE: torch.zeros(1, 24, 1, 1)})
    larger = UperNetHead(PYRAMID, 5, width=16, pool_scales=(2, 3)).train()
    group, wide = build("upernet group").train(), UperNetHead(PYRAMID, 5, width=128, norm="group", auxiliary=True)
    for able in (group, larger):
        able(features_for(able, 1)).sum().backward()
    assert len(wide.train()(features_for(wide, 1))) == 2


def test_the_finest_stride_is_where_finer_maps_are_averaged_to():
    head = build("upernet group").eval()
    features = features_for(head)
    pooled = PYRAMID | {FINE: TapSpec("out08", 19, 8, (16, 24), 0)}
    again = UperNetHead(pooled, 5, width=64, norm="group").eval()
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(again(features | {FINE: F.avg_pool2d(features[FINE], 2)}), head(features))


def test_the_ensemble_says_of_maps_what_it_says_of_their_pixels():
    head = build("pixel mlp majority").eval()
    features = features_for(head, batch=2)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(64), torch.arange(96))
    logits = head.pixel_logits(head.pixels(features, places))
    assert logits.shape == (3, 2 * 64 * 96, 5)
    probabilities = logits.softmax(dim=2)
    votes = F.one_hot(logits.argmax(dim=2), 5).sum(dim=0)
    expected = ((votes + probabilities.mean(dim=0)) / 4).clamp(min=1e-6).log()
    torch.testing.assert_close(head(features).movedim(1, -1).flatten(0, 2), expected, rtol=1e-3, atol=1e-3)
    entropies = Categorical(probabilities.mean(dim=0)).entropy() - Categorical(probabilities).entropy().mean(dim=0)
    uncertainty = head.uncertainty(features)
    torch.testing.assert_close(uncertainty.flatten(), entropies.clamp(min=0), rtol=1e-2, atol=1e-5)
    assert not uncertainty.requires_grad


def test_the_vote_is_the_majoritys_and_its_logits_are_a_distribution():
    torch.manual_seed(0)
    head = PixelMLPEnsemble(ONE, 4, members=5, hidden=(8,)).eval()
    for member in head.members:
        torch.nn.init.normal_(member[-1].weight)
    features = features_for(head)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(16), torch.arange(24))
    chosen = head.pixel_logits(head.pixels(features, places)).argmax(dim=2)
    votes = F.one_hot(chosen, 4).sum(dim=0)
    clear = votes.eq(votes.amax(dim=1, keepdim=True)).sum(dim=1) == 1
    assert 0.3 < clear.float().mean() < 1
    logits = head(features)
    assert torch.equal(logits.argmax(dim=1).flatten()[clear], chosen.mode(dim=0).values[clear])
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(3, 16, 24))
    mean = PixelMLPEnsemble(ONE, 4, members=5, hidden=(8,), vote="mean").eval()
    mean.load_state_dict(head.state_dict())
    probabilities = head.pixel_logits(head.pixels(features, places)).softmax(dim=2).mean(dim=0)
    torch.testing.assert_close(mean(features).movedim(1, -1).flatten(0, 2).exp(), probabilities)


def test_uncertainty_is_measured_in_evaluation_mode_and_changes_nothing():
    head = build("pixel mlp").train()
    head.members[1].eval()
    before = copy.deepcopy(head.state_dict())
    features = features_for(head)
    found = head.uncertainty(features)
    assert [member.training for member in head.members] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    maps, again = head.with_uncertainty(features)
    assert torch.equal(again, found)
    head.eval()
    assert torch.equal(head.uncertainty(features), found)
    assert torch.equal(head(features), maps)


def test_members_that_agree_are_certain():
    head = build("pixel mlp").eval()
    for member in head.members[1:]:
        member.load_state_dict(head.members[0].state_dict())
    assert head.uncertainty(features_for(head)).abs().max() < 1e-6


def test_the_ensemble_learns_from_sampled_pixels():
    """Each member by its own loss, from features that gradients reach."""
    head = build("pixel mlp").train()
    features = {key: value.requires_grad_() for key, value in features_for(head).items()}
    places = torch.tensor([[0, 3, 5], [1, 31, 47], [2, 0, 0], [2, 16, 9]])
    pixels = head.pixels(features, places)
    assert pixels.shape == (4, 80)
    logits = head.pixel_logits(pixels)
    others = torch.autograd.grad(logits[0].square().sum(), list(head.members[1].parameters()), retain_graph=True)
    assert all(gradient.eq(0).all() for gradient in others)
    head.pixel_logits(pixels).square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in features.values())
    each = head.eval().pixel_logits(pixels.expand(3, -1, -1))
    torch.testing.assert_close(each, head.pixel_logits(pixels))
    for wrong in (pixels[:, :-1], pixels.expand(2, -1, -1), pixels[0]):
        with pytest.raises(ValueError, match=r"pixels must be \(P, 80\), or \(3, P, 80\)"):
            head.pixel_logits(wrong)


def test_the_ensembles_widths_are_the_published_ones():
    assert PixelMLPEnsemble(ONE, 29).arguments["hidden"] == [128, 32]
    head = PixelMLPEnsemble(ONE, 30)
    assert head.arguments["hidden"] == [256, 128]
    assert len(head.members) == 10
    assert [type(layer).__name__ for layer in head.members[0]] == [
        "Linear", "ReLU", "BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Linear",
    ]  # fmt: skip
    weight = head.members[0][0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_linear_pixels_are_normalised_level_by_level():
    head = build("linear pixel").train()
    features = features_for(head)
    scaled = {key: 7 * value + 3 for key, value in features.items()}
    torch.testing.assert_close(head(scaled), head(features), rtol=1e-3, atol=1e-3)
    assert not any(name.startswith("norms") for name, _ in head.named_parameters())


@pytest.mark.parametrize("variant", ["published", "joint"])
def test_the_dense_difformer_has_the_fusion_of_the_difformer(variant):
    """Names, shapes and initial values of its weights, and what comes out of its transformer."""
    torch.manual_seed(0)
    dense = DenseDifFormerHead(PYRAMID, 5, variant=variant, **DECODER).eval()
    torch.manual_seed(0)
    plain = DifFormerHead(PYRAMID, 5, variant=variant, width=32, heads=4, pool=6).eval()
    theirs = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("fc.")}
    ours = dense.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert dense.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == ["fc.weight", "fc.bias"]
    features = features_for(dense)
    fused = dense.fused_maps(features)
    assert list(fused) == list(PYRAMID)
    assert {maps.shape for maps in fused.values()} == {(3, 32, 6, 6)}
    for group in plain.token_groups(features):
        x = torch.cat([plain.summary.cls_token.expand(3, -1, -1), *group.values()], dim=1)
        for block in plain.summary.blocks:
            x = block(x)
        parts = plain.summary.norm(x)[:, 1:].split(36, dim=1)
        for key, part in zip(group, parts, strict=True):
            torch.testing.assert_close(fused[key].flatten(2).transpose(1, 2), part)


def test_without_skips_only_the_transformers_tokens_are_decoded():
    """It sees the averages of pooled cells, and with skips the features themselves, too."""
    torch.manual_seed(0)
    options = DECODER | {"pool": 4}
    alone, skipping = (DenseDifFormerHead(PYRAMID, 5, skip=skip, **options).eval() for skip in (False, True))
    features = features_for(alone)
    flat = {key: F.interpolate(F.adaptive_avg_pool2d(x, 4), size=x.shape[2:]) for key, x in features.items()}
    torch.testing.assert_close(alone(flat), alone(features), rtol=1e-4, atol=1e-5)
    assert (skipping(flat) - skipping(features)).abs().max() > 1e-3
    assert not any(name.startswith("lateral_convs") for name in alone.state_dict())


class TestPixelsThatAreDrawn:
    """What the ensemble learns from: drawn pixels of each image, by the image's seed."""

    @pytest.fixture
    def head(self):
        torch.manual_seed(0)
        return PixelMLPEnsemble(ONE, 3, members=2, hidden=(8,), samples=500, balanced=False).eval()

    def drawn(self, head, targets, seeds, monkeypatch):
        """The losses, and the places that were read: (members, images, samples) rows and columns."""
        places = []
        pixels = head.pixels

        def noting(features, where, size):
            places.append(where.unflatten(0, (len(head.members), len(targets), -1)))
            return pixels(features, where, size)

        with monkeypatch.context() as patch:
            patch.setattr(head, "pixels", noting)
            found = head(features_for(head, batch=len(targets)), targets, seeds=seeds)["cross_entropy"]
        return found, places[0]

    def test_one_labelled_pixel_is_all_that_is_learned(self, head, monkeypatch):
        targets = torch.full((2, 64, 96), 255)
        targets[1, 40, 70] = 2
        found, places = self.drawn(head, targets, [1, 2], monkeypatch)
        assert found[0] == 0
        assert (places[:, 1, :, 1:] == torch.tensor([40, 70])).all()
        pixel = head.pixels(features_for(head, batch=2), torch.tensor([[1, 40, 70]]), (64, 96))
        logits = head.pixel_logits(pixel)
        expected = F.cross_entropy(logits.flatten(0, 1), torch.tensor([2, 2]))
        torch.testing.assert_close(found[1], expected)

    def test_seeds_decide_and_members_differ(self, head, monkeypatch):
        targets = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(0))
        one, places = self.drawn(head, targets, [5, 6], monkeypatch)
        again, same = self.drawn(head, targets, [5, 6], monkeypatch)
        _, others = self.drawn(head, targets, [5, 7], monkeypatch)
        assert torch.equal(one, again)
        assert torch.equal(places, same)
        assert torch.equal(places[:, 0], others[:, 0])
        assert not torch.equal(places[:, 1], others[:, 1])
        assert not torch.equal(places[0], places[1])
        assert places[..., 1].max() < 64
        assert places[..., 2].max() < 96

    def test_ignored_pixels_are_not_drawn(self, head, monkeypatch):
        targets = torch.full((1, 64, 96), 255)
        targets[0, 10:20, 30:50] = 1
        _, places = self.drawn(head, targets, [0], monkeypatch)
        assert 10 <= places[..., 1].min() <= places[..., 1].max() < 20
        assert 30 <= places[..., 2].min() <= places[..., 2].max() < 50

    @pytest.mark.parametrize("balanced", [False, True])
    def test_rare_classes_are_drawn_as_often_where_that_is_asked(self, balanced, monkeypatch):
        torch.manual_seed(0)
        head = PixelMLPEnsemble(ONE, 3, members=2, hidden=(8,), samples=500, balanced=balanced).eval()
        targets = torch.zeros(1, 64, 96, dtype=torch.int64)
        targets[0, :4, :4] = 2
        _, places = self.drawn(head, targets, [0], monkeypatch)
        share = (targets[0][places[..., 1], places[..., 2]] == 2).float().mean()
        assert share == pytest.approx(0.5, abs=0.05) if balanced else share < 0.02

    def test_what_does_not_fit_is_refused(self, head):
        features = features_for(head, batch=2)
        for targets, seeds in (
            (torch.zeros(1, 64, 96), [0, 1]),
            (torch.zeros(2, 64), [0, 1]),
            (torch.zeros(2, 4, 4), [0]),
        ):
            with pytest.raises(ValueError, match=r"each of 2 images needs a target \(H, W\) and a seed, got"):
                head(features, targets.long(), seeds=seeds)


def test_a_head_says_whether_it_needs_several_images():
    assert build("upernet").needs_several_images
    assert not build("upernet group").needs_several_images
    assert not PixelMLPEnsemble(ONE, 3).needs_several_images
    assert not UperNetHead(ONE, 5, width=16, pool_scales=(2, 3)).needs_several_images
