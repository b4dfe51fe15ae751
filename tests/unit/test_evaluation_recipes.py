from pathlib import Path

import pytest
import yaml

from difformer.config.reading import build, create_parser, dump, parse, plain, read_yaml
from difformer.data import DataConfig
from difformer.engine.config.evaluation import choice_note, take_from_training
from difformer.engine.config.recipe import BackboneConfig, ExtractorConfig, ReadingConfig
from difformer.verbs.cka.recipe import SimilarityRecipe
from difformer.verbs.eval.recipe import EvaluationRecipe
from difformer.verbs.look.recipe import LookRecipe
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.sweep.recipe import SweepRecipe

DATA = {"name": "folder", "root": "images"}
TRAINING = {
    "output": "runs/one",
    "data": DATA,
    "backbone": {"name": "adm64_cond"},
    "extractor": {"taps": [19], "timesteps": [90]},
    "head": {"name": "linear", "arguments": {"pool": 2}},
    "features": "cached",
    "training": {"epochs": 3, "batch_size": 32, "precision": "bf16", "workers": 1},
    "evaluation": {"validation": "val", "test": "official", "batch_size": 64},
}


def read(configuration, *arguments):
    def reader(file):
        return take_from_training(read_yaml(file), configuration)

    return parse(create_parser(configuration, "verb", "", {}), configuration, (), arguments, read=reader)[0]


@pytest.mark.parametrize("configuration", [EvaluationRecipe, ProbeRecipe])
def test_what_is_written_is_read_again(configuration, tmp_path):
    # Taps that are left out are filled in for the backbone.
    probe = {"ks": (5, 7), "extractor": ExtractorConfig(("out04",), (150,))}
    arguments = {"classifier": "c.safetensors"} if configuration is EvaluationRecipe else probe
    recipe = configuration(data=DataConfig(**DATA, holdout=0.2), precision="no", **arguments)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert read(configuration, str(tmp_path / "recipe.yaml")) == recipe


def test_a_probe_takes_what_it_shares_with_a_training_recipe():
    values = take_from_training(TRAINING, ProbeRecipe)
    assert values == {
        "data": DATA,
        "backbone": {"name": "adm64_cond"},
        "extractor": {"taps": [19], "timesteps": [90]},
        "precision": "bf16",
        "workers": 1,
        "batch_size": 64,
        "validation": "val",
        "test": "official",
    }
    assert build(ProbeRecipe, values).extractor == ExtractorConfig((19,), (90,))


CONFIGS = Path(__file__).parents[2] / "train" / "configs"
# A probe would leave DifFeed's layers as they are initialised.
PUBLISHED = sorted(set(CONFIGS.glob("imagenet_*.yaml")) - {CONFIGS / "imagenet_diffeed.yaml"})


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("configuration", [ProbeRecipe, SweepRecipe, SelectRecipe])
def test_what_the_published_recipes_report_chooses_nothing(path, configuration):
    recipe = read(configuration, str(path), "--data.holdout", "0.25")
    assert (recipe.validation, recipe.data.holdout) == ("holdout", 0.25)
    assert choice_note(recipe.data, recipe.validation) is None
    assert getattr(recipe, "test", "val") == "val"
    assert read(EvaluationRecipe, str(path), "--classifier", "c").split == "val"


@pytest.mark.parametrize(
    ("evaluation", "validation", "test"),
    [
        ({"validation": "val"}, "holdout", "val"),
        ({"validation": "val", "select": "last", "test": None}, "holdout", "val"),
        ({"validation": "val", "select": "best"}, "val", "test"),
        ({"validation": "val", "test": "official"}, "val", "official"),
        ({"validation": "holdout"}, "holdout", "test"),
        ({}, "holdout", "test"),
    ],
)
def test_a_split_that_a_recipe_reports_is_not_one_to_choose_on(evaluation, validation, test):
    values = take_from_training({"data": DATA, "evaluation": evaluation}, ProbeRecipe)
    recipe = build(ProbeRecipe, {**values, "data": DataConfig(**DATA)})
    assert (recipe.validation, recipe.test) == (validation, test)


def test_a_split_that_ends_training_early_is_not_reported():
    training = {"early_stopping": 2}
    values = {"data": DATA, "training": training, "evaluation": {"validation": "val"}}
    assert take_from_training(values, EvaluationRecipe).get("split") is None
    assert take_from_training(values, ProbeRecipe)["validation"] == "val"


def test_a_choice_on_reported_images_is_said():
    assert "chosen on val, the images that are reported for imagenet" in choice_note(DataConfig("ImageNet"), "val")
    assert "chosen on test" in choice_note(DataConfig("cub"), "test")
    assert "chosen on valid" in choice_note(DataConfig("folder", splits={"valid": "test"}), "valid")
    for data, split in ((DataConfig("imagenet"), "holdout"), (DataConfig("flowers"), "val")):
        assert choice_note(data, split) is None


def test_an_evaluation_takes_what_it_shares_with_a_training_recipe():
    values = take_from_training(TRAINING, EvaluationRecipe)
    assert values.keys() == {"data", "backbone", "features", "precision", "workers", "batch_size", "split"}
    assert values["split"] == "official"


def test_a_look_chooses_so_it_takes_no_test_split():
    assert "split" not in take_from_training(TRAINING, LookRecipe, test_split=False)
    assert take_from_training(TRAINING | {"split": "test"}, LookRecipe, test_split=False)["split"] == "test"
    assert LookRecipe(DataConfig(**DATA)).split == "train"


