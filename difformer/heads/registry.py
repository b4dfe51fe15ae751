"""What a head is, and all heads by name."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from difformer.config import Size
from difformer.registry import Registry, did_you_mean
from difformer.taps import FeatureKey, TapSpec


@runtime_checkable
class Head(Protocol):
    """What a head must offer: a module `Head(specs, num_classes, **arguments)`.

    Your own head is used in a recipe as `head.name: package.module:Name`. A head that gives something else than logits
    (B, num_classes) says so by an attribute of its class, `gives`: see `OUTPUTS`.

    Attributes:
        specs: the features it reads, some of an extractor's.
        num_classes: length of the logits; of a head that gives something else, the number of channels of its maps, of
            kinds of objects, or of points.
        arguments: its other arguments, as JSON types; a saved file restores them.
        map_sizes: the size to which each map is averaged before anything else, a side or (h, w), None for no averaging;
            features on disk are stored at these sizes.
    """

    num_classes: int
    arguments: dict[str, Any]

    @property
    def specs(self) -> Mapping[FeatureKey, TapSpec]: ...

    @property
    def map_sizes(self) -> Mapping[FeatureKey, Size | None]: ...

    def __call__(self, features: Mapping[FeatureKey, Tensor]) -> Any:
        """Of features (B, C, h, w) by key: a tensor of logits (B, num_classes), or what `gives` says in their place,
        such as maps (B, num_classes, h, w), or a list of boxes an image."""
        ...


HEADS: Registry[type[nn.Module]] = Registry("head")

# What heads may give: what it is, and the task that reads it.
OUTPUTS: Mapping[str, tuple[str, str]] = {
    "logits": ("logits (B, num_classes)", "classification"),
    "maps": ("maps of logits (B, num_classes, h, w)", "segmentation"),
    "boxes": ("boxes of objects", "detection"),
    "points": ("heat maps of landmarks (B, num_classes, h, w)", "keypoints"),
}


def heads_that_give(output: str) -> list[str]:
    """The names of the registered heads that give an output, a key of `OUTPUTS`."""
    return [name for name in HEADS if getattr(HEADS.find(name), "gives", "logits") == output]


def what_it_gives(head: Any) -> str:
    """The key of `OUTPUTS` for a head or its class; "logits" where it has no attribute `gives`.

    Raises:
        ValueError: `gives` is no such key; the message names the nearest.
    """
    gives = getattr(head, "gives", "logits")
    if not isinstance(gives, str) or gives not in OUTPUTS:
        name = (head if isinstance(head, type) else type(head)).__name__
        raise ValueError(f"{name}.gives: unknown output {gives!r}; {did_you_mean(str(gives), OUTPUTS)}")
    return gives
