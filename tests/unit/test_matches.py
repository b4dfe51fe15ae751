"""Average precision from matches beside pycocotools', also of resamples, and its bootstrap intervals."""

import numpy as np
import pytest

from difformer.analysis import (
    DetectionMatches,
    average_precision,
    bootstrap_mean,
    bootstrap_weights,
    coco_annotations,
    coco_results,
    coco_truth,
    detection_matches,
    detection_metrics,
    paired_bootstrap,
    paired_bootstrap_weights,
)

NAMES = ("cat", "dog", "bird")
SIZE = (60, 80)


def random_boxes(rng, count):
    corner = rng.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, 30, (count, 2))], axis=1)


def image(number, rng, crowds):
    """Objects, and detections near them and elsewhere."""
    count = int(rng.integers(0, 7))
    boxes, labels = random_boxes(rng, count), rng.integers(0, 3, count)
    near = np.repeat(boxes, 2, axis=0) + rng.normal(0, 1.5, (2 * count, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
    found = np.concatenate([near, random_boxes(rng, 3)])
    kinds = np.concatenate([np.repeat(labels, 2), rng.integers(0, 3, 3)])
    crowd = rng.random(count) < (0.3 if crowds else 0)
    scores = rng.random(len(found))
    return coco_annotations(number, boxes, labels, crowd=crowd), coco_results(number, found, kinds, scores)


def split(seed, images=25, crowds=False):
    rng = np.random.default_rng(seed)
    each = [image(number, rng, crowds) for number in range(images)]
    truth = coco_truth(dict.fromkeys(range(images), SIZE), [one for objects, _ in each for one in objects], NAMES)
    return truth, [one for _, found in each for one in found]


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_pycocotools(seed, crowds):
    truth, results = split(seed, crowds=crowds)
    (found,) = average_precision(detection_matches(truth, results))
    assert found == pytest.approx(detection_metrics(truth, results).ap, abs=1e-9)
    assert 0.1 < found < 0.9


@pytest.mark.parametrize("crowds", [False, True])
def test_of_resamples_it_is_pycocotools_of_images_that_stand_there_several_times(crowds):
    truth, results = split(3, crowds=crowds)
    matches = detection_matches(truth, results)
    rng = np.random.default_rng(0)
    weights = np.stack([np.bincount(rng.integers(0, 25, 25), minlength=25) for _ in range(4)]).astype(float)
    for row, found in zip(weights, average_precision(matches, weights), strict=True):
        images, objects, detections = {}, [], []
        for number, times in enumerate(row.astype(int)):
            for _ in range(times):
                new = len(images)
                images[new] = SIZE
                objects += [{**one, "image_id": new} for one in truth["annotations"] if one["image_id"] == number]
                detections += [{**one, "image_id": new} for one in results if one["image_id"] == number]
        expected = detection_metrics(coco_truth(images, objects, NAMES), detections).ap
        assert found == pytest.approx(expected, abs=1e-9)


def test_masks_are_matched_by_masks():
    mask = np.zeros(SIZE, dtype=bool)
    mask[10:20, 10:20] = True
    half = mask.copy()
    half[10:20, 15:20] = False
    box, kind = np.array([[10.0, 10.0, 20.0, 20.0]]), np.array([0])
    truth = coco_truth({0: SIZE}, coco_annotations(0, box, kind, masks=mask[None]), NAMES)
    results = coco_results(0, box, kind, np.array([0.9]), masks=half[None])
    assert average_precision(detection_matches(truth, results)) == 1
    # An overlap of 0.5 is enough at the first threshold alone.
    assert average_precision(detection_matches(truth, results, overlap="segm")) == pytest.approx(0.1)


def test_nothing_found_and_nothing_to_find():
    truth, _ = split(0)
    nothing = detection_matches(truth, [])
    assert average_precision(nothing) == 0
    assert nothing.objects.sum() == len(truth["annotations"])
    empty = detection_matches(coco_truth({0: SIZE, 1: SIZE}, [], NAMES), [])
    assert empty.objects.shape == (2, 3)
    assert np.isnan(average_precision(empty)).all()


def test_a_class_counts_in_the_sets_that_have_its_objects():
    """The first image has the one cat, which is found, and the second the one dog, which is not."""
    box, cat, dog = np.array([[0.0, 0, 9, 9]]), np.array([0]), np.array([1])
    truth = coco_truth({0: SIZE, 1: SIZE}, coco_annotations(0, box, cat) + coco_annotations(1, box, dog), NAMES)
    matches = detection_matches(truth, coco_results(0, box, cat, np.array([0.8])))
    found = average_precision(matches, np.array([[1.0, 1], [2, 0], [0, 2], [0, 0]]))
    np.testing.assert_allclose(found, [0.5, 1, 0, np.nan])


def test_intervals_are_those_of_means_where_the_statistic_is_one():
    scores, others = np.random.default_rng(0).random((2, 30))

    def mean_of(values):
        return lambda weights: weights @ values / weights.sum(axis=1)

    found = bootstrap_weights(30, mean_of(scores), width=40_000, resamples=300)
    expected = bootstrap_mean(scores, resamples=300)
    assert vars(found) == pytest.approx(vars(expected))
    around = bootstrap_weights(30, mean_of(scores), shifts=True, resamples=300)
    assert around.high - around.low == pytest.approx(found.high - found.low)
    assert around.low != found.low
    difference = paired_bootstrap_weights(30, mean_of(scores), mean_of(others), resamples=300)
    expected = paired_bootstrap(scores, others, resamples=300)
    assert difference.p_value == pytest.approx(expected.p_value)
    assert vars(difference.difference) == pytest.approx(vars(expected.difference))


def test_an_interval_of_average_precision_holds_it():
    matches = detection_matches(*split(4))
    interval = bootstrap_weights(25, lambda weights: average_precision(matches, weights), shifts=True, resamples=200)
    assert interval.low < interval.mean < interval.high
    assert interval.mean == average_precision(matches).item()
    # Of one image a hundred times, every resample is the same.
    same = DetectionMatches(
        np.ones((3, 1), int), np.arange(3), np.zeros(3, int), np.ones(3), *np.ones((2, 3, 10), bool)
    )
    alone = bootstrap_weights(3, lambda weights: average_precision(same, weights), resamples=20)
    assert (alone.low, alone.mean, alone.high) == (1, 1, 1)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_there_must_be_images(size):
    with pytest.raises(ValueError, match="size must be"):
        bootstrap_weights(size, lambda weights: weights.sum(axis=1))
