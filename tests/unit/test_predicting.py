"""From images in any form to named predictions."""

import pytest
import torch
from example_classifiers import linear, plain
from PIL import Image
from support import recipe_input, small_unet

from difformer import DiffusionClassifier, create_backbone
from difformer.data import ImageError, Preprocessing
from difformer.heads import LinearHead


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(40, 33), (32, 32), (100, 64)]):
        pixels = (recipe_input(i, size[1], size[0], 3).clamp(-1, 1) * 127 + 128).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_predictions_name_classes_and_do_not_depend_on_each_other(backbone, folder):
    classifier = linear(backbone, class_names=["cat", "dog", "bird"]).train()
    paths = [folder / f"{i}.png" for i in range(3)]
    predictions = classifier.predict(paths)
    assert classifier.training
    for path, prediction in zip(paths, predictions, strict=True):
        assert list(prediction.probabilities) == ["cat", "dog", "bird"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert (
            prediction.probability
            == prediction.probabilities[prediction.label]
            == max(prediction.probabilities.values())
        )
        (alone,) = classifier.predict(path)
        assert alone.probabilities == pytest.approx(prediction.probabilities, abs=1e-5)
    by_batch = classifier.predict(paths[::-1], batch_size=2)[::-1]
    for one, other in zip(by_batch, predictions, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_paths_images_and_tensors_are_predicted_alike(backbone, folder):
    classifier = linear(backbone)
    path = folder / "0.png"
    tensor = classifier.preprocess(path)
    forms = [path, str(path), Image.open(path), tensor]
    predictions = [classifier.predict(form)[0] for form in forms] + classifier.predict(tensor[None])
    for prediction in predictions:
        assert prediction.probabilities == pytest.approx(predictions[0].probabilities, abs=1e-5)
    turned = Image.open(path)
    turned.getexif()[0x0112] = 6  # orientation: a quarter turn
    turned.save(folder / "turned.png", exif=turned.getexif())
    one, other = classifier.predict([folder / "turned.png", Image.open(folder / "turned.png")])
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert not torch.equal(classifier.preprocess(folder / "turned.png"), tensor)
    assert classifier.predict([]) == []
    mixed = classifier.predict([torch.zeros(3, 32, 32), torch.zeros(3, 64, 32)])
    assert len(mixed) == 2


def test_images_are_read_as_they_are_needed(backbone, monkeypatch):
    """Of images that are made one by one, no more than a batch is there before it is classified."""
    classifier = linear(backbone)
    made, sizes = [], []

    def images():
        for i, side in enumerate([32, 32, 32, 64, 64, 32, 32]):
            made.append(i)
            yield torch.full((3, side, side), i / 8)

    features = classifier.features

    def counting(batch, *arguments, **options):
        sizes.append((len(made), len(batch)))
        return features(batch, *arguments, **options)

    monkeypatch.setattr(classifier, "features", counting)
    predictions = classifier.predict(images(), batch_size=2)
    # Images made so far and images in the batch: the fourth is needed to see that the third stands alone.
    assert sizes == [(2, 2), (4, 1), (5, 2), (7, 2)]
    for one, image in zip(predictions, images(), strict=True):
        (alone,) = classifier.predict(image)
        assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        classifier.predict([], batch_size=0)


def test_predicting_leaves_every_part_in_its_mode(backbone):
    extractor = plain(backbone, ["out02"], [90])
    classifier = DiffusionClassifier(extractor, LinearHead(extractor.specs, 3, batch_norm=True)).train()
    classifier.head.norm.eval()
    before = {name: module.training for name, module in classifier.named_modules()}
    classifier.predict(torch.zeros(3, 32, 32))
    assert {name: module.training for name, module in classifier.named_modules()} == before


def test_preprocessing_is_the_published_one(tmp_path):
    """Short side to the size, centre crop, pixels to [-1, 1]."""
    image = Image.new("RGB", (100, 50), (255, 0, 128))
    image.paste((0, 0, 0), (0, 0, 20, 50))
    tensor = Preprocessing(32)(image)
    assert tensor.shape == (3, 32, 32)
    torch.testing.assert_close(tensor[:, 16, 16], torch.tensor([1.0, -1.0, 128 / 127.5 - 1]))
    assert tensor.min() == -1  # the band at the left edge is cropped away
    assert (tensor[0] == 1).all()
    assert Preprocessing(32, resize=40)(image).shape == (3, 32, 32)
    for arguments in ((0,), (32, 16)):
        with pytest.raises(ValueError, match="size"):
            Preprocessing(*arguments)


def test_unreadable_images_raise(backbone, folder):
    classifier = linear(backbone)
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "text.png").write_text("no image")
    for name in ("broken.png", "text.png", "missing.png"):
        with pytest.raises(ImageError, match=f"{name} cannot be read as an image"):
            classifier.predict([folder / "0.png", folder / name])
