"""Data sets whose images have masks, boxes or points: one file a format. Importing it makes them known by name."""

from difformer.annotations.coco import read_coco
from difformer.annotations.landmarks import read_points
from difformer.annotations.masks import read_ade20k, read_masks
from difformer.annotations.pairs import Pair, Pairs, read_pair_images, read_pairs
from difformer.annotations.records import MaskFiles, Recorded, annotated, boxes_of, points_of, recorded
from difformer.annotations.voc import read_voc, read_voc_segmentation
from difformer.data.dataset import READERS

for _name, _reader in {
    "masks": read_masks,
    "ade20k": read_ade20k,
    "vocsegmentation": read_voc_segmentation,
    "coco": read_coco,
    "voc": read_voc,
    "points": read_points,
    "pairs": read_pair_images,
}.items():
    READERS.register(_name)(_reader)

__all__ = [
    "MaskFiles",
    "Pair",
    "Pairs",
    "Recorded",
    "annotated",
    "boxes_of",
    "points_of",
    "read_ade20k",
    "read_coco",
    "read_masks",
    "read_pairs",
    "read_points",
    "read_voc",
    "read_voc_segmentation",
    "recorded",
]
