"""The verbs that a recipe describes: from extract to transfer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from difformer.config.options import with_lists
from difformer.config.reading import Reader, create_parser, parse, read_yaml
from difformer.engine.config.evaluation import take_from_training
from difformer.engine.config.fitting import fit_to_backbone
from difformer.engine.config.recipe import Recipe
from difformer.verbs.cka.cka import measure_cka
from difformer.verbs.cka.recipe import SimilarityRecipe
from difformer.verbs.eval.evaluate import classifier_values, evaluate_classifier
from difformer.verbs.eval.recipe import EvaluationRecipe
from difformer.verbs.extract.extract import extract
from difformer.verbs.look.look import look
from difformer.verbs.look.recipe import LookRecipe
from difformer.verbs.pretrain.dry_run import try_out_pretraining
from difformer.verbs.pretrain.pretrain import closing_lines as pretrain_ending
from difformer.verbs.pretrain.pretrain import pretrain
from difformer.verbs.pretrain.recipe import PretrainRecipe
from difformer.verbs.probe.probe import run_probe
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.select.select import select
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.sweep.sweep import sweep
from difformer.verbs.train.dry_run import try_out
from difformer.verbs.train.seeds import recipes_of_seeds, seed_lines, train_seeds
from difformer.verbs.train.train import closing_lines as train_ending
from difformer.verbs.train.train import train
from difformer.verbs.transfer.suite import TransferRecipe
from difformer.verbs.transfer.transfer import transfer
from difformer.verbs.transfer.trial import try_out_suite


@dataclass(frozen=True)
class RecipeVerb:
    """A verb whose arguments are a configuration: a YAML file, options for its keys, and switches.

    Attributes:
        description: what it does.
        configuration: the dataclass it reads.
        body: takes the configuration, and the switches by name; a number that it returns is the exit status.
        switches: further options without a value, with their help.
        shown: the keys that people use first, which `--help` shows; `--help all` shows the others too.
        read: gives the values of a YAML file.
        read_first: gives those of the first argument, where that is no YAML file. It is called with `download`,
            whether the file may be fetched, and `trust`, the packages whose code may run.
    """

    description: str
    configuration: type
    body: Callable[..., object]
    switches: Mapping[str, str]
    shown: tuple[str, ...]
    read: Reader = read_yaml
    read_first: Callable[..., Mapping[str, Any]] | None = None

    def run(self, program: str, arguments: Sequence[str]) -> int | None:
        """Reads the arguments and does it."""
        parser = create_parser(self.configuration, program, self.description, self.switches)
        configuration: Any
        first = None if self.read_first is None else partial(self.read_first, **_allowed(arguments))
        configuration, given = parse(
            parser,
            self.configuration,
            self.switches,
            arguments,
            read=self.read,
            read_first=first,
            adapt=fit_to_backbone,
        )
        if given.get("fake_data") and not given["dry_run"]:
            raise ValueError("--fake_data is for --dry_run")
        status = self.body(configuration, **given)
        return status if isinstance(status, int) else None


def _allowed(arguments: Sequence[str]) -> dict[str, Any]:
    """What may be fetched and run for the first argument, which is read before the others are."""
    words = with_lists(arguments, {"trust": tuple[str, ...]})
    values = dict(zip(words, [*words[1:], ""], strict=True))
    values |= dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    download = "--download" in words or values.get("--backbone.download") == "true"
    return {"download": download, "trust": re.findall(r"[^\s,'\"\[\]]+", values.get("--trust", ""))}


def _train(recipe: Recipe, *, dry_run: bool, fake_data: bool, overwrite: bool) -> None:
    if dry_run:
        try_out(recipes_of_seeds(recipe)[0], fake_data=fake_data)
    elif recipe.seeds:
        _print(seed_lines(recipe, train_seeds(recipe, overwrite=overwrite)))
    else:
        _print(train_ending(recipe, train(recipe, overwrite=overwrite)))


def _extract(recipe: Recipe, *, dry_run: bool, fake_data: bool) -> None:
    first, *others = recipes_of_seeds(recipe)
    if fake_data:
        try_out(replace(first, features="cached"), fake_data=True)
        return
    # Where the seeds draw the images, these are others for each.
    for one in [first, *(others if recipe.data.has_label_subset else ())]:
        extract(one, estimate_only=dry_run)


def _pretrain(recipe: PretrainRecipe, *, dry_run: bool, fake_data: bool, overwrite: bool) -> None:
    if dry_run:
        try_out_pretraining(recipe, fake_data=fake_data)
        return
    _print(pretrain_ending(recipe, pretrain(recipe, overwrite=overwrite)))


def _print(lines: Sequence[str]) -> None:
    """Prints on the main process."""
    from accelerate import PartialState

    PartialState().print("\n".join(lines), flush=True)


def _eval(recipe: EvaluationRecipe, *, download: bool, overwrite: bool) -> None:
    if download:
        recipe = replace(recipe, backbone=replace(recipe.backbone, download=True))
    evaluate_classifier(recipe, overwrite=overwrite)


def _reads_training_recipes(configuration: type, *, test_split: bool = True) -> Reader:
    return lambda file: take_from_training(read_yaml(file), configuration, test_split=test_split)


def _transfer(recipe: TransferRecipe, *, dry_run: bool, fake_data: bool, overwrite: bool) -> int:
    if dry_run:
        try_out_suite(recipe, fake_data=fake_data)
        return 0
    result = transfer(recipe, overwrite=overwrite)
    print(f"{result.folder / 'table.md'}: {len(result.rows)} rows, {len(result.failures)} failures")
    return 1 if result.failures else 0


_DRY_RUN = "build everything, print sizes and costs, run two steps, and write nothing"
_FAKE_DATA = "with --dry_run: random images and weights in place of the recipe's"
_OVERWRITE = "start anew although the output holds a run"
_REPLACE = "replace the results that are in the output"

RECIPE_VERBS = {
    "extract": RecipeVerb(
        "Writes the features that a recipe's head reads to the disk, for training from `features: cached`.",
        Recipe,
        _extract,
        {"dry_run": "say what it will take, and write nothing", "fake_data": _FAKE_DATA},
        (
            "data.name",
            "data.root",
            "backbone.name",
            "extractor.taps",
            "extractor.timesteps",
            "head.name",
            "cache.folder",
            "cache.views",
        ),
    ),
    "pretrain": RecipeVerb(
        "Trains a denoiser, whose weights are then a backbone; the same command resumes after an interruption.",
        PretrainRecipe,
        _pretrain,
        {"dry_run": _DRY_RUN, "fake_data": _FAKE_DATA, "overwrite": _OVERWRITE},
        ("data.name", "data.root", "output", "name", "training.epochs", "training.batch_size", "optimizer.lr"),
    ),
    "train": RecipeVerb(
        "Trains a head on diffusion features; the same command resumes after an interruption.",
        Recipe,
        _train,
        {"dry_run": _DRY_RUN, "fake_data": _FAKE_DATA, "overwrite": _OVERWRITE},
        (
            "data.name",
            "data.root",
            "output",
            "backbone.name",
            "extractor.taps",
            "head.name",
            "features",
            "training.epochs",
            "optimizer.lr",
            "seeds",
        ),
    ),
    "eval": RecipeVerb(
        "Measures a classifier: the folder of a run, a classifier file or hf://owner/name, given first.",
        EvaluationRecipe,
        _eval,
        {"download": "allow the download of what is not on this machine", "overwrite": _REPLACE},
        ("data.name", "data.root", "split", "output", "backbone.name", "metrics", "trust"),
        read=_reads_training_recipes(EvaluationRecipe),
        read_first=classifier_values,
    ),
    "probe": RecipeVerb(
        "Fits k-NN or linear classifiers on pooled features; the recipe may be one of training.",
        ProbeRecipe,
        run_probe,
        {"overwrite": _REPLACE},
        (
            "data.name",
            "data.root",
            "output",
            "method",
            "backbone.name",
            "extractor.taps",
            "extractor.timesteps",
            "pool",
            "criterion",
        ),
        read=_reads_training_recipes(ProbeRecipe),
    ),
    "sweep": RecipeVerb(
        "Fits linear probes of every block, timestep and pooling, and says which to use; resumes likewise.",
        SweepRecipe,
        sweep,
        {"overwrite": _OVERWRITE},
        (
            "data.name",
            "data.root",
            "data.holdout",
            "output",
            "backbone.name",
            "taps",
            "timesteps",
            "pools",
            "method",
            "test",
        ),
        read=_reads_training_recipes(SweepRecipe),
    ),
    "select": RecipeVerb(
        "Searches for the best block and timestep, and features to fuse, at a fraction of a sweep's cost.",
        SelectRecipe,
        select,
        {"overwrite": _REPLACE},
        ("data.name", "data.root", "data.holdout", "output", "backbone.name", "timesteps", "budget", "labels"),
        read=_reads_training_recipes(SelectRecipe),
    ),
    "look": RecipeVerb(
        "Writes a page about what blocks see: retrieval, principal components, nearest neighbours, a map.",
        LookRecipe,
        look,
        {"overwrite": _REPLACE},
        ("data.name", "data.root", "output", "backbone.name", "taps", "timesteps", "split", "images"),
        read=_reads_training_recipes(LookRecipe, test_split=False),
    ),
    "cka": RecipeVerb(
        "Compares blocks and timesteps with each other, with other weights, or with a timm model, by CKA.",
        SimilarityRecipe,
        measure_cka,
        {"overwrite": _REPLACE},
        ("data.name", "data.root", "output", "backbone.name", "taps", "timesteps", "images", "other", "timm.name"),
        read=_reads_training_recipes(SimilarityRecipe),
    ),
    "transfer": RecipeVerb(
        "Trains and tests heads on several data sets, with choices on held-out images; resumes likewise.",
        TransferRecipe,
        _transfer,
        {
            "dry_run": "list the runs with their cost, run two steps of each head, and write nothing",
            "fake_data": _FAKE_DATA,
            "overwrite": _OVERWRITE,
        },
        ("root", "output", "seeds", "datasets", "heads", "metrics"),
    ),
}
