"""Images with bright dots at known places, a recipe that learns to find them, and a head that need not learn it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from data_sets import write_json
from PIL import Image
from support import tiny_unet
from torch import nn

from difformer import create_backbone

NAMES = ("left_eye", "right_eye", "nose")


def dots(points: np.ndarray, height: int, width: int, sigma: float = 1.5) -> np.ndarray:
    """(h, w, 3) uint8, black, with a dot in a colour of its own at each of three points; 0.5 is the centre of the first
    pixel. A point that is not a number is left out."""
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    pixels = np.zeros((height, width, 3))
    for channel, (x, y) in enumerate(points):
        if not np.isnan(x):
            pixels[..., channel] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return pixels.round().astype(np.uint8)


def make_dots(
    root: Path, split: str, sizes: list[tuple[int, int]], *, seed: int = 0, missing: float = 0.0, margin: float = 4.0
) -> np.ndarray:
    """Images of sizes (h, w) and `keypoints_SPLIT.json`, whose pixels begin at 0. The left eye is left of the right.

    Returns:
        (N, 3, 2) x, y, where 0.5 is the centre of the first pixel; not a number where a point is missing.
    """
    rng = np.random.default_rng(seed)
    places = np.empty((len(sizes), 3, 2))
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes):
        points = rng.uniform(margin, np.asarray([width, height]) - margin, (3, 2))
        points[:2] = points[:2][np.argsort(points[:2, 0])]
        points[rng.random(3) < missing] = np.nan
        places[number] = points
        path = root / "images" / f"{split}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dots(points, height, width)).save(path)
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        seen = [number for x, y in points for number in ([0, 0, 0] if np.isnan(x) else [x - 0.5, y - 0.5, 2])]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "keypoints": seen, "bbox": box_of(points)}
        )
    categories = [{"id": 1, "name": "face", "keypoints": list(NAMES)}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / f"keypoints_{split}.json", content)
    return places


def box_of(points: np.ndarray) -> list[float]:
    """x, y, width and height around points, with 3 pixels more on each side."""
    low, high = np.nanmin(points, axis=0) - 3, np.nanmax(points, axis=0) + 3
    return [*low.tolist(), *(high - low).tolist()]


def write_landmarks(folder: Path) -> dict[str, Any]:
    """Backbone and images in a folder; returns a recipe's values that use them."""
    create_backbone(tiny_unet(), schedule="linear").save(folder / "backbone.safetensors")
    root = folder / "images"
    for seed, (split, count) in enumerate({"train": 30, "val": 6, "test": 7}.items()):
        make_dots(root, split, [(32, 40)] * count, seed=seed, missing=0.2)
    return {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in00", "out03"], "timesteps": [5]},
        "head": {"name": "heatmap", "arguments": {"stride": 2, "width": 64, "norm": "group"}},
        "task": {"name": "keypoints", "arguments": {"sigma": 1.5}},
        # Dots keep their colours, and so their names, in mirrored images.
        "data": {"name": "points", "root": str(root), "size": [32, 32], "augmentation": "flip", "flip_pairs": {}},
        "optimizer": {"name": "adamw", "lr": 0.005},
        "schedule": {"name": "cosine", "min_lr": 0.0001},
        "training": {"epochs": 30, "batch_size": 10, "workers": 0},
        "evaluation": {"validation": "val", "every": 15, "test": "test"},
        "trackers": [],
    }


class OwnHead(nn.Module):
    """A head of one's own, which says no more than that it gives heat maps: a convolution of the first feature."""

    gives = "points"

    def __init__(self, specs: Any, num_classes: int) -> None:
        super().__init__()
        self.specs, self.num_classes = dict(specs), num_classes
        self.arguments: dict[str, Any] = {}
        self.map_sizes = dict.fromkeys(self.specs)
        self.key = next(iter(self.specs))
        self.conv = nn.Conv2d(self.specs[self.key].channels, num_classes, 3, padding=1)

    def forward(self, features: Any) -> Any:
        return self.conv(features[self.key])


class Seeing:
    """In place of a classifier: its heat maps are the image's channels, one a point, at a stride.

    Args:
        stride: of the maps.
        shift: how many cells to the right the maps are moved, an error that mirroring turns round.
    """

    class_names = NAMES

    def __init__(self, stride: int = 1, shift: int = 0) -> None:
        self.stride, self.shift = stride, shift

    def __call__(self, images: Any, ids: Any) -> Any:
        # Padding is grey.
        return F.avg_pool2d(images.clamp(min=0), self.stride).roll(self.shift, dims=3)
