"""What may be given as images: what cannot be pictures in [-1, 1] is refused, and doubtful ones are warned of."""

import io
import warnings

import numpy as np
import pytest
import torch
from example_classifiers import feedback, linear, plain
from PIL import Image
from support import recipe_input, small_unet

from difformer import DiffusionClassifier, create_backbone
from difformer.data import Preprocessing, content_id
from difformer.features.images import ImageCheck
from difformer.heads import LinearHead
from difformer.streams import stable_id

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture(params=[lambda b: plain(b, ["out02"], [90]), feedback], ids=["plain", "feedback"])
def extractor(request, backbone):
    return request.param(backbone)


@pytest.fixture
def pixels():
    """(2, 3, 32, 32) from black to white, in steps of 8 bits."""
    return torch.linspace(0, 255, 3 * 32 * 32).round().view(1, 3, 32, 32).repeat(2, 1, 1, 1)


def test_values_that_no_picture_has_are_refused(extractor, backbone, pixels):
    classifier = linear(backbone)
    broken = pixels / 127.5 - 1
    broken[1, 2, 3, 4] = torch.nan
    for images, message in (
        (pixels, r"reach from 0 to 255; give images / 127.5 - 1"),
        ((pixels / 255 - MEAN) / STD, r"reach from -2.118 to 2.64; give \(images \* std \+ mean\) \* 2 - 1"),
        (broken, "hold values that are NaN"),
        (pixels / 0, "reach from|NaN"),
    ):
        with pytest.raises(ValueError, match=rf"pictures in \[-1, 1\], but these.*({message})"):
            extractor(images)
        with pytest.raises(ValueError, match=rf"pictures in \[-1, 1\], but these.*({message})"):
            classifier.predict([torch.zeros(3, 32, 32), images[1]])


def test_pictures_pass_without_a_word_and_doubtful_ones_with_one(extractor, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(pixels / 127.5 - 1)
        extractor((pixels / 127.5 - 1).bfloat16())
        extractor(torch.zeros(1, 3, 32, 32))
        extractor(torch.zeros(0, 3, 32, 32))
        # Bright pictures have the values of 8-bit pixels, which those in [0, 1] have not.
        extractor((128 + (pixels / 2).floor()) / 127.5 - 1)
    for images, message in ((pixels / 255, r"if they lie in \[0, 1\], give"), (1.3 * (pixels / 127.5 - 1), "beyond")):
        with pytest.warns(UserWarning, match=message):
            extractor(images)


def test_each_warning_is_shown_once(backbone, pixels):
    extractor = plain(backbone, ["in00"], [90])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            extractor(pixels / 255)
            extractor(pixels / 300)
    assert len(shown) == 1


def test_of_training_on_a_gpu_only_the_first_batch_is_looked_at(monkeypatch, pixels):
    """A look at values waits for the device."""
    looks = []
    monkeypatch.setattr("difformer.features.images.check_range", looks.append)

    class Elsewhere(torch.Tensor):
        is_cpu = False

    batch, check = (pixels / 127.5 - 1).as_subclass(Elsewhere), ImageCheck()
    for training, expected in ((True, 1), (True, 1), (False, 2), (True, 2)):
        check(batch, training=training)
        assert len(looks) == expected
    check(pixels, training=True)
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["a.png"], "got list; a classifier's predict takes files"),
        ("a.png", "got str"),
        (Image.new("RGB", (32, 32)), "got Image"),
        (np.zeros((1, 3, 32, 32), np.float32), "got ndarray"),
        (None, "got NoneType"),
        (torch.zeros(3, 32, 32), r"got shape \(3, 32, 32\); for one image, give images\[None\]"),
        (torch.zeros(32, 32), r"got shape \(32, 32\)"),
        (torch.zeros(1, 32, 32, 3), r"give images.permute\(0, 3, 1, 2\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"got torch.uint8; .* images.float\(\) / 127.5 - 1"),
    ],
)
def test_what_is_no_batch_of_images_says_what_to_give(extractor, backbone, images, message):
    with pytest.raises(ValueError, match=rf"images must be a floating-point tensor \(B, 3, H, W\).*{message}"):
        extractor(images)
    with pytest.raises(ValueError, match=message):
        linear(backbone)(images)


def test_predictions_of_arrays_bytes_and_files_are_the_same(backbone, tmp_path):
    classifier = linear(backbone)
    pixels = (recipe_input(1, 40, 33, 3).clamp(-1, 1) * 127 + 128).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (expected,) = classifier.predict(tmp_path / "a.png")
    assert classifier.predict(pixels) == [expected]
    assert classifier.predict(np.stack([pixels, pixels]), batch_size=1) == [expected] * 2
    assert classifier.predict((tmp_path / "a.png").read_bytes()) == [expected]
    (grey,) = classifier.predict(pixels[..., 0])
    assert grey == classifier.predict(Image.fromarray(pixels[..., 0]))[0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 40, 3)), r"got float64 of shape \(40, 40, 3\)"),
        (np.zeros((40, 40, 4), np.uint8), r"got uint8 of shape \(40, 40, 4\)"),
        (np.zeros(3, np.uint8), "got uint8 of shape"),
        (np.zeros((0, 0, 3), np.uint8), "got uint8 of shape"),
        ([None], "got NoneType"),
        (7, "got int"),
        ([{}], "got dict"),
        (torch.zeros(32, 32), r"of shape \(3, H, W\), got \(32, 32\)"),
        (torch.zeros(3, 32, 32).byte(), "got torch.uint8"),
        (b"no image", "what was given as bytes cannot be read as an image"),
        ([io.BytesIO(b"")], "got BytesIO"),
    ],
)
def test_what_is_no_image_is_not_predicted(backbone, image, message):
    with pytest.raises(ValueError, match=message):
        linear(backbone).predict(image)


