"""What can be had without a diffusion model: a support-vector machine on raw pixels."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.analysis.metrics import ClassificationMetrics, classification_metrics
from difformer.data import ImageDataset

# The fit takes the square of their number.
MOST_IMAGES = 10_000
_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
_FOLDS = 3


def classify_pixels(train: ImageDataset, test: ImageDataset, *, seed: int = 0) -> tuple[ClassificationMetrics, float]:
    """An RBF support-vector machine on the pixels as they enter the network, its strength chosen by cross-validation.

    Args:
        train: without augmentation; of more than `MOST_IMAGES`, a stratified part.
        test: measured once.
        seed: of folds and part.

    Returns:
        Its metrics on the test images (probabilities mean nothing), and the strength C that was chosen.

    Raises:
        ImportError: scikit-learn is missing.
        ImageError: an image cannot be read.
    """
    selection = require("sklearn.model_selection", "a support-vector machine", install="scikit-learn")
    machine = require("sklearn.svm", "a support-vector machine", install="scikit-learn").SVC(kernel="rbf")
    pixels, labels = _read(train, seed, selection)
    folds = min(_FOLDS, int(np.bincount(labels)[np.unique(labels)].min()))
    if folds > 1:
        splits = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
        search = selection.GridSearchCV(machine, {"C": list(_STRENGTHS)}, cv=splits)
        fitted = search.fit(pixels, labels)
        chosen = float(search.best_params_["C"])
    else:
        chosen = _STRENGTHS[0]
        fitted = machine.set_params(C=chosen).fit(pixels, labels)
    unseen, truth = _read(test, seed, selection, most=len(test))
    predicted = fitted.predict(unseen)
    votes = np.eye(len(train.class_names))[predicted]
    return classification_metrics(votes, truth, train.class_names), chosen


def _read(images: ImageDataset, seed: int, selection: Any, most: int = MOST_IMAGES) -> tuple[Any, NDArray[np.int64]]:
    """(N, 3·H·W) pixels (H·W of grey images) and (N,) labels of the images that can be read."""
    places = np.arange(len(images))
    if len(places) > most:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            places, _ = selection.train_test_split(places, train_size=most, stratify=images.labels, random_state=seed)
    samples = [sample for place in sorted(places) if (sample := images[int(place)]) is not None]
    pixels = np.stack([sample.image.numpy() for sample in samples])
    if (pixels == pixels[:, :1]).all():
        # Grey images: the machine scales its kernel by variance and length, so one channel gives what three would.
        pixels = pixels[:, :1]
    return pixels.reshape(len(pixels), -1), np.array([sample.label for sample in samples], dtype=np.int64)
