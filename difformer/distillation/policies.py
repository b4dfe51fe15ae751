"""Which timesteps of the teacher each image is distilled at: one, any, all, or those that a network learns to choose.

A draw is a function of (seed, step, image id), like the noise of an image: it depends neither on the batch, nor on the
number of processes or whether a run was resumed. Only the running mean of `ReinforcePolicy` is a state.

Of a policy π over timesteps that a network learns, with rewards r and entropy H, the networks' loss is (RepFusion, Yang
& Wang 2023, arXiv 2308.10916) -mean log π(t|x) r - λ mean H(π(·|x)); there, r is minus the cross-entropy of a head on
the teacher's features at t, and this loss is added to those of the head and the student.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from difformer.config import (
    as_integer,
    as_positive_integer,
    as_positive_number,
    check_choice,
    check_different,
    check_range,
)
from difformer.diffusion.schedule import MAX_TIMESTEPS
from difformer.distillation.protocol import Choice
from difformer.streams import Stream, generator

Baseline: TypeAlias = Literal["none", "leave_one_out", "running"]

# Of the running mean of rewards.
_MOMENTUM = 0.9


class _Stateless:
    """What a policy keeps that learns nothing itself."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back nothing; raises ValueError for anything else."""
        _check_state(state, ())


class FixedPolicy(_Stateless):
    """One timestep for all images.

    Args:
        timestep: in [0, 65536).

    Raises:
        ValueError: a bad number.
    """

    def __init__(self, timestep: int) -> None:
        self.timesteps = _as_timesteps([timestep])

    def choose(self, ids: Tensor | Sequence[int], step: int, logits: Tensor | None = None) -> Choice:
        """The timestep, once an image; see `Policy.choose`."""
        return _chosen(self.timesteps, np.zeros((len(_as_ids(ids)), 1), dtype=np.int64), _device(ids))


class UniformPolicy(_Stateless):
    """Every timestep as often as any other.

    Args:
        timesteps: different ones, in [0, 65536).
        draws: D, independent draws an image and step.
        seed: of the draws, not negative.

    Raises:
        ValueError: a bad number, or a timestep that appears twice.
    """

    def __init__(self, timesteps: Sequence[int], *, draws: int = 1, seed: int = 0) -> None:
        self.timesteps = _as_timesteps(timesteps)
        self.draws = as_positive_integer("draws", draws)
        self.seed = _as_count("seed", seed)

    def choose(self, ids: Tensor | Sequence[int], step: int, logits: Tensor | None = None) -> Choice:
        """D draws an image; see `Policy.choose`."""
        chances = _chances(self.seed, step, _as_ids(ids), self.draws)
        return _chosen(self.timesteps, (chances * len(self.timesteps)).astype(np.int64), _device(ids))


class ExactPolicy(_Stateless):
    """All timesteps, weighted by the policy: the expectation that `ReinforcePolicy` estimates.

    For teachers whose features of all T timesteps are in a cache. Where all rewards are known too, `optimal_logits`
    gives the best policy without a network.

    Args:
        timesteps: different ones, in [0, 65536).

    Raises:
        ValueError: a bad number, or a timestep that appears twice.
    """

    def __init__(self, timesteps: Sequence[int]) -> None:
        self.timesteps = _as_timesteps(timesteps)

    def choose(self, ids: Tensor | Sequence[int], step: int, logits: Tensor | None = None) -> Choice:
        """All T timesteps in their order, with their probabilities as weights; see `Policy.choose`."""
        count = len(_as_ids(ids))
        weights = _checked_logits(logits, count, len(self.timesteps)).float().softmax(dim=1)
        actions = torch.arange(len(self.timesteps), device=weights.device).expand(count, -1)
        return Choice(actions, torch.tensor(self.timesteps, device=weights.device)[actions], weights)

    def losses(self, logits: Tensor, choice: Choice, rewards: Tensor, entropy_weight: float = 0.0) -> Tensor:
        """(B,) of -Σ π(t|x) r(t) - λ H(π(·|x)); see `LearnedPolicy.losses`."""
        log_policy, rewards = _matched(logits, choice, rewards, len(self.timesteps))
        if rewards.shape != log_policy.shape:
            raise ValueError(
                f"the choice must hold all {len(self.timesteps)} timesteps, got {rewards.shape[1]}; make it with this "
                "policy"
            )
        expected = (log_policy.exp() * rewards).sum(dim=1)
        return -expected - _as_weight(entropy_weight) * _entropy(log_policy)

    def update(self, rewards: Tensor) -> None:
        """Nothing is to be learned from rewards."""


