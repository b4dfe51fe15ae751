"""From clean images to the noisy batch that a backbone reads, and back from its features to one map an image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difformer.config import as_integer, as_positive_integer, as_switch
from difformer.diffusion import Schedule, image_noise, q_sample


@dataclass(frozen=True)
class Noising:
    """At which timesteps images are read, and with which noise.

    Attributes:
        timesteps: noise timesteps, each once.
        draws: independent noise draws a timestep, over which features are averaged.
        clean: add no noise; the network still receives the timestep.

    Raises:
        ValueError: no timestep, a repeated or negative one, or an invalid number of draws.
    """

    timesteps: tuple[int, ...]
    draws: int = 1
    clean: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.timesteps, str) or not isinstance(self.timesteps, Iterable):
            raise ValueError(f"timesteps must be a sequence of integers, got {self.timesteps!r}")
        steps = tuple(as_integer("every timestep", t) for t in self.timesteps)
        if not steps or min(steps) < 0:
            raise ValueError(f"timesteps must be non-negative integers, at least one, got {steps!r}")
        if len(set(steps)) < len(steps):
            raise ValueError(f"timesteps must differ, got {steps!r}")
        draws, clean = as_positive_integer("draws", self.draws), as_switch("clean", self.clean)
        if clean and draws > 1:
            raise ValueError("clean images have no noise to draw; leave draws at 1")
        for name, value in (("timesteps", steps), ("draws", draws), ("clean", clean)):
            object.__setattr__(self, name, value)

    def check_schedule(self, schedule: Schedule) -> None:
        """Raises ValueError when a timestep lies outside the schedule."""
        if max(self.timesteps) >= schedule.num_timesteps:
            raise ValueError(f"timesteps must lie in [0, {schedule.num_timesteps}), got {self.timesteps}")

    @property
    def repeats(self) -> int:
        """How often each image appears in the noisy batch."""
        return len(self.timesteps) * self.draws

    def apply(
        self,
        x_0: Tensor,
        schedule: Schedule,
        seed: int,
        ids: Tensor | Sequence[int] | None = None,
        noise: Mapping[int, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One batch with every image at every timestep and draw.

        Args:
            x_0: (B, C, H, W) clean images or latents.
            schedule: gives (a_t, s_t).
            seed: of the per-image noise.
            ids: (B,) the images' stable numbers; their positions in the batch when left out.
            noise: eps of the shape of `x_0` by timestep, instead of the per-image noise there.

        Returns:
            x_t (R·B, C, H, W) and t (R·B,), with R = `repeats`: timesteps outermost, then draws, then images.

        Raises:
            ValueError: noise for a timestep that is not read, of another shape, or together with clean or several
                draws.
        """
        given = {} if noise is None else noise
        self._check_noise(given, x_0)
        ids = torch.arange(len(x_0), device="cpu") if ids is None else ids
        batches = []
        for t in self.timesteps:
            for draw in range(self.draws):
                if self.clean:
                    batches.append(x_0)
                    continue
                eps = given[t] if t in given else image_noise(x_0, ids, t, seed=seed, draw=draw)
                batches.append(q_sample(x_0, t, eps.to(x_0), schedule))
        steps = torch.tensor(self.timesteps, device=x_0.device)
        return torch.cat(batches), steps.repeat_interleave(self.draws * len(x_0))

    def separate(self, feature: Tensor) -> dict[int, Tensor]:
        """Splits a noisy batch's feature, (R·B, C, h, w), into one (B, C, h, w) a timestep, averaged over draws."""
        by_draw = feature.unflatten(0, (len(self.timesteps), self.draws, -1))
        return dict(zip(self.timesteps, by_draw.mean(dim=1) if self.draws > 1 else by_draw.squeeze(1), strict=True))

    def _check_noise(self, noise: Mapping[int, Tensor], x_0: Tensor) -> None:
        if not isinstance(noise, Mapping):
            raise ValueError(f"noise must be a mapping from timesteps to tensors, got {type(noise).__name__}")
        if noise and (self.clean or self.draws > 1):
            raise ValueError("explicit noise can only be given for one draw of noisy images")
        for t, eps in noise.items():
            if t not in self.timesteps:
                raise ValueError(f"noise was given for t={t}, but the timesteps are {self.timesteps}")
            if not isinstance(eps, Tensor) or eps.shape != x_0.shape:
                found = tuple(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
                raise ValueError(f"noise for t={t} must have shape {tuple(x_0.shape)}, got {found}")


def repeat_conditioning(conditioning: Mapping[str, Tensor], batch: int, repeats: int) -> dict[str, Tensor]:
    """Repeats the conditioning of images, (B, …), for the noisy batch, (R·B, …).

    Raises:
        ValueError: an entry that is not one row an image.
    """
    for name, value in conditioning.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != batch:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor with one row for each of the {batch} images, got {shape}")
    return {name: value.repeat(repeats, *(1,) * (value.ndim - 1)) for name, value in conditioning.items()}
