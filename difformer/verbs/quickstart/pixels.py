"""A baseline without a diffusion model: a support-vector machine on raw pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.analysis.metrics import ClassificationMetrics, classification_metrics
from difformer.data import ImageDataset
from difformer.data.subset import percentage

# About the most images to learn from: the fit takes time and memory in the square of their number.
MOST_IMAGES = 10_000
_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
_FOLDS = 3
_AT_ONCE = 1000


@dataclass(frozen=True)
class PixelResult:
    """What a support-vector machine on pixels reached.

    Attributes:
        metrics: on the test images; probabilities mean nothing.
        strength: the C that was chosen.
        images: number of training images.
    """

    metrics: ClassificationMetrics
    strength: float
    images: int


def classify_pixels(train: ImageDataset, test: ImageDataset, *, seed: int = 0) -> PixelResult:
    """An RBF support-vector machine on the pixels as they enter the network, its strength chosen by cross-validation.

    Args:
        train: without augmentation; of more than `MOST_IMAGES`, a share of each class is used, at least one image.
        test: measured once.
        seed: of the folds, and of the share of the training images.

    Raises:
        ImportError: scikit-learn is missing.
        ImageError: an image cannot be read.
    """
    selection = require("sklearn.model_selection", "a support-vector machine", install="scikit-learn")
    rbf = require("sklearn.metrics.pairwise", "a support-vector machine", install="scikit-learn").rbf_kernel
    # The kernel is computed once for all strengths and folds; otherwise each fit would compute it again.
    machine = require("sklearn.svm", "a support-vector machine", install="scikit-learn").SVC(kernel="precomputed")
    (pixels, labels), (unseen, truth) = _read(train, most=MOST_IMAGES, seed=seed), _read(test)
    if _grey(pixels) and _grey(unseen):
        # The kernel is scaled by variance and length, so one channel gives what three would.
        pixels, unseen = pixels[:, :1], unseen[:, :1]
    pixels, unseen = pixels.reshape(len(pixels), -1), unseen.reshape(len(unseen), -1)
    # As scikit-learn's gamma="scale", but for all folds together.
    gamma = 1 / (pixels.shape[1] * float(pixels.var()) or 1.0)
    kernel = rbf(pixels, gamma=gamma)
    folds = min(_FOLDS, int(np.bincount(labels)[np.unique(labels)].min()))
    if folds > 1:
        splits = selection.StratifiedKFold(folds, shuffle=True, random_state=seed)
        search = selection.GridSearchCV(machine, {"C": list(_STRENGTHS)}, cv=splits)
        # libsvm does not hold the interpreter's lock.
        with require("joblib", "a support-vector machine").parallel_backend("threading", n_jobs=-1):
            fitted = search.fit(kernel, labels)
        chosen = float(search.best_params_["C"])
    else:
        chosen = _STRENGTHS[0]
        fitted = machine.set_params(C=chosen).fit(kernel, labels)
    parts = np.array_split(unseen, -(-len(unseen) // _AT_ONCE))
    predicted = np.concatenate([fitted.predict(rbf(part, pixels, gamma=gamma)) for part in parts])
    votes = np.eye(len(train.class_names))[predicted]
    return PixelResult(classification_metrics(votes, truth, train.class_names), chosen, len(labels))


def _read(
    images: ImageDataset, *, most: int | None = None, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(N, 3, H, W) pixels in [-1, 1] and (N,) labels of the images that can be read; of about `most` if given."""
    places = np.arange(len(images))
    if most is not None and len(images) > most:
        places = percentage(images.labels, 100 * most / len(images), seed)
    samples = [sample for place in places if (sample := images[int(place)]) is not None]
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    return np.stack([sample.image.numpy() for sample in samples]), labels


def _grey(pixels: NDArray[np.float32]) -> bool:
    return bool((pixels == pixels[:, :1]).all())
