"""Training, extraction and evaluation, on one CPU as on many GPUs."""

from difformer.engine.config.training import Recipe

__all__ = ["Recipe"]
