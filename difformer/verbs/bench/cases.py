"""What is measured: features and training steps, as this package does them and as they are done without it.

Each side runs in its own process, so a case is built twice, and neither side affects the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from difformer.backbones import UNetBackbone
from difformer.diffusion import NoiseSchedule, q_sample
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.features.planning import pool
from difformer.heads import AttentionHead, DetectionHead, DifFormerHead
from difformer.taps import FeatureKey
from difformer.verbs.bench.openai import HookedNetwork

CLASSES = 1000
# Of pixels and objects, and points.
DENSE_CLASSES = 20


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Modules built inside have the same random weights every time, and are on the device."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        yield


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
        self.specs = self._extractor.specs

    def ours(self) -> dict[str, Tensor]:
        """Features by name."""
        return {str(key): feature for key, feature in self.read_ours().items()}

    def theirs(self) -> dict[str, Tensor]:
        """The same from the baseline."""
        return {str(key): feature.float() for key, feature in self.read_theirs().items()}

    def read_ours(self) -> dict[FeatureKey, Tensor]:
        """(B, C, h, w) by key."""
        return self._extractor(self.setting.images, noise=self._noise)

    @torch.no_grad()
    def read_theirs(self) -> dict[FeatureKey, Tensor]:
        """The same from the baseline."""
        features = self.setting.baseline.features(self.setting.noisy(self._noise), self._extractor.taps)
        return {FeatureKey(*key): feature for key, feature in features.items()}


class DenseCase:
    """Maps, boxes or points of a batch: features of several blocks at one timestep, and a head, which is ours on both
    sides.

    Args:
        setting: networks and images.
        taps: blocks of different map sizes.
        timestep: the one.
        head: class of the head.
        arguments: of the head.
    """

    def __init__(
        self, setting: Setting, taps: Sequence[str | int], timestep: int, head: Any, arguments: Mapping[str, Any]
    ) -> None:
        self.setting = setting
        self._features = FeatureCase(setting, taps, [timestep])
        size = setting.backbone.image_size
        with seeded(setting.images.device):
            self._head = head(self._features.specs, DENSE_CLASSES, image_size=size, **arguments).eval()

    def ours(self) -> dict[str, Tensor]:
        """What the head gives."""
        return self._predict(self._features.read_ours())

    def theirs(self) -> dict[str, Tensor]:
        """The same with the baseline's features."""
        return self._predict(self._features.read_theirs())

    @torch.no_grad()
    def _predict(self, features: Mapping[FeatureKey, Tensor]) -> dict[str, Tensor]:
        if not isinstance(self._head, DetectionHead):
            return {"maps": self._head({key: feature.float() for key, feature in features.items()})}
        # What is found depends on values, which fake tensors have not: of these, only the pyramid is counted. With
        # random weights, rounding decides which boxes are left, so the pyramid is compared in any case.
        if not isinstance(self.setting.images, FakeTensor):
            self._head.predict(features)
        return self._head.pyramid_levels(features)


class FeedbackCase:
    """A training step of DifFeed: forward, backward, update.

    Args:
        setting: networks and images.
        feedback_taps: fed back into the encoder.
        tap: read in the second pass.
        timestep: the one.
        head: arguments of the attention head.
    """

    def __init__(
        self,
        setting: Setting,
        feedback_taps: Sequence[str | int],
        tap: str | int,
        timestep: int,
        head: Mapping[str, Any],
    ) -> None:
        self.setting = setting
        self._t = timestep
        self._noise = setting.noise([timestep])
        with seeded(setting.images.device):
            self._extractor = FeedbackExtractor(
                setting.backbone, feedback_taps=feedback_taps, taps=[tap], timesteps=[timestep]
            ).train()
            self._head = AttentionHead(self._extractor.specs, CLASSES, **head).train()
        self._update = torch.optim.SGD([*self._extractor.feedback.parameters(), *self._head.parameters()], lr=1e-3)

    def ours(self) -> dict[str, Tensor]:
        """Logits before the update."""
        features = self._extractor(self.setting.images, noise=self._noise)
        return _step(self._head, features, self.setting.labels, self._update)

    def theirs(self) -> dict[str, Tensor]:
        """The same with two whole passes of the baseline."""
        x_t = self.setting.noisy(self._noise)[self._t]
        [tap] = self._extractor.taps
        feature = self.setting.baseline.feedback_features(
            x_t, self._t, self._extractor.mirrors, list(self._extractor.feedback), tap
        )
        [key] = self._extractor.specs
        return _step(self._head, {key: feature.float()}, self.setting.labels, self._update)


class TrainingCase:
    """A training step of DifFormer, with live features or with those of a cache. The head is ours on both sides.

    Args:
        setting: networks and images.
        taps: blocks.
        timesteps: timesteps.
        head: arguments of the head.
    """

    def __init__(
        self, setting: Setting, taps: Sequence[str | int], timesteps: Sequence[int], head: Mapping[str, Any]
    ) -> None:
        self.setting = setting
        self._features = FeatureCase(setting, taps, timesteps)
        with seeded(setting.images.device):
            self._head = DifFormerHead(self._features.specs, CLASSES, **head).train()
        self._update = torch.optim.SGD(self._head.parameters(), lr=1e-3)
        self._kept: dict[FeatureKey, Tensor] = {}

    def ours(self) -> dict[str, Tensor]:
        """Logits before the update."""
        return self._learn(self._features.read_ours())

    def theirs(self) -> dict[str, Tensor]:
        """The same with the baseline's features."""
        return self._learn(self._features.read_theirs())

    def extract(self) -> None:
        """Keeps the features in memory as a cache has them: pooled, in half precision."""
        sizes = self._head.map_sizes
        maps = self._features.read_ours()
        self._kept = {key: pool(feature, sizes[key]).to(torch.bfloat16) for key, feature in maps.items()}

    def cached(self) -> dict[str, Tensor]:
        """Logits before an update on the features that `extract` has kept."""
        return self._learn(self._kept)

    def _learn(self, features: Mapping[FeatureKey, Tensor]) -> dict[str, Tensor]:
        return _step(self._head, features, self.setting.labels, self._update)


def _step(
    head: nn.Module, features: Mapping[FeatureKey, Tensor], labels: Tensor, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    logits = head(features)
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    # Gradients are of this step, so its peak counts them and the next begins without.
    optimizer.zero_grad(set_to_none=True)
    return {"logits": logits.detach()}
