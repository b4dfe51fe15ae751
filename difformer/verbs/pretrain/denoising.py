"""The objective of training a denoiser, for the training loop."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from difformer.config import check_choice, check_range
from difformer.data import Batch
from difformer.diffusion import (
    LossAwareTimesteps,
    NoiseSchedule,
    UniformTimesteps,
    denoising_losses,
    image_noise,
    q_sample,
)
from difformer.engine.loop.trainer import Place
from difformer.engine.runtime.processes import gathered
from difformer.models import UNet
from difformer.streams import Stream, epoch_seed, generator


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the network learns, and at which timesteps.

    Attributes:
        name: simple (eps alone) or hybrid (the variance too, through the variational bound).
        bound_weight: of the bound in the hybrid loss.
        timesteps: uniform, or loss_aware: timesteps with large losses more often.
        label_dropout: for class-conditional networks, fraction of the labels that are replaced by the null label,
            which is then the network's last class.
    """

    name: Literal["simple", "hybrid"] = "hybrid"
    bound_weight: float = 0.001
    timesteps: Literal["uniform", "loss_aware"] = "uniform"
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choice("objective.name", self.name, ("simple", "hybrid"))
        check_choice("objective.timesteps", self.timesteps, ("uniform", "loss_aware"))
        check_range("objective.bound_weight", self.bound_weight, lambda x: x >= 0, "at least 0")
        check_range("objective.label_dropout", self.label_dropout, lambda x: 0 <= x < 1, "in [0, 1)")


class Denoising:
    """The loss of a denoiser at randomly chosen timesteps.

    Timestep, noise and dropped labels of an image are functions of seed, epoch and id, so that they do not depend on
    the number of processes.

    Args:
        unet: trained in place.
        noise: the forward process.
        config: the objective.
        seed: of timesteps and noise.
        processes: Accelerate's, to share what is learned about timesteps.
    """

    counted = ()

    def __init__(self, unet: UNet, noise: NoiseSchedule, config: ObjectiveConfig, *, seed: int, processes: Any) -> None:
        self.module: nn.Module = unet
        self.parts: nn.Module = unet
        self._classes = unet.config.num_classes
        self._noise = noise
        self._config = config
        self._seed = seed
        self._epoch = 0
        self._processes = processes
        self._learns = config.timesteps == "loss_aware"
        self._timesteps = (LossAwareTimesteps if self._learns else UniformTimesteps)(noise.num_timesteps)
        self._seen: list[tuple[Any, Any]] = []

    def begin_epoch(self, epoch: int) -> None:
        """Fresh timesteps and noise for each epoch."""
        self._epoch = epoch

    def losses(self, model: Any, batch: Batch, device: torch.device, place: Place) -> tuple[Tensor, list[Tensor]]:
        """(B,) losses; nothing else is counted."""
        x_0 = batch.images.to(device, non_blocking=True)
        ids = batch.ids.to(device, non_blocking=True)
        # Two uniform numbers for each image: one for its timestep, one for dropping its label.
        streams = [generator(Stream.TIMESTEPS, self._seed, self._epoch, int(number)) for number in batch.ids]
        chances = np.stack([stream.random(2) for stream in streams])
        steps, weights = self._timesteps.choose(chances[:, 0])
        t = torch.from_numpy(steps).to(device)
        eps = image_noise(x_0, ids, t, seed=epoch_seed(self._seed, self._epoch))
        x_t = q_sample(x_0, t, eps, self._noise)
        labels = None
        if self._classes is not None:
            dropped = torch.from_numpy(chances[:, 1] < self._config.label_dropout)
            labels = torch.where(dropped, self._classes - 1, batch.labels).to(device)
        output = model(x_t, t, labels)
        found = denoising_losses(output, x_0, x_t, t, eps, self._noise)
        losses = found.hybrid(self._config.bound_weight, self._noise.num_timesteps)
        if place.counts and self._learns:
            self._seen.append((steps, losses.detach().double().cpu().numpy()))
        return losses * torch.from_numpy(weights).to(losses), []

    def end_step(self) -> None:
        """Learns which timesteps have large losses, from all processes."""
        if not self._learns:
            return
        seen, self._seen = self._seen, []
        for steps, losses in gathered(self._processes, seen):
            self._timesteps.update(steps, losses)

    def state_dict(self) -> dict[str, Any]:
        """What it has learned besides the weights."""
        return self._timesteps.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._timesteps.load_state_dict(state)
