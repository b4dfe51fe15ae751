"""How alike representations are: centred kernel alignment, whole or batch by batch, and its local variant CKNNA.

Both compare how similar images are to each other in one representation and in another, so the two may have different
widths, and rotating or scaling either changes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix
from difformer.config import as_positive_integer

Kernel = Literal["linear", "rbf"]

# The unbiased estimator divides by n - 3.
_FEWEST = 4
_ROUNDING = 1e-20


def cka(
    x: Array,
    y: Array,
    *,
    kernel: Kernel = "linear",
    debiased: bool = True,
    bandwidth: float = 1.0,
) -> float:
    """Centred kernel alignment (Kornblith et al. 2019, eq. 5), with the unbiased HSIC of Song et al. 2012 (eq. 5).

    Args:
        x: (N, D) finite, N at least 4.
        y: (N, E) finite, of the same images in the same order.
        kernel: linear, or rbf: exp(-d² / (2 s²)) of the distance d.
        debiased: use the unbiased estimator of HSIC. Without it, representations that are wider than there are images
            look alike although they are not.
        bandwidth: of the rbf kernel, s over the median distance.

    Returns:
        1 for representations that are the same up to rotation and scale; near 0, and a little below too, for
        independent ones. Not a number for a representation in which all images are the same.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    accumulated = MinibatchCKA(kernel=kernel, debiased=debiased, bandwidth=bandwidth)
    accumulated.update({"x": x}, {"y": y})
    return float(accumulated.compute()[0, 0])


class MinibatchCKA:
    """CKA between all pairs of representations, from one batch after another (Nguyen et al. 2021, eq. 3).

    The mean of unbiased HSICs over batches estimates that of all images without bias, and the memory is that of one
    batch, however many images there are. Larger batches have less variance. Features on a CUDA device are compared
    there, all others on the CPU.

    Args:
        kernel, debiased, bandwidth: as for `cka`. Distances are measured against the median of the first batch.
    """

    def __init__(self, *, kernel: Kernel = "linear", debiased: bool = True, bandwidth: float = 1.0) -> None:
        if kernel not in get_args(Kernel):
            raise ValueError(f"kernel must be one of {', '.join(get_args(Kernel))}, got {kernel!r}")
        if not bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, got {bandwidth!r}")
        self.kernel = kernel
        self.debiased = debiased
        self.bandwidth = bandwidth
        self._names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._medians: dict[tuple[str, str], float] = {}
        self._cross = self._rows = self._columns = torch.zeros(0, device="cpu")
        self._same = False

    def update(self, xs: Mapping[str, Array], ys: Mapping[str, Array] | None = None) -> None:
        """Adds a batch.

        Args:
            xs: (B, D) by name, B at least 4, all of the same images and on one device; the rows of the result.
            ys: the same for its columns; `xs` when None.

        Raises:
            ValueError: wrong shapes, types or values, or other names than before.
        """
        same = ys is None
        ys = xs if ys is None else ys
        names = (tuple(xs), tuple(ys))
        if self._names is None:
            self._names, self._same = names, same
            self._cross = torch.zeros(len(xs), len(ys), dtype=torch.float64, device="cpu")
            self._rows, self._columns = self._cross.new_zeros(len(xs)), self._cross.new_zeros(len(ys))
        if names != self._names or same != self._same:
            raise ValueError(f"the representations must be {self._names[0]} and {self._names[1]} in every batch")
        count = len(as_matrix("the features", next(iter(xs.values())))) if xs else 0
        if count < _FEWEST:
            raise ValueError(f"a batch must have at least {_FEWEST} images, got {count}")
        lefts = torch.stack([self._gram("x", name, values, count) for name, values in xs.items()])
        rights = lefts
        if not same:
            rights = torch.stack([self._gram("y", name, values, count) for name, values in ys.items()])
        hsic = _unbiased_hsic if self.debiased else _biased_hsic
        self._cross += hsic(lefts, rights).cpu()
        self._rows += _own(hsic, lefts).cpu()
        self._columns += _own(hsic, rights).cpu()

    def compute(self) -> Tensor:
        """(rows, columns) float64 on the CPU: the CKA of each pair so far.

        Raises:
            ValueError: there was no batch.
        """
        if self._names is None:
            raise ValueError("there was no batch yet")
        own = self._rows[:, None] * self._columns[None, :]
        return torch.where(own > 0, self._cross / own.clamp(min=0).sqrt(), torch.nan)

    def _gram(self, side: str, name: str, values: Array, count: int) -> Tensor:
        """(B, B) similarities in float64; without the diagonal where the estimator leaves it out."""
        rows = _as_doubles(f"the features {name}", values)
        if len(rows) != count:
            raise ValueError(f"{name} has {len(rows)} rows, but the first representation has {count}")
        gram = rows @ rows.T
        if self.kernel == "rbf":
            squares = gram.diagonal()
            distances = (squares[:, None] + squares[None, :] - 2 * gram).clamp(min=0).sqrt()
            pairs = distances[~torch.eye(count, dtype=torch.bool, device=distances.device)]
            # For an even number torch gives the lower of the two middle values, and so the upper one of the negatives.
            median = float(pairs.median() - (-pairs).median()) / 2
            scale = self.bandwidth * self._medians.setdefault((side, name), median)
            # Where all images are the same, so is their similarity.
            gram = torch.exp(-((distances / scale) ** 2) / 2) if scale > 0 else torch.ones_like(gram)
        return gram.fill_diagonal_(0) if self.debiased else gram


