"""Which features a fusion head attends to."""

import pytest
import torch
import torch.nn.functional as F
from example_heads import MANY, SMALL, build, features_for

from difformer import FeatureKey
from difformer.heads import DifFormerHead


@pytest.mark.parametrize("name", ["difformer", "difformer batch", "joint", "joint pooled"])
def test_attention_shares_sum_to_one(name):
    head = build(name).eval()
    shares = head.attention_share(features_for(head))
    assert list(shares) == list(head.specs)
    stacked = torch.stack(list(shares.values()))
    assert stacked.shape == (len(head.specs), 3)
    assert (stacked > 0).all()
    torch.testing.assert_close(stacked.sum(dim=0), torch.ones(3))


@pytest.mark.parametrize("name", ["difformer", "joint", "joint pooled"])
def test_attention_shares_say_what_the_output_depends_on(name):
    """With queries and keys at zero, attention is uniform, and a share is the part of the tokens."""
    head = build(name).eval()
    with torch.no_grad():
        for block in head.summary.blocks:
            block.attn.qkv.weight[:64].zero_()
        if head.summary.pool is not None:
            head.summary.pool.query.zero_()
    shares = head.attention_share(features_for(head))
    for share in shares.values():
        torch.testing.assert_close(share, torch.full((3,), 1 / 6))


def test_attention_shares_follow_a_token_that_is_looked_at():
    """A CLS token that is made to look for one block's embedding gives that block nearly all of its attention."""
    head = DifFormerHead(MANY, 5, variant="joint", width=32, heads=1, layers=1, pool=4).eval()
    key = FeatureKey("out05", 90, 1)
    with torch.no_grad():
        for tokenizer in head.tokenizers.values():
            tokenizer.project.weight.zero_()
            tokenizer.project.bias.zero_()
        mark = torch.zeros(32)
        mark[3] = 100.0
        head.embeddings.block[head.embeddings.block_index["out05", 1]] += mark
        head.summary.cls_token[..., 3] = 100.0
        qkv = head.summary.blocks[0].attn.qkv.weight
        qkv[:64].zero_()
        qkv[3, 3] = qkv[32 + 3, 3] = 5.0
    shares = head.attention_share(features_for(head))
    assert (
        sum(share for found, share in shares.items() if (found.tap, found.round) == (key.tap, key.round)).min() > 0.99
    )


@pytest.mark.parametrize("name", ["difformer", "joint", "joint pooled"])
def test_attention_shares_are_those_of_the_attention_that_ran(name):
    """Recomputed from what went into the last attention of an ordinary forward pass."""
    head = build(name).eval()
    for parameter in head.summary.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    pool = head.summary.pool
    layer = head.summary.blocks[-1].attn if pool is None else pool
    inputs = []
    layer.register_forward_hook(lambda module, given, result: inputs.append(given[0]))
    features = features_for(head)
    head(features)
    runs = list(inputs)
    shares = head.attention_share(features)
    groups = [list(head.specs)] if "joint" in name else [[k for k in head.specs if k.t == t] for t in (90, 300)]
    for x, group in zip(runs, groups, strict=True):
        if pool is None:
            q, k = F.linear(x, layer.qkv.weight[:64]).unflatten(2, (2, 4, 8)).unbind(2)
            q = q[:, 0]
        else:
            k, q = F.linear(x, layer.kv.weight[:32]).unflatten(2, (4, 8)), layer.query[:, :, 0].expand(3, -1, -1)
        weights = (torch.einsum("bhd,bnhd->bhn", q, k) / 8**0.5).softmax(dim=2).mean(dim=1)
        if pool is None:
            weights = weights[:, 1:] / weights[:, 1:].sum(dim=1, keepdim=True)
        for key, tokens in zip(group, weights.unflatten(1, (len(group), 16)).unbind(1), strict=True):
            torch.testing.assert_close(shares[key] * len(groups), tokens.sum(dim=1), rtol=1e-4, atol=1e-5)
    stacked = torch.stack(list(shares.values()))
    assert stacked.std(dim=0).min() > 1e-3


def test_attention_shares_change_nothing_and_do_not_depend_on_the_mode():
    head = DifFormerHead(MANY, 5, variant="joint", norm="batch", dropout=0.5, drop_path=0.5, **SMALL)
    features = features_for(head)
    expected = head.eval().attention_share(features)
    head.train()
    head.tokenizers["mid"].eval()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    modes = [module.training for module in head.modules()]
    for key, share in head.attention_share(features).items():
        assert torch.equal(share, expected[key])
    assert [module.training for module in head.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_attention_shares_exist_where_the_cls_token_sees_only_itself():
    head = DifFormerHead(MANY, 5, variant="joint", width=32, heads=1, layers=1, pool=4).eval()
    with torch.no_grad():
        head.summary.cls_token[..., 3] = 100.0
        qkv = head.summary.blocks[0].attn.qkv.weight
        qkv[:64].zero_()
        qkv[3, 3] = qkv[32 + 3, 3] = 20.0
    stacked = torch.stack(list(head.attention_share(features_for(head)).values()))
    torch.testing.assert_close(stacked.sum(dim=0), torch.ones(3))
