"""What a policy is, and what it chooses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """The D timesteps that each image of a batch is distilled at in one step.

    The loss of an image is the sum over d of `weights[:, d]` times the loss at `timesteps[:, d]`.

    Attributes:
        actions: (B, D) int64, places of the timesteps in `policy.timesteps`.
        timesteps: (B, D) int64.
        weights: (B, D) float32, not negative, of sum 1 for each image, without gradient.
    """

    actions: Tensor
    timesteps: Tensor
    weights: Tensor


class Policy(Protocol):
    """What chooses timesteps.

    Attributes:
        timesteps: the T different ones that it may choose.
    """

    timesteps: tuple[int, ...]

    def choose(self, ids: Tensor | Sequence[int], step: int, logits: Tensor | None = None) -> Choice:
        """The timesteps of a batch in a step.

        Args:
            ids: (B,) the images' stable numbers, not negative.
            step: of the training, counted from 0.
            logits: (B, T) of the policy, which a `LearnedPolicy` needs and others ignore.

        Returns:
            On the device of the logits, or else of the ids.

        Raises:
            ValueError: ids, step or logits of the wrong type, shape or range.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it has learned besides a network's weights."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave; raises ValueError for anything else."""


@runtime_checkable
class LearnedPolicy(Policy, Protocol):
    """A policy whose logits come from a network that learns, such as `PolicyNetwork`."""

    def losses(self, logits: Tensor, choice: Choice, rewards: Tensor, entropy_weight: float = 0.0) -> Tensor:
        """What the network minimises.

        Args:
            logits: (B, T), those that the choice was made with.
            choice: of the same step.
            rewards: (B, D), of the choice's timesteps, larger being better; they get no gradient.
            entropy_weight: λ, not negative.

        Returns:
            (B,) float32, or float64 where an input is.

        Raises:
            ValueError: wrong shapes, or a weight out of range.
        """

    def update(self, rewards: Tensor) -> None:
        """Learns from the rewards of a finished step, those of all processes."""
