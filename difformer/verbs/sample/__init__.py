"""The verb `sample`: images from a backbone's weights."""

from difformer.verbs.sample.generate import Sampling, generate
from difformer.verbs.sample.sample import sample_images

__all__ = ["Sampling", "generate", "sample_images"]
