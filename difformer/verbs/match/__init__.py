"""The verbs `match` and `match-pairs`: which places of two images correspond, and how often that is right."""

from difformer.verbs.match.match import ImageMatches, match_images
from difformer.verbs.match.reading import Reading

__all__ = ["ImageMatches", "Reading", "match_images"]
