"""Classifiers: an extractor and a head, the file they are kept in, and sharing them on the hub."""

from difformer.classifier.files import (
    is_classifier_file,
    read_classifier,
    read_description,
    save_classifier,
    write_classifier,
)
from difformer.classifier.inputs import ImageLike
from difformer.classifier.model import DiffusionClassifier, load_classifier
from difformer.tasks import Prediction

__all__ = [
    "DiffusionClassifier",
    "ImageLike",
    "Prediction",
    "is_classifier_file",
    "load_classifier",
    "read_classifier",
    "read_description",
    "save_classifier",
    "write_classifier",
]