class ReinforcePolicy:
    """Draws timesteps from the policy, and estimates the gradient of the expected reward by REINFORCE.

    Williams 1992 (doi 10.1007/BF00992696), with the entropy of Williams & Peng 1991. Published by RepFusion: one draw,
    no baseline. All baselines leave the expectation of the gradient as it is.

    Args:
        timesteps: different ones, in [0, 65536).
        draws: D, independent draws an image and step.
        baseline: what is taken off the rewards. "none"; "leave_one_out", the mean reward of the image's other draws
            (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"), with one draw that of the batch's
            other images, none of which may appear twice; "running", a running mean of the rewards of earlier steps, 0
            in the first.
        seed: of the draws, not negative.

    Attributes:
        running: the running mean, None before the first `update`; kept with any baseline.

    Raises:
        ValueError: a bad number, a timestep that appears twice, or an unknown baseline.
    """

    def __init__(self, timesteps: Sequence[int], *, draws: int = 1, baseline: Baseline = "none", seed: int = 0) -> None:
        check_choice("baseline", baseline, get_args(Baseline))
        self.timesteps = _as_timesteps(timesteps)
        self.draws = as_positive_integer("draws", draws)
        self.baseline = baseline
        self.seed = _as_count("seed", seed)
        self.running: float | None = None

    def choose(self, ids: Tensor | Sequence[int], step: int, logits: Tensor | None = None) -> Choice:
        """D draws an image, by the inverse of the cumulative distribution in float64; see `Policy.choose`."""
        numbers = _as_ids(ids)
        values = _checked_logits(logits, len(numbers), len(self.timesteps)).cpu().double()
        cumulative = values.softmax(dim=1).cumsum(dim=1)
        # Ends at 1, above every draw; a timestep without probability is then never drawn.
        cumulative = cumulative / cumulative[:, -1:]
        chances = torch.from_numpy(_chances(self.seed, step, numbers, self.draws))
        actions = torch.searchsorted(cumulative, chances, right=True)
        return _chosen(self.timesteps, actions.numpy(), _device(logits))

    def losses(self, logits: Tensor, choice: Choice, rewards: Tensor, entropy_weight: float = 0.0) -> Tensor:
        """(B,) of -mean over draws of log π(t|x) (r - b) - λ H(π(·|x)); see `LearnedPolicy.losses`.

        With "leave_one_out" and one draw, an image's loss depends on the other images' rewards, of its own process.

        Raises:
            ValueError: as there, or nothing to leave out: one image with one draw.
        """
        log_policy, rewards = _matched(logits, choice, rewards, len(self.timesteps))
        if self.baseline == "leave_one_out":
            axis = 1 if rewards.shape[1] > 1 else 0
            others = rewards.shape[axis] - 1
            if not others:
                raise ValueError(
                    'baseline "leave_one_out" needs other draws or other images, got one image with one draw; raise '
                    "draws or the batch size"
                )
            rewards = rewards - (rewards.sum(dim=axis, keepdim=True) - rewards) / others
        elif self.baseline == "running" and self.running is not None:
            rewards = rewards - self.running
        estimate = (log_policy.gather(1, choice.actions) * rewards).mean(dim=1)
        return -estimate - _as_weight(entropy_weight) * _entropy(log_policy)

    def update(self, rewards: Tensor) -> None:
        """Moves the running mean by a tenth to the mean of a step's rewards; the first step sets it.

        Args:
            rewards: of any shape, from all processes, in the same order in each.

        Raises:
            ValueError: none, or some that are not finite.
        """
        mean = rewards.detach().double().mean().item()
        if not math.isfinite(mean):
            raise ValueError(
                f"rewards must be one or more finite numbers, got shape {tuple(rewards.shape)}, mean {mean}"
            )
        self.running = mean if self.running is None else _MOMENTUM * self.running + (1 - _MOMENTUM) * mean

    def state_dict(self) -> dict[str, Any]:
        """The running mean."""
        return {"running": self.running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave; raises ValueError for anything else."""
        _check_state(state, ("running",))
        running = state["running"]
        if running is not None and not (isinstance(running, float) and math.isfinite(running)):
            raise ValueError(f"the running mean of a policy must be a finite number or None, got {running!r}")
        self.running = running


def optimal_logits(rewards: Tensor, entropy_weight: float) -> Tensor:
    """Logits of the policy that `ExactPolicy.losses` is least at: π = softmax(r / λ).

    Args:
        rewards: (B, T) of all timesteps, of any floating-point type. They should come from heads that have not seen
            the image, such as those of other folds.
        entropy_weight: λ, above 0.

    Returns:
        (B, T) float32 at least, without gradient.

    Raises:
        ValueError: a weight that is not above 0.
    """
    rewards = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    return rewards / as_positive_number("entropy_weight", entropy_weight)


def decayed_entropy_weight(epoch: int, *, initial: float = 0.1, epochs: int = 100) -> float:
    """The weight λ of an epoch, counted from 0: it falls linearly to 0 at `epochs`, as RepFusion's code has it.

    Raises:
        ValueError: a bad number.
    """
    share = _as_count("epoch", epoch) / as_positive_integer("epochs", epochs)
    return _as_weight(initial) * max(0.0, 1.0 - share)


def _as_timesteps(timesteps: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(timesteps, Iterable):
        raise ValueError(f"timesteps must be a sequence of integers, got {timesteps!r}; all of T are range(T)")
    numbers = tuple(as_integer("timesteps", t) for t in timesteps)
    check_different("timesteps", numbers)
    if not 0 <= min(numbers) <= max(numbers) < MAX_TIMESTEPS:
        raise ValueError(f"timesteps must lie in [0, {MAX_TIMESTEPS}), got {list(numbers)}")
    return numbers


def _as_count(name: str, value: int) -> int:
    if (number := as_integer(name, value)) < 0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return number


def _as_weight(value: float) -> float:
    check_range("the weight of the entropy", value, lambda weight: weight >= 0, "of at least 0")
    return value


def _as_ids(ids: Tensor | Sequence[int]) -> list[int]:
    numbers = ids.tolist() if isinstance(ids, Tensor) else ids
    if not isinstance(numbers, Iterable):
        raise ValueError(f"ids must be a sequence of integers, one an image, got {ids!r}")
    return [_as_count("every entry of ids", one) for one in numbers]


def _device(values: Any) -> torch.device:
    return values.device if isinstance(values, Tensor) else torch.device("cpu")


def _chances(seed: int, step: int, ids: Sequence[int], draws: int) -> NDArray[np.float64]:
    """(B, draws) uniform numbers in [0, 1). More draws begin with those that fewer give."""
    step = _as_count("step", step)
    return np.array([generator(Stream.POLICY, seed, step, one).random(draws) for one in ids]).reshape(-1, draws)


def _chosen(timesteps: tuple[int, ...], actions: NDArray[np.int64], device: torch.device) -> Choice:
    """Drawn timesteps, each with the same weight."""
    weights = torch.full(actions.shape, 1 / actions.shape[1], device=device)
    places = torch.from_numpy(actions).to(device)
    return Choice(places, torch.tensor(timesteps, device=device)[places], weights)


def _checked_logits(logits: Tensor | None, images: int, count: int) -> Tensor:
    """Without gradient, to choose by."""
    if logits is None or logits.shape != (images, count) or not logits.dtype.is_floating_point:
        found = None if logits is None else f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(
            f"logits must be floating-point numbers ({images}, {count}), one for each id and timestep of the policy, "
            f"got {found}"
        )
    wrong = (~logits.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"logits must be finite, and are not for images {wrong} of the batch; lower the learning rate")
    return logits.detach()


def _matched(logits: Tensor, choice: Choice, rewards: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Logarithms of the policy and constant rewards, in float32 at least, where the shapes fit."""
    shape = choice.actions.shape
    if logits.shape != (shape[0], count):
        raise ValueError(f"logits must be ({shape[0]}, {count}), as the choice was made, got {tuple(logits.shape)}")
    if rewards.shape != shape:
        hint = "; write rewards[:, None]" if rewards.shape == shape[:1] and shape[1] == 1 else ""
        raise ValueError(f"rewards must be {tuple(shape)}, one for each choice, got {tuple(rewards.shape)}{hint}")
    dtype = torch.promote_types(torch.promote_types(logits.dtype, rewards.dtype), torch.float32)
    return logits.to(dtype).log_softmax(dim=1), rewards.detach().to(dtype)


def _entropy(log_policy: Tensor) -> Tensor:
    """(B,) nats."""
    return -(log_policy.exp() * log_policy).sum(dim=1)


def _check_state(state: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if set(state) != set(names):
        raise ValueError(
            f"the state of this policy holds {list(names) or 'nothing'}, got {sorted(state)}; resume with the policy "
            "that the run began with"
        )
