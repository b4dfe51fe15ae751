"""Backbones and data sets that several runs of one process share, opened once."""

import gc
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from difformer.backbones import Backbone
from difformer.data import DataConfig, ImageDataset
from difformer.data.apart import check_apart
from difformer.data.classes import check_same_classes
from difformer.engine.config.build import build_backbone, build_dataset, torso_dtype
from difformer.engine.config.recipe import BackboneConfig
from difformer.features.dtypes import dtype_name


class Resources:
    """The last backbone and all data sets that were opened, by configuration, for consecutive runs."""

    def __init__(self) -> None:
        self._backbone: tuple[str, Backbone] | None = None
        self._datasets: dict[str, ImageDataset] = {}
        # Splits that were found to be apart, or warned of.
        self._compared: set[str] = set()

    def backbone(
        self, config: BackboneConfig, *, precision: str = "no", device: torch.device | str = "cpu"
    ) -> Backbone:
        """As `build_backbone`; another backbone replaces the one before.

        Each run sets gradient checkpointing itself.
        """
        config = replace(config, dtype=dtype_name(torso_dtype(config, precision)), gradient_checkpointing=False)  # type: ignore[arg-type]
        key = repr((config, torch.device(device)))
        if self._backbone is None or self._backbone[0] != key:
            # Released first, so that two are never in memory.
            self._backbone = None
            self._backbone = key, build_backbone(config, device=device)
        return self._backbone[1]

    def dataset(
        self, config: DataConfig, split: str, *, augment: bool = False, classes: Sequence[str] | None = None
    ) -> ImageDataset:
        """As `build_dataset`."""
        key = repr((config, split, augment, classes))
        if key not in self._datasets:
            self._datasets[key] = build_dataset(config, split, augment=augment, classes=classes)
        return self._datasets[key]

    def splits(
        self, config: DataConfig, names: Iterable[str | None], *, augment: bool = False
    ) -> dict[str, ImageDataset]:
        """Several splits by name, whose labels are numbers of the first split's classes.

        Args:
            config: which images.
            names: of the splits; None and repeated names are left out, and `train` comes first.
            augment: whether `train` is for training.

        Raises:
            ValueError: a split has other classes than the first, or as `check_apart`; and as `build_dataset`.
        """
        found: dict[str, ImageDataset] = {}
        for name in sorted(filter(None, dict.fromkeys(names)), key=lambda name: name != "train"):
            known = next(iter(found.values())).class_names if found else None
            found[name] = self.dataset(config, name, augment=augment and name == "train", classes=known)
            if known is not None:
                check_same_classes(found[name].class_names, known, f"of {name}", f"of {next(iter(found))}")
        compared = repr((config, list(found)))
        if "train" in found and compared not in self._compared:
            check_apart(found)
            self._compared.add(compared)
        return found


def release_memory() -> None:
    """Between runs of one process: reference cycles keep the weights of finished ones, which would add up on a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
