"""Metrics of logits: closed forms, other implementations, what does not depend on order or naming."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torchmetrics import functional as tm

from difformer.analysis import (
    METRICS,
    calibration_error,
    classification_metrics,
    confusion_matrix,
    find_metric,
    image_scores,
)

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(size=(300, 8)).astype(np.float32)
LABELS = GENERATOR.integers(8, size=300)
NAMES = [f"class {i}" for i in range(8)]


def metrics(logits=LOGITS, labels=LABELS, names=None, **options):
    return classification_metrics(logits, labels, names or NAMES[: logits.shape[1]], resamples=50, **options)


@st.composite
def splits(draw):
    """Logits without equal values, so that no prediction hangs on the classes' order, and labels; classes may be
    missing."""
    n, classes = draw(st.integers(1, 30)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.1, 1.0, 30.0]))
    return rng.permutation(n * classes).reshape(n, classes) * spread, rng.integers(classes, size=n)


def by_hand(logits, labels):
    """The definitions, one image and one class at a time."""
    n, classes = logits.shape
    order = [sorted(range(classes), key=lambda c: -row[c]) for row in logits.tolist()]
    predicted = [places[0] for places in order]
    p = [[1 / sum(math.exp(min(other - own, 700)) for other in row) for own in row] for row in logits.tolist()]
    recalls, f1s = [], []
    for c in range(classes):
        own = [i for i in range(n) if labels[i] == c]
        if own:
            hits = sum(predicted[i] == c for i in own)
            recalls.append(hits / len(own))
            f1s.append(2 * hits / (len(own) + predicted.count(c)))
    ece = 0.0
    for m in range(15):
        held = [i for i in range(n) if m / 15 < p[i][predicted[i]] <= (m + 1) / 15]
        if held:
            right = sum(predicted[i] == labels[i] for i in held) / len(held)
            ece += len(held) / n * abs(right - sum(p[i][predicted[i]] for i in held) / len(held))
    return {
        "top1": sum(a == b for a, b in zip(predicted, labels, strict=True)) / n,
        "top5": sum(b in places[:5] for places, b in zip(order, labels, strict=True)) / n if classes > 5 else None,
        "mean_per_class": sum(recalls) / len(recalls),
        "macro_f1": sum(f1s) / len(f1s),
        "ece": ece,
    }


@settings(max_examples=100, deadline=None)
@given(splits())
def test_the_definitions(split):
    found = metrics(*split).to_dict()
    for name, value in by_hand(*split).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_a_small_case_worked_out():
    """Four images of three classes, the last of which has none; probabilities 3/4, 1/8, 1/8 in each row."""
    logits = np.log([[6, 1, 1], [6, 1, 1], [1, 6, 1], [1, 1, 6]])
    found = metrics(logits, np.array([0, 0, 0, 1]), ["ant", "bee", "cow"])
    assert found.confusion.tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert (found.num_images, found.num_classes, found.absent) == (4, 3, ("cow",))
    assert (found.top1, found.top5, found.mean_per_class) == (0.5, None, (2 / 3 + 0) / 2)
    assert found.macro_f1 == pytest.approx((4 / 5 + 0) / 2)
    assert found.nll == pytest.approx((2 * math.log(4 / 3) + 2 * math.log(8)) / 4)
    assert found.ece == pytest.approx(0.25)
    assert [asdict(row) for row in found.per_class] == [
        {"name": "ant", "count": 3, "recall": 2 / 3, "precision": 1.0, "f1": 4 / 5},
        {"name": "bee", "count": 1, "recall": 0.0, "precision": 0.0, "f1": 0.0},
        {"name": "cow", "count": 0, "recall": None, "precision": 0.0, "f1": None},
    ]


def test_against_torchmetrics():
    found, x, y = metrics(), torch.from_numpy(LOGITS), torch.from_numpy(LABELS)
    assert found.confusion.tolist() == tm.classification.multiclass_confusion_matrix(x, y, 8).tolist()
    assert found.top5 == pytest.approx(float(tm.classification.multiclass_accuracy(x, y, 8, "micro", 5)))
    assert found.mean_per_class == pytest.approx(float(tm.classification.multiclass_accuracy(x, y, 8, "macro")))
    assert found.macro_f1 == pytest.approx(float(tm.classification.multiclass_f1_score(x, y, 8)))
    precision = tm.classification.multiclass_precision(x, y, 8, "none").tolist()
    assert [row.precision for row in found.per_class] == pytest.approx(precision)
    ece = tm.classification.multiclass_calibration_error(x.softmax(1), y, 8, 15)
    assert found.ece == pytest.approx(float(ece), abs=1e-6)
    assert found.nll == pytest.approx(float(torch.nn.functional.cross_entropy(x, y)), rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(splits(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(split, random):
    logits, labels = split
    order = np.array(random.sample(range(len(labels)), len(labels)))
    one, other = metrics(logits, labels).to_dict(), metrics(logits[order], labels[order]).to_dict()
    assert one.pop("nll") == pytest.approx(other.pop("nll"), rel=1e-12)
    assert one.pop("ece") == pytest.approx(other.pop("ece"), abs=1e-12)
    assert one.pop("top1_interval")["mean"] == other.pop("top1_interval")["mean"]
    assert one == other


@settings(max_examples=50, deadline=None)
@given(splits(), st.randoms(use_true_random=False))
def test_the_numbering_of_classes_does_not_matter(split, random):
    """New class j is old class old[j]."""
    logits, labels = split
    old = np.array(random.sample(range(logits.shape[1]), logits.shape[1]))
    names = NAMES[: len(old)]
    one = metrics(logits, labels, names)
    other = metrics(logits[:, old], np.argsort(old)[labels], [names[i] for i in old])
    for name in ("top1", "top5", "mean_per_class", "macro_f1", "nll", "ece"):
        values = [getattr(found, name) for found in (one, other)]
        assert values == [None, None] or values[0] == pytest.approx(values[1], rel=1e-9, abs=1e-12), name
    assert other.confusion.tolist() == one.confusion[np.ix_(old, old)].tolist()
    assert other.per_class == tuple(one.per_class[i] for i in old)
    assert set(other.absent) == set(one.absent)


def test_tensors_arrays_and_their_types_are_the_same():
    halves = torch.from_numpy(LOGITS).half()
    want = metrics(halves.double(), torch.from_numpy(LABELS)).to_dict()
    read_only = LABELS.astype(np.uint16)
    read_only.flags.writeable = False
    assert metrics(halves.requires_grad_(), LABELS.astype(np.int32)).to_dict() == want
    assert metrics(halves.detach().numpy()[::-1][::-1], read_only).to_dict() == want
    assert metrics(halves.detach().numpy().astype(">f8"), LABELS.astype(">i8")).to_dict() == want


def test_the_dictionary_is_json():
    record = metrics(labels=np.zeros(300, dtype=int)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["absent"] == NAMES[1:]
    assert record["top1_interval"]["resamples"] == 50
    fields = set(classification_metrics.__annotations__["return"].__dataclass_fields__)
    # What was not asked for is not written.
    assert set(record) == fields - {"extra"}


def test_every_number_is_a_metric_with_its_direction():
    found = metrics()
    assert {name: METRICS.find(name).larger_is_better for name in METRICS} == {
        "top1": True, "top5": True, "mean_per_class": True, "macro_f1": True, "loss": False, "ece": False,
        "miou": True,
    }  # fmt: skip
    for name in set(METRICS) - {"miou"}:
        value = found.value(name)
        alone = METRICS.find(name).compute(LOGITS, LABELS)
        assert alone == value if value is not None else np.isnan(alone)
    with pytest.raises(ValueError, match=r"must be a difformer\.analysis\.Metric, got module"):
        find_metric("difformer.analysis:metrics")


def test_mean_iou_is_scikit_learns_jaccard_score():
    expected = jaccard_score(LABELS, LOGITS.argmax(axis=1), average="macro")
    assert METRICS.find("miou").compute(LOGITS, LABELS) == pytest.approx(expected)


def test_the_seed_reaches_the_interval_only():
    one, again, other = (metrics(seed=seed).to_dict() for seed in (0, 0, 1))
    assert one == again
    assert one.pop("top1_interval") != other.pop("top1_interval")
    assert one == other


def test_of_equal_logits_the_first_is_predicted_and_the_others_are_no_hits():
    scores = image_scores(np.zeros((4, 7)), np.array([0, 1, 5, 6]))
    assert scores.predicted.tolist() == [0, 0, 0, 0]
    assert scores.rank.tolist() == [0, 6, 6, 6]
    assert scores.correct.tolist() == [True, False, False, False]
    assert scores.confidence == pytest.approx([1 / 7] * 4)
    assert scores.nll == pytest.approx([math.log(7)] * 4)


@pytest.mark.parametrize("label", [0, 2, 4, 11])
def test_a_class_without_a_vote_is_no_top5_hit(label):
    """Two classes of twelve have votes: whatever the others' numbers, none of them is among the first five."""
    votes = np.zeros((1, 12))
    votes[0, [3, 8]] = 0.75, 0.25
    for logits in (votes, np.log(votes + 1e-12)):
        assert image_scores(logits, np.array([label])).rank.item() >= 5
        assert image_scores(logits, np.array([8])).rank.item() == 1


