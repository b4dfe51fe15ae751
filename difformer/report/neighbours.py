"""The images most similar to an image, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from difformer.files import write_atomically
from difformer.report._figure import block_label, new_figure
from difformer.taps import FeatureKey

# Range of the longer side of an image in the picture, in pixels, and about the most pixels of a picture: photographs
# hardly compress, and pages hold several such pictures.
_SMALLEST, _LARGEST = 32, 64
_MOST_PIXELS = 500_000
# Pixels around each image: of the frame, and of the white around it.
_FRAME, _GAP = 3, 3
_RIGHT, _WRONG, _WHITE = (0.18, 0.64, 0.31), (0.90, 0.28, 0.30), (1.0, 1.0, 1.0)
# What a page shows without scaling, so that a pixel of an image stays one.
_DENSITY = 96


def draw_neighbours(
    images: Tensor, labels: Tensor, query: int, neighbours: Mapping[FeatureKey, Sequence[int]], path: Path
) -> None:
    """Draws an image, and those most similar to it by each of several features, as a PNG.

    Rows are features, with the share of neighbours of the image's own class below the name. The image itself comes
    first, then its neighbours, in a green frame where they are of its class, and in a red one where they are not.

    Args:
        images: (N, 3, H, W) in [-1, 1]; what is outside is clipped. Their longer sides are drawn 64 pixels long, and
            down to 32 where there are many.
        labels: (N,) integers.
        query: place of the image.
        neighbours: places by feature, the nearest first, as many for each.
        path: the file; replaced when it is there.

    Raises:
        ValueError: no neighbours, or not as many for each feature.
        OSError: it cannot be written.
    """
    counts = {len(places) for places in neighbours.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"each of one or more features needs as many neighbours, got {sorted(counts)}")
    columns = 1 + counts.pop()
    side = np.clip((_MOST_PIXELS / (columns * len(neighbours))) ** 0.5, _SMALLEST, _LARGEST)
    height, width = images.shape[2:]
    scale = float(side) / max(height, width)
    size = max(1, round(scale * height)), max(1, round(scale * width))
    rows, names = [], []
    for key, places in neighbours.items():
        right = [bool(labels[place] == labels[query]) for place in places]
        colors = [_WHITE, *(_RIGHT if same else _WRONG for same in right)]
        framed = [_framed(images[place], size, c) for place, c in zip((query, *places), colors, strict=True)]
        rows.append(np.concatenate(framed, axis=1))
        names.append(f"{block_label(key)}, t = {key.t}\n{sum(right)} of {len(right)}")
    _draw_wall(np.concatenate(rows, axis=0), names, ["image", *map(str, range(1, columns))], path)


def _framed(image: Tensor, size: tuple[int, int], color: tuple[float, float, float]) -> NDArray[np.float32]:
    """An image (3, H, W) in [-1, 1] as (h, w, 3) in [0, 1], with its frame and the white around it."""
    small = F.interpolate(image.detach().cpu().float()[None], size=size, mode="bilinear", antialias=True)
    margin = _FRAME + _GAP
    content = np.ones((size[0] + 2 * margin, size[1] + 2 * margin, 3), dtype=np.float32)
    content[_GAP:-_GAP, _GAP:-_GAP] = color
    content[margin:-margin, margin:-margin] = (small[0].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) / 2
    return content


def _draw_wall(wall: NDArray[np.float32], rows: Sequence[str], columns: Sequence[str], path: Path) -> None:
    height, width = wall.shape[:2]
    figure = new_figure(width / _DENSITY, height / _DENSITY)
    # The axes fill the figure, and names stand outside, so that pixels of the wall are pixels of the picture.
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(wall, extent=(0, len(columns), len(rows), 0), aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows, fontsize=8)
    axes.set_xticks([place + 0.5 for place in range(len(columns))], columns, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with write_atomically(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=_DENSITY, bbox_inches="tight")
