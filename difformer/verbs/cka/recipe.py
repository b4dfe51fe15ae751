"""The recipe of a comparison of representations."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from difformer.config import as_integer, as_positive_integer, as_switch, as_tuple, check_choice, check_range
from difformer.config.reading import ADDED_LATER
from difformer.data import DataConfig
from difformer.engine.config.recipe import BackboneConfig, Precision, ReadingConfig, check_computing

KernelName = Literal["linear", "rbf"]


@dataclass(frozen=True)
class TimmConfig:
    """A timm model to compare with.

    Attributes:
        name: such as resnet50 or vit_small_patch16_224.dino; none when null.
        pretrained: with its published weights.
        checkpoint: a weight file for it, instead of those.
        download: whether published weights that are not on this machine may be fetched.
    """

    name: str | None = None
    pretrained: bool = True
    checkpoint: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        for name in ("pretrained", "download"):
            as_switch(f"timm.{name}", getattr(self, name))


@dataclass(frozen=True)
class SimilarityRecipe:
    """A comparison of representations by CKA.

    Attributes:
        data: which images.
        split: which of their splits.
        images: how many at most, evenly spaced; all when null. They are read in a random order, so that batches of a
            data set that is sorted by class are mixed.
        output: folder for the results.
        backbone: the diffusion model whose blocks and timesteps are the rows.
        extractor: what the diffusion model is conditioned on besides noise and timestep.
        taps: tap names or block numbers; all when empty.
        timesteps: noise timesteps.
        other: another diffusion model for the columns, opened like the backbone; null for none. It must have the given
            taps and timesteps; when no taps are given, all of its own are compared.
        timm: a timm model for the columns.
        pool: side to which maps are averaged; no averaging when null.
        kernel: linear or rbf.
        bandwidth: of the rbf kernel, over the median distance.
        seed: of the noise and of the order.
        precision: no, bf16 or fp16 for the backbones.
        batch_size: images whose similarities are compared with each other; the memory depends only on it.
        workers: of the data loader.

    Raises:
        ValueError: a value out of range, or both an other backbone and a timm model.
    """

    data: DataConfig
    split: str = "test"
    images: int | None = None
    output: str = "runs/cka"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    extractor: ReadingConfig = field(default_factory=ReadingConfig, metadata=ADDED_LATER)
    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = (10, 50, 150, 300, 500)
    other: str | None = None
    timm: TimmConfig = field(default_factory=TimmConfig)
    pool: int | None = 4
    kernel: KernelName = "linear"
    bandwidth: float = 1.0
    seed: int = 0
    precision: Precision = "no"
    batch_size: int = 256
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("taps", "timesteps"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        if not self.timesteps:
            raise ValueError("timesteps must be at least one")
        check_choice("kernel", self.kernel, get_args(KernelName))
        check_range("bandwidth", self.bandwidth, lambda x: x > 0, "above 0")
        for name in ("images", "pool"):
            if getattr(self, name) is not None:
                as_positive_integer(name, getattr(self, name))
        check_range("batch_size", as_positive_integer("batch_size", self.batch_size), lambda x: x >= 4, "at least 4")
        as_integer("seed", self.seed)
        check_computing(self)
        if self.other is not None and self.timm.name is not None:
            raise ValueError("give one of other and timm.name: there is one set of columns")
