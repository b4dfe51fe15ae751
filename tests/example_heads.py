"""Small heads of every kind, and random features for them."""

import torch
from support import recipe_input

from difformer import FeatureKey
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from difformer.taps import TapSpec

KEY = FeatureKey("out02", 90)
ONE = {KEY: TapSpec("out02", 13, 64, 8, 0)}
MANY = {
    FeatureKey(tap, t, number): TapSpec(tap, block, channels, size, 0)
    for t in (90, 300)
    for tap, block, channels, size, number in [
        ("mid", 10, 64, 8, 0),
        ("out05", 16, 32, 16, 0),
        ("out05", 16, 32, 16, 1),
    ]
}
SMALL = {"width": 32, "heads": 4, "layers": 2, "pool": 4}


HEADS = {
    "linear": lambda: LinearHead(ONE, 5),
    "linear with norm": lambda: LinearHead(ONE, 5, pool=1, batch_norm=True),
    "mlp": lambda: MLPHead(ONE, 5, hidden=(16, 8)),
    "cnn": lambda: CNNHead(ONE, 5, channels=(16, 8)),
    "attention": lambda: AttentionHead(ONE, 5, **SMALL),
    "difformer": lambda: DifFormerHead(MANY, 5, **SMALL),
    "difformer batch": lambda: DifFormerHead(MANY, 5, norm="batch", **SMALL),
    "joint": lambda: DifFormerHead(MANY, 5, variant="joint", **SMALL),
    "joint pooled": lambda: DifFormerHead(MANY, 5, variant="joint", attention_pool=True, **SMALL),
    "joint regular": lambda: DifFormerHead(MANY, 5, variant="joint", dropout=0.2, drop_path=0.2, **SMALL),
}


def build(name):
    torch.manual_seed(0)
    return HEADS[name]()


def features_for(head, batch=3, scale=1):
    return {
        key: recipe_input(i, batch, spec.channels, spec.size * scale, spec.size * scale)
        for i, (key, spec) in enumerate(head.specs.items())
    }
