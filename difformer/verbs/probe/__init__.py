"""Classifiers without a training loop, on pooled features."""
