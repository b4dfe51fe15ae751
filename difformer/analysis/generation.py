"""How well images are generated, on features of theirs and of real ones: kernel distance, precision and recall, density
and coverage, Inception score.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.analysis._inputs import Array, as_matrix
from difformer.config import as_integer, as_positive_integer
from difformer.streams import Stream, generator

# Numbers that are held at once: 64 MB of float64.
_ELEMENTS = 1 << 23
# Rows of a block, and how many blocks there are at least where there are images for them.
_BLOCK_SIZE = 1000
_BLOCKS = 10


@dataclass(frozen=True, eq=False)
class KernelDistance:
    """The squared maximum mean discrepancy between two sets, estimated in blocks.

    Attributes:
        blocks: (B,) float64, the unbiased estimates of disjoint blocks; some may be below 0.
        block_size: images of the smaller set in a block.
    """

    blocks: NDArray[np.float64]
    block_size: int

    @property
    def mean(self) -> float:
        """Over the blocks, again without bias."""
        return float(self.blocks.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean: the blocks' standard deviation (with B - 1) over the root of B; not a number for one block."""
        return float(self.blocks.std(ddof=1) / len(self.blocks) ** 0.5) if len(self.blocks) > 1 else float("nan")


@dataclass(frozen=True, eq=False)
class Neighbourhoods:
    """Which images lie near those of the other set, where near is as far as an image's k-th neighbour in its own set.

    Attributes:
        k: of the neighbour.
        near_reference: (N,) for each sample, how many reference images it is near to.
        near_sample: (M,) for each reference image, whether it is near to a sample.
        covered: (M,) for each reference image, whether a sample is near to it.
    """

    k: int
    near_reference: NDArray[np.int64]
    near_sample: NDArray[np.bool_]
    covered: NDArray[np.bool_]

    @property
    def precision(self) -> float:
        """Share of samples near a reference image (Kynkäänniemi et al. 2019, eq. 2), in [0, 1]."""
        return float((self.near_reference > 0).mean())

    @property
    def recall(self) -> float:
        """Share of reference images near a sample (Kynkäänniemi et al. 2019, eq. 2), in [0, 1]."""
        return float(self.near_sample.mean())

    @property
    def density(self) -> float:
        """Reference images that a sample is near to, over k, on average (Naeem et al. 2020, section 3); at least 0,
        about 1 for samples of the same distribution."""
        return float(self.near_reference.mean() / self.k)

    @property
    def coverage(self) -> float:
        """Share of reference images that have a sample near them (Naeem et al. 2020, section 3), in [0, 1]."""
        return float(self.covered.mean())


def kernel_distance(x: Array, y: Array, *, unbiased: bool = True) -> float:
    """The squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with the kernel of the kernel Inception
    distance, k(a, b) = (a·b / D + 1)³ (Bińkowski et al. 2018).

    Takes time by N² + M² and memory that is bounded; see `kernel_distance_in_blocks` for many images.

    Args:
        x: (N, D) finite, N at least 2.
        y: (M, D) finite, M at least 2; N and M may differ.
        unbiased: leave out the pairs of an image with itself.

    Returns:
        Near 0 for samples of one distribution; the unbiased estimate may be below 0.

    Raises:
        ValueError: wrong shapes, types or values.
    """
    first = as_matrix("features", x)
    second = as_matrix("features", y, width=first.shape[1]).to(first.device)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a kernel distance needs at least two images a side, got {len(first)} and {len(second)}")
    own = 0.0
    for rows in (first, second):
        count = len(rows)
        total = _kernel_sum(rows, rows)
        if unbiased:
            itself = _kernel(rows.double().square().sum(dim=1), rows.shape[1]).sum()
            own += float(total - itself) / (count * (count - 1))
        else:
            own += float(total) / count**2
    return own - 2 * float(_kernel_sum(first, second)) / (len(first) * len(second))


