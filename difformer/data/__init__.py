"""Data sets by name, their transforms and label subsets, and the reading of images."""

from difformer.data.dataset import (
    READERS,
    ImageDataset,
    canonical_name,
    create_dataset,
    data_set_names,
    read_source,
    transform_description,
)
from difformer.data.images import IMAGE_SUFFIXES, ImageError, Preprocessing, as_rgb, content_id, read_image
from difformer.data.samples import Batch, DenseBatch, DenseSample, Sample, collate
from difformer.data.source import DataError, Source, file_source
from difformer.data.spec import DataConfig
from difformer.data.stream import ShardDataset
from difformer.data.subset import HOLDOUT, LabelSubset, few_shot, percentage, split_holdout
from difformer.data.targets import Annotations, Boxes, Mask, Origin, Points, Target, moved
from difformer.data.transforms import PublishedTransform, create_transform, isolated_generators
from difformer.maps import IGNORE
from difformer.streams import sample_generator

__all__ = [
    "HOLDOUT",
    "IGNORE",
    "IMAGE_SUFFIXES",
    "READERS",
    "Annotations",
    "Batch",
    "Boxes",
    "DataConfig",
    "DataError",
    "DenseBatch",
    "DenseSample",
    "ImageDataset",
    "ImageError",
    "LabelSubset",
    "Mask",
    "Origin",
    "Points",
    "Preprocessing",
    "PublishedTransform",
    "Sample",
    "ShardDataset",
    "Source",
    "Target",
    "as_rgb",
    "canonical_name",
    "collate",
    "content_id",
    "create_dataset",
    "create_transform",
    "data_set_names",
    "few_shot",
    "file_source",
    "isolated_generators",
    "moved",
    "percentage",
    "read_image",
    "read_source",
    "sample_generator",
    "split_holdout",
    "transform_description",
]
