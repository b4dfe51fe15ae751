"""Classifiers on fixed features that are fitted at once for a grid of settings, and the choice among these."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from difformer.analysis.knn import knn_scores
from difformer.analysis.linear import Fit
from difformer.analysis.logistic import STRENGTHS as LOGISTIC_STRENGTHS
from difformer.analysis.logistic import logistic_path
from difformer.analysis.metrics import METRICS, Metric, Told, find_metric, measure
from difformer.analysis.ridge import STRENGTHS as RIDGE_STRENGTHS
from difformer.analysis.ridge import ridge_path
from difformer.analysis.sgd import RATES, WEIGHT_DECAYS, sgd_grids

Settings: TypeAlias = Mapping[str, float]
Scorer: TypeAlias = Callable[[Tensor], Iterator[tuple[Settings, Tensor]]]

# As in DINO's protocol (Caron et al. 2021).
KS = (10, 20, 100, 200)
# What a method's outputs tell: the votes of neighbours leave classes without a probability, and ridge estimates
# targets.
TOLD: dict[str, tuple[Told, ...]] = {
    "knn": ("scores", "confidence"),
    "logistic": ("scores", "confidence", "probabilities"),
    "ridge": ("scores",),
    "sgd": ("scores", "confidence", "probabilities"),
}
# In place of a share of 0, whose logarithm is not finite.
_SMALLEST_VOTE = 1e-12


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images as a probe sees them.

    Attributes:
        features: (N, D) finite floating-point numbers.
        labels: (N,) int64.
    """

    features: Tensor
    labels: Tensor

    def joined(self, other: "Labelled") -> "Labelled":
        """These images, then the others."""
        return Labelled(torch.cat([self.features, other.features]), torch.cat([self.labels, other.labels]))


@dataclass(frozen=True)
class Candidate:
    """Settings, and how good they are.

    Attributes:
        settings: by name, such as {"k": 20, "temperature": 0.07}.
        accuracy: on the validation images, or another criterion's number.
    """

    settings: Settings
    accuracy: float


class Probe(Protocol):
    """A method with a grid of settings."""

    def fit(self, images: Labelled, num_classes: int) -> Scorer:
        """Fits all settings.

        Args:
            images: N of them.
            num_classes: C.

        Returns:
            From features (Q, D) to each setting with its logits (Q, C).

        Raises:
            ValueError: settings that do not fit the images, or a value that is not finite.
        """
        ...

    def only(self, settings: Settings) -> "Probe":
        """The same method with one setting."""
        ...


@dataclass(frozen=True)
class NearestNeighbours:
    """Weighted votes of the nearest neighbours; logits are the logarithms of the shares of the votes.

    Attributes:
        ks: numbers of neighbours; when None those of DINO's 10, 20, 100 and 200 that there are images for, or all.
        temperatures: of the votes.
    """

    ks: Sequence[int] | None = None
    temperatures: Sequence[float] = (0.07,)

    def fit(self, images: Labelled, num_classes: int) -> Scorer:
        """See `Probe.fit`: keeps the images."""
        count = len(images.features)
        ks = self.ks or [k for k in KS if k <= count] or [count]

        def scores(features: Tensor) -> Iterator[tuple[Settings, Tensor]]:
            for temperature in self.temperatures:
                found = knn_scores(
                    features, images.features, images.labels, num_classes, ks=ks, temperature=temperature
                )
                for k, votes in found.items():
                    yield {"k": k, "temperature": temperature}, votes.clamp_min(_SMALLEST_VOTE).log()

        return scores

    def only(self, settings: Settings) -> "NearestNeighbours":
        """See `Probe.only`."""
        return NearestNeighbours((int(settings["k"]),), (settings["temperature"],))


@dataclass(frozen=True)
class LinearProbe:
    """A linear layer with a penalty on its weights.

    Attributes:
        path: `logistic_path` or `ridge_path`.
        strengths: of the penalty.
    """

    path: Callable[..., Sequence[Fit]]
    strengths: Sequence[float]

    def fit(self, images: Labelled, num_classes: int) -> Scorer:
        """See `Probe.fit`."""
        fits = self.path(images.features, images.labels, num_classes, strengths=self.strengths)
        return partial(_linear_scores, fits, ("l2",))

    def only(self, settings: Settings) -> "LinearProbe":
        """See `Probe.only`."""
        return LinearProbe(self.path, (settings["l2"],))


