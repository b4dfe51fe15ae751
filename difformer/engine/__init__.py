"""Training, extraction and evaluation, on one CPU or many GPUs."""

from difformer.engine.config.recipe import Recipe

__all__ = ["Recipe"]
