"""An ensemble of small networks on single pixels, for few labelled images (Baranchuk et al. 2022, arXiv 2112.03126)."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_positive_integers, as_switch, check_choice
from difformer.heads._inputs import MapSides, describe, receive
from difformer.heads.pyramid import Pyramid, linear_of_pixels, pixels_at
from difformer.heads.registry import HEADS
from difformer.maps import IGNORE
from difformer.models.modes import evaluation_mode
from difformer.taps import FeatureKey, TapSpec

Vote = Literal["majority", "mean"]

# Logarithms of what is less likely would outweigh everything else when maps are resized.
_LEAST = 1e-6


@HEADS.register("pixel_mlp")
class PixelMLPEnsemble(nn.Module):
    """Maps of logits by several MLPs that each read one pixel's features, all maps resized bilinearly.

    As published: linear layers, each followed by ReLU and batch norm in this order, initial weights N(0, 0.02²), and
    a majority vote. The published code keeps the features of all pixels of its images, 66 GB of 30; here, each step of
    training draws some pixels of each image for each member (`losses`), which learns from them alone.

    Args:
        specs: the features it reads.
        num_classes: channels of the maps.
        members: how many MLPs.
        hidden: widths of their hidden layers; (128, 32), from 30 classes on (256, 128), when None.
        vote: "majority", where of equal numbers of votes the greater mean probability wins, or "mean", the mean
            probability.
        samples: pixels of an image that each member learns from in a step.
        balanced: draw as many pixels of each class that the image has; else all pixels are equally likely.
        stride: pixels of the image for each cell of the maps that are given; that of the finest level when None, 1 as
            published.
        image_size, finest_stride: see `Pyramid`.

    Raises:
        ValueError: as `Pyramid`, a bad number, an unknown vote, or a stride without image size or that does not divide
            the finest level's.
    """

    gives = "maps"
    # Its batch norms see many pixels of one image.
    needs_several_images = False

    def __init__(
        self,
        specs: Mapping[FeatureKey, TapSpec],
        num_classes: int,
        *,
        members: int = 10,
        hidden: Sequence[int] | None = None,
        vote: Vote = "majority",
        samples: int = 1024,
        balanced: bool = False,
        stride: int | None = None,
        image_size: Size | None = None,
        finest_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.pyramid = Pyramid(specs, image_size=image_size, finest_stride=finest_stride)
        self.specs = self.pyramid.specs
        self.map_sizes: dict[FeatureKey, Size | None] = dict.fromkeys(self.specs)
        self.learned_from: set[MapSides] = set()
        self.num_classes = as_positive_integer("num_classes", num_classes)
        members = as_positive_integer("members", members)
        check_choice("vote", vote, get_args(Vote))
        published = (128, 32) if self.num_classes < 30 else (256, 128)
        hidden = published if hidden is None else as_positive_integers("hidden", hidden)
        samples, balanced = as_positive_integer("samples", samples), as_switch("balanced", balanced)
        self.scale = 1
        if stride is not None:
            stride = as_positive_integer("stride", stride)
            self.scale = self.pyramid.scale_to(stride)
        self.arguments: dict[str, Any] = {
            "members": members, "hidden": list(hidden), "vote": vote, "samples": samples, "balanced": balanced,
            "stride": stride, **self.pyramid.arguments,
        }  # fmt: skip
        widths = (sum(self.pyramid.channels), *hidden)
        self.members = nn.ModuleList(_member(widths, self.num_classes) for _ in range(members))

    __repr__ = describe

    def forward(
        self,
        features: Mapping[FeatureKey, Tensor],
        targets: Tensor | None = None,
        *,
        seeds: Sequence[int] | Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """What the ensemble says of each pixel; with targets, what `losses` gives.

        Args:
            features: (B, C, h, w) by key; more than it needs may be there.
            targets, seeds: as for `losses`.

        Returns:
            (B, num_classes, h, w) float32: logarithms of the mean probability in training or with `vote="mean"`, else
            of the shares of votes, in which the mean probability counts as one vote more.

        Raises:
            ValueError: see `receive` and `Pyramid`.
        """
        if targets is not None:
            return self.losses(features, targets, () if seeds is None else seeds)
        return self._maps(reduce(self._add, map(self._voice, self._each(self._levels(features)))))

    @torch.no_grad()
    def uncertainty(self, features: Mapping[FeatureKey, Tensor]) -> Tensor:
        """How much the members disagree: the Jensen-Shannon divergence of their probabilities, which is the entropy of
        their mean less the mean of their entropies, as in the published code and in DatasetGAN (Zhang et al. 2021). Its
        score of an image is the mean of the largest tenth. It is measured in evaluation mode, and changes nothing in
        the head.

        Args:
            features: as for `forward`.

        Returns:
            (B, h, w) float32, in nats: 0 where all say the same, at most log(min(members, num_classes)).

        Raises:
            ValueError: as `forward`.
        """
        return self.with_uncertainty(features)[1]

    @torch.no_grad()
    def with_uncertainty(self, features: Mapping[FeatureKey, Tensor]) -> tuple[Tensor, Tensor]:
        """What `forward` gives in evaluation mode, and `uncertainty`, for little more than one of them.

        Args:
            features: as for `forward`.

        Returns:
            (B, num_classes, h, w) and (B, h, w) float32.

        Raises:
            ValueError: as `forward`.
        """
        with evaluation_mode(self):
            both = ((self._voice(x), _spread(x)) for x in self._each(self._levels(features)))
            voices, total = reduce(lambda one, other: (self._add(one[0], other[0]), one[1] + other[1]), both)
            maps = self._maps(voices)
        mean, entropy = (total / len(self.members)).split([self.num_classes, 1], dim=1)
        return maps, (_entropy(mean) - entropy)[:, 0].clamp(min=0)

    @property
    def _averages(self) -> bool:
        return self.training or self.arguments["vote"] == "mean"

    def _voice(self, logits: Tensor) -> Tensor:
        """What a member adds to the maps, of the shape of its logits."""
        if self._averages:
            return logits.log_softmax(dim=1)
        return _vote(logits) + logits.softmax(dim=1) / len(self.members)

    def _add(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.logaddexp(one, other) if self._averages else one + other

    def _maps(self, voices: Tensor) -> Tensor:
        """The ensemble's maps from the sum over its members."""
        members = len(self.members)
        return voices - math.log(members) if self._averages else (voices / (members + 1)).clamp(min=_LEAST).log()

    def losses(
        self, features: Mapping[FeatureKey, Tensor], targets: Tensor, seeds: Sequence[int] | Tensor
    ) -> dict[str, Tensor]:
        """The cross-entropy of the members, mean over drawn pixels of each image and over the members.

        Args:
            features: as for `forward`; gradients reach them.
            targets: (B, H, W) int64 in [0, num_classes), or 255 where a pixel is ignored; the pixels are read at this
                size, as resizing the features bilinearly to it would give them.
            seeds: an integer of at least 0 for each image, from which its pixels are drawn.

        Returns:
            (B,) float32 by name, to be added up; 0 for an image without a labelled pixel.

        Raises:
            ValueError: as `forward`, or targets or seeds that do not fit.
        """
        members, batch = len(self.members), len(next(iter(features.values())))
        numbers = [int(seed) for seed in seeds]
        if targets.ndim != 3 or len(targets) != batch or len(numbers) != batch:
            raise ValueError(
                f"each of {batch} images needs a target (H, W) and a seed, got {tuple(targets.shape)} and "
                f"{len(numbers)} seeds"
            )
        places = torch.stack([self._draw(target, seed) for target, seed in zip(targets, numbers, strict=True)], dim=1)
        rows, columns = places // targets.shape[2], places % targets.shape[2]
        images = torch.arange(batch, device=places.device)[:, None].expand_as(places[0])
        where = torch.stack([images.expand_as(places), rows, columns], dim=-1).flatten(0, 2)
        pixels = self.pixels(features, where, targets.shape[1:]).unflatten(0, (members, -1))
        logits = self.pixel_logits(pixels).float()
        labels = targets.flatten(1)[images, places]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE)
        return {"cross_entropy": losses.view(members, batch, -1).mean(dim=(0, 2))}

    def pixels(
        self, features: Mapping[FeatureKey, Tensor], places: Tensor, size: Sequence[int] | None = None
    ) -> Tensor:
        """The features of some pixels, so that those of the others need not be kept.

        Args:
            features: as for `forward`; gradients reach them.
            places: (P, 3) int64: image in the batch, row and column.
            size: (h, w) of the maps that rows and columns are of; of those that `forward` gives when None.

        Returns:
            (P, C), C being the channels of all features together.

        Raises:
            ValueError: as `forward`, or places outside.
        """
        levels = self._levels(features)
        return pixels_at(levels, self._size(levels) if size is None else size, places)

    def _draw(self, target: Tensor, seed: int) -> Tensor:
        """(members, samples) places of labelled pixels in a target (H, W), flattened; 0 where it has none."""
        shape = (len(self.members), self.arguments["samples"])
        known = (target.flatten() != IGNORE).nonzero()[:, 0]
        if not len(known):
            return torch.zeros(shape, dtype=torch.int64, device=target.device)
        generator = torch.Generator().manual_seed(seed)
        if not self.arguments["balanced"]:
            return known[torch.randint(len(known), shape, generator=generator).to(known.device)]
        # The pixels class by class: where each class begins, and how many it has.
        labels, order = target.flatten()[known].sort(stable=True)
        counts = labels.unique(return_counts=True)[1].cpu()
        chosen = torch.randint(len(counts), shape, generator=generator)
        offset = (torch.rand(shape, dtype=torch.float64, generator=generator) * counts[chosen]).long()
        return known[order[(counts.cumsum(0) - counts)[chosen] + offset]]

    def pixel_logits(self, pixels: Tensor) -> Tensor:
        """What each member says of single pixels, for its own loss.

        Args:
            pixels: (P, C) of `pixels`, the same for all members, or (members, P, C). In training P is 2 at least.

        Returns:
            (members, P, num_classes) logits.

        Raises:
            ValueError: pixels of another shape.
        """
        count, channels = len(self.members), sum(self.pyramid.channels)
        if pixels.ndim not in (2, 3) or pixels.shape[-1] != channels or (pixels.ndim == 3 and len(pixels) != count):
            raise ValueError(
                f"pixels must be (P, {channels}), or ({count}, P, {channels}) with some for each member, got "
                f"{tuple(pixels.shape)}"
            )
        each = pixels.expand(count, *pixels.shape) if pixels.ndim == 2 else pixels
        return torch.stack([member(one) for member, one in zip(self.members, each, strict=True)])

    def _levels(self, features: Mapping[FeatureKey, Tensor]) -> list[Tensor]:
        return self.pyramid(receive(self, features), next(self.members.parameters()).dtype)

    def _size(self, levels: Sequence[Tensor]) -> tuple[int, int]:
        return levels[0].shape[2] * self.scale, levels[0].shape[3] * self.scale

    def _each(self, levels: Sequence[Tensor]) -> Iterator[Tensor]:
        """The logits (B, num_classes, h, w) float32 of each member; what one needs is freed before the next."""
        height, width = self._size(levels)
        for member in self.members:
            first, *others = cast(nn.Sequential, member)
            x = linear_of_pixels(levels, cast(nn.Linear, first), (height, width))
            x = x.movedim(1, -1).flatten(0, 2)
            for layer in others:
                x = layer(x)
            yield x.float().unflatten(0, (-1, height, width)).movedim(-1, 1)


def _member(widths: Sequence[int], num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.BatchNorm1d(b)]
    layers.append(nn.Linear(widths[-1], num_classes))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _vote(logits: Tensor) -> Tensor:
    """(B, K, h, w): 1 for the class with the largest logit, of equal ones the first, 0 for the others."""
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).movedim(-1, 1)


def _spread(logits: Tensor) -> Tensor:
    """A member's probabilities (B, num_classes, h, w), and their entropy as one channel more."""
    p = logits.softmax(dim=1)
    return torch.cat([p, _entropy(p)], dim=1)


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(dim=1, keepdim=True)
