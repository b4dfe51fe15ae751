"""Small dense heads of every kind, and random features for them: of images of 64×96 pixels."""

import torch
from support import recipe_input

from difformer import FeatureKey
from difformer.heads import (
    DenseDifFormerHead,
    DetectionHead,
    HeatmapHead,
    LinearPixelHead,
    PixelMLPEnsemble,
    UperNetHead,
)
from difformer.taps import TapSpec
from difformer.tasks import Segmentation

SIZE = (64, 96)
COARSE, FINE, MIDDLE, LATER, AGAIN = (
    FeatureKey("mid", 50),
    FeatureKey("out08", 50),
    FeatureKey("out05", 50),
    FeatureKey("out05", 150),
    FeatureKey("out05", 50, 1),
)
# Not in the order of their sizes.
PYRAMID = {
    key: TapSpec(key.tap, block, channels, (64 // stride, 96 // stride), 0)
    for key, block, channels, stride in [
        (COARSE, 10, 24, 8),
        (FINE, 19, 8, 2),
        (MIDDLE, 16, 16, 4),
        (LATER, 16, 16, 4),
        (AGAIN, 16, 16, 4),
    ]
}
ONE = {MIDDLE: PYRAMID[MIDDLE]}
DECODER = {"width": 32, "heads": 4, "pool": 6, "decoder_width": 16}
DETECTORS = ("faster_rcnn", "mask_rcnn", "fcos", "retinanet")

MAPS = {
    "upernet": lambda: UperNetHead(PYRAMID, 5, width=16),
    "upernet of one block": lambda: UperNetHead(ONE, 5, width=16),
    "upernet group": lambda: UperNetHead(PYRAMID, 5, width=64, norm="group", image_size=SIZE, finest_stride=4),
    "linear pixel": lambda: LinearPixelHead(PYRAMID, 5),
    "linear pixel plain": lambda: LinearPixelHead(PYRAMID, 5, batch_norm=False, image_size=SIZE, finest_stride=4),
    "pixel mlp": lambda: PixelMLPEnsemble(PYRAMID, 5, members=3, hidden=(16, 8), vote="mean"),
    "pixel mlp majority": lambda: PixelMLPEnsemble(PYRAMID, 5, members=3, image_size=SIZE, stride=1),
    "dense difformer": lambda: DenseDifFormerHead(PYRAMID, 5, **DECODER),
    "dense difformer published": lambda: DenseDifFormerHead(PYRAMID, 5, variant="published", **DECODER),
    "dense difformer no skip": lambda: DenseDifFormerHead(
        PYRAMID, 5, skip=False, image_size=SIZE, finest_stride=4, **DECODER
    ),
}
HEADS = MAPS | {
    "heatmap": lambda: HeatmapHead(PYRAMID, 5, width=16, image_size=SIZE),
    "heatmap finer": lambda: HeatmapHead(ONE, 5, width=64, norm="group", stride=1, image_size=SIZE),
}


class Reader(Segmentation):
    """A task of one's own for heads that give something else than logits."""

    def __init__(self, *, reads):
        super().__init__()
        self.reads = reads

    @property
    def arguments(self):
        return {"reads": self.reads}

    def infer(self, classifier, images, ids, origins):
        return [one.argmax(dim=0) for one in classifier(images, ids)]


def build(name):
    torch.manual_seed(0)
    return HEADS[name]()


def detection_head(detector, specs=PYRAMID, **options):
    torch.manual_seed(0)
    return DetectionHead(specs, 3, detector=detector, width=32, image_size=SIZE, **options)


def features_for(head, batch=3, scale=(1, 1)):
    """Features of images that are `scale` times as high and wide."""
    return {
        key: recipe_input(i, batch, spec.channels, spec.height * scale[0], spec.width * scale[1])
        for i, (key, spec) in enumerate(head.specs.items())
    }
