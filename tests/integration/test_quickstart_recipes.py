"""What a quickstart is made of: its recipes, and the words that it refuses before any work."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from quickstart import METHODS, NAME, write_recipe
from support import tiny_unet

from difformer import NoiseSchedule, UNet
from difformer.backbones import UNetBackbone
from difformer.cli import main
from difformer.config.reading import build, plain, read_yaml
from difformer.engine.config.build import build_classifier, build_extractor
from difformer.engine.config.recipe import HeadConfig, Recipe
from difformer.engine.runtime.run_folder import RunFolder
from difformer.verbs.pretrain.recipe import PretrainRecipe
from difformer.verbs.quickstart import page
from difformer.verbs.quickstart.plan import QuickstartConfig, create_plan
from difformer.verbs.quickstart.quickstart import check_inits

ROOT = Path(__file__).parents[2]
HEADS = ROOT / "eval" / "configs" / "cifar10_heads.yaml"
pytestmark = pytest.mark.usefixtures("drawn_once")


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
        ({}, {"seeds": 2, "diffeed_seeds": 3}, "needs 3 seeds, but has 2; give --seeds 3"),
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


@pytest.mark.parametrize("place", ["knn.extractor", "pictured", "heads.diffeed.extractor"])
def test_what_a_backbone_is_conditioned_on_is_said_before_any_work(pets, capsys, place):
    weights = pets.parent / "weights"
    UNetBackbone(tiny_unet(num_classes=5), NoiseSchedule.linear(1000), name=NAME).save(
        weights / f"{NAME}.safetensors", overwrite=True
    )
    values = read_yaml(weights / "folder.yaml")
    sections = {"pictured": values["pictured"], "knn.extractor": values["knn"]["extractor"]}
    sections |= {f"heads.{name}.extractor": section["extractor"] for name, section in values["heads"].items()}
    for name, section in sections.items():
        section["conditioning"] = {} if name == place else {"y": 1}
    (weights / "folder.yaml").write_text(yaml.safe_dump(values))
    assert main(["quickstart", "--data", str(pets)]) == 1
    assert "is conditioned on one of 5 classes, so the recipe must say which" in capsys.readouterr().err
    assert not (pets.parent / "elsewhere" / "runs").exists()


def test_the_page_loads_heads_of_ones_own(pets, monkeypatch):
    asked = []

    def load(file, *, backbone, trust):
        asked.append(trust)
        raise FileNotFoundError(file)

    monkeypatch.setattr(page, "load_classifier", load)
    plan = create_plan(QuickstartConfig(data=str(pets)))
    run = plan.runs[0]
    run = replace(run, recipe=replace(run.recipe, head=HeadConfig("my_package.heads:Head")))
    with pytest.raises(FileNotFoundError):
        page._predictions(plan, run, None, None, pets)
    assert asked == [["my_package.heads"]]
    text = "".join(
        block.text for block in page._next(plan, run, SimpleNamespace(name=NAME), RunFolder(plan.output)).blocks
    )
    assert "trust=['my_package']" in text
    assert " --trust my_package" in text


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
