"""Training, extraction and evaluation, on one CPU as on many GPUs."""

from difformer.engine.recipes.training import Recipe

__all__ = ["Recipe"]
