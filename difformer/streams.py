"""All uses of randomness, in one enumeration, so that no two uses of a seed draw the same.

Augmentation and the rounding of holdouts are older, and are defined below: published numbers depend on them.

A stream is NumPy's generator of a list of integers: the number of its use, then as many as its use needs. NumPy fills
short lists up with zeros, so each use has its own number and a fixed count. What torch draws (dropout, initial
weights, noise) is seeded by hashes of words instead, see `stable_id`.
"""

import hashlib
from enum import Enum

import numpy as np


class Stream(Enum):
    """A use of randomness: its number, and what its integers are.

    Numbers are never used again for something else, and never change: what was measured and split depends on them.
    """

    SUBSET = 0, ("seed", "class")
    HOLDOUT = 1, ("split seed", "class")
    BOOTSTRAP = 2, ("seed",)
    BUFFER = 3, ("seed", "epoch", "process", "worker")
    ORDER = 4, ("seed", "epoch")
    MIXING = 5, ("seed", "step", "process", "part")
    TIMESTEPS = 6, ("seed", "epoch", "image")
    BATCHES = 7, ("seed",)
    PART = 8, ("seed",)
    SHARDS = 9, ("seed", "epoch")
    BLOCKS = 10, ("seed",)
    POLICY = 11, ("seed", "step", "image")

    @property
    def number(self) -> int:
        """The first of its integers."""
        return self.value[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """What the others are."""
        return self.value[1]


def generator(stream: Stream, *key: int) -> np.random.Generator:
    """The generator of a use of randomness.

    Args:
        stream: the use.
        key: not negative, one for each of `stream.parts`.

    Raises:
        ValueError: more or fewer than these.
    """
    if len(key) != len(stream.parts):
        raise ValueError(f"{stream.name} is drawn by {', '.join(stream.parts)}, got {len(key)} numbers")
    return np.random.default_rng([stream.number, *key])


def sample_generator(seed: int, epoch: int, image_id: int) -> np.random.Generator:
    """The generator of one sample's augmentation in one epoch, the same in every worker and process and at any time.

    It is older than the numbers of the streams and has none: its list starts with the seed. Changing it would change
    all results measured so far.
    """
    return np.random.default_rng([seed, epoch, image_id])


def rounding_generator(seed: int) -> np.random.Generator:
    """The generator that decides which classes round up in a holdout: that of class 0's holdout, as always."""
    return np.random.default_rng([Stream.HOLDOUT.number, seed])


def stable_id(content: bytes) -> int:
    """The first 63 bits of a SHA-256: a number in [0, 2**63) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def epoch_seed(seed: int, epoch: int) -> int:
    """The noise seed of a training epoch, counted from 0; evaluation uses `seed` itself."""
    return stable_id(f"noise {seed} {epoch}".encode())
