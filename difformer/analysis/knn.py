"""Weighted nearest neighbours in feature space: the k-NN evaluation of DINO (Caron et al. 2021), with the weights of
Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination"."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer.analysis._inputs import Array, as_labels, as_matrix
from difformer.config import as_positive_integer

# Similarities held at once: 128 MB in float32.
_CHUNK_ELEMENTS = 1 << 25


def knn_scores(
    queries: Array,
    bank: Array,
    labels: Array,
    num_classes: int,
    *,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> dict[int, Tensor]:
    """Class scores of images by the votes of their nearest neighbours.

    The k images of the bank with the largest cosine similarity vote for their classes, each with the weight
    exp(similarity / temperature). The votes of a query are divided by their sum, which changes no prediction and cannot
    overflow. A feature vector of zeros has similarity 0 to everything; `torch.topk` decides which of equally similar
    images are the k nearest.

    Args:
        queries: (Q, D) finite features of the images to classify.
        bank: (N, D) finite features of the labelled images. The work is done on their device, in their dtype or in
            float32 where that is shorter.
        labels: (N,) integers in [0, num_classes), of the bank.
        num_classes: C, at least 1.
        ks: numbers of neighbours, each at most N, or N - 1 when one is left out.
        temperature: T, above 0.
        leave_one_out: the queries are the bank itself, and no image votes for its own class.

    Returns:
        Scores (Q, C) by k, in the order of `ks`, on the bank's device; each row sums to 1.

    Raises:
        ValueError: wrong shapes, types or ranges, more neighbours than the bank has, a value that is not finite, or
            queries that are not the bank although one is to be left out.
    """
    bank = as_matrix("bank features", bank)
    queries = as_matrix("query features", queries, width=bank.shape[1])
    classes = as_positive_integer("num_classes", num_classes)
    labels = as_labels(labels, len(bank), classes).to(bank.device)
    neighbours = tuple(as_positive_integer("k", k) for k in ks) if isinstance(ks, Iterable) else ()
    if not neighbours or len(set(neighbours)) < len(neighbours):
        raise ValueError(f"ks must be one or more different numbers, got {ks!r}")
    most, available = max(neighbours), len(bank) - leave_one_out
    if most > available:
        raise ValueError(f"k = {most} neighbours were asked for, and an image has {available} to choose from")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")
    dtype = torch.promote_types(bank.dtype, torch.float32)
    queries, bank = queries.to(bank.device, dtype), bank.to(dtype)
    if leave_one_out and not torch.equal(queries, bank):
        raise ValueError("leave_one_out needs the bank's own features, in their order, as the queries")

    queries, bank = F.normalize(queries), F.normalize(bank)
    rows = max(1, _CHUNK_ELEMENTS // len(bank))
    parts: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-math.inf)
        nearest, places = similarity.topk(most)
        for k, scores in parts.items():
            # The weights of the votes, divided by their sum, are a softmax.
            votes = (nearest[:, :k] / temperature).softmax(dim=1)
            scores.append(votes.new_zeros(len(votes), classes).scatter_add_(1, labels[places[:, :k]], votes))
    return {k: torch.cat(scores) for k, scores in parts.items()}
