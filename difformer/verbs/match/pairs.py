"""How often corresponding points are found, on pairs of images with known points; the body of `difformer match-pairs`.

The protocol is that of DIFT on SPair-71k (Tang et al. 2023; Min et al. 2019): a point is right when it is found within
alpha times the longer side of the box of the second image's object.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from difformer.analysis import Interval, bootstrap_counts, bootstrap_mean, box_lengths, match, near_points, pairs_pck
from difformer.annotations.pairs import Pairs
from difformer.config import as_positive_integer
from difformer.data import DataError, Source
from difformer.data.identity import samples_digest
from difformer.data.images import upright_size
from difformer.data.subset import evenly_spaced
from difformer.verbs.match.reading import MapReader

ALPHAS = (0.05, 0.1, 0.15)
ALL = "all"


@dataclass(frozen=True)
class Scores:
    """PCK of all pairs, or of those of a category; shares in [0, 1].

    Attributes:
        name: of the category, or "all".
        pairs: with points.
        points: of them.
        per_image: by alpha, the mean over pairs of the share of a pair's points that are right.
        per_point: by alpha, the share of all points that are right.
    """

    name: str
    pairs: int
    points: int
    per_image: dict[float, Interval]
    per_point: dict[float, Interval]

    def to_dict(self) -> dict[str, Any]:
        """The same in JSON types."""
        return asdict(self) | {
            kind: {f"{alpha:g}": asdict(found) for alpha, found in getattr(self, kind).items()}
            for kind in ("per_image", "per_point")
        }


def chosen_pairs(data: Pairs, limit: int | None) -> list[int]:
    """Places of the pairs to measure: all, or `limit` of them, evenly spaced.

    Raises:
        ValueError: a limit below 1.
        DataError: a point to look for lies outside its image, or no pair has points.
    """
    count = len(data.pairs)
    places = list(range(count)) if limit is None else evenly_spaced(count, as_positive_integer("limit", limit))
    if not any(len(data.pairs[place].names) for place in places):
        raise DataError(f"{data.images.title}: none of {len(places)} pairs has points, so there is nothing to measure")
    sources = {data.pairs[place].images[0] for place in places}
    sizes = {image: upright_size(data.images.content(image), data.images.describe(image)) for image in sources}
    for place in places:
        source, points = data.pairs[place].images[0], data.pairs[place].points[0]
        (height, width), name = sizes[source], data.images.describe(source)
        outside = (points < 0).any(dim=1) | (points > points.new_tensor([width, height])).any(dim=1)
        if outside.any():
            x, y = (points[outside][0] - 0.5).tolist()
            raise DataError(
                f"{data.images.title}: pair {place + 1} has the point {x:g}, {y:g} in {name}, which has {width} × "
                f"{height} pixels (w × h); correct the annotation"
            )
    return places


def find_points(
    reader: MapReader, data: Pairs, places: Sequence[int], *, subpixel: bool = False, keep_bytes: int = 1 << 30
) -> list[NDArray[np.float64]]:
    """Where the points of each pair's first image are in the second, with a progress bar.

    Each image is read once, as long as the maps that pairs have in common fit into `keep_bytes`: pairs are taken in
    the order of their images.

    Args:
        reader: of the maps.
        data: the pairs.
        places: of those to look at.
        subpixel: as for `difformer.analysis.match`.
        keep_bytes: of maps that are kept; those of a pair always are.

    Returns:
        (n, 2) x, y in pixels of the second image for each place, in their order.

    Raises:
        ImageError: an image cannot be read.
        ValueError: features that are not finite.
    """
    maps = _Maps(reader, data.images, keep_bytes)
    found: dict[int, NDArray[np.float64]] = {}
    with tqdm(total=len(places), desc="matching", unit="pair", disable=None) as bar:
        for place in sorted(places, key=lambda place: data.pairs[place].images):
            pair = data.pairs[place]
            found[place] = np.zeros((0, 2))
            if pair.names:
                (map_a, size_a), (map_b, size_b) = (maps.get(image) for image in pair.images)
                matches = match(map_a, map_b, pair.points[0], size_a=size_a, size_b=size_b, subpixel=subpixel)
                found[place] = matches.points.cpu().double().numpy()
            bar.update()
    return [found[place] for place in places]


def pair_scores(
    data: Pairs, places: Sequence[int], found: Sequence[NDArray[np.float64]], *, seed: int = 0
) -> list[Scores]:
    """PCK of all pairs, then of each category, with bootstrap intervals of 95 % over pairs.

    Args:
        data: the pairs.
        places: of those that were looked at, at least one with points.
        found: of `find_points`.
        seed: of the bootstrap.
    """
    categories = [data.images.class_names[data.images.labels[data.pairs[place].images[0]]] for place in places]
    rows = {ALL: [row for row, points in enumerate(found) if len(points)]}
    for name in data.images.class_names:
        rows[name] = [row for row in rows[ALL] if categories[row] == name]
    return [_scores(name, data, places, found, own, seed) for name, own in rows.items() if own]


def right_points(data: Pairs, place: int, found: NDArray[np.float64], alpha: float) -> NDArray[np.bool_]:
    """(n,) which of a pair's points were found within alpha times the longer side of the second image's box."""
    pair = data.pairs[place]
    errors = np.linalg.norm(found - pair.points[1].double().numpy(), axis=1)
    return near_points(errors[None], box_lengths(np.asarray([pair.boxes[1]])), alpha)[0] > 0


def pairs_digest(data: Pairs, places: Sequence[int]) -> str:
    """SHA-256 of the pairs that were measured: of their images' content, points and boxes."""
    images = sorted({image for place in places for image in data.pairs[place].images})
    digest = hashlib.sha256(samples_digest(data.images, np.asarray(images)).encode())
    for pair in (data.pairs[place] for place in places):
        digest.update(repr((pair.images, [xy.tolist() for xy in pair.points], pair.boxes, pair.names)).encode())
    return digest.hexdigest()


