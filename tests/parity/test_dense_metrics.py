"""Measures and losses of dense tasks against torchmetrics, pycocotools and segmentation-models-pytorch."""

import contextlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.analysis import (
    class_accuracy,
    class_counts,
    class_iou,
    coco_annotations,
    coco_results,
    coco_truth,
    decode_rle,
    detection_metrics,
    encode_rle,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    pixel_confusion,
)
from difformer.tasks.segmentation import lovasz_softmax, soft_dice

pytestmark = pytest.mark.parity


def random_maps(seed, classes):
    """Some classes are missing in the labels, some in the predictions, some in both."""
    rng = np.random.default_rng(seed)
    labelled, predicted = (rng.choice(classes, rng.integers(1, classes + 1), replace=False) for _ in range(2))
    labels = rng.choice([*labelled, 255], (3, 9, 11))
    return torch.from_numpy(rng.choice(predicted, labels.shape)), torch.from_numpy(labels)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 8))
def test_segmentation_is_torchmetrics(seed, classes):
    from torchmetrics.functional import classification as tm

    predicted, labels = random_maps(seed, classes)
    labels[0, 0, 0] = predicted[0, 0, 0]
    found = pixel_confusion(predicted, labels, classes).sum(dim=0)
    options = {"num_classes": classes, "ignore_index": 255}
    assert found.equal(tm.multiclass_confusion_matrix(predicted, labels, **options))
    counts = class_counts(found)
    macro = tm.multiclass_jaccard_index(predicted, labels, **options)
    assert mean_iou(counts) == pytest.approx(macro.item(), abs=1e-6)
    each = tm.multiclass_jaccard_index(predicted, labels, average="none", **options).numpy()
    np.testing.assert_allclose(np.nan_to_num(class_iou(counts)), each, atol=1e-6)
    micro = tm.multiclass_accuracy(predicted, labels, average="micro", **options)
    assert pixel_accuracy(counts) == pytest.approx(micro.item(), abs=1e-6)
    recall = tm.multiclass_recall(predicted, labels, average="none", **options).numpy()
    np.testing.assert_allclose(np.nan_to_num(class_accuracy(counts)), recall, atol=1e-6)
    present = counts[:, 1] > 0
    assert mean_accuracy(counts) == pytest.approx(recall[present].mean(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_losses_are_those_of_segmentation_models(seed, classes):
    """Theirs of one image are ours; Dice divides by all classes, also those that are not labelled."""
    from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss

    _, labels = random_maps(seed, classes)
    labels[0, 0, :2] = torch.tensor([0, 255])
    logits = torch.randn(3, classes, 9, 11, generator=torch.Generator().manual_seed(seed % 2**31))
    ours, theirs = logits[:1].clone().requires_grad_(), logits[:1].clone().requires_grad_()
    lovasz_softmax(ours, labels[:1]).sum().backward()
    LovaszLoss("multiclass", ignore_index=255)(theirs, labels[:1]).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    present = len(labels[0].unique()) - 1
    dice = DiceLoss("multiclass", ignore_index=255, smooth=0.0)(logits[:1], labels[:1])
    assert soft_dice(logits, labels, smooth=0)[0].item() == pytest.approx(dice.item() * classes / present, abs=1e-5)


@st.composite
def scenes(draw):
    """Objects and detections of some images, with masks, crowds, ties and images without either."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = []
    for _ in range(draw(st.integers(1, 4))):
        sides = []
        for count in (rng.integers(0, 6), rng.integers(0, 8)):
            corners = rng.integers(0, 40, (count, 2))
            boxes = np.concatenate([corners, corners + rng.integers(2, 60, (count, 2))], axis=1)
            y, x = np.mgrid[:100, :110]
            masks = np.array([(x >= a) & (x < c) & (y >= b) & (y < d) & ((x + y) % 7 > 0) for a, b, c, d in boxes])
            parts = {"boxes": boxes.astype(np.float32), "labels": rng.integers(0, 3, count)}
            sides.append(parts | {"masks": masks.reshape(count, 100, 110)})
        truth, found = sides
        if len(truth["boxes"]) and len(found["boxes"]):
            found["boxes"][0] = truth["boxes"][0] + rng.integers(-2, 3)
        truth["crowd"] = rng.random(len(truth["boxes"])) < 0.2
        found["scores"] = rng.integers(0, 5, len(found["boxes"])) / 5
        images.append((truth, found))
    return images


@settings(max_examples=25, deadline=None)
@given(scenes(), st.sampled_from(["bbox", "segm"]))
def test_detection_is_pycocotools_reading_files(images, overlap):
    """As its users call it: a file of annotations, loadRes of a list with nothing but what is compared."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [one for number, (truth, _) in enumerate(images) for one in coco_annotations(number, **truth)]
    results = [one for number, (_, found) in enumerate(images) for one in coco_results(number, **found)]
    truth = coco_truth(dict.fromkeys(range(len(images)), (100, 110)), annotations, ["a", "b", "c"])
    ours = detection_metrics(truth, results, overlap=overlap)
    if not results:
        assert ours.ap in (None, 0)
        return
    kept = {"bbox": "bbox", "segm": "segmentation"}[overlap]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        listed = [{name: one[name] for name in ("image_id", "category_id", "score", kept)} for one in results]
        theirs = COCOeval(coco, coco.loadRes(listed), overlap)
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
    wanted = [None if value < 0 else value for value in [*theirs.stats[:6], theirs.stats[8]]]
    assert [ours.value(name) for name in [*names, "ar"]] == wanted
    precision = theirs.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_array_equal(np.where(precision < 0, np.nan, precision), ours.precision)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))
def test_run_length_codes_are_pycocotools(seed, height, width, share):
    from pycocotools import mask as theirs

    pixels = np.random.default_rng(seed).random((height, width)) < share
    code = theirs.encode(np.asfortranarray(pixels, np.uint8))
    assert encode_rle(pixels) == {"size": [height, width], "counts": code["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(code), theirs.decode(code) > 0)
