"""What is measured: features, and training steps, as this package does them and as they are done without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.backbones import UNetBackbone
from difformer.diffusion import NoiseSchedule, q_sample
from difformer.engine.benchmark.openai import HookedNetwork
from difformer.engine.extraction.plan import pool
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.heads import AttentionHead, DifFormerHead
from difformer.taps import FeatureKey, Features

CLASSES = 1000


@dataclass(frozen=True, eq=False)
class Setting:
    """What all cases share.

    Attributes:
        backbone: ours, in the precision that is measured.
        baseline: OpenAI's network with the same weights.
        images: (B, 3, H, W) in [-1, 1], on the device.
        labels: (B,).
    """

    backbone: UNetBackbone
    baseline: HookedNetwork
    images: Tensor
    labels: Tensor

    def noise(self, timesteps: Sequence[int]) -> dict[int, Tensor]:
        """The same eps for both, by timestep."""
        generator = torch.Generator().manual_seed(0)
        return {t: torch.randn(self.images.shape, generator=generator).to(self.images.device) for t in timesteps}

    def noisy(self, noise: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """x_t by timestep."""
        schedule = self.backbone.schedule
        assert isinstance(schedule, NoiseSchedule)
        return {t: q_sample(self.images, t, eps, schedule) for t, eps in noise.items()}


class FeatureCase:
    """Features of a batch at some blocks and timesteps.

    Args:
        setting: networks and images.
        taps: blocks.
        timesteps: timesteps.
    """

    def __init__(self, setting: Setting, taps: Sequence[str | int], timesteps: Sequence[int]) -> None:
        self.setting = setting
        self._noise = setting.noise(timesteps)
        self._extractor = FeatureExtractor(setting.backbone, taps=taps, timesteps=timesteps).eval()

    def ours(self) -> dict[str, Tensor]:
        """Features by name."""
        features = self._extractor(self.setting.images, noise=self._noise)
        return {str(key): feature for key, feature in features.items()}

    @torch.inference_mode()
    def theirs(self) -> dict[str, Tensor]:
        """The same from the baseline."""
        features = self.setting.baseline.features(self.setting.noisy(self._noise), self._extractor.taps)
        return {str(FeatureKey(*key)): feature.float() for key, feature in features.items()}


class FeedbackCase:
    """A training step of DifFeed: forward, backward, update.

    Args:
        setting: networks and images.
        feedback_taps: fed back into the encoder.
        tap: read in the second pass.
        timestep: the one.
        head_arguments: of the attention head.
    """

    def __init__(
        self,
        setting: Setting,
        feedback_taps: Sequence[str | int],
        tap: str | int,
        timestep: int,
        head_arguments: Mapping[str, Any],
    ) -> None:
        self.setting = setting
        self._t = timestep
        self._noise = setting.noise([timestep])

        def parts() -> tuple[FeedbackExtractor, AttentionHead]:
            with torch.random.fork_rng(), setting.images.device:
                torch.manual_seed(0)
                extractor = FeedbackExtractor(
                    setting.backbone, feedback_taps=feedback_taps, taps=[tap], timesteps=[timestep]
                )
                return extractor.train(), AttentionHead(extractor.specs, CLASSES, **head_arguments).train()

        self._extractor, self._head = parts()
        # The baseline has the same initial weights, of its own.
        theirs, self._their_head = parts()
        self._their_layers = theirs.feedback
        self._steps = [
            torch.optim.SGD([*layers.parameters(), *head.parameters()], lr=1e-3)
            for layers, head in ((self._extractor.feedback, self._head), (self._their_layers, self._their_head))
        ]

    def ours(self) -> dict[str, Tensor]:
        """Logits before the update."""
        features = self._extractor(self.setting.images, noise=self._noise)
        return _step(self._head, features, self.setting.labels, self._steps[0])

    def theirs(self) -> dict[str, Tensor]:
        """The same with two whole passes of the baseline."""
        x_t = self.setting.noisy(self._noise)[self._t]
        [tap] = self._extractor.taps
        feature = self.setting.baseline.feedback_features(
            x_t, self._t, self._extractor.mirrors, list(self._their_layers), tap
        )
        [key] = self._extractor.specs
        return _step(self._their_head, {key: feature.float()}, self.setting.labels, self._steps[1])


class CachedCase:
    """An epoch's share of one batch for training DifFormer: with features read from memory, as a cache gives them, and
    with features computed live by the baseline.

    Args:
        setting: networks and images.
        taps: blocks.
        timesteps: timesteps.
        head: arguments of the head.
    """

    def __init__(
        self, setting: Setting, taps: Sequence[str | int], timesteps: Sequence[int], head: Mapping[str, Any]
    ) -> None:
        self.features = FeatureCase(setting, taps, timesteps)
        extractor = FeatureExtractor(setting.backbone, taps=taps, timesteps=timesteps).eval()
        with torch.random.fork_rng(), setting.images.device:
            torch.manual_seed(0)
            self._head = DifFormerHead(extractor.specs, CLASSES, **head).train()
        self._step = torch.optim.SGD(self._head.parameters(), lr=1e-3)
        self._labels = setting.labels
        maps = extractor(setting.images)
        sizes = self._head.map_sizes
        self._cached = {key: pool(feature, sizes[key]).to(torch.bfloat16) for key, feature in maps.items()}

    def cached(self) -> dict[str, Tensor]:
        """A training step on cached features."""
        return _step(self._head, self._cached, self._labels, self._step)


def _step(head: nn.Module, features: Features, labels: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    logits = head(features)
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    return {"logits": logits.detach()}


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference, in the norm, of any output.

    Raises:
        ValueError: they have different outputs.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"the outputs are {', '.join(ours)} and {', '.join(theirs)}")
    return max(float((ours[name].float() - theirs[name].float()).norm() / theirs[name].float().norm()) for name in ours)