def test_chunks_change_nothing(monkeypatch):
    whole = image_scores(LOGITS, LABELS)
    monkeypatch.setattr("difformer.analysis.metrics._CHUNK_ELEMENTS", 50)
    parts = image_scores(LOGITS, LABELS)
    for name in ("predicted", "rank", "confidence", "nll"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()


def test_reversed_arrays_of_one_image():
    """To numpy, an axis of length 1 has no direction; to torch it has."""
    assert metrics(LOGITS[:1][::-1], LABELS[:1][::-1]).to_dict() == metrics(LOGITS[:1], LABELS[:1]).to_dict()


def test_large_logits_do_not_overflow():
    scores = image_scores(np.array([[1e30, -1e30], [1e30, 1e30]], dtype=np.float32), np.array([1, 0]))
    assert scores.nll == pytest.approx([2e30, math.log(2)])
    assert scores.confidence == pytest.approx([1, 0.5])


def test_one_class_and_one_image():
    found = metrics(np.array([[3.0]]), np.array([0]))
    assert (found.top1, found.top5, found.mean_per_class, found.macro_f1) == (1, None, 1, 1)
    assert (found.nll, found.ece, found.confusion.tolist(), found.absent) == (0, 0, [[1]], ())


@pytest.mark.parametrize(("classes", "expected"), [(5, None), (6, 0.5)])
def test_top5_needs_more_than_five_classes(classes, expected):
    logits = np.tile(-np.arange(classes, dtype=float), (2, 1))
    assert metrics(logits, np.array([4, classes - 1])).top5 == expected


class TestCalibration:
    def test_bins_are_closed_on_the_right(self):
        """0.2 belongs with 0.1 and not with 0.3, so the gaps of -0.2 + 0.9 and -0.3 stand apart."""
        found = calibration_error(np.array([0.1, 0.2, 0.3]), np.array([True, False, False]), bins=5)
        assert found == pytest.approx((0.7 + 0.3) / 3)

    def test_certainty_shares_the_last_bin(self):
        assert calibration_error(np.array([0.98, 1.0]), np.array([True, False])) == pytest.approx(abs(1 - 1.98) / 2)

    def test_perfectly_calibrated(self):
        assert calibration_error(np.full(4, 0.75), np.array([1, 1, 1, 0])) == 0

    @pytest.mark.parametrize("confidence", [[0.5, np.nan], [0.5, 1.1], [-0.1, 0.5], [0.5], [[0.5, 0.5]], []])
    def test_what_is_refused(self, confidence):
        with pytest.raises(ValueError, match="confidence"):
            calibration_error(np.array(confidence), np.array([True, False]))


def test_confusion_counts_each_pair():
    predicted = GENERATOR.integers(4, size=99)
    truth = GENERATOR.integers(4, size=99)
    found = confusion_matrix(torch.from_numpy(predicted), truth, 5)
    for i in range(5):
        for j in range(5):
            assert found[i, j] == ((truth == i) & (predicted == j)).sum()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": np.where(np.arange(8) == 3, np.nan, LOGITS)}, r"300 of 300 .* row 0, with nan in column 3"),
        ({"logits": torch.full((300, 8), math.inf)}, "with inf in column 0"),
        ({"logits": LABELS}, "floating-point"),
        ({"logits": LOGITS[0]}, r"shape \(N, D\)"),
        ({"logits": LOGITS[:0], "labels": LABELS[:0]}, r"both at least 1, got \(0, 8\)"),
        ({"logits": LOGITS.tolist()}, "torch tensor or a numpy array of numbers, got list"),
        ({"logits": LOGITS.astype(str)}, "numpy array of numbers, got <U"),
        ({"labels": LABELS[:-1]}, r"labels must be 300 integers, .* got shape \(299,\)"),
        ({"labels": LABELS[:, None]}, r"got shape \(300, 1\)"),
        ({"labels": LABELS.astype(float)}, "integers, got torch.float64"),
        ({"labels": LABELS > 3}, "integers, got torch.bool"),
        ({"labels": LABELS - 1}, r"in \[0, 8\), got -1 for image"),
        ({"labels": LABELS + 1}, r"in \[0, 8\), got 8 for image"),
        ({"labels": np.full(300, 2**64 - 1, dtype=np.uint64)}, r"in \[0, 8\)"),
        ({"class_names": NAMES[:-1]}, "8 columns of logits need as many class names, got 7"),
        ({"seed": -1}, "seed"),
        ({"resamples": 0}, "resamples must be a positive integer, got 0"),
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"bins": 0}, "bins must be a positive integer"),
    ],
)
def test_what_is_refused(changes, message):
    arguments = {"logits": LOGITS, "labels": LABELS, "class_names": NAMES} | changes
    with pytest.raises(ValueError, match=message):
        classification_metrics(**arguments)
