"""A page about features."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch.nn.functional as F
from browser import open_page
from PIL import Image
from training import merged, write_subject

from difformer.cli import main
from difformer.config.reading import build, plain
from difformer.taps import FeatureKey
from difformer.verbs.look import look as module
from difformer.verbs.look import sections
from difformer.verbs.look.look import look
from difformer.verbs.look.recipe import LookRecipe

pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture
def values(tmp_path):
    return write_subject(tmp_path, "look") | {
        "taps": ["in03", "mid"],
        "timesteps": [50, 300],
        "ks": [1, 3],
        "queries": 2,
    }


def make(values, **changes):
    return build(LookRecipe, plain(merged(values, changes)))


def test_a_page_with_everything(values, tmp_path, capsys):
    (tmp_path / "look.yaml").write_text(json.dumps(values))
    assert main(["look", str(tmp_path / "look.yaml")]) == 0
    assert capsys.readouterr().out.endswith("look.html\n")
    page = (tmp_path / "look" / "look.html").read_text(encoding="utf-8")
    # Precision, components, map, and two images with their neighbours.
    assert len(re.findall("<img", page)) == 3 + 2
    assert "t-SNE of" in page
    assert "24 of the 24 images of folder, train, evenly spaced" in page
    assert "It was chosen on these images of train" in page
    precision = json.loads((tmp_path / "look" / "precision.json").read_text())
    assert len(precision) == 4
    assert all(0 <= value <= 1 for row in precision.values() for value in row.values())


def test_a_page_with_fewer_pictures_takes_its_place(values, tmp_path):
    (tmp_path / "look").mkdir()
    for name in ("look.html", "image-000.png", "image-001.png"):
        (tmp_path / "look" / name).touch()
    look(make(values, projection="none", images=6, queries=1, timesteps=[50]), overwrite=True)
    assert [path.name for path in (tmp_path / "look").glob("image-*.png")] == ["image-000.png"]


@pytest.mark.parametrize(("changes", "count"), [({"images": 3}, 3), ({"ks": [1, 24]}, 24)])
def test_too_few_images_are_refused_before_any_is_read(values, changes, count, monkeypatch):
    monkeypatch.setattr(module, "build_backbone", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ValueError, match=rf"need more than {count} images, but there are {count} of train"):
        look(make(values, **changes))


def test_several_processes_are_refused(values, monkeypatch):
    processes = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(module, "create_accelerator", lambda *a, **k: processes)
    with pytest.raises(ValueError, match="looked at in one process"):
        look(make(values, projection="none"))


def test_coloured_classes_are_found_again(values):
    precision = look(make(values, projection="none", images=12))
    assert precision.keys() == {FeatureKey(tap, t) for tap in ("in03", "mid") for t in (50, 300)}
    # A third by chance; the classes differ in colour, which little noise leaves.
    assert precision[FeatureKey("in03", 50)][1] > 0.6


def test_neighbours_are_shown_by_every_block_and_timestep(values, monkeypatch):
    drawn, vectors = [], {}
    read = module._read

    def note_vectors(*arguments):
        batch, found = read(*arguments)
        vectors.update(found)
        return batch, found

    monkeypatch.setattr(module, "_read", note_vectors)
    monkeypatch.setattr(sections, "draw_neighbours", lambda *drawing: drawn.append(drawing) or save_dot(drawing[-1]))
    look(make(values, projection="none", images=12))
    assert [query for _, _, query, _, _ in drawn] == [0, 11]
    for _, labels, query, nearest, _ in drawn:
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert list(nearest) == [FeatureKey(tap, t) for tap in ("in03", "mid") for t in (50, 300)]
        for key, places in nearest.items():
            alike = F.cosine_similarity(vectors[key][query], vectors[key], dim=1)
            alike[query] = -2
            assert places == alike.argsort(descending=True)[:5].tolist()


def test_precision_at_the_largest_k_is_drawn_and_the_best_framed(values, monkeypatch):
    drawn = []

    def note(shares, path, *, label, chosen):
        drawn.append((shares, chosen))
        save_dot(path)

    # The second of four features is best at 3, and the last at 1.
    measured = iter([{3: 0.2, 1: 0.3}, {3: 0.8, 1: 0.4}, {3: 0.1, 1: 0.5}, {3: 0.3, 1: 0.9}])
    monkeypatch.setattr(module, "precision_at_k", lambda *a: next(measured))
    monkeypatch.setattr(sections, "draw_heat_maps", note)
    look(make(values, projection="none", ks=[3, 1]))
    shares = {("in03", 50): 0.2, ("in03", 300): 0.8, ("mid", 50): 0.1, ("mid", 300): 0.3}
    assert drawn == [({"Precision at 3": shares}, ("Precision at 3", "in03", 300))]


def save_dot(path):
    Image.new("RGB", (1, 1)).save(path)


@pytest.mark.parametrize(("projection", "library"), [("umap", "umap"), ("tsne", "sklearn.manifold")])
def test_says_what_to_install_before_any_work(values, monkeypatch, tmp_path, projection, library):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(module, "build_backbone", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ImportError, match={"umap": "umap-learn", "tsne": "scikit-learn"}[projection]):
        look(make(values, projection=projection))
    assert not (tmp_path / "look").exists()


def test_without_scikit_learn_the_page_says_so_in_place_of_the_map(values, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    look(make(values, timesteps=[50]))
    for text in (caplog.text, (tmp_path / "look" / "look.html").read_text(encoding="utf-8")):
        assert "no map of the images" in text
        assert "pip install --upgrade scikit-learn" in text
    assert not (tmp_path / "look" / "map.png").exists()


def test_no_projection_is_no_map_and_no_word_about_it(values, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    look(make(values, timesteps=[50], projection="none"))
    assert "map" not in caplog.text
    assert "A map" not in (tmp_path / "look" / "look.html").read_text(encoding="utf-8")


def test_a_map_by_umap(values, monkeypatch, tmp_path):
    seen = {}

    class Halves:
        """Stands in for UMAP: the first two numbers of each vector, halved."""

        def __init__(self, random_state):
            seen["seed"] = random_state

        def fit_transform(self, vectors):
            seen["vectors"] = vectors
            return vectors[:, :2] / 2

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Halves))
    original = sections.draw_scatter

    def note(points, labels, names, path):
        seen.update(points=points, labels=labels, names=names)
        original(points, labels, names, path)

    monkeypatch.setattr(sections, "draw_scatter", note)
    look(make(values, projection="umap", seed=5))
    assert seen["seed"] == 5
    assert seen["vectors"].shape[0] == 24
    assert seen["points"].tolist() == (seen["vectors"][:, :2] / 2).tolist()
    assert seen["labels"].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert list(seen["names"]) == ["class0", "class1", "class2"]
    assert (tmp_path / "look" / "map.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "look" / "look.html").read_text(encoding="utf-8")
    assert "UMAP of all images, coloured by class" in page
    assert "t-SNE" not in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection": "pca"}, "projection must be one of auto, tsne, umap, none"),
        ({"ks": []}, "ks must be at least one"),
        ({"queries": 0}, "queries"),
    ],
)
def test_wrong_values(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)


@pytest.mark.browser
def test_the_page_in_a_browser(values, tmp_path):
    look(make(values))
    visit = open_page(tmp_path / "look" / "look.html", 400)
    assert visit.scroll_width <= 400
    assert all(image["complete"] and image["naturalWidth"] > 0 for image in visit.images)
    assert [entry for entry in visit.log if entry["level"] == "SEVERE"] == []
