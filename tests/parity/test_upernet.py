"""Against transformers' UperNet, which has mmsegmentation's arithmetic (the `parity` extra)."""

import pytest
import torch
from example_dense_heads import ONE, PYRAMID, features_for
from support import load_recipe

from difformer.heads import UperNetHead

pytestmark = pytest.mark.parity

SCALES = [(1, 2, 3, 6), (1, 4)]


def theirs(channels, scales, width=16, classes=5):
    from transformers import ResNetConfig, UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    config = UperNetConfig(
        backbone_config=ResNetConfig(out_features=["stage1"]), pool_scales=list(scales), hidden_size=width,
        num_labels=classes, auxiliary_in_channels=channels[-2:][0], auxiliary_channels=width // 2,
        auxiliary_num_convs=1, auxiliary_concat_input=False,
    )  # fmt: skip
    index = max(0, len(channels) - 2)
    return UperNetHead(config, list(channels)), UperNetFCNHead(config, list(channels), in_index=index)


def their_name(name):
    name = name.replace(".bn.", ".batch_norm.").replace("conv_seg", "classifier")
    return name.removeprefix("auxiliary_head.")


@pytest.mark.parametrize("specs", [PYRAMID, ONE], ids=["pyramid", "one block"])
@pytest.mark.parametrize("scales", SCALES)
def test_logits_are_those_of_transformers(specs, scales):
    """With the same weights and statistics, in evaluation mode and in training, with gradients."""
    ours = load_recipe(UperNetHead(specs, 5, width=16, pool_scales=scales, dropout=0, auxiliary=True), 3)
    head, auxiliary = theirs(ours.pyramid.channels, scales)
    for module, own in ((head, False), (auxiliary, True)):
        state = {
            their_name(name): tensor
            for name, tensor in ours.state_dict().items()
            if name.startswith("auxiliary_head.") == own
        }
        module.load_state_dict(state)
    features = {key: value.requires_grad_() for key, value in features_for(ours).items()}
    levels = ours.pyramid(features)
    torch.testing.assert_close(ours.eval()(features), head.eval()(levels), rtol=1e-5, atol=1e-5)
    logits, extra = ours.train()(features)
    torch.testing.assert_close(logits, head.train()(levels), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(extra, auxiliary.train()(levels), rtol=1e-4, atol=1e-4)
    found, expected = (
        torch.autograd.grad(one.square().sum(), list(features.values()), retain_graph=True)
        for one in (logits, head(levels))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
