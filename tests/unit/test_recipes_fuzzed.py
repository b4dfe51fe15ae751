"""Recipes and options of any kind: a configuration, or an error that says what is wrong, and nothing else."""

from collections import Counter
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, is_dataclass
from typing import get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from difformer.cli import main
from difformer.config.options import option_kinds
from difformer.config.reading import create_parser, parse, plain, put, read_yaml
from difformer.data import DataConfig
from difformer.engine.config.evaluation import take_from_training
from difformer.engine.config.recipe import Recipe
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.transfer.suite import TransferRecipe

CONFIGURATIONS = (Recipe, ProbeRecipe, SweepRecipe, SelectRecipe, TransferRecipe)
PARSERS = {configuration: create_parser(configuration, "", "", {}) for configuration in CONFIGURATIONS}
NAMES = sorted({name for configuration in CONFIGURATIONS for name, _ in option_kinds(get_type_hints(configuration))})

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(("out04", "holdout", "live", "cached", "auto", "adm256_uncond", "1e-3", "2001-01-01"))
    | words
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3), max_leaves=6
)


def sections(kind):
    """Mappings with the keys of a dataclass, and others, whose values are anything."""
    own = {
        name: anything | sections(inner) if is_dataclass(inner) else anything
        for name, inner in get_type_hints(kind).items()
    }
    return st.fixed_dictionaries({}, optional=own | {"other": anything})


recipes = st.sampled_from(CONFIGURATIONS).flatmap(lambda kind: st.tuples(st.just(kind), sections(kind)))
# Whole ones, of which a few values are anything.
DATA = DataConfig("folder")
WHOLE = {kind: plain(asdict(kind(data=DATA))) for kind in CONFIGURATIONS if kind is not TransferRecipe}
WHOLE[TransferRecipe] = plain(asdict(TransferRecipe(datasets={"a": {"name": "cub"}}, heads={"b": {}})))


@st.composite
def changed(draw):
    kind = draw(st.sampled_from(CONFIGURATIONS))
    values = deepcopy(WHOLE[kind])
    keys = [name for name, _ in option_kinds(get_type_hints(kind))]
    for key, value in draw(st.lists(st.tuples(st.sampled_from(keys), anything), min_size=1, max_size=2)):
        with suppress(ValueError):
            put(values, key, value)
    return kind, values


# Bits of YAML that mean something, in any order.
tokens = st.sampled_from(
    ["data", "name", ":", " ", "\n", "  ", "- ", "{", "}", "[", "]", ",", "&a", "*a", "<<", "!!int", "!!set",
     "!!binary", "!!timestamp", "!!omap", "!!float", "? ", "|", ">",
     "'", '"', "%", "@", "#", "~", "1", ".inf", "0x", "\t", "\0", "é"]
)  # fmt: skip
texts = st.lists(tokens, max_size=30).map("".join)
options = st.lists(
    st.tuples(st.sampled_from(NAMES) | words, st.sampled_from(("=", " ", "")), texts | words | anything.map(str)),
    max_size=4,
).map(lambda given: [word for name, how, value in given for word in joined(name, how, value)])


# The last from --help and --print_config.
EXPECTED = {"read", "ValueError", "FileNotFoundError", "exit 0"}


def joined(name, how, value):
    return [f"--{name}={value}"] if how == "=" else [f"--{name}", value][: 2 if how else 1]


def outcome(configuration, arguments):
    """What reading comes to: only a configuration, or the errors that the command line prints."""
    try:
        parse(
            PARSERS[configuration], configuration, (), arguments,
            read=lambda file: take_from_training(read_yaml(file), configuration)
            if configuration in (ProbeRecipe, SweepRecipe, SelectRecipe)
            else read_yaml(file),
        )  # fmt: skip
    except (ValueError, OSError, ImportError) as error:
        return type(error).__name__ if str(error) else "an error without a message"
    except SystemExit as stopped:
        return f"exit {stopped.code}"
    return "read"


def fuzzed(test, examples):
    quiet = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)
    return settings(max_examples=examples, deadline=None, suppress_health_check=quiet, derandomize=True)(test)


def read_structures(folder, examples, strategy=recipes):
    found = Counter()

    @given(strategy)
    def one(recipe):
        configuration, values = recipe
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        found[outcome(configuration, [str(folder / "recipe.yaml")])] += 1

    fuzzed(one, examples)()
    return found


def read_texts(folder, examples):
    found = Counter()

    @given(texts)
    def one(text):
        (folder / "recipe.yaml").write_bytes(text.encode())
        found[outcome(Recipe, [str(folder / "recipe.yaml")])] += 1

    fuzzed(one, examples)()
    return found


def read_options(examples):
    found = Counter()

    @given(st.sampled_from(CONFIGURATIONS), options)
    def one(configuration, arguments):
        found[outcome(configuration, ["--data.name", "folder", *arguments])] += 1

    fuzzed(one, examples)()
    return found


def test_structures_texts_and_options_are_read_or_refused(tmp_path):
    for found in (
        read_structures(tmp_path, 40),
        read_structures(tmp_path, 40, changed()),
        read_texts(tmp_path, 60),
        read_options(30),
    ):
        assert set(found) <= EXPECTED
        assert found["ValueError"] > 10


@pytest.mark.slow
def test_many_structures_texts_and_options_are_read_or_refused(tmp_path):
    for found in (
        read_structures(tmp_path, 1000),
        read_structures(tmp_path, 2000, changed()),
        read_texts(tmp_path, 3000),
        read_options(500),
    ):
        print(dict(found))
        assert set(found) <= EXPECTED
        assert found["ValueError"] > 100


@pytest.mark.parametrize(
    "text",
    ["data: 5", "data: {name: cub}\nbackbone: null", "a: &a []\nb: *a", "[" * 600, "data: {name: x, name: y}"],
    ids=["section", "null", "alias", "depth", "twice"],
)
def test_the_command_line_prints_one_error(text, tmp_path, capsys):
    """Of two verbs, of which one takes recipes of another: all read with one of their readers."""
    (tmp_path / "recipe.yaml").write_text(text)
    for verb in ("train", "probe"):
        assert main([verb, str(tmp_path / "recipe.yaml")]) == 1
        assert capsys.readouterr().err.startswith("difformer: error: ")


@pytest.mark.parametrize("verb", ["sweep", "select", "transfer", "look", "cka", "pretrain", "extract"])
def test_every_verb_prints_one_error(verb, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("data: 5")
    assert main([verb, str(tmp_path / "recipe.yaml")]) == 1
    assert capsys.readouterr().err.startswith("difformer: error: ")
