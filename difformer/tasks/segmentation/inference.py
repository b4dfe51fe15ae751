"""Maps of classes at an image's own size, in one pass or by sliding windows, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difformer.config import Size
from difformer.data import Origin
from difformer.diffusion import image_noise
from difformer.maps import resize_logits
from difformer.models.precision import finite
from difformer.tasks.segmentation.windows import average_windows, windows_of

# Values of enlarged maps that are held at once: 64 MB in float32.
_CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True, eq=False)
class Segmented:
    """The classes of an image's pixels, at the image's own size.

    Attributes:
        labels: (H, W) uint8, the likeliest class of each pixel; of equally likely ones the first.
        certainty: (H, W) float32 in (0, 1], its probability.
        disagreement: (H, W) float32 in nats, of an ensemble's members; None for other heads.
    """

    labels: Tensor
    certainty: Tensor
    disagreement: Tensor | None = None


def likeliest(classes: int, enlarged: Callable[[slice], Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel and its probability, without holding the maps of all classes.

    Args:
        classes: K.
        enlarged: gives the logits (k, H, W) of some classes.
        size: (H, W).

    Returns:
        (H, W) uint8 and (H, W) float32.
    """
    step = max(1, _CHUNK_ELEMENTS // max(1, size[0] * size[1]))
    first = enlarged(slice(0, min(step, classes)))
    best, labels = first.max(dim=0)
    total = first.logsumexp(dim=0)
    for start in range(step, classes, step):
        some = enlarged(slice(start, min(start + step, classes)))
        value, place = some.max(dim=0)
        # Of equal ones the first stays.
        labels = torch.where(value > best, place + start, labels)
        best = torch.maximum(best, value)
        total = torch.logaddexp(total, some.logsumexp(dim=0))
    return labels.to(torch.uint8), (best - total).exp().float()


def at_own_size(logits: Tensor, origin: Origin, canvas: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The likeliest class of each pixel of an image from logits of its input.

    Args:
        logits: (K, h, w) at any resolution.
        origin: of the input.
        canvas: (h, w) of the input in pixels, with its padding.

    Returns:
        As `likeliest`.
    """
    return likeliest(len(logits), lambda some: origin.maps(logits[some], canvas), origin.size)


def by_windows(
    classifier: Any, image: Tensor, number: Tensor, origin: Origin, window: Size, stride: float
) -> tuple[Tensor, Tensor]:
    """As `at_own_size`, from the mean of the logits of windows.

    The noise is drawn once for the whole image and cropped with it, so that windows agree where they overlap.

    Args:
        classifier: a `DiffusionClassifier` in evaluation mode whose head gives maps.
        image: (3, h, w) in [-1, 1].
        number: (1,) int64 stable number of the image.
        origin: of the image.
        window: (h, w) or side of the windows.
        stride: from one to the next, as a share of their sides.

    Raises:
        ValueError: the extractor averages several noise draws.
    """
    windows = windows_of(image.shape[1], image.shape[2], window, stride=stride)
    padded = windows.pad(image)[None]
    extractor, noising = classifier.extractor, classifier.extractor.noising
    if noising.draws > 1:
        raise ValueError(
            f"sliding windows read one noise draw of an image, got extractor.draws {noising.draws}; set it to 1, or "
            "leave task.arguments.window out"
        )
    noise = {} if noising.clean else {
        t: image_noise(padded, number, t, seed=extractor.seed) for t in noising.timesteps
    }  # fmt: skip

    def each() -> Iterator[Tensor]:
        for place in range(len(windows.corners)):
            cropped = {t: windows.crop(eps, place) for t, eps in noise.items()}
            yield finite("logits", classifier(windows.crop(padded, place), number, noise=cropped))[0]

    strips = (strip for _, strip in average_windows(windows, each()))
    if origin.size == tuple(image.shape[1:]):
        found = [likeliest(len(strip), strip.__getitem__, (strip.shape[1], strip.shape[2])) for strip in strips]
        labels, certainty = (torch.cat(parts) for parts in zip(*found, strict=True))
        return labels, certainty
    # Without the padding of the input.
    logits = torch.cat(list(strips), dim=1)[:, : origin.shown[0], : origin.shown[1]]
    return likeliest(len(logits), lambda some: resize_logits(logits[some][None], *origin.size)[0], origin.size)
