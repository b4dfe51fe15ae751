"""What is drawn at random, from seeds."""

import hashlib


def stable_id(content: bytes) -> int:
    """The first 63 bits of a SHA-256: a number in [0, 2**63) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def epoch_seed(seed: int, epoch: int) -> int:
    """The noise seed of a training epoch, counted from 0; evaluation uses `seed` itself."""
    return stable_id(f"noise {seed} {epoch}".encode())
