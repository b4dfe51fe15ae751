"""Odd inputs to public functions end in an error that was meant, or in a result; never in an accident of Python's."""

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from example_classifiers import feedback, plain
from support import small_unet

from difformer import (
    AttentionHead,
    CNNHead,
    DifFormerHead,
    DiffusionClassifier,
    FeatureExtractor,
    FeatureKey,
    FeedbackExtractor,
    LinearHead,
    MLPHead,
    NoiseSchedule,
    create_backbone,
    image_noise,
    q_sample,
)
from difformer.analysis import cka, image_scores, knn_scores

ODD = [
    None, True, -1, 0, 1.5, float("nan"), float("inf"), "", "a", "-1", b"x", [], [None], ["a"], [-1], [[1]], (), {},
    {"a": 1}, {1: 2}, set(), object(), Path("/nonexistent"), torch.float32, FeatureKey("out02", 90),
    torch.zeros(0), torch.zeros(3), torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 32, 32).byte(),
    torch.full((2, 3, 32, 32), torch.nan), torch.zeros(2, 0, 32, 32), torch.zeros(2, 5, 8, 8),
    torch.tensor([True, False]), torch.zeros(2, dtype=torch.complex64),
    np.zeros(3), np.zeros((2, 3)), np.array(["a"]), np.zeros((4, 4), object), np.array([np.nan]),
]  # fmt: skip

BACKBONE = create_backbone(small_unet(), schedule="linear")
PLAIN, DIFFFEED = plain(BACKBONE, ["out02"], [90]), feedback(BACKBONE)
HEAD = LinearHead(PLAIN.specs, 3)
CLASSIFIER = DiffusionClassifier(PLAIN, HEAD)
IMAGES, SCHEDULE = torch.zeros(2, 3, 32, 32), NoiseSchedule.linear(1000)
ROWS, LABELS = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 3

# Functions with arguments that are right; each is tried with each of the odd ones in its place.
CALLS = {
    "create_backbone": (create_backbone, {"name_or_path": "nothing"}, ()),
    "FeatureExtractor": (FeatureExtractor, {"backbone": BACKBONE, "taps": ["mid"], "timesteps": [90]}, ()),
    "FeedbackExtractor": (
        FeedbackExtractor,
        {"backbone": BACKBONE, "feedback_taps": ["out01"], "taps": ["out02"], "timesteps": [90]},
        ("first_pass_taps", "norm", "gate"),
    ),
    "extractor": (PLAIN, {"images": IMAGES, "ids": [1, 2], "noise": {90: IMAGES}, "y": None}, ()),
    "feedback extractor": (DIFFFEED, {"images": IMAGES, "ids": [1, 2], "noise": {90: IMAGES}}, ()),
    "noise": (lambda eps: PLAIN(IMAGES, noise={90: eps}), {"eps": IMAGES}, ()),
    **{
        head.__name__: (head, {"specs": PLAIN.specs, "num_classes": 3}, ())
        for head in (LinearHead, MLPHead, CNNHead)
    },
    **{
        head.__name__: (head, {"specs": PLAIN.specs, "num_classes": 3, "width": 32, "heads": 4, "layers": 1}, ("norm",))
        for head in (AttentionHead, DifFormerHead)
    },
    "head": (HEAD, {"features": dict.fromkeys(HEAD.specs, torch.zeros(1, 64, 8, 8))}, ()),
    "head of": (lambda maps: HEAD(dict.fromkeys(HEAD.specs, maps)), {"maps": torch.zeros(1, 64, 8, 8)}, ()),
    "DiffusionClassifier": (DiffusionClassifier, {"extractor": PLAIN, "head": HEAD}, ("class_names",)),
    "classifier": (CLASSIFIER, {"images": IMAGES, "ids": [1, 2]}, ()),
    "predict": (CLASSIFIER.predict, {"images": IMAGES, "batch_size": 2}, ()),
    "predict one of": (lambda image: CLASSIFIER.predict([image]), {"image": IMAGES[0]}, ()),
    "FeatureKey": (FeatureKey, {"tap": "mid", "t": 90}, ("round",)),
    "forward_taps": (BACKBONE.forward_taps, {"x_t": IMAGES, "t": 90, "taps": ["mid"]}, ("y",)),
    "image_noise": (image_noise, {"x_0": IMAGES, "ids": [1, 2], "t": 3}, ("seed", "draw")),
    "q_sample": (q_sample, {"x_0": IMAGES, "t": 3, "eps": IMAGES, "schedule": SCHEDULE}, ()),
    "cka": (cka, {"x": ROWS, "y": ROWS}, ("kernel",)),
    "image_scores": (image_scores, {"logits": ROWS, "labels": LABELS}, ()),
    "knn_scores": (
        knn_scores, {"queries": ROWS, "bank": ROWS, "labels": LABELS, "num_classes": 3, "ks": (1,)}, ()
    ),
}  # fmt: skip
# An object that only has to have a schedule's methods.
LEFT = {("q_sample", "schedule")}


@pytest.mark.parametrize("name", CALLS)
def test_odd_inputs_are_refused_or_taken(name):
    function, right, further = CALLS[name]
    outcomes = {"taken": 0, "refused": 0, "without a word": 0}
    for place in (*right, *further):
        for value in ODD if (name, place) not in LEFT else ():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    function(**{**right, place: value})
                    outcomes["taken"] += 1
                except (ValueError, OSError) as error:
                    outcomes["refused" if str(error) else "without a word"] += 1
                except Exception as error:
                    pytest.fail(f"{name}({place}={value!r}) ends in {type(error).__name__}: {error}")
    assert outcomes["refused"] > outcomes["taken"]
    assert not outcomes["without a word"]


def test_every_head_is_tried():
    """So that a new one is."""
    heads = {
        name
        for name, value in vars(__import__("difformer")).items()
        if inspect.isclass(value) and name.endswith("Head")
    }
    assert heads <= set(CALLS)
