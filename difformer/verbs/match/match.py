"""Which places of two images correspond; the body of `difformer match`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from difformer.analysis import match
from difformer.backbones import Backbone
from difformer.classifier.inputs import ImageLike, as_picture
from difformer.engine.runtime.result_folder import write_json
from difformer.report.matches import draw_matches
from difformer.tables import write_table
from difformer.verbs.match.points import Points, checked_points, regular_grid
from difformer.verbs.match.reading import MapReader, Reading

TABLE, PICTURE, RECORD = "points.csv", "matches.png", "match.json"
FILES = (TABLE, PICTURE, "matches.pdf", RECORD)

# Pixels of the longer side on which corresponding places are looked for in larger images. Maps rarely have more than 64
# positions a side, and a photograph of 4000 pixels would take 15 times as long without showing more.
_FINEST = 1024


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """Points of one image, and where they are in another.

    Attributes:
        points: (P, 2) float64 x, y in pixels of the first image, upright; (0.5, 0.5) is the centre of its first pixel.
        found: (P, 2) float64 the same in the second image.
        similarity: (P,) float64 in [-1, 1], the cosine of the features there.
        mutual: (P,) bool, whether the way back from there ends where it began, to within one position of the map.
        sizes: (h, w) of both images in pixels, upright.
        inputs: (h, w) that they were scaled to.
        subpixel: whether places were moved between pixels.
        reading: everything that the maps depend on, as JSON types.
        title: the same in a line.
    """

    points: NDArray[np.float64]
    found: NDArray[np.float64]
    similarity: NDArray[np.float64]
    mutual: NDArray[np.bool_]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    inputs: tuple[tuple[int, int], tuple[int, int]]
    subpixel: bool
    reading: dict[str, Any]
    title: str


def match_images(
    backbone: Backbone,
    image_a: ImageLike,
    image_b: ImageLike,
    points: Points | None = None,
    *,
    reading: Reading = Reading(),  # noqa: B008
    grid: int = 6,
    subpixel: bool = False,
) -> ImageMatches:
    """Finds points of one image in another, without training.

    What is found depends on the two images, the points, the backbone and the reading alone; images of the same pixels
    have the same noise. In images whose longer side has more than 1,024 pixels, places are centres of the pixels of
    such an image, unless `subpixel` moves them.

    Args:
        backbone: a frozen backbone.
        image_a, image_b: paths, bytes of files, PIL images, or arrays (H, W, 3) or (H, W) of uint8; turned upright as
            EXIF says.
        points: (P, 2) x, y in pixels of image a, in [0, W] × [0, H]; a regular grid when None.
        reading: how images are read.
        grid: points of the grid along the longer side.
        subpixel: as for `difformer.analysis.match`.

    Raises:
        ImageError: a file cannot be read.
        ValueError: no images, no points or points outside image a, or as `MapReader`.
    """
    pictures = as_picture(image_a), as_picture(image_b)
    size_a, size_b = ((picture.height, picture.width) for picture in pictures)
    start = regular_grid(*size_a, grid) if points is None else checked_points(points, *size_a)
    reader = MapReader(backbone, reading)
    map_a, map_b = (reader.read(picture) for picture in pictures)
    raster_a, raster_b = _raster(*size_a), _raster(*size_b)
    to_raster, to_image = np.divide(raster_a, size_a)[::-1], np.divide(size_b, raster_b)[::-1]
    # Rounding must not take a point on the border beyond it.
    there = np.minimum(start * to_raster, raster_a[::-1])
    found = match(map_a, map_b, there, size_a=raster_a, size_b=raster_b, subpixel=subpixel, mutual=True)
    assert found.mutual is not None
    return ImageMatches(
        start,
        found.points.cpu().double().numpy() * to_image,
        found.similarity.cpu().double().numpy(),
        found.mutual.cpu().numpy(),
        (size_a, size_b),
        (reader.input_size(*size_a), reader.input_size(*size_b)),
        subpixel,
        reader.describe(),
        str(reader),
    )


def write_matches(
    folder: Path,
    pictures: tuple[Image.Image, Image.Image],
    matches: ImageMatches,
    names: tuple[str, str],
    *,
    only_mutual: bool,
) -> None:
    """Writes `FILES` into a folder: the table of all points, the picture, and what they depend on.

    Args:
        folder: is there.
        pictures: that were matched, upright.
        matches: what was found.
        names: of the images.
        only_mutual: draw only the points whose way back ends where it began.
    """
    numbers = np.arange(1, len(matches.points) + 1)
    columns = (numbers, *matches.points.round(3).T, *matches.found.round(3).T, matches.similarity.round(4))
    rows = zip(*(column.tolist() for column in columns), matches.mutual.astype(int).tolist(), strict=True)
    write_table(folder / TABLE, ("point", "x", "y", "found_x", "found_y", "similarity", "mutual"), rows)
    drawn = matches.mutual if only_mutual else np.ones_like(matches.mutual)
    draw_matches(
        pictures,
        (matches.points[drawn], matches.found[drawn]),
        folder / PICTURE,
        names=names,
        numbers=numbers[drawn].tolist(),
        caption=f"{matches.title}; {drawn.sum()} of {len(drawn)} points",
    )
    images = [
        {"name": name, "size": list(size), "read_as": list(read)}
        for name, size, read in zip(names, matches.sizes, matches.inputs, strict=True)
    ]
    counts = {"points": len(drawn), "mutual": int(matches.mutual.sum())}
    write_json(folder / RECORD, {"images": images, **counts, "subpixel": matches.subpixel, "reading": matches.reading})


def _raster(height: int, width: int) -> tuple[int, int]:
    """Height and width of the pixels on which corresponding places are looked for."""
    scale = min(1.0, _FINEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))
