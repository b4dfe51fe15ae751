"""Diffusion features as a scikit-learn transformer, and as an encoder for decoders of other libraries."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from support import small_unet

from difformer import FeatureExtractor, FeatureKey, create_backbone
from difformer.backbones import Encoder
from difformer.data import ImageError, Preprocessing, content_id
from difformer.sklearn import DiffusionFeatures


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "small.safetensors"
    create_backbone(small_unet(), schedule="linear").save(path)
    return str(path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for number in range(12):
        pixels = np.clip(rng.normal(60 if number % 2 else 190, 30, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        found.append(folder / f"{number:02}.png")
    return found


def test_vectors_are_the_pooled_features(backbone, paths):
    features = DiffusionFeatures(backbone, taps=["mid", "out01"], timesteps=[90], pool=2)
    found = features.fit_transform(paths)
    image = Preprocessing(32)(Image.open(paths[3]))
    extractor = FeatureExtractor(create_backbone(backbone), taps=["mid", "out01"], timesteps=[90])
    maps = extractor(image[None], [content_id(image)])
    expected = torch.cat(
        [torch.nn.functional.adaptive_avg_pool2d(maps[FeatureKey(tap, 90)], 2).flatten(1) for tap in ("mid", "out01")],
        dim=1,
    )
    assert found.dtype == np.float32
    assert found.shape == (12, features.n_features_out_)
    np.testing.assert_allclose(found[3], expected[0].numpy(), rtol=1e-4, atol=1e-5)
    names = features.get_feature_names_out()
    assert len(names) == len(set(names)) == features.n_features_out_
    assert names[0] == "mid_t90_c0_0"


def test_an_image_has_the_same_vector_however_it_is_given(backbone, paths):
    features = DiffusionFeatures(backbone, taps=["mid"], timesteps=[90], batch_size=5).fit()
    whole = features.transform(paths)
    arrays = np.stack([np.asarray(Image.open(path)) for path in paths])
    forms = [arrays, [Image.open(path) for path in paths], [path.read_bytes() for path in paths], map(str, paths)]
    for form in forms:
        np.testing.assert_allclose(features.transform(form), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.transform(paths[::-1])[::-1], whole, rtol=1e-4, atol=1e-5)


def test_pipelines_grid_searches_and_workers(backbone, paths):
    labels = [number % 2 for number in range(12)]
    model = make_pipeline(DiffusionFeatures(backbone, taps=["mid"]), LogisticRegression(max_iter=500))
    search = GridSearchCV(model, {"diffusionfeatures__timesteps": [(10,), (400,)]}, cv=2, n_jobs=2)
    search.fit(paths, labels)
    assert search.best_score_ > 0.9
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert (again.predict(paths) == search.predict(paths)).all()


def test_copies_have_the_arguments_and_no_backbone(backbone, paths):
    features = DiffusionFeatures(backbone, taps=("mid",), seed=3).fit()
    assert not hasattr(clone(features), "n_features_out_")
    assert clone(features).get_params() == features.get_params()
    copy = pickle.loads(pickle.dumps(features))
    assert "_reader" not in vars(copy)
    np.testing.assert_array_equal(copy.transform(paths[:2]), features.transform(paths[:2]))
    assert (copy.get_feature_names_out() == features.get_feature_names_out()).all()


# scikit-learn's checks give arrays of numbers; these do not, as far as a release has them.
CHECKS = [
    "check_no_attributes_set_in_init", "check_parameters_default_constructible", "check_get_params_invariance",
    "check_set_params", "check_estimator_get_tags_default_keys", "check_estimator_repr", "check_estimator_cloneable",
    "check_do_not_raise_errors_in_init_or_set_param", "check_mixin_order",
]  # fmt: skip


@pytest.mark.parametrize("check", [name for name in CHECKS if hasattr(estimator_checks, name)])
def test_scikit_learns_own_checks(check):
    getattr(estimator_checks, check)("DiffusionFeatures", DiffusionFeatures())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"taps": ("out99",)}, ValueError, "unknown tap 'out99'"),
        ({"timesteps": (1000,)}, ValueError, "1000"),
        ({"pool": 0}, ValueError, "pool must be a positive integer"),
        ({"backbone": "nothing"}, FileNotFoundError, "there is no file nothing"),
    ],
)
def test_wrong_arguments_are_refused_by_fit(backbone, arguments, error, message):
    with pytest.raises(error, match=message):
        DiffusionFeatures(**{"backbone": backbone, "taps": ("mid",), **arguments}).fit()


def test_wrong_images(backbone, tmp_path):
    features = DiffusionFeatures(backbone, taps=("mid",))
    with pytest.raises(NotFittedError):
        features.transform([])
    features.fit()
    with pytest.raises(ValueError, match="at least one path or picture"):
        features.transform([])
    with pytest.raises(ValueError, match=r"write \['a.jpg'\] for one"):
        features.transform("a.jpg")
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(ImageError):
        features.transform([tmp_path / "a.jpg"])
    with pytest.raises(ValueError, match="an image must be a path"):
        features.transform(np.zeros((3, 5)))


def test_an_encoder_gives_maps_and_says_what_they_are(backbone):
    opened = create_backbone(backbone)
    encoder = opened.as_encoder(["in00", "mid"], t=90, seed=2)
    images = torch.rand(2, 3, 32, 64) * 2 - 1
    maps = encoder(images, ids=[5, 6])
    expected = FeatureExtractor(opened, taps=["in00", "mid"], timesteps=[90], seed=2)(images, [5, 6])
    for tap, found in zip(["in00", "mid"], maps, strict=True):
        torch.testing.assert_close(found, expected[FeatureKey(tap, 90)])
    info = encoder.feature_info
    assert info.module_name() == ["in00", "mid"]
    assert info.channels() == [maps[0].shape[1], maps[1].shape[1]]
    assert info.reduction() == [32 // maps[0].shape[2], 32 // maps[1].shape[2]]
    assert [entry["num_chs"] for entry in info] == info.channels()
    # Without ids the noise belongs to the pixels.
    torch.testing.assert_close(encoder(images)[1], encoder(images.flip(0))[1].flip(0), rtol=1e-4, atol=1e-4)


def test_wrong_encoders(backbone):
    opened = create_backbone(backbone)
    with pytest.raises(ValueError, match="unknown tap"):
        opened.as_encoder(["in77"], t=90)
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1000\)"):
            Encoder(opened, ["mid"], t)
