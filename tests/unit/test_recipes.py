"""The recipes that ship: what they say, and how files and options make one."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from support import tiny_unet

from difformer import create_backbone
from difformer.checkpoints import shipped
from difformer.cli import main
from difformer.config.reading import check_key, create_parser, dump, overlay, parse, read_values, read_yaml
from difformer.data.fake import FakeImages
from difformer.engine.config.build import build_classifier, outline_backbone, outline_classifier
from difformer.engine.config.fitting import fit_to_backbone
from difformer.engine.config.recipe import HeadConfig, Recipe, TaskConfig
from difformer.engine.cost.costs import costs
from difformer.models.plan import tap_specs
from difformer.taps import resolve_tap, resolve_taps, tap_names
from difformer.verbs.pretrain.recipe import PretrainRecipe
from difformer.verbs.train.init import check_init
from difformer.verbs.transfer.suite import Suite, TransferRecipe

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train" / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
HEADS = sorted((ROOT / "train" / "heads").glob("*.yaml"))
NAMES = {
    "imagenet_linear", "imagenet_attention", "imagenet_difformer", "imagenet_diffeed", "imagenet_difformer_joint",
    "imagenet_1percent", "imagenet_10percent", "aircraft", "cars", "cub", "dogs", "flowers", "nabirds",
    "cifar10", "cifar10_attention", "cifar10_diffeed", "elpv", "elpv_diffeed", "folder",
}  # fmt: skip
SMALL = {"cifar10", "cifar10_attention", "cifar10_diffeed", "elpv", "elpv_diffeed", "folder"}
TRANSFORMER = {"width": 1024, "heads": 8, "layers": 2, "mlp_ratio": 4, "pool": 16, "norm": "layer"}


@pytest.fixture(scope="module")
def parser():
    return create_parser(Recipe, "train", "", {})


@pytest.fixture(scope="module")
def read(parser):
    """Reads a recipe, each once."""

    @cache
    def parsed(*words):
        return parse(parser, Recipe, (), list(words), adapt=fit_to_backbone)[0]

    return lambda *arguments: parsed(*map(str, arguments))


def numbered(count):
    return tuple(map(str, range(count)))


def test_every_recipe_that_was_promised_is_there():
    assert {path.stem for path in RECIPES} == NAMES


def shipped_by(recipe):
    """What came out of a recipe and ships: file and card."""
    entries = [entry for entry in shipped().values() if Path(entry.source.recipe).name == recipe.name]
    return [(f"checkpoints/{entry.file}", ROOT / "checkpoints" / entry.card) for entry in entries]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_started_and_what_to_expect(path, read):
    head = path.read_text().partition("\n\n")[0]
    name = f"train/configs/{path.name}"
    assert f"#   accelerate launch train/train.py {name}" in head
    assert f"#   difformer train {name}" in head
    assert "# Expected: " in head
    if not re.search("[nN]ot measured", head):
        # What came out ships, and its card says the same.
        [(file, card)] = shipped_by(path)
        assert f"{file} is what it gave" in head
        [top1] = re.findall(r"# Expected: ([\d.]+) % of the test images", head)
        assert re.search(rf"^top-1 +{top1}%", card.read_text(), re.MULTILINE)
    recipe = read(path)
    assert recipe.output == f"runs/{path.stem}"
    evaluation = recipe.evaluation
    # Nothing is chosen on the images that are reported, and the published ones report the last epoch.
    assert evaluation.select == "last" or (evaluation.validation, evaluation.test) == ("holdout", "test")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_printed_and_read_again(path, read, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main(["train", str(path), "--print_config", "--data.root", "/images", "--optimizer.lr", "0.123"])
    assert status.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    recipe = read(tmp_path / "printed.yaml")
    assert recipe == read(path, "--data.root", "/images", "--optimizer.lr=0.123")
    assert (recipe.data.root, recipe.optimizer.lr) == ("/images", 0.123)
    (tmp_path / "dumped.yaml").write_text(dump(recipe))
    assert read(tmp_path / "dumped.yaml") == recipe


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in SMALL], ids=lambda path: path.stem)
def test_a_recipe_fits_the_published_network(path, read):
    assert costs(outline_classifier(read(path), numbered(200))).backbone == 552_814_086


@pytest.mark.parametrize("name", sorted(SMALL))
def test_recipes_for_small_images_fit_a_small_network(name, read):
    build_classifier(read(CONFIGS / f"{name}.yaml"), create_backbone(tiny_unet(), schedule="linear"), ("a", "b"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_what_it_starts_from(path, read):
    recipe = read(path)
    assert (recipe.init is not None) == (path.stem == "cifar10_diffeed")
    if recipe.init is not None:
        trained = read(CONFIGS / f"{Path(recipe.init).name}.yaml")
        assert (trained.output, trained.data, trained.backbone) == (recipe.init, recipe.data, recipe.backbone)
        assert recipe.extractor.gate
        backbone = outline_backbone(recipe.backbone)
        check_init(*(outline_classifier(one, numbered(10), backbone) for one in (trained, recipe)), recipe.init)


@pytest.mark.parametrize(
    ("name", "blocks", "timesteps", "feedback", "arguments", "lr", "batch", "head", "fed_back", "gflop"),
    [
        ("linear", (24,), (150,), (), {"pool": 2}, 0.01, 128, 4_097_000, 0, 639),
        ("attention", (24,), (150,), (), TRANSFORMER, 0.05, 128, 27_786_216, 0, 639),
        ("difformer", (19, 24, 30), (90, 150, 300), (), {"variant": "published", **TRANSFORMER}, 0.05, 128,
         31_802_344, 0, 2764),
        ("diffeed", (24,), (150,), (21, 24, 27, 30, 33, 36), TRANSFORMER, 0.01, 16, 27_786_216, 2_759_680, 2487),
    ],
)  # fmt: skip
def test_the_published_recipes_are_the_published_ones(
    read, name, blocks, timesteps, feedback, arguments, lr, batch, head, fed_back, gflop
):
    recipe = read(CONFIGS / f"imagenet_{name}.yaml")
    extractor, optimizer, schedule = recipe.extractor, recipe.optimizer, recipe.schedule
    # The papers number the blocks, the recipes name them.
    names = tap_names(18)
    assert extractor.taps == resolve_taps(blocks, names)
    assert extractor.feedback_taps == tuple(resolve_tap(block, names) for block in feedback)
    assert extractor.timesteps == timesteps
    assert recipe.head.arguments == arguments
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", lr, 0, 0)
    assert (schedule.name, schedule.step_epochs, schedule.gamma, schedule.warmup_epochs) == ("step", 7, 0.1, 0)
    assert (recipe.training.epochs, recipe.training.batch_size) == (28, batch)
    assert (recipe.training.label_smoothing, recipe.training.ema, recipe.training.mixup) == (0, None, 0)
    assert (recipe.data.name, recipe.data.size, recipe.data.augmentation) == ("imagenet", 256, "published")
    assert (recipe.evaluation.validation, recipe.evaluation.select) == ("val", "last")
    found = costs(outline_classifier(recipe, numbered(1000)), recipe.data.size)
    assert (found.head, found.feedback) == (head, fed_back)
    assert round(found.flops / 1e9) == gflop


@pytest.mark.parametrize("path", HEADS, ids=lambda path: path.stem)
@pytest.mark.parametrize("below", ["cub", "imagenet_diffeed"])
def test_a_head_laid_over_a_recipe_is_the_published_one(path, below, read):
    published, recipe = read(CONFIGS / f"imagenet_{path.stem}.yaml"), read(CONFIGS / f"{below}.yaml", "--config", path)
    assert (recipe.extractor, recipe.head) == (published.extractor, published.head)
    assert (recipe.optimizer, recipe.schedule) == (published.optimizer, published.schedule)
    assert recipe.training == published.training
    assert recipe.data == read(CONFIGS / f"{below}.yaml").data


def test_the_suite_trains_the_published_heads_on_the_six_sets(read):
    transfer = parse(
        create_parser(TransferRecipe, "", "", {}), TransferRecipe, (), [str(ROOT / "eval/configs/transfer.yaml")]
    )[0]
    suite = Suite(transfer)
    for dataset, head in suite.pairs:
        recipe = suite.finals(dataset, head)[0].recipe
        published = read(CONFIGS / f"imagenet_{head}.yaml")
        assert (recipe.extractor, recipe.head, recipe.schedule) == (
            published.extractor,
            published.head,
            published.schedule,
        )
        assert recipe.training == published.training
        own = read(CONFIGS / f"{dataset}.yaml")
        assert (recipe.data.name, recipe.data.splits, recipe.data.size) == (
            own.data.name,
            own.data.splits,
            own.data.size,
        )
        assert suite.metric(dataset) == own.evaluation.criterion
        # The header of the set's own recipe has the same published numbers.
        assert f"{transfer.published[head][dataset]} %" in (CONFIGS / f"{dataset}.yaml").read_text()
    assert len(suite.pairs) == 24


def test_few_labels_come_by_percentage_or_list(read):
    recipe = read(CONFIGS / "imagenet_1percent.yaml")
    assert (recipe.data.percent, recipe.evaluation.validation, recipe.evaluation.test) == (1, None, "val")
    listed = read(CONFIGS / "imagenet_1percent.yaml", "--data.percent", "null", "--data.list_file", "1percent.txt")
    assert (listed.data.percent, listed.data.list_file) == (None, "1percent.txt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimiser.lr", "1"], "unknown key 'optimiser.lr'; did you mean 'optimizer.lr'"),
        (["--download"], "unknown key 'download'; did you mean 'backbone.download' or 'data.download'?"),
        (["--training.batchsize", "1"], "unknown key 'training.batchsize'; did you mean 'training.batch_size'"),
        (["--optimizer.lr", "fast"], "optimizer.lr"),
        (["--config", "missing.yaml"], "there is no configuration file missing.yaml"),
        (["--config=missing.yaml"], "there is no configuration file missing.yaml"),
        (["--fake_data"], "--fake_data is for --dry_run"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, message, capsys):
    assert main(["train", str(CONFIGS / "cub.yaml"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_mistakes_in_a_file_are_named(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("data: {name: cub}\nschedule: {warm_up: 1}\n")
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    assert "unknown key 'schedule.warm_up'; did you mean 'schedule.warmup_epochs'" in capsys.readouterr().err


SECTIONS = (
    "data", "backbone", "extractor", "head", "cache", "optimizer", "schedule", "training", "evaluation",
)  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_holds_keys_and_values(section, tmp_path, parser):
    for value, message in (("null", f"{section} must not be null"), ("5", "got 5"), ("[1]", r"got \[1\]")):
        (tmp_path / "recipe.yaml").write_text(f"{'' if section == 'data' else 'data: {name: cub}'}\n{section}: {value}")
        with pytest.raises(ValueError, match=message):
            parse(parser, Recipe, (), [str(tmp_path / "recipe.yaml")], adapt=fit_to_backbone)
    with pytest.raises(ValueError, match=f"{section} must hold keys and values, got 'x'"):
        read_values(parser, Recipe, {"data": {"name": "cub"}, section: "x"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: a\ndata: {name: cub}\noutput: b", r"the key 'output' appears twice\n.*line 3"),
        ("data: {name: cub, size: 8, name: dogs}", "the key 'name' appears twice"),
        ("data: &d {name: cub, splits: *d}", r"\*d contains itself"),
        (f"data: {'[' * 600}", "nested too deeply"),
        ("data: {size: !!int x}", "cannot be read as YAML"),
        ("data: {size: !!timestamp x}", "cannot be read as YAML"),
        ("data: !!python/object:os.system {}", "cannot be read as YAML"),
        ("training: {epochs: null}", r"training\.epochs must not be null; leave it out"),
        ("- 1", "must hold keys and values, got list"),
    ],
)
def test_files_that_say_no_recipe_are_refused(text, message, tmp_path, parser):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(parser, Recipe, (), [str(tmp_path / "recipe.yaml")], adapt=fit_to_backbone)


def test_a_few_lines_that_stand_for_gigabytes_take_no_time(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="expands to more than 100,000 values"):
        read_yaml(tmp_path / "recipe.yaml")


def test_values_that_a_script_wrote_once_are_read_wherever_they_stand(tmp_path):
    """PyYAML writes what two keys share as an alias."""
    arguments = {"pool": 2, "norm": "layer"}
    values = {"linear": {"arguments": arguments}, "attention": {"arguments": arguments}}
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(values))
    assert "*id001" in (tmp_path / "shared.yaml").read_text()
    assert read_yaml(tmp_path / "shared.yaml") == values
    (tmp_path / "merged.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")
    assert read_yaml(tmp_path / "merged.yaml") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}


def test_dates_are_words(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {name: folder, root: 2026-01-31}")
    assert read_yaml(tmp_path / "recipe.yaml") == {"data": {"name": "folder", "root": "2026-01-31"}}


def test_an_option_deep_in_a_mapping_leaves_the_rest_of_it(tmp_path):
    parser = create_parser(TransferRecipe, "", "", {})
    arguments = [
        "--datasets.cub.root", "/cub", "--datasets.cars.splits.train=all", "--heads.linear.head.arguments.pool", "4",
        "--base.optimizer.weight_decay", "1e-4", "--candidates", "{optimizer.lr: [1.0]}",
    ]  # fmt: skip
    recipe = parse(
        parser, TransferRecipe, (), [str(ROOT / "eval/configs/transfer.yaml"), *arguments], adapt=fit_to_backbone
    )[0]
    assert recipe.datasets["cub"] == {"name": "cub", "root": "/cub"}
    assert recipe.datasets["cars"] == {"name": "cars", "root": "cars", "splits": {"train": "all"}}
    assert recipe.heads["linear"]["head"] == {"name": "linear", "arguments": {"pool": 4}}
    assert recipe.base["optimizer"] == {"name": "sgd", "momentum": 0, "weight_decay": 1e-4}
    assert recipe.candidates == {"optimizer.lr": [1.0]}
    # Tables are in the order of the file.
    assert list(recipe.datasets) == ["aircraft", "cars", "cub", "dogs", "flowers", "nabirds"]


def test_an_option_deep_in_what_is_no_mapping_is_an_error(tmp_path, capsys):
    (tmp_path / "suite.yaml").write_text("heads: {b: {}}\ndatasets: {cub: 5}\n")
    assert main(["transfer", str(tmp_path / "suite.yaml"), "--datasets.cub.root", "there"]) == 1
    assert "cub.root: cub must hold keys and values, got 5" in capsys.readouterr().err


def test_mappings_keep_the_order_of_the_file(tmp_path):
    (tmp_path / "suite.yaml").write_text("heads: {b: {}, a: {}}\ndatasets: {d: {name: cub}, c: {name: cub}}\n")
    recipe = parse(create_parser(TransferRecipe, "", "", {}), TransferRecipe, (), [str(tmp_path / "suite.yaml")])[0]
    assert (list(recipe.heads), list(recipe.datasets)) == (["b", "a"], ["d", "c"])


def test_a_section_over_another_replaces_mappings_and_merges_the_rest():
    below = {"head": {"name": "difformer", "arguments": {"width": 8}}, "optimizer": {"lr": 1, "momentum": 0.9}}
    above = {"head": {"arguments": {"pool": 2}}, "optimizer": {"lr": 2}, "data": {"name": "cub"}}
    assert overlay(Recipe, below, above) == {
        "head": {"name": "difformer", "arguments": {"pool": 2}},
        "optimizer": {"lr": 2, "momentum": 0.9},
        "data": {"name": "cub"},
    }
    assert below["head"]["arguments"] == {"width": 8}


def test_values_are_read_with_their_types(parser):
    recipe = read_values(parser, Recipe, {"data": {"name": "cub"}, "optimizer": {"lr": "1e-3"}, "trackers": ["wandb"]})
    assert (recipe.optimizer.lr, recipe.trackers) == (0.001, ("wandb",))
    with pytest.raises(ValueError, match="epochs"):
        read_values(parser, Recipe, {"data": {"name": "cub"}, "training": {"epochs": "many"}})
    with pytest.raises(ValueError, match=r"unknown key 'training\.epoch'; did you mean 'training\.epochs'"):
        read_values(parser, Recipe, {"data": {"name": "cub"}, "training": {"epoch": 1}})


def test_dotted_keys_are_checked():
    check_key(Recipe, "optimizer.lr")
    check_key(Recipe, "head.arguments.pool")
    with pytest.raises(ValueError, match=r"unknown key 'candidates\.optimizer\.rate'; did you mean"):
        check_key(Recipe, "optimizer.rate", "candidates.")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_few_labels_are_seen_more_often_and_all_of_them_as_before(path, read):
    recipe = read(path)
    steps = recipe.training.least_steps
    few = recipe.lengthened(10).training
    assert few.epochs * math.ceil(10 / few.batch_size) == max(steps, recipe.training.epochs)
    # cifar10.yaml reads shards, whose number is not known by the name.
    images = 50_000 if path.stem.startswith("cifar10") else len(FakeImages(recipe.data, "train", 100_000))
    assert recipe.lengthened(images) == recipe


def test_recipes_name_taps_and_no_numbers(read):
    for path in (*RECIPES, *HEADS):
        extractor = yaml.safe_load(path.read_text()).get("extractor", {})
        taps = [tap for key in ("taps", "feedback_taps") for tap in extractor.get(key, [])]
        assert all(isinstance(tap, str) for tap in taps)


def test_commented_lines_are_valid_too(read, tmp_path):
    """Lines that a user would uncomment, such as `# features: cached`."""
    for path in RECIPES:
        text = re.sub(r"^# ((features|cache): )", r"\1", path.read_text(), flags=re.MULTILINE)
        assert yaml.safe_load(text)
        (tmp_path / path.name).write_text(text)
        recipe = read(tmp_path / path.name)
        assert recipe.features == ("live" if recipe.extractor.feedback_taps else "cached")


@pytest.mark.parametrize("file", sorted((ROOT / "train" / "pretraining").glob("*.yaml")), ids=lambda file: file.stem)
def test_pretraining_recipes_are_read_and_say_their_command(file):
    recipe, _ = parse(create_parser(PretrainRecipe, "", "", {}), PretrainRecipe, (), [str(file)])
    assert recipe.name == file.stem
    assert f"difformer pretrain train/pretraining/{file.name}" in file.read_text()
    flops = list(tap_specs(recipe.model).values())[-1].flops
    assert f"{flops / 1e9:.1f} GFLOP an image forward" in file.read_text()


def test_values_nested_too_deeply_are_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text("head: " + "[" * 600 + "]" * 600)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_yaml(tmp_path / "recipe.yaml")


def test_arguments_are_keys_and_values():
    for section, kind in (("head", HeadConfig), ("task", TaskConfig)):
        with pytest.raises(ValueError, match=rf"{section}\.arguments must hold keys and values, got None"):
            kind(arguments=None)
    with pytest.raises(ValueError, match=r"task\.arguments\.label_smoothing .* give training\.label_smoothing"):
        TaskConfig(arguments={"label_smoothing": 0.1})
