"""How close noisy augmented views of an image lie together, which asks for no labels."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch

from difformer.analysis import principal_components, view_criterion
from difformer.data import ImageDataset
from difformer.engine.extraction.pooled import SplitFeatures
from difformer.engine.runtime.processes import on_main
from difformer.streams import Stream, epoch_seed, generator
from difformer.verbs.select.parts import Pair, Parts

# Images at the least.
_FEWEST = 64
# Directions in which scatter is compared. The criterion falls with their number where views are few, so that blocks of
# different width would be told apart by that alone; it is only known in far fewer than there are images.
_COMPONENTS = 32


class Views:
    """Measures without labels.

    Args:
        parts: reads the images.

    Attributes:
        pools: the pooling, which is the same for each feature.
        sign: as for labels: the larger score is the better.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.pools: dict[Pair, int] = {}
        self.sign = 1

    def measure(self, t: int, share: float) -> tuple[Mapping[str, float], float]:
        """1 minus the label-free criterion by tap, of as many images as make the share together with their views.

        Returns:
            It, and the share of all images that was read, each view an image.
        """
        parts, recipe = self._parts, self._parts.recipe
        images = self._some(share / recipe.views)
        views = []
        for view in range(recipe.views):
            images.set_epoch(view)
            views.append(parts.read(images, t, title=f"view {view + 1}", seed=epoch_seed(recipe.seed, view)))
        self.pools |= {(tap, t): recipe.pools[0] for tap in parts.taps}
        scores = on_main(parts.accelerator, partial(self._compare, views))
        return scores, parts.cost(recipe.views * len(images))

    def _some(self, share: float) -> ImageDataset:
        """A random part, drawn without a look at the labels."""
        train = self._parts.images["train"]
        order = generator(Stream.PART, self._parts.recipe.data.seed).permutation(len(train))
        return train.part(np.sort(order[: max(_FEWEST, round(share * len(train)))]))

    def _compare(self, views: Sequence[SplitFeatures]) -> dict[str, float]:
        """By tap, each in its principal components, and all in equally many of them."""
        widths = [columns.stop - columns.start for columns in views[0].places.values()]
        components = max(1, min(_COMPONENTS, *widths, len(views[0].labels) // 4))
        scores = {}
        for tap, pool in views[0].places:
            rows = torch.stack([split.of(tap, pool) for split in views], dim=1)
            found = principal_components(rows.flatten(0, 1), components)
            scores[tap] = 1 - view_criterion(found.scores.view(*rows.shape[:2], -1))
        return scores
