"""Metrics: the recall of the class that is recognised least, the largest output of all, and Brier's score."""

import numpy as np

from difformer.analysis import Metric


def _worst_recall(logits, labels):
    hits = logits.argmax(axis=1) == labels
    return min(hits[labels == label].mean() for label in np.unique(labels))


worst_recall = Metric(_worst_recall)
largest_logit = Metric(lambda logits, labels: float(np.abs(logits).max()), larger_is_better=False)


def _brier(logits, labels):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    wrong = odds / odds.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[labels]
    return float(np.square(wrong).sum(axis=1).mean())


brier = Metric(_brier, larger_is_better=False, reads="probabilities")
