"""How well points are found: errors in pixels and relative to a length, failures, and the share that is near.

Positions are x, y in pixels, and all images of a split have the same P points, some of them not visible; these are left
out of everything. An image's errors are divided by a length of it: the distance between the eyes for faces, the side of
a box for bodies and objects, the diagonal for whole images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from difformer.analysis._inputs import Array, as_numbers, as_tensor
from difformer.analysis._means import known_mean, or_none
from difformer.config import as_positive_number, check_choice

Side: TypeAlias = Literal["longer", "sqrt_area", "diagonal"]


def point_errors(predicted: Array, true: Array, visible: Array) -> NDArray[np.float64]:
    """Distance of each point from where it is, in pixels.

    Args:
        predicted: (N, P, 2) finite x, y.
        true: (N, P, 2), finite where a point is visible.
        visible: (N, P) truth values.

    Returns:
        (N, P), not a number where a point is not visible.

    Raises:
        ValueError: wrong shapes, types or values; the message names image and point.
    """
    found = as_numbers("predicted", predicted, (None, None, 2))
    wanted = as_numbers("true", true, found.shape)
    seen = _as_visible(visible, found.shape[:2])
    for name, fits in (("predicted", np.isfinite(found)), ("true", np.isfinite(wanted) | ~seen[..., None])):
        if not fits.all():
            image, point, _ = np.argwhere(~fits)[0].tolist()
            value = (found if name == "predicted" else wanted)[image, point].tolist()
            raise ValueError(f"{name} must be finite, got {value} for point {point} of image {image}")
    distance = np.linalg.norm(found - np.where(seen[..., None], wanted, 0), axis=-1)
    return np.where(seen, distance, np.nan)


def point_distances(
    true: Array, visible: Array, first: int | Sequence[int], second: int | Sequence[int]
) -> NDArray[np.float64]:
    """Distance between two points of each image, such as the outer corners of the eyes: 60 and 72 of WFLW's 98.

    Args:
        true: (N, P, 2) x, y.
        visible: (N, P) truth values.
        first, second: numbers of a point each, or of several, whose centre is meant: those of an eye.

    Returns:
        (N,), not a number for images in which one of these points is not visible.

    Raises:
        ValueError: wrong shapes or types, or a number that no point has.
    """
    places = as_numbers("true", true, (None, None, 2))
    seen = _as_visible(visible, places.shape[:2])
    places = np.where(seen[..., None], places, np.nan)
    ends = []
    for name, numbers in (("first", first), ("second", second)):
        chosen = np.atleast_1d(np.asarray(numbers))
        if chosen.dtype.kind not in "iu" or not chosen.size or chosen.min() < 0 or chosen.max() >= places.shape[1]:
            raise ValueError(f"{name} must be numbers of points in [0, {places.shape[1]}), got {numbers!r}")
        ends.append(places[:, chosen].mean(axis=1))
    return np.linalg.norm(ends[0] - ends[1], axis=-1)


def box_lengths(boxes: Array, side: Side = "longer") -> NDArray[np.float64]:
    """A length of each box.

    Args:
        boxes: (N, 4) finite x1, y1, x2, y2.
        side: the longer side (SPair-71k, PCK of bodies), the square root of the area (faces without eyes), or the
            diagonal; of boxes 0, 0, W, H these are lengths of the images.

    Returns:
        (N,).

    Raises:
        ValueError: wrong shapes, types or values, or an unknown side.
    """
    check_choice("side", side, get_args(Side))
    corners = as_numbers("boxes", boxes, (None, 4))
    sides = corners[:, 2:] - corners[:, :2]
    if not (np.isfinite(sides).all() and (sides >= 0).all()):
        place = int(np.argwhere(~(sides >= 0).all(axis=1) | ~np.isfinite(sides).all(axis=1))[0, 0])
        raise ValueError(
            f"boxes must be finite x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got {corners[place].tolist()} "
            f"for image {place}"
        )
    if side == "sqrt_area":
        return np.sqrt(sides.prod(axis=1))
    return sides.max(axis=1) if side == "longer" else np.linalg.norm(sides, axis=1)


def image_errors(errors: NDArray[Any], lengths: Array) -> NDArray[np.float64]:
    """Normalised mean error (NME) of each image: the mean over its visible points, relative to a length.

    Args:
        errors: (N, P) of `point_errors`.
        lengths: (N,) above 0, or not a number for images that are to be left out.

    Returns:
        (N,), not a number for images without a visible point or without a length.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    return known_mean(errors / _as_lengths(lengths, len(errors))[:, None], axis=1)


def failure_rate(nme: NDArray[Any], threshold: float = 0.1) -> float:
    """Share of the images whose NME is above a threshold; those without one are left out.

    Args:
        nme: (N,) of `image_errors`.
        threshold: above 0; WFLW's is 0.1.
    """
    limit = as_positive_number("threshold", threshold)
    return float(known_mean(np.where(np.isnan(nme), np.nan, nme > limit), axis=0))


def error_auc(nme: NDArray[Any], threshold: float = 0.1) -> float:
    """Area under the curve of the share of images whose NME is at most t, for t from 0 to a threshold, as a share of
    the whole area; exact, not a sum over steps. Images without an NME are left out.

    Args:
        nme: (N,) of `image_errors`.
        threshold: above 0; WFLW's is 0.1.
    """
    limit = as_positive_number("threshold", threshold)
    # An image is below the curve from its NME on.
    return float(known_mean(np.maximum(1 - nme / limit, 0), axis=0))