@dataclass(frozen=True)
class GradientDescent:
    """A linear layer trained by `sgd_grids`.

    Attributes:
        rates: learning rates.
        weight_decays: of the weights.
    """

    rates: Sequence[float]
    weight_decays: Sequence[float]

    def fit(self, images: Labelled, num_classes: int) -> Scorer:
        """See `Probe.fit`."""
        return self.fit_each([images.features], images.labels, num_classes)[0]

    def fit_each(self, features: Sequence[Tensor], labels: Tensor, num_classes: int) -> list[Scorer]:
        """Fits each of several features (N, D) of the same images, all in one computation; see `fit`."""
        grids = sgd_grids(features, labels, num_classes, rates=self.rates, weight_decays=self.weight_decays)
        return [partial(_linear_scores, fits, ("l2", "rate")) for fits in grids]

    def only(self, settings: Settings) -> "GradientDescent":
        """See `Probe.only`."""
        return GradientDescent((settings["rate"],), (settings["l2"],))


def _linear_scores(fits: Sequence[Fit], settings: Sequence[str], features: Tensor) -> Iterator[tuple[Settings, Tensor]]:
    """Each fit's settings, which are attributes of these names, with its logits."""
    for fit in fits:
        yield {name: getattr(fit, name) for name in settings}, fit.model.logits(features)


def create_probe(
    method: str,
    *,
    ks: Sequence[int] | None = None,
    temperatures: Sequence[float] = (0.07,),
    strengths: Sequence[float] | None = None,
    rates: Sequence[float] | None = None,
) -> Probe:
    """A method by its name, knn, logistic, ridge or sgd, with the settings to choose from.

    Raises:
        ValueError: another name.
    """
    linear: dict[str, tuple[Any, Sequence[float]]] = {
        "logistic": (logistic_path, LOGISTIC_STRENGTHS),
        "ridge": (ridge_path, RIDGE_STRENGTHS),
    }
    if method == "knn":
        return NearestNeighbours(ks, temperatures)
    if method == "sgd":
        return GradientDescent(rates or RATES, strengths or WEIGHT_DECAYS)
    if method not in linear:
        raise ValueError(f"method must be knn, logistic, ridge or sgd, got {method!r}")
    path, usual = linear[method]
    return LinearProbe(path, strengths or usual)


def find_criterion(name: str, method: str) -> Metric:
    """The metric that chooses among a method's settings.

    Args:
        name: of the metric, see `find_metric`.
        method: knn, logistic, ridge or sgd.

    Raises:
        ValueError: there is none, or it needs what the method's outputs do not give; the message names those that work.
        ImportError: its module cannot be imported.
    """
    metric = find_metric(name)
    if metric.reads not in TOLD[method]:
        working = [other for other in METRICS if METRICS.find(other).reads in TOLD[method]]
        methods = [other for other, told in TOLD.items() if metric.reads in told]
        needed = {"confidence": "the predicted class's probability", "probabilities": "the classes' probabilities"}
        raise ValueError(
            f"criterion: {name} needs {needed[metric.reads]}, which {method} does not give; choose by "
            f"{', '.join(working)}, or take another method: {', '.join(methods)}"
        )
    return metric


def check_criterion(name: str, num_classes: int) -> None:
    """Raises ValueError where a criterion is not defined for so few classes."""
    if name == "top5" and num_classes <= 5:
        raise ValueError(f"criterion: top5 needs more than 5 classes, got {num_classes}; use top1 or mean_per_class")


def compare(
    probe: Probe, train: Labelled, validation: Labelled, num_classes: int, *, criterion: str = "top1"
) -> list[Candidate]:
    """How well each setting, fitted on training images, does on validation images.

    Args:
        probe: method and settings.
        train, validation: different images.
        num_classes: C.
        criterion: as for `measure`.

    Raises:
        ValueError: as `Probe.fit` and `measure`.
    """
    return judge(probe.fit(train, num_classes), validation, criterion=criterion)


def judge(scorer: Scorer, validation: Labelled, *, criterion: str = "top1") -> list[Candidate]:
    """How well each fitted setting does on validation images.

    Args:
        scorer: gives the settings and their logits.
        validation: the images.
        criterion: as for `measure`.
    """
    scores = scorer(validation.features)
    return [Candidate(settings, measure(logits, validation.labels, criterion)) for settings, logits in scores]


def best(candidates: Sequence[Candidate], *, larger_is_better: bool = True) -> Candidate:
    """The most accurate; of equal ones the smoothest, which has the larger settings: neighbours, temperature, penalty.

    Args:
        candidates: one or more.
        larger_is_better: of the criterion they were measured by.

    Raises:
        ValueError: there are none.
    """
    if not candidates:
        raise ValueError("there are no candidates to choose from")
    sign = 1 if larger_is_better else -1
    return max(candidates, key=lambda candidate: (sign * candidate.accuracy, *candidate.settings.values()))
