"""Nearest neighbours against a loop over images, and what the votes do not depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.analysis import knn_scores

GENERATOR = np.random.default_rng(0)
BANK, QUERIES = GENERATOR.normal(size=(40, 6)), GENERATOR.normal(size=(15, 6))
LABELS = GENERATOR.integers(4, size=40)


def scores(queries=QUERIES, bank=BANK, labels=LABELS, num_classes=4, *, ks=(1, 7), **options):
    return knn_scores(queries, bank, labels, num_classes, ks=ks, **options)


def by_hand(queries, bank, labels, classes, k, temperature, *, leave_one_out=False):
    """Votes exp(cosine / T), divided by their sum, one pair at a time."""
    result = np.zeros((len(queries), classes))
    for i, query in enumerate(queries):
        cosines = [query @ other / math.sqrt((query @ query) * (other @ other)) for other in bank]
        order = [j for j in sorted(range(len(bank)), key=lambda j: -cosines[j]) if j != i or not leave_one_out]
        for j in order[:k]:
            result[i, labels[j]] += math.exp(cosines[j] / temperature)
    return result / result.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(2, 5), st.sampled_from([0.07, 0.5]), st.booleans())
def test_against_a_loop(seed, n, classes, temperature, leave_one_out):
    rng = np.random.default_rng(seed)
    bank = rng.normal(size=(n, 5))
    queries = bank if leave_one_out else rng.normal(size=(9, 5))
    labels = rng.integers(classes, size=n)
    ks = {1, max(1, n // 2), n - 1}
    options = {"temperature": temperature, "leave_one_out": leave_one_out}
    found = scores(queries, bank, labels, classes, ks=list(ks), **options)
    for k in ks:
        want = by_hand(queries, bank, labels, classes, k, temperature, leave_one_out=leave_one_out)
        np.testing.assert_allclose(found[k].numpy(), want, atol=1e-9)


def test_the_order_of_the_answers_is_that_of_the_request():
    found = scores(ks=(7, 1, 40))
    assert list(found) == [7, 1, 40]
    assert {(s.shape, s.dtype) for s in found.values()} == {((15, 4), torch.float64)}
    for s in found.values():
        torch.testing.assert_close(s.sum(dim=1), torch.ones(15, dtype=torch.float64))
    assert (scores(ks=(1,))[1].max(dim=1).values == 1).all()


def test_the_published_numbers_of_neighbours():
    bank = np.random.default_rng(1).normal(size=(200, 3))
    assert list(knn_scores(QUERIES[:, :3], bank, np.arange(200) % 2, 2)) == [10, 20, 100, 200]


def test_chunks_change_nothing(monkeypatch):
    whole = scores(BANK, ks=(3, 39), leave_one_out=True)
    monkeypatch.setattr("difformer.analysis.knn._CHUNK_ELEMENTS", 7 * 40)
    parts = scores(BANK, ks=(3, 39), leave_one_out=True)
    for k in (3, 39):
        torch.testing.assert_close(parts[k], whole[k])


def test_the_length_of_features_does_not_matter():
    lengths = GENERATOR.uniform(0.1, 10, size=(40, 1))
    torch.testing.assert_close(scores(QUERIES * 3, BANK * lengths), scores())


def test_orders_of_bank_and_queries_and_names_of_classes():
    bank_order, query_order = GENERATOR.permutation(40), GENERATOR.permutation(15)
    names = np.array([2, 0, 3, 1])
    found = scores(QUERIES[query_order], BANK[bank_order], names[LABELS[bank_order]])
    for k, want in scores().items():
        torch.testing.assert_close(found[k][:, names], want[query_order])


def test_without_itself_an_image_does_not_vote():
    """Each image's class is its own, so that leaving it out gives its class no vote."""
    own = np.arange(40)
    found = scores(BANK, labels=own, num_classes=40, leave_one_out=True)[7]
    assert (found.diagonal() == 0).all()
    with_itself = scores(BANK, labels=own, num_classes=40)
    assert (with_itself[1].argmax(dim=1) == torch.arange(40)).all()


def test_any_temperature_is_safe():
    """A small one leaves the nearest, a large one counts heads."""
    cold = scores(temperature=1e-6)
    torch.testing.assert_close(cold[7], cold[1])
    warm = scores(temperature=1e9)
    torch.testing.assert_close(warm[7] * 7, (warm[7] * 7).round(), atol=1e-6, rtol=0)


def test_a_zero_vector_is_equally_far_from_everything():
    found = scores(np.zeros((1, 6)), ks=(40,))[40]
    torch.testing.assert_close(found[0], torch.from_numpy(np.bincount(LABELS, minlength=4) / 40))


def test_short_types_are_computed_in_float32():
    bank, queries = torch.from_numpy(BANK).bfloat16(), torch.from_numpy(QUERIES).bfloat16()
    found = scores(queries, bank, torch.from_numpy(LABELS).int())
    assert found[7].dtype == torch.float32
    torch.testing.assert_close(found, scores(queries.float(), bank.float()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ks": (10, 41)}, "k = 41 neighbours were asked for, and an image has 40"),
        (
            {"queries": BANK, "ks": (40,), "leave_one_out": True},
            "k = 40 neighbours were asked for, and an image has 39",
        ),
        ({"ks": ()}, "one or more different numbers"),
        ({"ks": (3, 3)}, r"different numbers, got \(3, 3\)"),
        ({"ks": (0,)}, "k must be a positive integer, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"temperature": math.nan}, "temperature must be positive, got nan"),
        ({"queries": QUERIES, "leave_one_out": True}, "bank's own features"),
        ({"queries": BANK[::-1], "leave_one_out": True}, "bank's own features"),
        ({"queries": QUERIES[:, :5]}, "query features must have 6 columns"),
        ({"bank": np.full((40, 6), np.nan)}, "bank features must be finite"),
        ({"queries": QUERIES[:0]}, r"\(0, 6\)"),
        ({"labels": LABELS[:-1]}, "labels must be 40 integers"),
        ({"num_classes": 3}, r"in \[0, 3\)"),
        ({"num_classes": 0}, "num_classes must be a positive integer"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        scores(**changes)


@pytest.mark.gpu
def test_on_a_gpu():
    found = scores(bank=torch.from_numpy(BANK).cuda())
    assert found[7].is_cuda
    torch.testing.assert_close({k: s.cpu() for k, s in found.items()}, scores())
