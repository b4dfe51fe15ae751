"""Small classifiers of every kind."""

import torch

from difformer import DiffusionClassifier, FeatureExtractor, FeedbackExtractor
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead

SMALL = {"width": 32, "heads": 4, "layers": 1, "pool": 4}
IDS = [4, 90, 2**40]


CLASSIFIERS = {
    "linear": lambda b: (plain(b, ["out02"], [90]), lambda s: LinearHead(s, 3)),
    "mlp": lambda b: (plain(b, ["out02"], [90]), lambda s: MLPHead(s, 3, hidden=[8])),
    "cnn": lambda b: (plain(b, ["out02"], [90]), lambda s: CNNHead(s, 3, channels=[8])),
    "attention": lambda b: (plain(b, ["out02"], [90]), lambda s: AttentionHead(s, 3, **SMALL)),
    "difformer": lambda b: (plain(b, ["mid", 16], [90, 10]), lambda s: DifFormerHead(s, 3, **SMALL)),
    "joint": lambda b: (plain(b, ["mid", 16], [90, 10]), lambda s: DifFormerHead(s, 3, variant="joint", **SMALL)),
    "difffeed": lambda b: (feedback(b), lambda s: DifFormerHead(s, 3, **SMALL)),
    "difffeed group": lambda b: (feedback(b, norm="group", gate=True), lambda s: DifFormerHead(s, 3, **SMALL)),
}


def plain(backbone, taps, timesteps):
    return FeatureExtractor(backbone, taps=taps, timesteps=timesteps)


def feedback(backbone, **options):
    return FeedbackExtractor(
        backbone,
        feedback_taps=["out01", "out07"],
        taps=["out02"],
        timesteps=[90, 150],
        first_pass_taps=["mid"],
        **options,
    )


def linear(backbone, **options):
    torch.manual_seed(0)
    extractor = plain(backbone, ["out02"], [90])
    return DiffusionClassifier(extractor, LinearHead(extractor.specs, 3), **options)
