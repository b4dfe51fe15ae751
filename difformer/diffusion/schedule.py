"""Noise schedules and the forward process of denoising diffusion."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from difformer.config import as_positive_integer, as_switch
from difformer.registry import did_you_mean

# The per-image noise counts timesteps in 16 bits.
MAX_TIMESTEPS = 1 << 16
# The scale of the timesteps that guided-diffusion's networks receive with rescale_timesteps, for any T.
_TOLD_TIMESTEPS = 1000


@runtime_checkable
class Schedule(Protocol):
    """What noising needs to know about a model's forward process, and all that a backbone's schedule must have."""

    @property
    def num_timesteps(self) -> int:
        """Timesteps are in [0, num_timesteps)."""
        ...

    def coefficients(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """The pair (a_t, s_t) of x_t = a_t x_0 + s_t eps, each of the shape of `t`, float32.

        Raises:
            ValueError: a timestep of the wrong type or range.
        """
        ...


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete variance-preserving schedule, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.

    All tables are float64 tensors of shape (T,) on the CPU; t = 0 is the least noisy step.

    Attributes:
        name: the family it comes from, for files and messages.
        betas: the variances of the single steps, each in (0, 1), at most 65536 of them.
        rescale_timesteps: the network receives t · 1000 / T in place of t, as with guided-diffusion's flag of that
            name. Kept as false where T is 1000, which makes no difference.

    Raises:
        ValueError: betas of the wrong type, shape or range, a name that is no text, or `rescale_timesteps` that is
            neither true nor false.
    """

    name: str
    betas: Tensor = field(repr=False)
    rescale_timesteps: bool = False

    def __post_init__(self) -> None:
        betas: Any = self.betas
        if not isinstance(self.name, str):
            raise ValueError(f"a schedule's name must be text, got {self.name!r}")
        if not isinstance(betas, Tensor) or betas.is_meta:
            kind = "one on the meta device" if isinstance(betas, Tensor) else type(betas).__name__
            raise ValueError(f"betas must be a float64 tensor with values, got {kind}")
        if betas.dtype != torch.float64 or betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be a float64 vector, got {betas.dtype} of shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must lie strictly between 0 and 1")
        _as_num_timesteps(len(betas))
        object.__setattr__(self, "betas", betas.detach().cpu())
        rescale = as_switch("rescale_timesteps", self.rescale_timesteps)
        object.__setattr__(self, "rescale_timesteps", rescale and len(betas) != _TOLD_TIMESTEPS)

    @classmethod
    def linear(cls, num_timesteps: int = 1000, *, rescale_timesteps: bool = False) -> "NoiseSchedule":
        """Betas from 1e-4 to 0.02, scaled to the number of steps (Ho et al. 2020, section 4).

        Args:
            num_timesteps: T.
            rescale_timesteps: see the class.

        Raises:
            ValueError: fewer than 21 steps, where the scaled betas would reach 1, or more than 65536;
                `rescale_timesteps` is neither true nor false.
        """
        num_timesteps = _as_num_timesteps(num_timesteps)
        scale = 1000 / num_timesteps
        if scale * 0.02 >= 1:
            raise ValueError(f"a linear schedule needs at least 21 timesteps, got {num_timesteps}")
        # On the CPU even where the user has made another device the default.
        betas = torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64, device="cpu")
        return cls("linear", betas, rescale_timesteps)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, *, rescale_timesteps: bool = False) -> "NoiseSchedule":
        """Squared-cosine alpha_bar with betas at most 0.999 (eq. 17 of Nichol & Dhariwal 2021).

        Args:
            num_timesteps: T.
            rescale_timesteps: see the class.

        Raises:
            ValueError: `num_timesteps` is not an integer from 1 to 65536; `rescale_timesteps` is neither true nor
                false.
        """
        num_timesteps = _as_num_timesteps(num_timesteps)
        grid = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
        alpha_bar = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls("cosine", (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999), rescale_timesteps)

    @classmethod
    def from_name(cls, name: str, num_timesteps: int = 1000, *, rescale_timesteps: bool = False) -> "NoiseSchedule":
        """The schedule a file or a user names.

        Args:
            name: linear or cosine.
            num_timesteps, rescale_timesteps: as for that one.

        Raises:
            ValueError: no such schedule, or as that one.
        """
        families = {"linear": cls.linear, "cosine": cls.cosine}
        if not isinstance(name, str) or name not in families:
            raise ValueError(f"unknown noise schedule {name!r}; expected one of {', '.join(families)}")
        return families[name](num_timesteps, rescale_timesteps=rescale_timesteps)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NoiseSchedule":
        """The schedule that `to_dict` described.

        Raises:
            ValueError: the description is incomplete, contradicts itself, names no known schedule, or has an unknown
                key (the message names the nearest known one) or a bad value.
        """
        known = ["name", "num_timesteps", "betas", "rescale_timesteps"]
        if not isinstance(values, Mapping):
            raise ValueError(f"a schedule is described by {', '.join(known)}; got {type(values).__name__}")
        # Keys only: a schedule can have thousands of betas.
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key!r} of a schedule; {did_you_mean(str(key), known)}")
        if "name" not in values or not values.keys() & {"num_timesteps", "betas"}:
            raise ValueError(f"a schedule needs a name, and num_timesteps or betas; got {', '.join(values) or 'none'}")
        rescale = values.get("rescale_timesteps", False)
        if "betas" not in values:
            return cls.from_name(values["name"], values["num_timesteps"], rescale_timesteps=rescale)
        try:
            betas = torch.tensor(values["betas"], dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"a schedule's betas must be numbers: {error}") from error
        schedule = cls(values["name"], betas, rescale)
        number = values.get("num_timesteps", schedule.num_timesteps)
        if _as_num_timesteps(number) != schedule.num_timesteps:
            raise ValueError(
                f"a schedule has {schedule.num_timesteps} betas, but num_timesteps is {number}; leave one of them out"
            )
        return schedule

    def to_dict(self) -> dict[str, Any]:
        """A description for files: a name and a length, or the betas themselves where no name describes them."""
        try:
            known = torch.equal(self.betas, NoiseSchedule.from_name(self.name, self.num_timesteps).betas)
        except ValueError:
            known = False
        steps = {"num_timesteps": len(self.betas)} if known else {"betas": self.betas.tolist()}
        return {"name": self.name, **steps, **({"rescale_timesteps": True} if self.rescale_timesteps else {})}

    @property
    def num_timesteps(self) -> int:
        """Number of steps T."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """Cumulative product of 1 - beta."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0), eq. 7 of Ho et al. 2020; 0 at t = 0."""
        return self.betas * (1 - self._alpha_bar_before) / (1 - self.alpha_bar)

    @cached_property
    def posterior_mean_coefficients(self) -> tuple[Tensor, Tensor]:
        """Weights of x_0 and x_t in the mean of q(x_{t-1} | x_t, x_0), eq. 7 of Ho et al. 2020."""
        of_x_0 = self.betas * self._alpha_bar_before.sqrt() / (1 - self.alpha_bar)
        of_x_t = (1 - self._alpha_bar_before) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        return of_x_0, of_x_t

    @property
    def _alpha_bar_before(self) -> Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), self.alpha_bar[:-1]])

    def coefficients(self, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """The pair (a_t, s_t) of x_t = a_t x_0 + s_t eps.

        Args:
            t: one timestep, or an integer tensor of any shape; in [0, num_timesteps).

        Returns:
            Two float32 tensors of the shape of `t`, on its device (the CPU for an int).

        Raises:
            ValueError: t is not an integer or out of range.
        """
        index = _as_timesteps(t)
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
            raise ValueError(f"timesteps must be integers, got {index.dtype}")
        index = index.long()
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < self.num_timesteps:
            raise ValueError(f"timesteps must lie in [0, {self.num_timesteps}), got {index.tolist()}")
        signal, noise = (table.float().to(index.device) for table in self._signal_and_noise)
        return signal[index], noise[index]

    def network_time(self, t: int | Tensor) -> int | Tensor:
        """What the network receives at timesteps `t`: `t` itself, or float32 where it is rescaled."""
        return _as_timesteps(t).float() * (_TOLD_TIMESTEPS / self.num_timesteps) if self.rescale_timesteps else t

    @cached_property
    def _signal_and_noise(self) -> tuple[Tensor, Tensor]:
        return self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()


def q_sample(x_0: Tensor, t: int | Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Noises clean images: a draw from q(x_t | x_0), eq. 4 of Ho et al. 2020.

    Args:
        x_0: (B, C, H, W), floating point, in [-1, 1].
        t: one timestep for the batch, or (B,) integers.
        eps: standard normal noise of the shape of `x_0`, floating point.
        schedule: gives (a_t, s_t).

    Returns:
        x_t, of the shape and dtype of `x_0`.

    Raises:
        ValueError: images or noise of another kind, shapes that do not fit, or timesteps out of range.
    """
    for name, value in (("x_0", x_0), ("eps", eps)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a floating-point tensor, got {kind}; images in [-1, 1]")
    t = _as_timesteps(t)
    if eps.shape != x_0.shape:
        raise ValueError(f"eps must have x_0's shape {tuple(x_0.shape)}, got {tuple(eps.shape)}")
    if t.ndim and t.shape != x_0.shape[:1]:
        raise ValueError(f"t must be one timestep or {x_0.shape[0]} of them, got shape {tuple(t.shape)}")
    shape = (-1,) + (1,) * (x_0.ndim - 1)
    a_t, s_t = (c.to(x_0.device).view(shape) for c in schedule.coefficients(t))
    return (a_t * x_0 + s_t * eps).to(x_0.dtype)


def _as_num_timesteps(num_timesteps: Any) -> int:
    """A schedule's length as a plain int.

    Raises:
        ValueError: it is not an integer from 1 to 65536.
    """
    number = as_positive_integer("num_timesteps", num_timesteps)
    if number > MAX_TIMESTEPS:
        raise ValueError(f"num_timesteps must be at most {MAX_TIMESTEPS}, got {number}")
    return number


def _as_timesteps(t: Any) -> Tensor:
    """Timesteps given as a number, a sequence, an array or a tensor; the schedule decides which values are valid."""
    if isinstance(t, Tensor):
        return t
    try:
        return torch.as_tensor(t, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"timesteps must be an integer or a tensor of integers, got {t!r}") from error
