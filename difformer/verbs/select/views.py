"""How close noisy augmented views of an image lie together, which requires no labels."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from difformer.analysis import principal_components, view_criterion
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime.processes import on_main
from difformer.streams import Stream, epoch_seed, generator
from difformer.verbs.select.parts import Pair, Parts

# The least number of images.
_FEWEST = 64
# Directions in which scatter is compared. With few views the criterion falls with the number of directions, so all
# blocks are compared in the same number; and it needs far fewer directions than images.
_COMPONENTS = 32


class Views:
    """Measures features without labels.

    Args:
        parts: reads the images.

    Attributes:
        pools: the pooling, which is the same for each feature.
        sign: 1, as a larger score is better; see `Accuracy`.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.pools: dict[Pair, int] = {}
        self.sign = 1

    def measure(self, t: int, share: float) -> tuple[Mapping[str, float], float]:
        """1 minus the label-free criterion by tap.

        Args:
            t: timestep.
            share: of the training images to read, where each view of an image counts as one.

        Returns:
            The scores, and the share of all images that was read, where each view counts as one.
        """
        parts, recipe = self._parts, self._parts.recipe
        train = parts.images["train"]
        # A random part, without a look at the labels.
        order = generator(Stream.PART, recipe.data.seed).permutation(len(train))
        images = train.part(np.sort(order[: max(_FEWEST, round(share / recipe.views * len(train)))]))
        views = []
        for view in range(recipe.views):
            images.set_epoch(view)
            views.append(parts.read(images, t, title=f"view {view + 1}", seed=epoch_seed(recipe.seed, view)))
        self.pools |= {(tap, t): recipe.pools[0] for tap in parts.taps}
        scores = on_main(parts.accelerator, partial(self._compare, views))
        return scores, parts.cost(recipe.views * len(images))

    def _compare(self, views: Sequence[SplitFeatures]) -> dict[str, float]:
        """Score by tap, each in its own principal components, all in the same number of them."""
        widths = [columns.stop - columns.start for columns in views[0].places.values()]
        components = max(1, min(_COMPONENTS, *widths, len(views[0].labels) // 4))
        scores = {}
        for tap, pool in views[0].places:
            rows = torch.stack([split.of(tap, pool) for split in views], dim=1)
            found = principal_components(rows.flatten(0, 1), components)
            scores[tap] = 1 - view_criterion(found.scores.view(*rows.shape[:2], -1))
        return scores
