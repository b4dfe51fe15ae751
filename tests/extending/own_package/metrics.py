"""Metrics: the recall of the class that is recognised least, and how often the largest output is beyond a bound."""

import numpy as np

from difformer.analysis import Metric


def _worst_recall(logits, labels):
    hits = logits.argmax(axis=1) == labels
    return min(hits[labels == label].mean() for label in np.unique(labels))


worst_recall = Metric(_worst_recall)
largest_logit = Metric(lambda logits, labels: float(np.abs(logits).max()), larger_is_better=False)
