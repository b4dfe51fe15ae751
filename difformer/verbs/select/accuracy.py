"""How well ridge classification does on a part of the images, or on all of them.

Scores are the criterion's numbers times its sign, so that a larger score is better.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difformer.analysis import choose_leave_one_out, ridge_path
from difformer.analysis.linear import Standardised, principal_axes
from difformer.analysis.metrics import find_metric
from difformer.analysis.probes import Labelled, best, check_criterion, compare, create_probe
from difformer.analysis.ridge import STRENGTHS
from difformer.data import percentage
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime.processes import on_main, solver_device
from difformer.verbs.select.parts import Pair, Parts
from difformer.verbs.select.search import greedy_set, set_cost

# Columns of each feature when several are joined: a fit to thousands of columns would take longer than reading them.
_COMPONENTS = 256
# Leaving one out says nothing about a class with a single image.
_FEWEST_OF_CLASS = 4


class Accuracy:
    """Measures features by the labels.

    Args:
        parts: reads the images.

    Attributes:
        pools: the best pooling of each feature that was measured on all images.
        sign: a score times this sign is the criterion's number.

    Raises:
        ValueError: no class has two training images, or there are too few classes for the criterion.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._device = solver_device(parts.accelerator.device)
        self._kept: dict[Pair, dict[str, Tensor]] = {}
        self._labels: dict[str, Tensor] = {}
        self.pools: dict[Pair, int] = {}
        self._metric = find_metric(parts.recipe.criterion)
        self.sign = self._metric.sign
        train = parts.images["train"]
        self._classes = len(train.class_names)
        check_criterion(parts.recipe.criterion, self._classes)
        if np.bincount(train.labels).max() < 2:
            raise ValueError(
                "a search leaves one training image out and classifies it by the others, but no class has two images; "
                "give more images, set labels: false, or run `difformer sweep`"
            )

    def measure(self, t: int, share: float) -> tuple[Mapping[str, float], float]:
        """Score by tap in its best pooling: by leaving one out of some images, or on the validation split with all.

        Args:
            t: timestep.
            share: of the images of both splits; below 1, that many training images are read, at least some of each
                class.

        Returns:
            The scores, and the share of the images that was read.
        """
        parts = self._parts
        if share < 1:
            train = parts.images["train"]
            percent = min(100.0, 100 * share / parts.cost(len(train)))
            few = percentage(train.labels, percent, parts.recipe.data.seed, at_least=_FEWEST_OF_CLASS)
            part = parts.read(train.part(few), t, title="train")
            return on_main(parts.accelerator, partial(self._leave_one_out, part)), parts.cost(len(few))
        splits = {name: parts.read(images, t, title=name) for name, images in parts.images.items()}
        found = on_main(parts.accelerator, partial(self._keep, splits, t))
        self.pools |= {(tap, t): pool for tap, (pool, _) in found.items()}
        return {tap: score for tap, (_, score) in found.items()}, 1.0

    def fuse(self, found: Mapping[Pair, float], costs: Mapping[str, float]) -> dict[str, Any]:
        """Chooses features to read together, among those at the best timesteps.

        The first is the best that the budget allows. When joined, features of many columns count by their first
        principal components.

        Args:
            found: score on all images by feature.
            costs: of an image up to each tap, in passes of the network.

        Returns:
            `pairs` in the order of the choice, the criterion's number for all of them as `score`, and the `passes` of
            the network that they take.
        """
        return on_main(self._parts.accelerator, partial(self._fuse, found, costs))

    def _leave_one_out(self, train: SplitFeatures) -> dict[str, float]:
        """Score by tap, in its best pooling."""
        recipe, labels = self._parts.recipe, torch.from_numpy(train.labels)
        strengths = recipe.strengths or STRENGTHS
        scores: dict[str, float] = {}
        for tap, pool in train.places:
            features = train.of(tap, pool).to(self._device)
            fits = ridge_path(features, labels, self._classes, strengths=strengths, criterion=recipe.criterion)
            found = choose_leave_one_out(fits, larger_is_better=self._metric.larger_is_better)
            scores[tap] = max(scores.get(tap, -math.inf), self.sign * found.leave_one_out)
        return scores

    def _keep(self, splits: Mapping[str, SplitFeatures], t: int) -> dict[str, tuple[int, float]]:
        """Best pooling and its score by tap; keeps its vectors for fusing."""
        self._labels = {name: torch.from_numpy(split.labels) for name, split in splits.items()}
        found = {}
        for tap in self._parts.taps:
            scores = {
                pool: self._score({name: split.of(tap, pool) for name, split in splits.items()})
                for pool in sorted(self._parts.recipe.pools)
            }
            # Of equal poolings the first, which has the shortest vectors.
            pool = max(scores, key=lambda pool: scores[pool])
            found[tap] = pool, scores[pool]
            self._kept[tap, t] = condense({name: split.of(tap, pool) for name, split in splits.items()}, self._device)
        return found

    def _fuse(self, found: Mapping[Pair, float], costs: Mapping[str, float]) -> dict[str, Any]:
        recipe = self._parts.recipe
        best = sorted(found, key=lambda pair: -found[pair])
        timesteps = list(dict.fromkeys(t for _, t in best))[: recipe.fused_timesteps]
        candidates = [pair for pair in found if pair[1] in timesteps]

        def score(pairs: Sequence[Pair]) -> float:
            if len(pairs) == 1:
                return found[pairs[0]]
            kept = [self._kept[pair] for pair in pairs]
            return self._score({name: torch.cat([split[name] for split in kept], dim=1) for name in self._labels})

        pairs = greedy_set(score, candidates, costs, budget=recipe.budget, most=recipe.most)
        return {
            "pairs": [{"tap": tap, "t": t, "pool": self.pools[tap, t]} for tap, t in pairs],
            "score": self.sign * score(pairs),
            "passes": set_cost(pairs, costs),
        }

    def _score(self, vectors: Mapping[str, Tensor]) -> float:
        """Score on the validation split, after a fit on the training split."""
        recipe = self._parts.recipe
        train, validation = (
            Labelled(vectors[name].to(self._device), self._labels[name]) for name in ("train", recipe.validation)
        )
        probe = create_probe("ridge", strengths=recipe.strengths)
        candidates = compare(probe, train, validation, self._classes, criterion=recipe.criterion)
        return self.sign * best(candidates, larger_is_better=self._metric.larger_is_better).accuracy


def condense(vectors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first principal components of standardised vectors.

    Args:
        vectors: (N, D) by split; the components are those of `train`.
        device: that can compute in float64.

    Returns:
        (N, k) float32 by split: k is at most 256, and at most the number of components of the training vectors. With
        256 columns or fewer, all D are kept.
    """
    if vectors["train"].shape[1] <= _COMPONENTS:
        return {name: rows.clone() for name, rows in vectors.items()}
    train = Standardised.of(vectors["train"].to(device), torch.float64)
    # In ascending order, so the last explain most.
    axes = principal_axes(train.x)[0][:, -_COMPONENTS:]
    # A random rotation, since a fit standardises its columns again, which would scale the last components up to the
    # size of the first.
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(axes.shape[1], axes.shape[1], generator=generator, dtype=torch.float64))
    axes = axes @ turn.to(device)
    return {
        name: ((rows.to(device).double() - train.mean) / train.scale @ axes).float().cpu()
        for name, rows in vectors.items()
    }