def cknna(x: Array, y: Array, *, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (Huh et al. 2024, appendix A): CKA of near images only.

    A similarity counts where an image is among the k nearest of another in both representations. Being near is not
    mutual, so exchanging the two representations can change the result slightly.

    Args:
        x: (N, D) finite, N at least 4.
        y: (N, E) finite, of the same images in the same order.
        k: neighbours, at least 2 and less than N. With k = N - 1 it is the debiased linear CKA.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    grams = []
    for name, values in (("x", x), ("y", y)):
        rows = _as_doubles(name, values)
        if len(rows) < _FEWEST:
            raise ValueError(f"{name} must have at least {_FEWEST} images, got {len(rows)}")
        grams.append((rows @ rows.T).fill_diagonal_(0))
    left, right = grams
    if len(left) != len(right):
        raise ValueError(f"x and y must be of the same images, got {len(left)} and {len(right)}")
    if not 2 <= as_positive_integer("k", k) < len(left):
        raise ValueError(f"k must be at least 2 and less than the number of images, {len(left)}; got {k}")
    nearest = []
    for gram in grams:
        # The images that are most similar to each image, itself left out.
        places = gram.clone().fill_diagonal_(-torch.inf).topk(k, dim=1).indices
        nearest.append(torch.zeros_like(gram, dtype=torch.bool).scatter_(1, places, True))
    near_left, near_right = nearest
    cross = _local_hsic(left, right, near_left & near_right)
    own = _local_hsic(left, left, near_left) * _local_hsic(right, right, near_right)
    return float(cross / own.sqrt())


def _as_doubles(name: str, values: Array) -> Tensor:
    """Checked (N, D) rows in float64, on the CPU unless they are on a CUDA device: Apple's GPUs have no float64."""
    rows = as_matrix(name, values)
    return (rows if rows.is_cuda else rows.cpu()).double()


def _local_hsic(left: Tensor, right: Tensor, near: Tensor) -> Tensor:
    return _unbiased_hsic((left * near)[None], (right * near)[None])[0, 0]


def _unbiased_hsic(lefts: Tensor, rights: Tensor) -> Tensor:
    """HSIC_1 of Song et al. 2012, eq. 5, between (R, n, n) and (S, n, n) similarities whose diagonals are zero.

    Returns:
        (R, S).
    """
    n = lefts.shape[1]
    traces = lefts.flatten(1) @ rights.transpose(1, 2).flatten(1).T
    sums = lefts.sum(dim=(1, 2))[:, None] * rights.sum(dim=(1, 2))[None, :] / ((n - 1) * (n - 2))
    products = lefts.sum(dim=1) @ rights.sum(dim=2).T
    return (traces + sums - 2 / (n - 2) * products) / (n * (n - 3))


def _biased_hsic(lefts: Tensor, rights: Tensor) -> Tensor:
    """HSIC_0: the inner products of the centred similarities, over (n - 1)²; shapes as for `_unbiased_hsic`."""
    means = lefts.mean(dim=1, keepdim=True) + lefts.mean(dim=2, keepdim=True)
    centred = lefts - means + lefts.mean(dim=(1, 2), keepdim=True)
    return centred.flatten(1) @ rights.flatten(1).T / (lefts.shape[1] - 1) ** 2


def _own(hsic: Callable[[Tensor, Tensor], Tensor], grams: Tensor) -> Tensor:
    """(R,) HSIC of each with itself; 0 where equal similarities leave only rounding."""
    found = torch.cat([hsic(gram[None], gram[None])[0] for gram in grams])
    return torch.where(found.abs() > _ROUNDING * grams.square().mean(dim=(1, 2)), found, 0)
