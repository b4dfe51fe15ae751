"""The quickstart: every method on one folder of images, and the page."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from browser import open_page
from quickstart import use_quickstart, write_quickstart
from training import interrupt_after

from difformer import NoiseSchedule, UNet, load_classifier
from difformer.backbones import UNetBackbone
from difformer.cli import main
from difformer.config.reading import build, plain, read_yaml
from difformer.data import collate, create_dataset
from difformer.engine.config import build as building
from difformer.engine.config.build import build_classifier, build_extractor
from difformer.engine.config.recipe import Recipe
from difformer.verbs.pretrain.recipe import PretrainRecipe
from difformer.verbs.quickstart import methods
from difformer.verbs.quickstart import plan as plans
from difformer.verbs.quickstart.plan import QuickstartConfig, create_plan
from difformer.verbs.quickstart.quickstart import _made_with, check_inits, quickstart

ROOT = Path(__file__).parents[2]
HEADS = ROOT / "eval" / "configs" / "cifar10_heads.yaml"
pytestmark = pytest.mark.usefixtures("drawn_once")
METHODS = ["svm", "knn", "linear", "attention", "difformer", "diffeed"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write_quickstart(folder)
    return folder


@pytest.fixture(scope="module")
def done(workplace):
    """The folder of a quickstart with one seed and without DifFeed."""
    with pytest.MonkeyPatch.context() as patch:
        root = use_quickstart(workplace, patch)
        config = QuickstartConfig(data=str(root), seeds=1, diffeed_seeds=0, output=str(workplace / "done"))
        return quickstart(config).parent


@pytest.fixture
def pets(workplace, tmp_path, monkeypatch):
    """A folder of images, whose quickstart takes seconds; the working folder is empty."""
    for name in ("weights", "pets"):
        shutil.copytree(workplace / name, tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return use_quickstart(tmp_path, monkeypatch)


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


def write_recipe(path, **changes):
    """A recipe like that for folders, with other values under dotted keys, and without those of None."""
    values = read_yaml(plans.RECIPES / "folder.yaml")
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
        if value is None:
            del place[key]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


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
    assert "Each seed draws training images of its own" in page
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


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"heads.linear.data": {"size": 16}}, {}, r"heads\.linear\.data: all methods share one data; give it as base"),
        ({"heads.diffeed.backbone": {}}, {}, r"heads\.diffeed\.backbone: all methods share one backbone"),
        ({"knn.data": {"size": 16}}, {}, r"knn\.data: all methods share"),
        ({"heads.linear": 3}, {}, r"heads\.linear must hold keys and values, got 3"),
        ({"heads.knn": {}, "titles.knn": "x"}, {}, r"heads\.knn has the name of another method"),
        ({"heads.linear.init": "attention"}, {}, r"heads\.linear\.init must be a method before it, got 'attention'"),
        ({"heads.diffeed.init": "runs/x"}, {}, r"init must be one of .* linear, attention, difformer, got 'runs/x'"),
        ({}, {"seeds": 2, "diffeed_seeds": 3}, "is to have 3 seeds where that has 2; give --seeds 3"),
        ({"knn.method": "ridge"}, {}, r"knn\.method must be knn, got 'ridge'"),
        ({"knn.test": "val"}, {}, r"knn\.test must be test, .* got 'val'"),
        ({"heads.attention.least_step": 9}, {}, "did you mean 'heads.attention.training.least_steps'"),
        ({"heads.attention.training": {"least_steps": 0}}, {}, r"training\.least_steps must be a positive integer"),
        ({"heads.attention.least_steps": 0}, {}, r"heads\.attention\.least_steps must be a positive integer"),
        ({"base.evaluation.test": None}, {}, r"evaluation\.test of linear must be test, .* got None"),
        (
            dict.fromkeys(("heads.linear", "heads.attention", "heads.difformer", "heads.diffeed.init")),
            {"diffeed_seeds": 0},
            "so nothing would be trained",
        ),
    ],
)
def test_recipes_that_would_be_ignored_in_part_are_refused(changes, options, message, tmp_path):
    path = write_recipe(tmp_path / "mine.yaml", **changes)
    with pytest.raises(ValueError, match=message):
        create_plan(QuickstartConfig(recipe=str(path), **options))


def test_few_images_are_seen_more_often(tmp_path, caplog):
    # The second as earlier versions wrote it.
    path = write_recipe(
        tmp_path / "mine.yaml",
        **{"heads.attention.training": {"least_steps": 1001}, "heads.diffeed.least_steps": 50},
    )
    plan = create_plan(QuickstartConfig(recipe=str(path)))
    epochs = {run.method: run.recipe.training.epochs for run in plan.runs}
    assert "heads.diffeed.least_steps is now written heads.diffeed.training.least_steps" in caplog.text
    # 180 images are three steps of 64, the last of them with 52.
    few = {run.method: run.recipe.lengthened(180) for run in plan.runs}
    longer = {method: recipe.training.epochs for method, recipe in few.items()}
    assert longer == epochs | {"linear": 100, "attention": 334, "difformer": 200, "diffeed": 17}
    # Two epochs of 24 warm up.
    assert few["linear"].schedule.warmup_epochs == pytest.approx(100 / 12)
    assert few["linear"].schedule.step_epochs == pytest.approx(7 * 100 / 24)
    assert all(run.recipe.lengthened(50_000) == run.recipe for run in plan.runs)


def test_a_title_may_have_braces(tmp_path):
    path = write_recipe(tmp_path / "mine.yaml", title="{name} of {a}")
    assert create_plan(QuickstartConfig(recipe=str(path))).title == "mine of {a}"


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


def test_a_recipe_of_ones_own_takes_folders_as_they_are(pets, tmp_path):
    path = write_recipe(tmp_path / "mine.yaml")
    plan = create_plan(QuickstartConfig(data=str(pets / "train"), recipe=str(path)))
    assert (plan.data.splits, plan.data.test_fraction) == ({"train": "."}, 0.25)
    assert plan.title == "Your images: train"
    assert plan.output.name == "quickstart-mine"
    path = write_recipe(path, **{"base.data.test_fraction": 0.5})
    assert create_plan(QuickstartConfig(data=str(pets), recipe=str(path))).data.test_fraction == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--data", "one", "--levels"], "levels are ELPV's"),
        (["--data", "one"], "has no class folders"),
        (["--data", "one", "--seeds", "0"], "seeds"),
    ],
)
def test_wrong_words_end_before_any_work(arguments, message, pets, capsys):
    (pets.parent / "elsewhere" / "one").mkdir()
    assert main(["quickstart", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (pets.parent / "elsewhere" / "runs").exists()


def test_too_few_images_end_before_any_work(pets, capsys):
    for label in range(3):
        for file in sorted((pets / "train" / f"class{label}").iterdir())[1:]:
            file.unlink()
    assert main(["quickstart", "--data", str(pets)]) == 1
    assert "leaves none to hold out" in capsys.readouterr().err
    assert not (pets.parent / "elsewhere" / "runs").exists()


def test_results_among_the_images_end_before_any_work(pets, monkeypatch, capsys):
    monkeypatch.chdir(pets / "train")
    assert main(["quickstart", "--data", "."]) == 1
    assert "lies among the images" in capsys.readouterr().err
    assert not (pets / "train" / "runs").exists()


def test_a_single_class_is_refused(pets, capsys):
    for split in ("train", "test"):
        for label in (1, 2):
            shutil.rmtree(pets / split / f"class{label}")
    assert main(["quickstart", "--data", str(pets)]) == 1
    assert "one class only, class0" in capsys.readouterr().err


def test_says_what_to_install(pets, monkeypatch, capsys):
    monkeypatch.setattr("difformer.verbs.quickstart.quickstart.find_spec", lambda name: None)
    assert main(["quickstart"]) == 1
    error = capsys.readouterr().err
    assert "scikit-learn and elpv-dataset, not installed here; run: pip install scikit-learn elpv-dataset" in error
    assert main(["quickstart", "--data", str(pets)]) == 1
    assert "elpv-dataset" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("adm_elpv", QuickstartConfig()),
        ("adm32_cifar10", QuickstartConfig(data=".")),
        ("adm32_cifar10", QuickstartConfig(recipe=str(HEADS))),
    ],
    ids=["elpv", "folder", "cifar10"],
)
def test_its_recipes_fit_the_networks_they_name(name, config):
    model = build(PretrainRecipe, read_yaml(ROOT / "train" / "pretraining" / f"{name}.yaml")).model
    plan = create_plan(config)
    assert {run.method for run in plan.runs} == set(METHODS[2:])
    assert plan.data.size == model.image_size
    with torch.device("meta"):
        backbone = UNetBackbone(UNet(model), NoiseSchedule.cosine(1000))
        heads = {}
        for run in plan.runs:
            assert run.recipe.backbone.name == name
            heads[run.method] = build_classifier(run.recipe, backbone, ("one", "other")).head
        for extractor in (plan.knn.extractor, plan.pictured):
            build_extractor(extractor, backbone)
    assert plan.heads["diffeed"].init == "attention"
    check_inits(plan, backbone, ("one", "other"))
    # The others' features are among DifFormer's.
    read = {run.method: run.recipe.extractor for run in plan.runs}
    for method in ("linear", "attention"):
        assert set(read[method].taps) <= set(read["difformer"].taps)
        assert set(read[method].timesteps) <= set(read["difformer"].timesteps)
        assert heads[method].map_sizes.items() <= heads["difformer"].map_sizes.items()


@pytest.mark.parametrize(
    ("method", "name"),
    [("attention", "cifar10_attention"), ("difformer", "cifar10"), ("diffeed", "cifar10_diffeed")],
)
def test_the_recipes_of_cifar10_train_the_heads_of_its_table(method, name):
    planned = plain(asdict(create_plan(QuickstartConfig(recipe=str(HEADS))).heads[method]))
    single = plain(asdict(build(Recipe, read_yaml(ROOT / "train" / "configs" / f"{name}.yaml"))))
    differing = {key for key in single if planned[key] != single[key]}
    unused = {"cache"} if single["features"] == "live" else set()
    # There a method, here a run.
    assert single["init"] == (planned["init"] and f"runs/cifar10_{planned['init']}")
    assert differing <= {"output", "trackers", "init"} | unused


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