def kernel_distance_in_blocks(x: Array, y: Array, *, block_size: int | None = None, seed: int = 0) -> KernelDistance:
    """The kernel distance with its error, in time that grows with the number of images only: the mean over disjoint
    blocks, to which images are drawn at random.

    Args:
        x: (N, D) finite.
        y: (M, D) finite. Of the larger set, a block has more images.
        block_size: images of the smaller set in a block, at least 2; 1000 when None, and fewer where that gave less
            than 10 blocks. What is left over is not used.
        seed: of the draw, not negative.

    Raises:
        ValueError: wrong shapes, types or values, or fewer images than a block.
    """
    first = as_matrix("features", x)
    second = as_matrix("features", y, width=first.shape[1]).to(first.device)
    smaller = min(len(first), len(second))
    size = max(2, min(_BLOCK_SIZE, smaller // _BLOCKS)) if block_size is None else block_size
    if as_positive_integer("block_size", size) < 2 or size > smaller:
        raise ValueError(
            f"block_size must be at least 2 and at most the {smaller} images of the smaller set, got {size}"
        )
    if as_integer("seed", seed) < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng = generator(Stream.BLOCKS, seed)
    count = smaller // size
    places = [rng.permutation(len(rows))[: count * (len(rows) // count)].reshape(count, -1) for rows in (first, second)]
    # Of the smaller set, blocks are of the size asked for.
    places = [
        part[:, :size] if len(rows) == smaller else part for part, rows in zip(places, (first, second), strict=True)
    ]
    blocks = [kernel_distance(first[a], second[b]) for a, b in zip(*places, strict=True)]
    return KernelDistance(np.asarray(blocks), size)


def neighbour_radii(features: Array, k: int) -> NDArray[np.float64]:
    """The distance of each image to its k-th nearest other image, exact in float64 and in bounded memory.

    Args:
        features: (N, D) finite, N above k.
        k: at least 1.

    Returns:
        (N,); 0 for an image of which there are k copies.

    Raises:
        ValueError: wrong shape, type or values, or too few images.
    """
    rows = as_matrix("features", features).double()
    if as_positive_integer("k", k) >= len(rows):
        raise ValueError(f"the {k}-th neighbour needs more than {k} images, got {len(rows)}")
    # The nearest of all is the image itself.
    parts = [_distances(part, rows).kthvalue(k + 1, dim=1).values for part in rows.split(_rows_at_once(rows))]
    return torch.cat(parts).cpu().numpy()


def neighbourhoods(samples: Array, reference: Array, *, k: int = 3) -> Neighbourhoods:
    """Improved precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Near is d <= radius, as in the papers' definition; the package of the second paper has d < radius, which differs
    where images are copies. Distances are exact in float64: with float32 products, copies are up to 0.02 apart.

    Args:
        samples: (N, D) finite, N above k.
        reference: (M, D) finite, M above k.
        k: of the neighbour whose distance is the radius: 3 in the first paper and in ADM's evaluator, 5 in the second.

    Raises:
        ValueError: wrong shapes, types or values, or too few images.
    """
    fake = as_matrix("samples", samples).double()
    real = as_matrix("reference", reference, width=fake.shape[1]).double().to(fake.device)
    radii = [torch.from_numpy(neighbour_radii(rows, k)).to(fake.device) for rows in (fake, real)]
    counts = []
    near_sample = torch.zeros(len(real), dtype=torch.bool, device=fake.device)
    covered = torch.zeros_like(near_sample)
    size = _rows_at_once(real)
    for part, own in zip(fake.split(size), radii[0].split(size), strict=True):
        distances = _distances(part, real)
        inside = distances <= radii[1]
        counts.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
        near_sample |= (distances <= own[:, None]).any(dim=0)
    return Neighbourhoods(k, torch.cat(counts).cpu().numpy(), near_sample.cpu().numpy(), covered.cpu().numpy())


class InceptionScore:
    """The Inception score from one batch after another, in memory that depends on the number of classes alone.

    Of each split, exp(mean KL(p(y|x) || p(y))) (Salimans et al. 2016, section 4). Splits are consecutive images, as in
    ADM's evaluator; the last may be shorter and counts like the others. Probabilities that are 0 add nothing.

    Args:
        split_size: images a split; 5000 in ADM's evaluator.

    Raises:
        ValueError: it is no positive integer.
    """

    def __init__(self, split_size: int = 5000) -> None:
        self.split_size = as_positive_integer("split_size", split_size)
        # Of each split: images, the sum of their negative entropies, and that of their probabilities.
        self._splits: list[tuple[int, float, Tensor]] = []

    def update(self, logits: Array) -> None:
        """Takes the next images into account.

        Args:
            logits: (B, C) finite, in the order of the images.

        Raises:
            ValueError: wrong shape, type or values.
        """
        rows = as_matrix("logits", logits).double().log_softmax(dim=1)
        while len(rows):
            if not self._splits or self._splits[-1][0] == self.split_size:
                self._splits.append((0, 0.0, rows.new_zeros(rows.shape[1])))
            count, entropies, sums = self._splits.pop()
            part, rows = rows[: self.split_size - count], rows[self.split_size - count :]
            p = part.exp()
            self._splits.append((count + len(part), entropies + float((p * part).sum()), sums + p.sum(dim=0)))

    def compute(self) -> NDArray[np.float64]:
        """(S,) the scores of the splits, each at least 1; their mean is what is reported.

        Raises:
            ValueError: there was no image.
        """
        if not self._splits:
            raise ValueError("there was no image yet")
        scores = []
        for count, entropies, sums in self._splits:
            marginal = sums / count
            scores.append(np.exp(entropies / count - float(torch.xlogy(marginal, marginal).sum())))
        return np.asarray(scores)


def inception_score(logits: Array, *, split_size: int = 5000) -> NDArray[np.float64]:
    """The Inception score of each split of consecutive images; see `InceptionScore`.

    Args:
        logits: (N, C) finite, of Inception without its bias, in the order of the images.
        split_size: images a split.

    Raises:
        ValueError: wrong shape, type or values.
    """
    score = InceptionScore(split_size)
    score.update(logits)
    return score.compute()


def _kernel(products: Tensor, width: int) -> Tensor:
    return (products / width + 1) ** 3


def _kernel_sum(x: Tensor, y: Tensor) -> Tensor:
    """Over all pairs, in bounded memory."""
    right = y.double().T
    parts = x.split(max(1, _ELEMENTS // len(y)))
    return torch.stack([_kernel(part.double() @ right, x.shape[1]).sum() for part in parts]).sum()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M), from differences: products would give copies a distance."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _rows_at_once(others: Tensor) -> int:
    return max(1, _ELEMENTS // len(others))
