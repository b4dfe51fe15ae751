"""Features of a part of the images, of all blocks and poolings at one timestep."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from difformer.backbones import Backbone
from difformer.data import ImageDataset
from difformer.data.apart import check_apart
from difformer.engine.config.build import build_dataset
from difformer.engine.extraction.pooled import PooledInEveryWay, SplitFeatures, check_memory, read_split
from difformer.engine.runtime.processes import on_main
from difformer.features import FeatureExtractor
from difformer.features.conditioning import check_conditioning, warn_of_labels
from difformer.tasks import Classification
from difformer.tasks.registry import check_labels
from difformer.verbs.select.recipe import SelectRecipe

# A feature: tap and timestep.
Pair = tuple[str, int]


class Parts:
    """Reads features of parts of the images.

    Args:
        recipe: of the search.
        backbone: gives the features.
        taps: blocks to read, in network order.
        accelerator: Accelerate's.

    Attributes:
        images: by split: `train`, and with labels the validation split.

    Raises:
        ValueError: a timestep that the backbone does not have, targets in place of labels, features that do not fit
            into memory; or as `check_apart`.
    """

    def __init__(self, recipe: SelectRecipe, backbone: Backbone, taps: Sequence[str], accelerator: Any) -> None:
        self.recipe = recipe
        self.backbone = backbone
        self.taps = taps
        self.accelerator = accelerator
        train = build_dataset(recipe.data, "train", augment=not recipe.labels)
        self.images = {"train": train}
        if recipe.labels:
            self.images[recipe.validation] = build_dataset(
                recipe.data, recipe.validation, augment=False, classes=train.class_names
            )
            for images in self.images.values():
                check_labels(Classification(), images)
            check_apart(self.images)
        check_conditioning(recipe.extractor.conditioning, backbone, len(train.class_names))
        if accelerator.is_main_process:
            warn_of_labels(recipe.extractor.conditioning)
        # Refuses now a timestep that the backbone does not have, before any is read.
        FeatureExtractor(backbone, taps=taps, timesteps=recipe.timesteps, image_size=recipe.data.size)
        counts = [len(images) for images in self.images.values()]
        on_main(accelerator, partial(check_memory, self._model(recipe.timesteps[0], recipe.seed).width, counts))

    def read(self, images: ImageDataset, t: int, *, title: str, seed: int | None = None) -> SplitFeatures:
        """Reads images on all processes together; `seed` is of the noise, the recipe's when None."""
        return read_split(
            self._model(t, self.recipe.seed if seed is None else seed),
            images,
            self.accelerator,
            batch_size=self.recipe.batch_size,
            workers=self.recipe.workers,
            title=f"t = {t}, {len(images)} images of {title}",
        )

    def cost(self, count: int) -> float:
        """The cost of reading `count` images, in passes over all images of all splits."""
        return count / sum(len(images) for images in self.images.values())

    def _model(self, t: int, seed: int) -> PooledInEveryWay:
        size, conditioning = self.recipe.data.size, self.recipe.extractor.conditioning
        extractor = FeatureExtractor(
            self.backbone, taps=self.taps, timesteps=[t], seed=seed, image_size=size, conditioning=conditioning
        )
        return PooledInEveryWay(extractor, self.recipe.pools)
