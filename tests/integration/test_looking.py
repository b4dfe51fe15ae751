"""A page about features."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from browser import open_page
from training import merged, write_subject

from difformer.cli import main
from difformer.engine.looking import look as module
from difformer.engine.looking.look import look
from difformer.engine.recipes.looking import LookRecipe
from difformer.engine.recipes.reading import build, plain
from difformer.taps import FeatureKey


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
    # Components, map, and two images with five neighbours each.
    assert len(re.findall("<img", page)) == 2 + 12
    assert "t-SNE of" in page
    assert "24 of the 24 images of folder, train, evenly spaced" in page
    assert "as these images of train chose it" in page
    precision = json.loads((tmp_path / "look" / "precision.json").read_text())
    assert len(precision) == 4
    assert all(0 <= value <= 1 for row in precision.values() for value in row.values())


def test_a_page_with_fewer_pictures_takes_its_place(values, tmp_path):
    (tmp_path / "look").mkdir()
    for name in ("look.html", "image-000.png", "image-011.png"):
        (tmp_path / "look" / name).touch()
    look(make(values, projection="none", images=6, queries=1, timesteps=[50]), overwrite=True)
    assert len(list((tmp_path / "look").glob("image-*.png"))) == 6


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


def test_says_what_to_install_before_any_work(values, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="umap-learn"):
        look(make(values, projection="umap"))
    assert not (tmp_path / "look").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection": "pca"}, "projection must be one of tsne, umap, none"),
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
