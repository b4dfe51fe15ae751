"""Reading features: one pass, or DifFeed's two."""

from difformer.features.extractor import FeatureExtractor
from difformer.features.feedback import FeedbackExtractor
from difformer.features.noising import Noising
from difformer.taps import Features

__all__ = ["FeatureExtractor", "Features", "FeedbackExtractor", "Noising"]
