"""Samples: an image as input, its label and its stable number; how they are read, and how they become batches."""

from collections.abc import Sequence
from logging import getLogger
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from difformer.config import as_integer
from difformer.data.images import Content, ImageError
from difformer.data.joint import JointTransform
from difformer.data.source import Source
from difformer.data.spec import OnBadImage
from difformer.data.targets import Boxes, Mask, Origin, Points, Target
from difformer.data.transforms import SampleTransform
from difformer.streams import sample_generator

_log = getLogger(__name__)


class Sample(NamedTuple):
    """One image of a data set.

    Attributes:
        image: (3, h, w) float32 in [-1, 1].
        label: in [0, number of classes); for a data set with targets, the (…) float32 target.
        id: stable number in [0, 2**63): does not depend on the subset, the order, workers or processes.
    """

    image: Tensor
    label: int | Tensor
    id: int


class Batch(NamedTuple):
    """Several samples.

    Attributes:
        images: (B, 3, h, w) float32 in [-1, 1].
        labels: (B,) int64, or the (B, …) float32 targets.
        ids: (B,) int64.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor


class DenseSample(NamedTuple):
    """One image of a data set with masks, boxes or points.

    Attributes:
        image: (3, h, w) float32 in [-1, 1].
        label: the target, in pixels of this image.
        id: stable number, as of `Sample`.
        origin: the target of the image at its own size, and how predictions go back to it; None in training.
    """

    image: Tensor
    label: Target
    id: int
    origin: Origin | None


class DenseBatch(NamedTuple):
    """Several such samples.

    Attributes:
        images: (B, 3, h, w) float32 in [-1, 1].
        labels: (B, h, w) int64 of masks, 255 where pixels are ignored; of boxes and points the records, one an image,
            since images have different numbers of objects.
        ids: (B,) int64.
        origins: one an image.
    """

    images: Tensor
    labels: Tensor | tuple[Target, ...]
    ids: Tensor
    origins: tuple[Origin | None, ...]


# Of nothing but None, where both would fit, there is no batch.
@overload
def collate(samples: Sequence[Sample | None]) -> Batch: ...  # type: ignore[overload-overlap]
@overload
def collate(samples: Sequence[DenseSample | None]) -> DenseBatch: ...
def collate(samples: Sequence[Sample | DenseSample | None]) -> Batch | DenseBatch:
    """Stacks samples, without those that were skipped; the `collate_fn` of a data loader.

    Returns:
        A `DenseBatch` of data sets with masks, boxes or points.

    Raises:
        ImageError: none of them could be read.
        ValueError: images have different sizes, as with `fit: keep`.
    """
    there = [sample for sample in samples if sample is not None]
    if not there:
        raise ImageError(f"none of the {len(samples)} images of a batch can be read; see the log for their names")
    sizes = {tuple(sample.image.shape[1:]) for sample in there}
    if len(sizes) > 1:
        raise ValueError(f"images of a batch must be of one size, got {sorted(sizes)}; read them one by one")
    images, ids = torch.stack([sample.image for sample in there]), collate_labels([s.id for s in there])
    dense = [sample for sample in there if isinstance(sample, DenseSample)]
    if not dense:
        return Batch(images, collate_labels([s.label for s in there]), ids)
    masks = [sample.label.labels for sample in dense if isinstance(sample.label, Mask)]
    labels = torch.stack(masks).long() if masks else tuple(sample.label for sample in dense)
    return DenseBatch(images, labels, ids, tuple(sample.origin for sample in dense))


def collate_labels(labels: Sequence[Any]) -> Tensor:
    """(B,) int64 class numbers, or (B, …) targets, on the CPU."""
    if isinstance(labels[0], Tensor):
        return torch.stack(list(labels))
    return torch.tensor(labels, dtype=torch.int64, device="cpu")


def dataset_repr(dataset: Any, title: str) -> str:
    """What printing a data set shows: where it is from, and how much there is of it."""
    rule = "" if dataset.subset is None else f", subset {dict(dataset.subset.rule)}"
    return (
        f"{type(dataset).__name__}({title}: {len(dataset)} images, {len(dataset.class_names)} classes{rule}"
        f"{f', {len(dataset.skipped)} skipped' if len(dataset.skipped) else ''})"
    )


class SampleReader:
    """Reads and transforms the images of a source, with randomness that depends on (seed, epoch, id) alone.

    The epoch and the record of skipped images are in shared memory, so that they are the same in the workers of a data
    loader, persistent ones included, as here.

    Args:
        source: the full split.
        transform: from an image and its generator to the input; with annotations, of the image and its target.
        seed: of the transform's randomness.
        on_bad_image: `raise`, or `skip`: None in place of the sample, logged and counted.
    """

    def __init__(
        self, source: Source, transform: SampleTransform | JointTransform, seed: int, on_bad_image: OnBadImage
    ) -> None:
        self.source = source
        self.transform: Any = transform
        self.seed = seed
        self.on_bad_image = on_bad_image
        self._epoch = torch.zeros(1, dtype=torch.int64, device="cpu").share_memory_()
        self._bad = torch.zeros(len(source), dtype=torch.bool, device="cpu").share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Raises ValueError when the epoch is negative or no integer."""
        if as_integer("the epoch", epoch) < 0:
            raise ValueError(f"the epoch must not be negative, got {epoch}")
        self._epoch.fill_(int(epoch))

    @property
    def skipped(self) -> Tensor:
        """(n,) int64 ids of the images that could not be read so far, in any worker of this process."""
        return torch.from_numpy(self.source.ids)[self._bad.nonzero().flatten()]

    def skip_or_raise(self, index: int, error: ImageError) -> None:
        """Records and logs an image that cannot be read, once; raises ImageError where such are not to be skipped."""
        if self.on_bad_image == "raise":
            raise ImageError(f"{error}; remove it, or leave such images out with on_bad_image: skip") from error
        if not self._bad[index]:
            self._bad[index] = True
            _log.warning("skipping image %d: %s", int(self.source.ids[index]), error)

    def read(self, index: int, content: Content | None = None) -> Any:
        """The `Sample` or `DenseSample` at a place in the full split, or None where it is skipped.

        Args:
            index: place in the full split.
            content: the encoded image, where it has been read already.

        Raises:
            ImageError: it cannot be read, and bad images are not to be skipped.
            ValueError: its annotation is not as it should be.
        """
        number = int(self.source.ids[index])
        try:
            image = self.source.read(index) if content is None else self.source.decode(index, content)
            label = self.source.label(index, (image.height, image.width))
        except ImageError as error:
            self.skip_or_raise(index, error)
            return None
        rng = sample_generator(self.seed, self.epoch, number)
        if not isinstance(label, Mask | Boxes | Points):
            return Sample(self.transform(image, rng), label, number)
        pixels, target, origin = self.transform(image, label, rng)
        return DenseSample(pixels, target, number, origin)
