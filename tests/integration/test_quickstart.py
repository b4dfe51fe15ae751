"""The quickstart: every method on one folder of images, and the page."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import open_page
from quickstart import METHODS, use_quickstart, write_recipe
from training import interrupt_after

from difformer import load_classifier
from difformer.cli import main
from difformer.data import collate, create_dataset
from difformer.engine.config import build as building
from difformer.verbs.quickstart import methods
from difformer.verbs.quickstart import plan as plans
from difformer.verbs.quickstart.plan import QuickstartConfig, create_plan
from difformer.verbs.quickstart.quickstart import _made_with, quickstart

ROOT = Path(__file__).parents[2]
HEADS = ROOT / "eval" / "configs" / "cifar10_heads.yaml"
pytestmark = pytest.mark.usefixtures("drawn_once")


@pytest.fixture(scope="module")
def done(quickstart_place):
    """The folder of a quickstart with one seed and without DifFeed."""
    with pytest.MonkeyPatch.context() as patch:
        root = use_quickstart(quickstart_place, patch)
        config = QuickstartConfig(data=str(root), seeds=1, diffeed_seeds=0, output=str(quickstart_place / "done"))
        return quickstart(config).parent


@pytest.fixture
def finished(done, pets, tmp_path):
    """A quickstart of those images that is done, in a folder of its own: what was asked for."""
    shutil.copytree(done, tmp_path / "finished")
    return QuickstartConfig(data=str(pets), seeds=1, diffeed_seeds=0, output=str(tmp_path / "finished"))


@pytest.fixture
def linear_only(pets):
    """Has pixels, k-NN and a linear probe as the only methods."""
    path = plans.RECIPES / "folder.yaml"
    write_recipe(path, **dict.fromkeys(("heads.attention", "heads.difformer", "heads.diffeed")))


@pytest.fixture
def unmeasured(monkeypatch):
    """Nothing is trained, measured or drawn; what is recorded is as ever."""
    module = "difformer.verbs.quickstart.quickstart"
    monkeypatch.setattr(f"{module}.measure_methods", lambda *_, **__: [])
    monkeypatch.setattr(f"{module}.write_report", lambda plan, *_: plan.output / "report.html")


def test_all_methods_are_measured_and_the_page_shows_them(pets, capsys):
    assert main(["quickstart", "--data", str(pets), "--seeds", "2"]) == 0
    folder = pets.parent / "elsewhere" / "runs" / "quickstart-pets"
    printed = capsys.readouterr().out
    assert printed.endswith(f"{folder.relative_to(folder.parents[1]) / 'report.html'}\n")

    results = json.loads((folder / "results.json").read_text())
    assert [result["method"] for result in results] == METHODS
    assert [len(result["scores"]) for result in results] == [1, 1, 2, 2, 2, 1]
    epochs = {run: json.loads((folder / f"{run}-0" / "results.json").read_text())["epochs"] for run in METHODS[2:]}
    assert epochs == {"linear": 2, "attention": 3, "difformer": 2, "diffeed": 1}
    for result in results:
        confusion = np.array(result["confusion"])
        assert confusion.sum() == 12 * len(result["scores"])
        accuracy = np.mean([score["top1"] for score in result["scores"]])
        assert np.trace(confusion) / confusion.sum() == pytest.approx(accuracy)
        assert f"{100 * accuracy:.2f}" in printed
        assert result["seconds"] > 0
    assert (folder / "table.md").read_text() in printed

    page = (folder / "report.html").read_text(encoding="utf-8")
    images = len(json.loads((folder / "linear-0" / "splits.json").read_text())["train"]["ids"])
    of_pixels = f", of {images} training images; k-NN: k = "
    for text in ("SVM on raw pixels", "DifFeed", "load_classifier", "difformer predict", of_pixels):
        assert text in page
    assert len(re.findall("<img", page)) == 6 + 12 + 5
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_weights_and_splits_are_opened_once(linear_only, pets, tmp_path, monkeypatch):
    opened = []

    def counted(original):
        def call(*arguments, **options):
            opened.append((original.__name__, repr((arguments, options))))
            return original(*arguments, **options)

        return call

    for name in ("create_backbone", "create_dataset"):
        monkeypatch.setattr(building, name, counted(getattr(building, name)))
    quickstart(QuickstartConfig(data=str(pets), seeds=2, diffeed_seeds=0, output=str(tmp_path / "run")))
    assert [name for name, _ in opened].count("create_backbone") == 1
    twice = {what for what in opened if opened.count(what) > 1}
    assert twice == set()


def test_its_classifiers_give_its_numbers(finished, pets):
    folder = Path(finished.output)
    classifier = load_classifier(folder / "difformer-0" / "classifier.safetensors")
    test = create_dataset({"name": "folder", "root": str(pets), "size": 32}, "test")
    batch = collate([test[place] for place in range(len(test))])
    with torch.no_grad():
        right = (classifier(batch.images, batch.ids).argmax(1) == batch.labels).float().mean().item()
    results = {result["method"]: result for result in json.loads((folder / "results.json").read_text())}
    assert results["difformer"]["scores"][0]["top1"] == pytest.approx(right)
    assert "diffeed" not in results


@pytest.mark.usefixtures("linear_only")
def test_the_lines_of_the_page_work_from_any_folder(pets, tmp_path):
    weights = {"base.backbone.name": "../weights/adm32_cifar10.safetensors"}
    path = write_recipe(tmp_path / "mine.yaml", **weights)
    page = quickstart(QuickstartConfig(data="../pets", recipe=str(path), seeds=1)).read_text(encoding="utf-8")
    for file in (tmp_path / "weights" / "adm32_cifar10.safetensors", "runs/quickstart-mine/linear-0"):
        assert str((tmp_path / "elsewhere" / file).resolve()) in page


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    page = Path(finished.output, "report.html")
    results = (page.parent / "results.json").read_text()
    page.unlink()
    for name in ("train", "probe", "classify_pixels"):
        monkeypatch.setattr(methods, name, lambda *_, **__: pytest.fail("done again"))
    assert quickstart(finished) == page
    assert page.exists()
    assert (page.parent / "results.json").read_text() == results


def test_goes_on_after_a_stop(finished, pets, tmp_path):
    whole = quickstart(replace(finished, diffeed_seeds=1)).parent
    config = QuickstartConfig(data=str(pets), seeds=1, output=str(tmp_path / "stopped"))
    interrupt_after(lambda: quickstart(config), steps=8)
    stopped = tmp_path / "stopped"
    assert not (stopped / "report.html").exists()
    assert list(stopped.rglob("*.tmp")) == []
    before = json.loads((stopped / "seconds.json").read_text())
    quickstart(config)
    after = json.loads((stopped / "seconds.json").read_text())
    assert any(after[name] > seconds for name, seconds in before.items())
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (whole, stopped))
    assert [result["scores"] for result in first] == [result["scores"] for result in second]


@pytest.mark.usefixtures("linear_only")
def test_a_folder_without_splits_gives_a_quarter_of_each_class(pets):
    shutil.rmtree(pets / "test")
    for place in (pets / "train").iterdir():
        shutil.move(place, pets / place.name)
    (pets / "train").rmdir()
    plan = create_plan(QuickstartConfig(data=str(pets)))
    train, test = (create_dataset(plan.data, split) for split in ("train", "test"))
    assert np.bincount(test.labels).tolist() == [2, 2, 2]
    assert sorted([*train.ids, *test.ids]) == list(range(24))
    folder = quickstart(QuickstartConfig(data=str(pets), seeds=1, diffeed_seeds=0)).parent
    assert np.sum(json.loads((folder / "results.json").read_text())[0]["confusion"]) == 6


@pytest.mark.usefixtures("linear_only")
def test_another_quickstart_in_the_folder_is_not_mixed_with_it(pets, tmp_path):
    config = QuickstartConfig(data=str(pets), seeds=1, diffeed_seeds=0, output=str(tmp_path / "out"))
    quickstart(config)
    other = QuickstartConfig(data=str(pets), seeds=1, diffeed_seeds=0, output=str(tmp_path / "out"), k_shot=4)
    with pytest.raises(ValueError, match=r"holds another quickstart: k_shot was None and is now 4.*--overwrite"):
        quickstart(other)
    quickstart(other, overwrite=True)
    splits = json.loads((tmp_path / "out" / "linear-0" / "splits.json").read_text())
    assert splits["train"]["images"] == 12


def test_the_same_images_are_recognised_from_elsewhere_and_others_are_not_mixed_in(
    finished, pets, tmp_path, monkeypatch
):
    page = Path(finished.output, "report.html")
    assert quickstart(replace(finished, data="../pets")) == page
    monkeypatch.chdir(tmp_path)
    assert quickstart(replace(finished, data="pets")) == page
    (pets / "test" / "class0" / "0.png").unlink()
    with pytest.raises(ValueError, match="holds another quickstart: its images were others"):
        quickstart(replace(finished, data="pets"))


def test_seeds_may_be_added_to_a_method_that_had_none(pets, tmp_path, unmeasured):
    config = QuickstartConfig(data=str(pets), diffeed_seeds=0, output=str(tmp_path / "out"))
    quickstart(config)
    quickstart(replace(config, diffeed_seeds=1))


def test_few_images_are_drawn_anew_for_each_seed(pets):
    write_recipe(plans.RECIPES / "folder.yaml", **dict.fromkeys(("heads.difformer", "heads.diffeed")))
    config = QuickstartConfig(data=str(pets), seeds=2, k_shot=4)
    folder = quickstart(config).parent

    def ids(name):
        return json.loads((folder / name / "splits.json").read_text())["train"]["ids"]

    assert ids("linear-0") == ids("attention-0")
    assert ids("linear-1") == ids("attention-1")
    assert set(ids("linear-0")) != set(ids("linear-1"))
    results = json.loads((folder / "results.json").read_text())
    # Methods without training, too: which images they have matters as much to them.
    assert [len(result["scores"]) for result in results] == [2] * 4
    for result in results:
        assert np.sum(result["confusion"]) == 2 * 12
    assert {path.name for path in folder.glob("*-[01]")} == {
        f"{name}-{seed}" for name in METHODS[:4] for seed in (0, 1)
    }
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Each seed draws its own training images" in page
    # Every draw has features of its own, which its heads share.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert len({path.parent for path in before if path.name == "manifest.json" and "train" in str(path)}) == 2
    # One more seed leaves those that are there as they are.
    quickstart(replace(config, seeds=3))
    for name in ("svm-1", "knn-1", "linear-1", "attention-0"):
        assert all(path.stat().st_mtime_ns == t for path, t in before.items() if path.parent.name == name)
    assert (folder / "knn-2" / "results.json").exists()


def test_all_images_are_the_same_for_each_seed_and_few_of_an_earlier_version_are_not_gone_on_with(pets):
    plan = create_plan(QuickstartConfig(data=str(pets), seeds=2))
    assert list(plan.draws) == [""]
    assert {run.recipe.data.seed for run in plan.runs} == {0}
    few = create_plan(QuickstartConfig(data=str(pets), seeds=2, k_shot=4))
    assert [data.seed for data in few.draws.values()] == [0, 1]
    assert all(run.recipe.data.seed == run.seed for run in few.runs)
    images = [create_dataset(few.data, split) for split in ("train", "test")]
    backbone = SimpleNamespace(digest="")
    assert _made_with(few, backbone, images) != _made_with(replace(few, draws={"": few.data}), backbone, images)


def test_a_recipe_is_recognised_by_what_it_says(pets, tmp_path, monkeypatch, unmeasured):
    path = write_recipe(tmp_path / "mine.yaml")
    config = QuickstartConfig(data=str(pets), recipe=str(path), output=str(tmp_path / "out"))
    quickstart(config)
    monkeypatch.chdir(tmp_path)
    quickstart(replace(config, recipe="mine.yaml"))
    for changes in ({"base.cache.views": 3}, {"heads.diffeed.training.epochs": 2}):
        write_recipe(path, **changes)
        with pytest.raises(ValueError, match="holds another quickstart: its methods or their settings were others"):
            quickstart(replace(config, diffeed_seeds=0))


def test_starting_anew_leaves_no_page_of_before(pets, tmp_path, unmeasured):
    config = QuickstartConfig(data=str(pets), output=str(tmp_path / "out"))
    page = quickstart(config)
    page.write_text("old")
    (tmp_path / "out" / "pictures").mkdir()
    quickstart(config, overwrite=True)
    left = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert left == {"quickstart.yaml", "environment.json", "results.json", "table.md"}


def test_what_cannot_be_removed_does_not_count_as_done(pets, tmp_path, unmeasured):
    config = QuickstartConfig(data=str(pets), output=str(tmp_path / "out"))
    quickstart(config)
    (tmp_path / "elsewhere" / "linear-0").mkdir()
    (tmp_path / "out" / "linear-0").symlink_to(tmp_path / "elsewhere" / "linear-0")
    with pytest.raises(OSError, match="symbolic link"):
        quickstart(config, overwrite=True)


@pytest.mark.usefixtures("linear_only")
def test_the_page_does_without_pictures_of_unreadable_images(pets, tmp_path):
    for label in (0, 1):
        for file in (pets / "test" / f"class{label}").iterdir():
            file.write_bytes(b"no image")
    unread = {"base.data.on_bad_image": "skip", "base.data.check_images": "none"}
    path = write_recipe(tmp_path / "mine.yaml", **unread)
    page = quickstart(QuickstartConfig(data=str(pets), recipe=str(path), seeds=1)).read_text(encoding="utf-8")
    assert "What the features see" not in page
    assert "The same weights generate" in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(width, pets, tmp_path):
    page = quickstart(QuickstartConfig(data=str(pets), seeds=1))
    visit = open_page(page, width)
    (tmp_path / "page.png").write_bytes(visit.screenshot)
    assert visit.width == width
    assert visit.scroll_width <= width
    assert [entry for entry in visit.log if entry["level"] == "SEVERE"] == []
    assert len(visit.images) == 6 + 12 + 5
    assert all(image["complete"] and image["naturalWidth"] > 0 for image in visit.images)