def test_what_is_given_beside_training_sections_comes_first():
    values = take_from_training(TRAINING | {"precision": "no", "test": "test", "method": "ridge"}, ProbeRecipe)
    assert (values["precision"], values["test"], values["method"]) == ("no", "test", "ridge")


def test_without_training_sections_all_is_kept():
    values = {"data": DATA, "output": "here", "extractor": {"taps": [24]}}
    assert take_from_training(values, ProbeRecipe) == values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "knn"}, "unknown key 'metod'; did you mean 'method'"),
        ({"optimiser": {"lr": 1}}, "unknown key 'optimiser'; did you mean 'optimizer'"),
        ({"training": {"epoch": 1}}, r"unknown key 'training\.epoch'; did you mean 'training\.epochs'"),
        ({"training": 3}, "training must hold keys and values, got 3"),
    ],
)
def test_typing_errors_are_found_in_sections_that_are_left_out_too(changes, message):
    with pytest.raises(ValueError, match=message):
        take_from_training(TRAINING | changes, ProbeRecipe)


def test_options_and_sections_of_files_are_checked(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {name: folder, rot: x}")
    with pytest.raises(ValueError, match=r"unknown key 'data\.rot'; did you mean 'data\.root'"):
        read(ProbeRecipe, f"--config={tmp_path / 'a.yaml'}")
    with pytest.raises(ValueError, match="unknown key 'methd'; did you mean 'method'"):
        read(ProbeRecipe, "--data.name", "folder", "--methd", "knn")
    with pytest.raises(ValueError, match=r"required: classifier, data\.name"):
        read(EvaluationRecipe)


def test_options_override_files_and_later_files_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {name: folder}\npool: 2\nworkers: 5\nprecision: no")
    (tmp_path / "b.yaml").write_text("pool: 3\ntemperatures: [1e-1]")
    recipe = read(ProbeRecipe, str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--workers", "1")
    assert (recipe.pool, recipe.workers, recipe.precision, recipe.temperatures) == (3, 1, "no", (0.1,))


def test_a_holdout_is_set_aside_where_one_is_to_choose():
    assert ProbeRecipe(data=DataConfig("folder")).data.holdout == 0.1
    assert ProbeRecipe(data=DataConfig("folder", holdout=0.3)).data.holdout == 0.3
    assert ProbeRecipe(data=DataConfig("folder"), validation="val").data.holdout == 0


def test_nothing_is_learned_from_beyond_a_label_subset():
    assert ProbeRecipe(data=DataConfig("folder")).refits
    assert not ProbeRecipe(data=DataConfig("folder"), refit=False).refits
    for subset in ({"k_shot": 2}, {"percent": 10}, {"list_file": "some.txt"}):
        assert not ProbeRecipe(data=DataConfig("folder", **subset)).refits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "svm"}, "method must be one of knn, logistic, ridge, sgd, got 'svm'"),
        ({"validation": "test"}, "would be measured on the images that choose"),
        ({"validation": "train"}, "the probe is fitted on it"),
        ({"ks": (3, 3)}, "ks must be one or more different positive numbers"),
        ({"ks": (0,)}, "must be a positive integer, got 0"),
        ({"strengths": ()}, "strengths must be one or more"),
        ({"temperatures": (-1.0,)}, "temperatures must be one or more"),
        ({"pool": 0}, "pool must be a positive integer"),
        ({"workers": -1}, "workers must be a number at least 0"),
        ({"extractor": ExtractorConfig(feedback_taps=("out01",))}, "a probe trains nothing"),
    ],
)
def test_meaningless_probes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProbeRecipe(data=DataConfig("folder"), **arguments)


@pytest.mark.parametrize("configuration", [SweepRecipe, SelectRecipe, LookRecipe, SimilarityRecipe])
def test_a_look_at_many_features_takes_what_they_are_conditioned_on(configuration):
    extractor = {"taps": ["mid"], "timesteps": [90], "seed": 3}
    for told in ({}, {"conditioning": {"y": 3}}):
        for more in ({}, {"training": {"epochs": 3}}):
            file = {"data": {"name": "folder"}, "extractor": extractor | told, **more}
            taken = take_from_training(file, configuration)
            assert taken["extractor"] == told
            assert build(configuration, taken).extractor.conditioning == told.get("conditioning", {})
    with pytest.raises(ValueError, match=r"unknown key 'extractor\.condition'; did you mean"):
        build(configuration, take_from_training({"data": {}, "extractor": {"condition": {}}}, configuration))


def test_metrics_are_names():
    with pytest.raises(ValueError, match="metrics must be names, got 5"):
        EvaluationRecipe("c.safetensors", DataConfig(**DATA), metrics=("top1", 5))


def test_what_was_added_later_is_not_written_down_at_its_default():
    """So that old runs resume, old caches are found, and an old quickstart is the same one."""
    data = DataConfig("folder")
    assert "family" not in plain(BackboneConfig(family="adm"))
    assert plain(BackboneConfig(family="a.b:C"))["family"] == "a.b:C"
    assert "conditioning" not in plain(ExtractorConfig())
    for configuration in (SweepRecipe, SelectRecipe, LookRecipe, SimilarityRecipe):
        assert "extractor" not in plain(configuration(data=data))
    told = SweepRecipe(data=data, extractor=ReadingConfig({"y": "label"}))
    assert plain(told)["extractor"] == {"conditioning": {"y": "label"}}
    assert told.probe("mid", 90, 1).extractor.conditioning == {"y": "label"}
    assert build(SweepRecipe, yaml.safe_load(dump(told)) | {"data": data}) == told
