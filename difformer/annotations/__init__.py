"""Data sets whose images have masks, boxes or points: one file a format."""

from difformer.annotations.coco import read_coco
from difformer.annotations.landmarks import read_points
from difformer.annotations.masks import read_ade20k, read_masks
from difformer.annotations.pairs import Pair, Pairs, read_pair_images, read_pairs
from difformer.annotations.records import MaskFiles, Recorded, annotated, boxes_of, points_of, recorded
from difformer.annotations.voc import read_voc, read_voc_segmentation

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
    "read_pair_images",
    "read_pairs",
    "read_points",
    "read_voc",
    "read_voc_segmentation",
    "recorded",
]