def near_points(errors: NDArray[Any], lengths: Array, alpha: float = 0.1) -> NDArray[np.float64]:
    """Which points are correct for PCK (Yang & Ramanan 2013): no farther away than alpha times a length of the image.

    Args:
        errors: (N, P) of `point_errors`.
        lengths: (N,) as for `image_errors`.
        alpha: above 0.

    Returns:
        (N, P): 1 or 0, not a number where a point is not visible or the image has no length. `np.nanmean` of it is the
        PCK over all points, over axis 0 that of each point, over axis 1 that of each image.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    share = errors / _as_lengths(lengths, len(errors))[:, None]
    return np.where(np.isnan(share), np.nan, share <= as_positive_number("alpha", alpha))


@dataclass(frozen=True)
class PointMetrics:
    """One point's row of the table. What is measured is None where no image shows it.

    Attributes:
        name: of the point.
        images: that show it, and have a length.
        error: mean in pixels.
        nme: mean error relative to the images' lengths.
        pck: share of the images where it is correct, by alpha.
    """

    name: str
    images: int
    error: float | None
    nme: float | None
    pck: Mapping[float, float | None]


@dataclass(frozen=True, eq=False)
class KeypointMetrics:
    """What `keypoint_metrics` finds in a split. Images without a visible point or a length are left out.

    Attributes:
        num_images: N.
        num_measured: of them that are not left out.
        error: mean in pixels over all points.
        nme: mean of the images' NME.
        failure_rate: share of the images with an NME above the threshold.
        auc: see `error_auc`, up to the same threshold.
        pck: share of all points that are correct, by alpha.
        image_nme: (N,), not a number for those that are left out.
        per_point: P rows of the table.
        extra: further metrics by name, where others were asked for.
    """

    num_images: int
    num_measured: int
    error: float
    nme: float
    failure_rate: float
    auc: float
    pck: Mapping[float, float]
    image_nme: NDArray[np.float64]
    per_point: tuple[PointMetrics, ...]
    extra: Mapping[str, float] = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """The number of a metric: an attribute, the PCK of an alpha as `pck@0.1`, or an extra one."""
        found: float | None = self.summary().get(name)
        return found

    def summary(self) -> dict[str, float]:
        """The numbers that stand in the record of an epoch."""
        line = {"nme": self.nme, "error": self.error, "failure_rate": self.failure_rate, "auc": self.auc}
        return line | {f"pck@{alpha:g}": share for alpha, share in self.pck.items()} | dict(self.extra)

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """The same as JSON has it, without `image_nme`.

        Args:
            tables: with `per_point`, which is long.
        """
        counts = {"num_images": self.num_images, "num_measured": self.num_measured}
        rows = [asdict(row) | {"pck": {f"{a:g}": share for a, share in row.pck.items()}} for row in self.per_point]
        return counts | self.summary() | ({"per_point": rows} if tables else {})


def keypoint_metrics(
    predicted: Array,
    true: Array,
    visible: Array,
    lengths: Array,
    *,
    point_names: Sequence[str],
    threshold: float = 0.1,
    alphas: Sequence[float] = (0.05, 0.1),
) -> KeypointMetrics:
    """Everything that is reported of a split's points.

    Args:
        predicted, true, visible: as for `point_errors`.
        lengths: (N,) as for `image_errors`, from `point_distances`, `box_lengths` or otherwise.
        point_names: P names.
        threshold: of failures and of the area, above 0.
        alphas: of PCK, above 0.

    Raises:
        ValueError: wrong shapes, types or values, or no image is left.
    """
    pixels, names = point_errors(predicted, true, visible), list(point_names)
    if pixels.shape[1] != len(names):
        raise ValueError(f"{pixels.shape[1]} points need as many names, got {len(names)}")
    nme = image_errors(pixels, lengths)
    if np.isnan(nme).all():
        raise ValueError(f"none of {len(nme)} images has a visible point and a length, so there is nothing to measure")
    pixels = np.where(np.isnan(nme)[:, None], np.nan, pixels)
    relative = pixels / _as_lengths(lengths, len(nme))[:, None]
    near = {float(alpha): near_points(pixels, lengths, alpha) for alpha in alphas}
    shares = {alpha: known_mean(hits, axis=0) for alpha, hits in near.items()}
    error, mean = known_mean(pixels, axis=0), known_mean(relative, axis=0)
    return KeypointMetrics(
        num_images=len(nme),
        num_measured=int((~np.isnan(nme)).sum()),
        error=float(np.nanmean(pixels)),
        nme=float(np.nanmean(nme)),
        failure_rate=failure_rate(nme, threshold),
        auc=error_auc(nme, threshold),
        pck={alpha: float(np.nanmean(hits)) for alpha, hits in near.items()},
        image_nme=nme,
        per_point=tuple(
            PointMetrics(
                name,
                int((~np.isnan(pixels[:, point])).sum()),
                or_none(error[point]),
                or_none(mean[point]),
                {alpha: or_none(share[point]) for alpha, share in shares.items()},
            )
            for point, name in enumerate(names)
        ),
    )


def _as_visible(visible: Array, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    seen: NDArray[Any] = as_tensor("visible", visible).cpu().numpy()
    if seen.dtype != bool or seen.shape != shape:
        raise ValueError(f"visible must be truth values of shape {shape}, got {seen.dtype} of shape {seen.shape}")
    return seen


def _as_lengths(lengths: Array, count: int) -> NDArray[np.float64]:
    values = as_numbers("lengths", lengths, (count,))
    wrong = ~(np.isnan(values) | ((values > 0) & np.isfinite(values)))
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"lengths must be above 0, got {values[place]} for image {place}; give NaN to leave an image out"
        )
    return values
