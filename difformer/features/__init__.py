"""Reading features: one pass, or DifFeed's two; and features kept on the disk."""

from difformer.features.cache import CachedFeatures, FeatureBatch, FeatureSample, collate_features
from difformer.features.extractor import FeatureExtractor
from difformer.features.feedback import FeedbackExtractor
from difformer.features.noising import Noising
from difformer.features.shards import FeatureCacheError
from difformer.taps import Features

__all__ = [
    "CachedFeatures",
    "FeatureBatch",
    "FeatureCacheError",
    "FeatureExtractor",
    "FeatureSample",
    "Features",
    "FeedbackExtractor",
    "Noising",
    "collate_features",
]