def test_a_head_that_is_not_finite_predicts_nothing(backbone):
    classifier = linear(backbone)
    with torch.no_grad():
        classifier.head.fcs[0].bias[1] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        classifier.predict(torch.zeros(3, 32, 32))


def test_the_number_of_a_picture_does_not_depend_on_its_type():
    """Of pictures from files it is the one that it always was."""
    grid = torch.arange(256, dtype=torch.uint8).repeat(3, 4, 1)
    picture = grid.float() / 127.5 - 1
    assert content_id(picture) == stable_id(picture.numpy().tobytes())
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert content_id(picture.to(dtype)) == content_id(picture)
    assert content_id((grid.double() / 255 * 2 - 1).float()) == content_id(picture)
    assert content_id(picture.flip(2)) != content_id(picture)


def train_at(side, extractor, head, averaged=False):
    """One step of a loop that a user might write."""
    features = extractor(torch.zeros(2, 3, side, side))
    if averaged:
        sizes = head.map_sizes
        features = {k: torch.nn.functional.adaptive_avg_pool2d(v, sizes[k]) for k, v in features.items()}
    head(features).sum().backward()


@pytest.fixture
def parts(backbone):
    extractor = plain(backbone, ["out02"], [90])
    return extractor, LinearHead(extractor.specs, 3)


def test_files_are_read_at_the_size_that_the_head_learned_from(parts):
    extractor, head = parts
    classifier = DiffusionClassifier(extractor, head)
    assert classifier.preprocessing == Preprocessing(32)
    train_at(64, extractor, head)
    assert classifier.preprocessing == DiffusionClassifier(extractor, head).preprocessing == Preprocessing(64)
    assert classifier.preprocess(Image.new("RGB", (100, 80))).shape == (3, 64, 64)
    given = DiffusionClassifier(extractor, LinearHead(extractor.specs, 3), preprocessing=Preprocessing(64))
    with pytest.raises(ValueError, match="this classifier reads images of 64×64, got 32×32: resize it"):
        given.predict(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="learned from images of 64×64, got 32×32: resize it"):
        classifier.predict(torch.zeros(3, 32, 32))
    assert len(classifier.predict(torch.zeros(3, 64, 64))) == 1


def test_evaluation_is_not_learning(parts):
    extractor, head = parts
    classifier = DiffusionClassifier(extractor, head)
    classifier.eval()(torch.zeros(1, 3, 64, 64))
    classifier.train().predict(torch.zeros(3, 64, 64))
    with torch.no_grad():
        classifier(torch.zeros(1, 3, 64, 64))
    assert classifier.preprocessing == Preprocessing(32)


def test_a_size_that_is_not_known_is_asked_for(parts):
    extractor, head = parts
    classifier = DiffusionClassifier(extractor, head)
    train_at(32, extractor, head)
    train_at(64, extractor, head)
    other = LinearHead(extractor.specs, 3)
    train_at(64, extractor, other, averaged=True)
    for unclear in (classifier, DiffusionClassifier(extractor, other)):
        with pytest.raises(ValueError, match=r"do not show one size .*\.preprocessing = Preprocessing\(size\)"):
            unclear.predict(Image.new("RGB", (100, 80)))
        assert len(unclear.predict([torch.zeros(3, 32, 32), torch.zeros(3, 64, 64)])) == 2
        unclear.preprocessing = Preprocessing(64)
        assert len(unclear.predict(Image.new("RGB", (100, 80)))) == 1


def test_objects_are_printed_in_a_line_or_a_few(backbone, extractor):
    classifier = linear(backbone)
    text = str(classifier)
    assert len(text.splitlines()) == 3
    for part in ("3 classes: 0, 1, 2", "taps=['out02']", "timesteps=[90]", "'UNet': 32 pixels, 19 taps in00 … out08"):
        assert part in text
    assert "LinearHead(out02 at t=90; num_classes=3, pool=2, batch_norm=False; 771 weights)" in text
    assert len(str(extractor).splitlines()) == 1


def test_features_say_how_they_are_found(extractor):
    features = extractor(torch.zeros(1, 3, 32, 32))
    for key in ("out02", 0, None):
        with pytest.raises(KeyError, match=r"no feature .* features\[FeatureKey\(tap='.*there are FeatureKey"):
            features[key]
    assert features.get("out02") is None


def test_what_is_no_backbone_and_no_classifier_says_what_is_wanted(backbone, extractor):
    for wrong in ("adm256_uncond", None, small_unet()):
        with pytest.raises(ValueError, match=r"expected a backbone, as create_backbone.*got (str|NoneType|UNet);"):
            plain(wrong, ["mid"], [90])
    for wrong in ((backbone, linear(backbone).head), (extractor, torch.nn.Linear(2, 2)), (None, None)):
        with pytest.raises(ValueError, match="made of an extractor and a head"):
            DiffusionClassifier(*wrong)
    with pytest.raises(ValueError, match="a head reads features, as an extractor gives them, got Tensor"):
        linear(backbone).head(torch.zeros(1, 3, 32, 32))
