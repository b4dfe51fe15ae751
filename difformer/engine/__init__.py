"""Training, extraction and evaluation, on one CPU as on many GPUs."""

from difformer.engine.config.recipe import Recipe

__all__ = ["Recipe"]