class _Maps:
    """Maps of images with the images' sizes, of which the last used are kept, up to a number of bytes."""

    def __init__(self, reader: MapReader, images: Source, most: int) -> None:
        self._reader = reader
        self._images = images
        self._most = most
        self._bytes = 0
        self._kept: OrderedDict[int, tuple[Tensor, tuple[int, int]]] = OrderedDict()

    def get(self, image: int) -> tuple[Tensor, tuple[int, int]]:
        if image not in self._kept:
            picture = self._images.read(image)
            self._kept[image] = self._reader.read(picture), (picture.height, picture.width)
            self._bytes += self._kept[image][0].nbytes
        self._kept.move_to_end(image)
        while self._bytes > self._most and len(self._kept) > 1:
            _, (oldest, _) = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return self._kept[image]


def _scores(
    name: str,
    data: Pairs,
    places: Sequence[int],
    found: Sequence[NDArray[np.float64]],
    rows: Sequence[int],
    seed: int,
) -> Scores:
    true = [data.pairs[places[row]].points[1] for row in rows]
    lengths = box_lengths(np.asarray([data.pairs[places[row]].boxes[1] for row in rows]))
    counts = np.asarray([len(points) for points in true], dtype=np.float64)
    per_image, per_point = {}, {}
    for alpha in ALPHAS:
        shares = pairs_pck([found[row] for row in rows], true, lengths, alpha=alpha).per_pair
        per_image[alpha] = bootstrap_mean(shares, seed=seed)
        hits = np.stack([shares * counts, counts], axis=1)
        per_point[alpha] = bootstrap_counts(hits, lambda sums: sums[:, 0] / sums[:, 1], seed=seed)
    return Scores(name, len(rows), int(counts.sum()), per_image, per_point)
