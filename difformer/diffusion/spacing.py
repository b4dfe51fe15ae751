"""Which timesteps a sampler visits."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from difformer.config import as_positive_integer, check_choice
from difformer.diffusion.schedule import NoiseSchedule

Spacing = Literal["even", "adm", "ddim", "log_snr"]


def spaced_timesteps(schedule: NoiseSchedule, steps: int, spacing: Spacing = "even") -> list[int]:
    """The timesteps to visit, ascending and all different.

    Args:
        schedule: with T timesteps.
        steps: how many to visit.
        spacing: which ones. `even`: evenly spaced with the first and the last, rounded (section 4 of Nichol & Dhariwal
            2021). `adm`: the same as guided-diffusion adds and rounds them (`--timestep_respacing N`), which can be a
            timestep away; one step is 0. `ddim`: 0 and on in whole strides, as guided-diffusion's `ddimN`. `log_snr`:
            evenly spaced in the logarithm of the signal-to-noise ratio, as for DPM-Solver (Lu et al. 2022,
            arXiv:2206.00927), at the nearest timesteps that are all different.

    Raises:
        ValueError: steps is not in [1, T], there is no whole stride with that many steps, or no such spacing.
    """
    count, total = as_positive_integer("steps", steps), schedule.num_timesteps
    check_choice("spacing", spacing, get_args(Spacing))
    if count > total:
        raise ValueError(f"steps must be at most {total}, got {count}")
    if spacing == "ddim":
        return _in_strides(total, count)
    if spacing == "adm":
        # A sum and not a product: its rounding errors decide where a place lies between two timesteps.
        places = [0.0]
        while len(places) < count:
            places.append(places[-1] + (total - 1) / (count - 1))
        return [round(place) for place in places]
    if count == 1:
        return [total - 1]
    if spacing == "log_snr":
        return _in_log_snr(schedule, count)
    places = torch.linspace(0, total - 1, count, dtype=torch.float64, device="cpu").tolist()
    return [round(place) for place in places]


def _in_strides(total: int, count: int) -> list[int]:
    # Of several strides with as many steps, the shortest.
    found = {len(range(0, total, stride)): stride for stride in reversed(range(1, total))}
    if count not in found:
        near = [max((n for n in found if n < count), default=None), min((n for n in found if n > count), default=None)]
        known = " or ".join(str(n) for n in near if n is not None) or "of another spacing"
        raise ValueError(f"no whole stride visits {count} of {total} timesteps; with ddim spacing, give steps {known}")
    return list(range(0, total, found[count]))


def _in_log_snr(schedule: NoiseSchedule, count: int) -> list[int]:
    ratios, total = log_snr(schedule).numpy(), schedule.num_timesteps
    wanted = np.linspace(ratios[0], ratios[-1], count)
    timesteps = [int(np.abs(ratios - one).argmin()) for one in wanted]
    # Where timesteps are far apart, several places have the same nearest one.
    for i in range(1, count):
        timesteps[i] = max(timesteps[i], timesteps[i - 1] + 1)
    return [min(timestep, total - count + i) for i, timestep in enumerate(timesteps)]


def log_snr(schedule: NoiseSchedule) -> Tensor:
    """lambda = log(a_t / s_t), half the logarithm of the signal-to-noise ratio, (T,) float64; it falls with t."""
    return (schedule.alpha_bar.log() - torch.log1p(-schedule.alpha_bar)) / 2


@dataclass(frozen=True, eq=False)
class StridedSchedule:
    """A schedule that visits only some timesteps (section 4 of Nichol & Dhariwal 2021).

    Attributes:
        timesteps: (S,) int64, ascending; what the network receives at each of the S steps.
        schedule: of those steps, with the same alpha_bar there.
    """

    timesteps: Tensor
    schedule: NoiseSchedule

    @classmethod
    def of(cls, schedule: NoiseSchedule, steps: int | None = None, spacing: Spacing = "even") -> "StridedSchedule":
        """The part of a schedule that `spaced_timesteps` gives; all timesteps when `steps` is None.

        Raises:
            ValueError: as `spaced_timesteps`.
        """
        total = schedule.num_timesteps
        wanted = spaced_timesteps(schedule, total if steps is None else steps, spacing)
        timesteps = torch.tensor(wanted, device="cpu")
        alpha_bar = schedule.alpha_bar[timesteps]
        before = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), alpha_bar[:-1]])
        return cls(timesteps, NoiseSchedule(f"strided {schedule.name}", 1 - alpha_bar / before))
