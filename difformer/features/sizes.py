"""The taps of a backbone for images of another size than its own."""

from collections.abc import Mapping
from dataclasses import replace

from difformer.backbones import Backbone, SizedBackbone
from difformer.config import Size, as_size, sides, size_of
from difformer.features.images import check_multiples
from difformer.taps import TapSpec


def taps_at(backbone: Backbone, size: Size | None) -> Mapping[str, TapSpec]:
    """The taps of a backbone, with the maps and costs that they have for images of a size.

    Args:
        backbone: its own `taps_at` is used where it has one, as `UNetBackbone` does. Otherwise maps grow with the sides
            of the images, and costs with their area; without a known image size, its taps are the same for any size.
        size: of the images, a side or (h, w); the backbone's own when None.

    Raises:
        ValueError: it is no size, or the backbone takes no images of this size.
    """
    if size is None:
        return backbone.taps
    height, width = sides(as_size("the image size", size))
    if isinstance(backbone, SizedBackbone):
        return backbone.taps_at(height, width)
    check_multiples(height, width, backbone.multiple)
    own = backbone.image_size
    if own is None or sides(own) == (height, width):
        return backbone.taps
    tall, wide = height / sides(own)[0], width / sides(own)[1]
    return {
        name: replace(
            spec,
            size=size_of(max(1, round(spec.height * tall)), max(1, round(spec.width * wide))),
            flops=round(spec.flops * tall * wide),
        )
        for name, spec in backbone.taps.items()
    }
