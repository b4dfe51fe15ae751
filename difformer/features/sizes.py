"""What a backbone offers for images of another size than its own."""

from collections.abc import Mapping

from difformer.backbones import Backbone
from difformer.config import Size, as_size, sides
from difformer.taps import TapSpec


def taps_at(backbone: Backbone, size: Size | None) -> Mapping[str, TapSpec]:
    """The taps of a backbone, with the maps and costs that they have for images of a size.

    Args:
        backbone: with `taps_at`, as `UNetBackbone` has it. Of one without, the taps are those of its own size.
        size: of the images, a side or (h, w); the backbone's own when None.

    Raises:
        ValueError: it is no size, or the backbone takes no images of it.
    """
    at = getattr(backbone, "taps_at", None)
    if size is None or at is None:
        return backbone.taps
    found: Mapping[str, TapSpec] = at(*sides(as_size("the image size", size)))
    return found
