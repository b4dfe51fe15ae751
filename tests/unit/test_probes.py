import numpy as np
import pytest
import torch

from difformer.analysis.knn import knn_scores
from difformer.analysis.linear import accuracy
from difformer.analysis.metrics import classification_metrics
from difformer.analysis.probes import Candidate, Labelled, best, compare, create_probe
from difformer.analysis.ridge import ridge_path


def clouds(count, seed, spread=1.0):
    """Three overlapping clouds of points."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    points = 3 * np.eye(5)[labels] + spread * rng.standard_normal((count, 5))
    return Labelled(torch.from_numpy(points), torch.from_numpy(labels))


@pytest.mark.parametrize("method", ["knn", "logistic", "ridge"])
def test_methods_learn_what_can_be_learned(method):
    probe = create_probe(method)
    candidates = compare(probe, clouds(90, 0), clouds(60, 1), 3)
    chosen = best(candidates)
    [(settings, logits)] = probe.only(chosen.settings).fit(clouds(90, 0), 3)(clouds(60, 2).features)
    assert settings == chosen.settings
    assert accuracy(logits, clouds(60, 2).labels) > 0.9


def test_neighbours_are_compared_for_every_k_and_temperature():
    train, validation = clouds(40, 0, 2.0), clouds(30, 1, 2.0)
    probe = create_probe("knn", ks=(1, 7), temperatures=(0.07, 1.0))
    candidates = compare(probe, train, validation, 3)
    assert [tuple(c.settings.values()) for c in candidates] == [(1, 0.07), (7, 0.07), (1, 1.0), (7, 1.0)]
    for candidate in candidates:
        k, temperature = candidate.settings.values()
        scores = knn_scores(validation.features, train.features, train.labels, 3, ks=(int(k),), temperature=temperature)
        assert candidate.accuracy == accuracy(scores[int(k)], validation.labels)


def test_one_neighbour_has_no_more_top5_than_top1_hits():
    """Noise: classes without a vote would be hits by their number alone."""
    rng = np.random.default_rng(0)
    train, test = (Labelled(torch.from_numpy(rng.normal(size=(240, 6))), torch.arange(240) % 12) for _ in range(2))
    [(_, logits)] = create_probe("knn", ks=(1,)).fit(train, 12)(test.features)
    found = classification_metrics(logits, test.labels, list("abcdefghijkl"))
    assert found.top5 == found.top1 < 0.2


def test_votes_come_as_logarithms_of_probabilities():
    [(_, logits)] = create_probe("knn", ks=(5,)).fit(clouds(40, 0), 3)(clouds(10, 1).features)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(10, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("count", "ks"), [(6, [6]), (30, [10, 20]), (150, [10, 20, 100])])
def test_usual_numbers_of_neighbours_are_those_there_are_images_for(count, ks):
    assert [c.settings["k"] for c in compare(create_probe("knn"), clouds(count, 0), clouds(9, 1), 3)] == ks


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(ValueError, match="31 neighbours were asked for"):
        compare(create_probe("knn", ks=(31,)), clouds(30, 0), clouds(9, 1), 3)


def test_ridge_is_fitted_for_every_strength():
    train, validation = clouds(40, 0, 3.0), clouds(30, 1, 3.0)
    candidates = compare(create_probe("ridge", strengths=(0.1, 100.0)), train, validation, 3)
    fits = ridge_path(train.features, train.labels, 3, strengths=(0.1, 100.0))
    expected = [accuracy(fit.model.logits(validation.features), validation.labels) for fit in fits]
    assert [(c.settings["l2"], c.accuracy) for c in candidates] == list(zip((0.1, 100.0), expected, strict=True))


def test_the_best_of_equal_settings_is_the_smoothest():
    settings = [(5, 0.07, 0.8), (10, 0.07, 0.9), (10, 0.2, 0.9), (5, 0.5, 0.9), (20, 0.5, 0.7)]
    candidates = [Candidate({"k": k, "temperature": t}, value) for k, t, value in settings]
    assert best(candidates).settings == {"k": 10, "temperature": 0.2}
    with pytest.raises(ValueError, match="no candidates"):
        best([])


def test_the_criterion_decides():
    labels = torch.tensor([0] * 8 + [1, 1])
    # The first feature tells the classes apart in 8 of 10 images, and always the rare one.
    features = torch.tensor([[1.0]] * 6 + [[-1.0]] * 4)
    images = Labelled(features, labels)
    top1, mean = (
        compare(create_probe("knn", ks=(1,)), images, images, 2, criterion=c)[0] for c in ("top1", "mean_per_class")
    )
    assert top1.accuracy != mean.accuracy


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="method must be knn, logistic, ridge or sgd, got 'svm'"):
        create_probe("svm")


def test_images_are_joined_in_order():
    both = clouds(6, 0).joined(clouds(3, 1))
    assert both.features[6:].equal(clouds(3, 1).features)
    assert both.labels.tolist() == [0, 1, 2] * 3
