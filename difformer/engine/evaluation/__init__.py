"""Evaluation of classifiers, and classifiers without a training loop."""
