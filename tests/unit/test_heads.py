"""Contracts that every head keeps, and what is particular to each."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_heads import HEADS, KEY, MANY, ONE, SMALL, build, features_for
from support import ADM256, recipe_input
from torch import nn

from difformer import FeatureKey
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from difformer.heads.published import from_published, published_names
from difformer.heads.tokens import sincos_positions
from difformer.models.plan import tap_specs


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter(name):
    head = build(name).train()
    logits = head(features_for(head, batch=8))
    assert logits.shape == (8, 5)
    (logits * recipe_input(99, 8, 5)).sum().backward()
    for parameter_name, parameter in head.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_images_do_not_affect_each_other(name):
    head = build(name).eval()
    features = features_for(head)
    logits = head(features)
    for i in range(3):
        alone = head({key: value[i : i + 1] for key, value in features.items()})
        torch.testing.assert_close(alone, logits[i : i + 1], rtol=1e-4, atol=1e-5)
    flipped = head({key: value.flip(0) for key, value in features.items()})
    torch.testing.assert_close(flipped, logits.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_features_are_found_by_key_whatever_their_order(name):
    head = build(name).eval()
    features = features_for(head)
    shuffled = dict(reversed(list(features.items()))) | {FeatureKey("in00", 1): torch.zeros(1)}
    assert torch.equal(head(shuffled), head(features))


@pytest.mark.parametrize("name", HEADS)
def test_bad_features_raise_with_what_was_expected(name):
    head = build(name)
    features = features_for(head)
    key, value = next(iter(features.items()))
    with pytest.raises(ValueError, match=r"features lack .*tap="):
        head({k: v for k, v in features.items() if k != key})
    for wrong in (value[:, :-1], value[0], value.flatten(2)):
        with pytest.raises(ValueError, match=rf"must have shape \(\d+, {head.specs[key].channels}, h, w\)"):
            head(features | {key: wrong})


@pytest.mark.parametrize("name", HEADS)
def test_a_head_can_be_rebuilt_from_its_arguments(name):
    head = build(name).eval()
    again = type(head)(head.specs, head.num_classes, **head.arguments).eval()
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(features_for(head)), head(features_for(head)))


MAP_SIZES = {
    "linear": [2],
    "linear with norm": [1],
    "linear above the map": [10],
    "mlp": [2],
    "mlp above the map": [16],
    "cnn": [None],
    "attention": [4],
    "attention whole map": [8],
    "difformer": [4] * 6,
    "difformer batch": [4] * 6,
    "difformer in between": [8, 12, 12] * 2,
    "joint": [4] * 6,
    "joint in between": [8, 12, 12] * 2,
    "joint pooled": [4] * 6,
    "joint regular": [4] * 6,
}
HEADS_BY_MAP_SIZE = HEADS | {
    "linear above the map": lambda: LinearHead(ONE, 5, pool=10),
    "mlp above the map": lambda: MLPHead(ONE, 5, pool=16),
    "attention whole map": lambda: AttentionHead(ONE, 5, **SMALL | {"pool": 16}),
    "difformer in between": lambda: DifFormerHead(MANY, 5, **SMALL | {"pool": 12}),
    "joint in between": lambda: DifFormerHead(MANY, 5, variant="joint", **SMALL | {"pool": 12}),
}


@pytest.mark.parametrize("name", HEADS_BY_MAP_SIZE)
def test_maps_averaged_to_the_sizes_a_head_states_give_the_same_logits(name):
    torch.manual_seed(0)
    head = HEADS_BY_MAP_SIZE[name]().eval()
    assert list(head.map_sizes) == list(head.specs)
    assert list(head.map_sizes.values()) == MAP_SIZES[name]
    features = features_for(head)
    pooled = {
        key: value if (side := head.map_sizes[key]) is None else F.adaptive_avg_pool2d(value, side)
        for key, value in features.items()
    }
    torch.testing.assert_close(head(pooled), head(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "linear above the map", "difformer", "attention whole map", "joint"])
def test_averaging_holds_for_larger_and_non_square_maps_too(name):
    """Where the norm or the size of the map does not let more cells through."""
    torch.manual_seed(0)
    head = HEADS_BY_MAP_SIZE[name]().eval()
    for features in (features_for(head, scale=2), {k: v.repeat(1, 1, 1, 2) for k, v in features_for(head).items()}):
        pooled = {key: F.adaptive_avg_pool2d(value, head.map_sizes[key]) for key, value in features.items()}
        torch.testing.assert_close(head(pooled), head(features), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["attention", "difformer", "joint", "joint pooled"])
def test_attention_implementations_agree(name):
    head = build(name).eval()
    features = features_for(head)
    expected = head(features)
    for implementation in ("math", "sdpa"):
        for module in head.modules():
            if hasattr(module, "implementation"):
                module.implementation = implementation
        torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [LinearHead, MLPHead, CNNHead, AttentionHead])
def test_probes_read_exactly_one_feature(cls):
    with pytest.raises(ValueError, match="exactly one feature"):
        cls(MANY, 5)


@pytest.mark.parametrize("cls", [LinearHead, MLPHead, CNNHead, AttentionHead, DifFormerHead])
def test_classes_and_specs_are_checked(cls):
    with pytest.raises(ValueError, match="num_classes"):
        cls(ONE, 0)
    with pytest.raises(ValueError, match="at least one feature"):
        cls({}, 5)


def test_parameter_counts_on_adm256_are_the_published_ones():
    taps = tap_specs(ADM256)

    def specs(blocks, timesteps):
        return {FeatureKey(tap, t): spec for t in timesteps for tap, spec in taps.items() if spec.block in blocks}

    with torch.device("meta"):
        heads = {
            4_097_000: LinearHead(specs({24}, [150]), 1000),
            27_786_216: AttentionHead(specs({24}, [150]), 1000),
            31_802_344: DifFormerHead(specs({19, 24, 30}, [90, 150, 300]), 1000),
        }
    for count, head in heads.items():
        assert sum(parameter.numel() for parameter in head.parameters()) == count
    assert 27_786_216 + 2_759_680 == 30_545_896  # DifFeed: the attention head and the feedback layers


@pytest.mark.parametrize("name", ["joint", "joint pooled", "difformer batch", "linear", "mlp", "cnn"])
def test_heads_not_tied_to_one_size_take_larger_and_non_square_maps(name):
    head = build(name).eval()
    assert head(features_for(head, scale=2)).shape == (3, 5)
    tall = {key: value.repeat(1, 1, 1, 2) for key, value in features_for(head).items()}
    assert head(tall).shape == (3, 5)


def test_the_joint_head_knows_block_timestep_round_and_place():
    """Swapping what two keys hold, or mirroring a map, changes the logits of the joint head."""
    head = build("joint").eval()
    features = features_for(head)
    logits = head(features)
    by_round = [FeatureKey("out05", 90, 0), FeatureKey("out05", 90, 1)]
    by_time = [FeatureKey("mid", 90), FeatureKey("mid", 300)]
    for one, other in (by_round, by_time):
        swapped = features | {one: features[other], other: features[one]}
        assert not torch.allclose(head(swapped), logits, atol=1e-4)
    mirrored = {key: value.flip(3) for key, value in features.items()}
    assert not torch.allclose(head(mirrored), logits, atol=1e-4)


def test_positions_agree_across_resolutions():
    coarse, fine = sincos_positions(4, 4, 32), sincos_positions(8, 8, 32)
    assert coarse.shape == (16, 32)
    assert sincos_positions(2, 6, 8).shape == (12, 8)
    assert len(fine.unique(dim=0)) == 64
    similarity = torch.nn.functional.normalize(coarse, dim=1) @ torch.nn.functional.normalize(fine, dim=1).T
    row, column = 1, 2
    nearest = similarity[row * 4 + column].topk(4).indices.sort().values
    inside = [8 * (2 * row + i) + 2 * column + j for i in (0, 1) for j in (0, 1)]
    assert nearest.tolist() == inside


@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"variant": "joint", "drop_path": 0.5}])
def test_the_summary_is_the_first_token_of_whole_blocks(options):
    """The last block computes the CLS token alone, with the same gradients; its other tokens would change nothing."""
    summary = DifFormerHead(MANY, 5, **SMALL | options).double().train().summary
    tokens, weights = recipe_input(0, 3, 7, 32).double(), recipe_input(1, 3, 32).double()

    def whole():
        x = torch.cat([summary.cls_token.expand(3, -1, -1), tokens], dim=1)
        for block in summary.blocks:
            x = block(x)
        return summary.norm(x)[:, 0]

    found = []
    for compute in (lambda: summary(tokens), whole):
        torch.manual_seed(1)
        output = compute()
        found.append((output, torch.autograd.grad((output * weights).sum(), list(summary.parameters()))))
    (output, gradients), (expected, of_whole) = found
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients, of_whole, rtol=1e-9, atol=1e-9)


def test_regularisation_acts_in_training_only():
    head = build("joint regular")
    features = features_for(head, batch=8)
    assert torch.equal(head.eval()(features), head(features))
    assert not torch.allclose(head.train()(features), head(features))


def test_stochastic_depth_drops_whole_blocks_for_some_images_in_training():
    """At the rates of Huang et al. 2016: rising in proportion to the depth, to the one given at the last block."""
    head = DifFormerHead(MANY, 5, variant="joint", drop_path=0.5, **SMALL)
    assert [block.drop_path.drop_prob for block in head.summary.blocks] == [0.25, 0.5]
    features = {key: value[:1].expand(64, -1, -1, -1) for key, value in features_for(head).items()}
    logits = head.train()(features)
    # In each of two blocks, attention and MLP are kept or not: no more than 16 different results for one image.
    assert 4 < len(logits.detach().mul(1e4).round().unique(dim=0)) <= 16
    assert len(head.eval()(features).detach().mul(1e4).round().unique(dim=0)) == 1


def test_dropout_acts_at_every_place_it_is_meant_for():
    head = DifFormerHead(MANY, 5, variant="joint", dropout=0.5, **SMALL).train()
    features = features_for(head)
    places = {name: module for name, module in head.named_modules() if isinstance(module, nn.Dropout)}
    blocks = [f"summary.blocks.{i}.{part}" for i in (0, 1) for part in ("dropout", "mlp.drop")]
    assert sorted(places) == sorted(["embeddings.dropout", *blocks])
    assert {module.p for module in places.values()} == {0.5}
    for name, module in places.items():
        for other in places.values():
            other.p = 0.5 if other is module else 0.0
        assert not torch.allclose(head(features), head(features)), name


def test_the_mlp_head_drops_hidden_units_in_training_only():
    head = MLPHead(ONE, 5, hidden=(16,), dropout=0.5)
    features = features_for(head)
    assert not torch.allclose(head.train()(features), head(features))
    assert torch.equal(head.eval()(features), head(features))
    plain = MLPHead(ONE, 5, hidden=(16,)).train()
    assert torch.equal(plain(features), plain(features))


def test_the_linear_heads_norm_is_batch_normalisation_of_the_pooled_vector():
    head = build("linear with norm").train()
    features = features_for(head, batch=8)
    pooled = features[KEY].mean(dim=(2, 3))
    mean, variance = pooled.mean(dim=0), pooled.var(dim=0, unbiased=False)
    expected = head.fcs[0]((pooled - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(head(features), expected, rtol=1e-4, atol=1e-5)
    running = 0.1 * mean, 0.9 + 0.1 * pooled.var(dim=0)
    expected = head.fcs[0]((pooled - running[0]) / (running[1] + 1e-5).sqrt())
    torch.testing.assert_close(head.eval()(features), expected, rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("norm") for name, _ in head.named_parameters())


@pytest.mark.parametrize("name", ["joint", "joint pooled"])
def test_the_joint_head_normalises_what_comes_out_of_the_last_block(name):
    """A norm that gives everything one value leaves nothing for the logits to depend on but that value."""
    head = build(name).eval()
    value = recipe_input(5, 32)
    with torch.no_grad():
        head.summary.norm.weight.zero_()
        head.summary.norm.bias.copy_(value)
        pool = head.summary.pool
        summary = value if pool is None else pool.proj(F.linear(value, pool.kv.weight[32:]))
    expected = head.fc(summary).expand(3, -1)
    torch.testing.assert_close(head(features_for(head)), expected, rtol=1e-4, atol=1e-5)
    assert not any("summary.norm." in name for name in build("difformer").state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "both"}, "unknown variant 'both'; expected one of published, joint"),
        ({"dropout": 0.1}, "dropout: the published model has no such option"),
        ({"attention_pool": True}, "attention_pool: the published"),
        ({"variant": "joint", "drop_path": 1.0}, "drop_path must be"),
        ({"variant": "joint", "width": 30, "heads": 2}, "multiple of 4"),
        ({"variant": "joint", "dropout": 2}, "dropout must be a number of at least 0 and below 1, got 2"),
        ({"width": 30}, "heads must divide the width, got 4 heads and width 30"),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"heads": 0}, "heads must be a positive integer"),
        ({"heads": 4.0}, "heads must be a positive integer, got 4.0"),
        ({"layers": 0}, "layers must be a positive integer"),
        ({"mlp_ratio": 0}, "mlp_ratio must be a finite number above 0, got 0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be"),
        ({"mlp_ratio": 0.01}, "no hidden unit"),
        ({"pool": 0}, "pool must be"),
        ({"pool": True}, "pool must be"),
        ({"attention_pool": 1}, "attention_pool must be true or false"),
        ({"norm": ""}, "unknown norm ''"),
        ({"norm": "group"}, "unknown norm 'group'; expected one of layer, batch, channel"),
        ({"attention": "flash"}, "unknown attention 'flash'"),
    ],
)
def test_bad_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        DifFormerHead(MANY, 5, **(SMALL | arguments))


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (LinearHead, {"pool": 0}, "pool must be a positive integer"),
        (LinearHead, {"batch_norm": "no"}, "batch_norm must be true or false, got 'no'"),
        (MLPHead, {"pool": 0}, "pool must be a positive integer"),
        (MLPHead, {"hidden": 8}, "hidden must be a sequence of numbers, got 8"),
        (MLPHead, {"hidden": (8, 0)}, "every entry of hidden must be a positive integer, got 0"),
        (MLPHead, {"dropout": 2}, "dropout must be a number of at least 0 and below 1, got 2"),
        (MLPHead, {"dropout": float("nan")}, "dropout must be"),
        (CNNHead, {"channels": 8}, "channels must be a sequence of numbers, got 8"),
        (CNNHead, {"channels": (8.5,)}, "every entry of channels must be a positive integer"),
        (AttentionHead, {"width": 30, "heads": 4}, "heads must divide the width"),
        (AttentionHead, {"layers": 0}, "layers must be"),
    ],
)
def test_bad_arguments_of_probes_raise(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(ONE, 5, **arguments)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (LinearHead, {"pool": np.int64(1), "batch_norm": np.bool_(True)}),
        (MLPHead, {"hidden": np.array([16, 8]), "dropout": np.float32(0.25), "pool": np.int32(1)}),
        (CNNHead, {"channels": np.array([8])}),
        (AttentionHead, {"width": np.int64(32), "heads": np.int64(4), "mlp_ratio": np.float32(2), "pool": np.int8(4)}),
        (
            DifFormerHead,
            {"variant": "joint", "width": np.int64(32), "layers": torch.tensor(1), "drop_path": np.float32(0.25)},
        ),
    ],
)
def test_numpy_numbers_are_kept_as_plain_ones(cls, arguments):
    head = cls(ONE, np.int64(5), **arguments)
    assert type(head.num_classes) is int
    assert json.loads(json.dumps(head.arguments)) == head.arguments
    for name, value in arguments.items():
        assert head.arguments[name] == (value.tolist() if hasattr(value, "tolist") else value)


@pytest.mark.parametrize("name", ["linear", "mlp", "attention", "difformer", "difformer batch"])
def test_published_names_map_one_to_one(name):
    head = build(name)
    names = published_names(head)
    assert set(names) == set(head.state_dict())
    assert len(set(names.values())) == len(names)
    renamed = {names[key]: tensor for key, tensor in head.state_dict().items()}
    assert from_published(head, renamed).keys() == head.state_dict().keys()


def test_published_names_are_those_of_the_published_code():
    names = published_names(build("difformer"))
    assert names["tokenizers.mid.norm.weight"] == "pre_layer.10.1.weight"
    assert names["tokenizers.out05.project.bias"] == "pre_layer.16.2.bias"
    assert names["summary.cls_token"] == "intra_inter_block_attention.cls_token"
    assert names["summary.blocks.0.mlp.fc1.weight"] == "intra_inter_block_attention.layers.1.mlp.fc1.weight"
    assert names["fc.bias"] == "head.bias"
    for name in ("joint", "cnn", "linear with norm"):
        with pytest.raises(ValueError, match="never published"):
            published_names(build(name))
