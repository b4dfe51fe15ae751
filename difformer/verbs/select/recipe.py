"""The recipe of a search among blocks and timesteps."""

from dataclasses import dataclass, field

from difformer.config import as_positive_integer, as_switch, as_tuple, check_pools, check_range
from difformer.config.reading import ADDED_LATER
from difformer.engine.config.recipe import ReadingConfig
from difformer.verbs.probe.recipe import FeatureRecipe, ProbeRecipe


@dataclass(frozen=True)
class SelectRecipe(FeatureRecipe):
    """A search for the best features by ridge classification, at a fraction of a sweep's cost. It reads no test images.

    Attributes:
        data: which images, as for a sweep.
        extractor: what the diffusion model is conditioned on.
        taps: tap names or block numbers; all when empty.
        timesteps: noise timesteps in [0, 1000), ascending.
        pools: sides to which maps are averaged; each feature counts with its best. When empty: 1, 2 and 4, or only 1
            without labels, where a single one is allowed.
        seed: of the noise.
        strengths: of the L2 penalty, to choose from for each probe; several decades when null.
        criterion: metric to choose by: top1, mean_per_class, another of `difformer.analysis.METRICS`, or your own as
            package.module:Name.
        validation: split that chooses.
        labels: use the labels. Without them, features are compared by how close noisy augmented views of an image lie
            together, and no set to fuse is chosen.
        views: number of views of each image, without labels.
        budget: the most that reading the features to fuse may cost, in whole passes of the network.
        most: the largest number of features to fuse.
        fused_timesteps: the largest number of timesteps that features to fuse come from. At least as many are measured
            on all images, at the cost of one pass each.
    """

    output: str = "runs/select"
    extractor: ReadingConfig = field(default_factory=ReadingConfig, metadata=ADDED_LATER)
    taps: tuple[int | str, ...] = ()
    timesteps: tuple[int, ...] = (10, 30, 50, 90, 150, 200, 300, 500)
    pools: tuple[int, ...] = ()
    seed: int = 0
    strengths: tuple[float, ...] | None = None
    criterion: str = "top1"
    validation: str = "holdout"
    labels: bool = True
    views: int = 4
    budget: float = 1.0
    most: int = 4
    fused_timesteps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("taps", "timesteps", "pools"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        if not self.timesteps or sorted(set(self.timesteps)) != list(self.timesteps):
            raise ValueError(f"timesteps must be one or more in ascending order, got {list(self.timesteps)}")
        if not as_switch("labels", self.labels) and len(self.pools) > 1:
            raise ValueError(
                f"pools must be a single one without labels, got {list(self.pools)}: the criterion cannot compare "
                "different poolings"
            )
        object.__setattr__(self, "pools", self.pools or ((1, 2, 4) if self.labels else (1,)))
        check_pools(self.pools)
        as_positive_integer("fused_timesteps", self.fused_timesteps)
        check_range("views", as_positive_integer("views", self.views), lambda x: x >= 2, "at least 2")
        check_range("budget", self.budget, lambda x: x > 0, "above 0")
        as_positive_integer("most", self.most)
        # A probe's recipe checks the other values, and sets the same holdout.
        alone = ProbeRecipe(
            data=self.data,
            method="ridge",
            strengths=self.strengths,
            criterion=self.criterion,
            validation=self.validation,
            test=None,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
        )
        for name in ("data", "strengths"):
            object.__setattr__(self, name, getattr(alone, name))
