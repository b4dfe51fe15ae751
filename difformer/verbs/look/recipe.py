"""The recipe of a look at features."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from difformer.config import as_positive_integer, as_tuple, check_choice
from difformer.config.reading import ADDED_LATER
from difformer.data import DataConfig
from difformer.engine.config.recipe import BackboneConfig, Precision, ReadingConfig, check_computing

Projection = Literal["auto", "tsne", "umap", "none"]


@dataclass(frozen=True)
class LookRecipe:
    """A look at what blocks see at several timesteps.

    Attributes:
        data: which images.
        split: which of their splits. The best feature is chosen on it, so it is not the test split by default.
        images: how many at most, evenly spaced.
        output: folder for page and pictures.
        backbone: the diffusion model.
        extractor: what the diffusion model is conditioned on besides noise and timestep.
        taps: tap names or block numbers; every third when empty.
        timesteps: noise timesteps.
        pool: side to which maps are averaged for neighbours; principal components are of whole maps.
        ks: numbers of neighbours that precision is measured at.
        queries: images whose neighbours are shown.
        projection: of the best feature to the plane: tsne (scikit-learn), umap (umap-learn) or none; auto for tsne
            if scikit-learn is installed.
        seed: of the noise and of the projection.
        precision: no, bf16 or fp16 for the backbone.
        batch_size: images at once.
        workers: of the data loader.

    Raises:
        ValueError: a value out of range.
    """

    data: DataConfig
    split: str = "train"
    images: int = 1000
    output: str = "runs/look"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    extractor: ReadingConfig = field(default_factory=ReadingConfig, metadata=ADDED_LATER)
    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = (10, 50, 150, 300)
    pool: int = 1
    ks: tuple[int, ...] = (1, 5, 10)
    queries: int = 6
    projection: Projection = "auto"
    seed: int = 0
    precision: Precision = "no"
    batch_size: int = 128
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("taps", "timesteps", "ks"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        for name in ("timesteps", "ks"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be at least one number")
        for name in ("images", "pool", "queries", "batch_size"):
            as_positive_integer(name, getattr(self, name))
        for k in self.ks:
            as_positive_integer("ks", k)
        check_choice("projection", self.projection, get_args(Projection))
        check_computing(self)
