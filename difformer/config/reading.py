"""Recipes from YAML files and command lines, strictly."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from difformer._optional import require
from difformer.config.options import check_options, option_kinds, refuse_published, unknown_key, with_lists
from difformer.config.sizes import Size, as_size
from difformer.files import expand_user

C = TypeVar("C")
Reader = Callable[[str], Mapping[str, Any]]
Adapter = Callable[[Mapping[str, Any], Collection[str], Sequence[Mapping[str, Any]]], Mapping[str, Any]]

# Marks a field of a configuration that earlier versions did not have, `field(default=…, metadata=ADDED_LATER)`. At its
# default it is not written, so that recipes, states and digests stay comparable with earlier ones.
ADDED_LATER: Mapping[str, Any] = MappingProxyType({"added_later": True})

# In a file; far above any recipe.
_MOST_VALUES = 100_000


def create_parser(configuration: type, program: str, description: str, switches: Mapping[str, str]) -> Any:
    """A parser whose options are the dotted keys of a configuration dataclass.

    Args:
        configuration: the dataclass; its docstrings become the help.
        program: the command's name.
        description: what it does.
        switches: further options without a value, with their help.

    Returns:
        A jsonargparse parser, which takes `--config FILE` and `--print_config` too.
    """
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    parser = jsonargparse.ArgumentParser(prog=program, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file, which may also stand first without --config")
    for name, text in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(configuration)
    return parser


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file's mapping. Only `true` and `false` are truth values (`precision: no` means the word), and dates are
    words. A key may appear only once, and aliases (`*name`) may expand to a limited number of values: a few lines of
    them could be gigabytes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such YAML, or no mapping.
    """
    file = expand_user(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is nested too deeply") from error
    # For values that contradict their tag, such as `!!int x`, PyYAML passes on Python's own errors.
    except (yaml.YAMLError, ValueError, AttributeError, IndexError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes yes, no, on and off for truth values too; 1.2 does not, and knows no dates. The number of values
    that aliases expand to is limited: a few lines of them can be more than fit into any memory. A repeated key is
    refused.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base has it
        first: [
            (tag, form)
            for tag, form in forms
            if not tag.endswith(":timestamp") and (first in "tTfF" or not tag.endswith(":bool"))
        ]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        # How many values each node has when its aliases are expanded.
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        node: Any = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            items = [] if isinstance(node, yaml.ScalarNode) else node.value
            inner = [part for item in items for part in (item if isinstance(item, tuple) else (item,))]
            self._sizes[node] = 1 + sum(self._sizes[part] for part in inner)
        elif node not in self._sizes:
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", node.start_mark)
        if self._sizes[node] > _MOST_VALUES:
            problem = f"it expands to more than {_MOST_VALUES:,} values"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} appears twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


def parse(
    parser: Any,
    configuration: type[C],
    switches: Iterable[str],
    arguments: Sequence[str],
    *,
    read: Reader = read_yaml,
    read_first: Reader | None = None,
    adapt: Adapter | None = None,
) -> tuple[C, dict[str, bool]]:
    """Reads a configuration from a YAML file and options.

    Args:
        parser: from `create_parser`.
        configuration: the dataclass.
        switches: the parser's options without a value.
        arguments: a YAML file, then options such as `--optimizer.lr 0.1`; any of them may be left out. Further files,
            `--config FILE`, override the first. `--print_config` prints the result as YAML, and exits.
        read: gives the values of a file.
        read_first: gives the values of the first argument, where that is not an ordinary file.
        adapt: takes the values, the names of the options that were given and the values of each file, and gives the
            final values.

    Returns:
        The configuration, and which switches were given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key (the message names the nearest known one), a missing one, or a bad value.
    """
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    given, files = _with_values(configuration, arguments, read, read_first or read)
    kinds = dict(option_kinds(get_type_hints(configuration)))
    given = with_lists(given, kinds)
    refuse_published(given, kinds)
    mappings = list(mapping_names(configuration))
    check_options(given, {*kinds, *switches, "config", "print_config", "help"}, mappings)
    # The parser would print the switches too, which are no keys of a file.
    words = [word for word in given if word != "--print_config"]
    try:
        values = parser.parse_args(_with_whole_mappings(words, files, mappings)).as_dict()
    except jsonargparse.ArgumentError as error:
        named = [word[2:].split("=", 1) for word in given if word.startswith("--") and "=" in word]
        written = [pair for file in files for pair in dotted(file)]
        _check_sizes(
            error, kinds, [*written, *((name, _read_value(text)) for name, text in named if kinds.get(name) == Size)]
        )
        raise ValueError(str(error)) from error
    values.pop("config", None)
    given_switches = {name: bool(values.pop(name)) for name in switches}
    check_keys(configuration, values)
    options = {word[2:].partition("=")[0] for word in given if word.startswith("--")}
    built = build(configuration, values if adapt is None else adapt(values, options, files))
    if len(words) < len(given):
        print(dump(built), end="")
        raise SystemExit(0)
    return built, given_switches


def read_values(parser: Any, configuration: type[C], values: Mapping[str, Any]) -> C:
    """The dataclass from nested mappings whose values are checked against its types, as `parse` checks a file's.

    Args:
        parser: from `create_parser`.
        configuration: the dataclass.
        values: what a file would hold.

    Raises:
        ValueError: an unknown key, a missing one, or a bad value.
    """
    check_keys(configuration, values)
    jsonargparse = require("jsonargparse", "reading a recipe", install="jsonargparse[signatures]")
    try:
        found = parser.parse_object(plain(values)).as_dict()
    except jsonargparse.ArgumentError as error:
        _check_sizes(error, dict(option_kinds(get_type_hints(configuration))), dotted(values))
        raise ValueError(str(error)) from error
    return build(configuration, {name: value for name, value in found.items() if name != "config"})


def _check_sizes(error: Exception, kinds: Mapping[str, Any], values: Iterable[tuple[str, Any]]) -> None:
    """Raises ValueError, which says how sizes are written, where the parser's error is about one.

    The parser only says which types it has tried.

    Args:
        error: the parser's.
        kinds: types by dotted key.
        values: what was given, with dotted keys.
    """
    for key, value in values:
        if kinds.get(key) == Size and f'"{key}"' in str(error):
            as_size(key, value)


def check_keys(configuration: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError when a key, at any depth, is not one of the dataclass's (the message names the nearest), when a
    section has no keys, or when a value that must be given is null."""
    kinds = get_type_hints(configuration)
    for key, value in values.items():
        if key not in kinds:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in kinds])
        kind = kinds[key]
        if value is None and kind is not Any and type(None) not in get_args(kind):
            raise ValueError(f"{prefix}{key} must not be null; leave it out for its default")
        if not is_dataclass(kind):
            continue
        assert isinstance(kind, type)
        if isinstance(value, Mapping):
            check_keys(kind, value, f"{prefix}{key}.")
        elif not isinstance(value, kind):
            raise ValueError(f"{prefix}{key} must hold keys and values, got {value!r}")


def check_key(configuration: type, key: str, prefix: str = "") -> None:
    """Raises ValueError when a dataclass lacks a dotted key, such as optimizer.lr; the message names the nearest."""
    mappings = mapping_names(configuration)
    names = dict(option_kinds(get_type_hints(configuration)))
    if key not in names and not any(key.startswith(f"{m}.") for m in mappings):
        raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in sorted(names)])


def overlay(configuration: type, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a dataclass's form overridden by others, section by section, as a further file overrides the first.

    Sections are merged; mappings with keys of any name, such as a head's arguments, are replaced.
    """
    kinds = get_type_hints(configuration)
    merged = dict(below)
    for key, value in above.items():
        section = kinds.get(key)
        if is_dataclass(section) and isinstance(value, Mapping):
            assert isinstance(section, type)
            value = overlay(section, below.get(key) or {}, value)
        merged[key] = value
    return merged


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key in nested mappings; raises ValueError where a part of it has a value that is no mapping."""
    *path, last = key.split(".")
    for name in path:
        inner = values.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise ValueError(f"{key}: {name} must hold keys and values, got {inner!r}")
        values[name] = values = dict(inner or {})
    values[last] = value


def build(configuration: type[C], values: Mapping[str, Any]) -> C:
    """The dataclass, and those inside it, from nested mappings.

    Raises:
        ValueError: an unknown key, a missing one, or a bad value.
    """
    check_keys(configuration, values)
    kinds = get_type_hints(configuration)
    made = {
        key: build(kinds[key], value) if is_dataclass(kinds[key]) and isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    try:
        return configuration(**made)
    except TypeError as error:
        raise ValueError(f"cannot build {configuration.__name__}: {error}") from error


def dump(configuration: Any) -> str:
    """A configuration as YAML that `parse` reads."""
    return yaml.safe_dump(plain(configuration), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """A value as lists and dictionaries, as YAML and JSON have them.

    A configuration's fields are in the order of its help, where keyword-only ones come last. A field that is
    `ADDED_LATER` and has its default is left out, here and nowhere else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        written = {}
        for field in sorted(fields(value), key=lambda field: bool(field.kw_only)):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            item = getattr(value, field.name)
            if not ("added_later" in field.metadata and item == default):
                written[field.name] = plain(item)
        return written
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested mappings, with their values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _with_values(
    configuration: type, arguments: Sequence[str], read: Reader, read_first: Reader
) -> tuple[list[str], list[Mapping[str, Any]]]:
    """The arguments with each file's content in place of its name, so that the content is checked and adapted first.

    Returns:
        The arguments, and the files' values.
    """
    words = iter(arguments)
    given: list[str] = []
    files: list[Mapping[str, Any]] = []
    for place, word in enumerate(words):
        option, _, file = word.partition("=")
        if place == 0 and not word.startswith("-"):
            values = read_first(word)
        elif option == "--config" and (file or (file := next(words, ""))):
            values = read(file)
        else:
            given.append(word)
            continue
        check_keys(configuration, values)
        files.append(values)
        given += ["--config", yaml.safe_dump(plain(values), sort_keys=False)]
    return given, files


def mapping_names(configuration: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys whose values are mappings with keys of any name."""
    for name, kind in get_type_hints(configuration).items():
        if is_dataclass(kind):
            assert isinstance(kind, type)
            yield from mapping_names(kind, f"{prefix}{name}.")
        elif get_origin(kind) is Mapping:
            yield f"{prefix}{name}"


def _with_whole_mappings(
    arguments: Sequence[str], files: Sequence[Mapping[str, Any]], mappings: Sequence[str]
) -> list[str]:
    """Replaces options deep in a mapping, `--datasets.cub.root X`, by the whole mapping of the files with that value.

    The parser alone knows keys of the mapping itself, and would replace all of `datasets.cub`.
    """
    kept: list[str] = []
    whole: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        name, equals, text = word[2:].partition("=")
        owner = next((owner for owner in mappings if name.startswith(f"{owner}.")), None)
        if not word.startswith("--") or owner is None or "." not in name[len(owner) + 1 :]:
            kept.append(word)
            continue
        if owner not in whole:
            found = [value for content in files if (value := value_at(content, owner)) is not None]
            whole[owner] = deepcopy(found[-1]) if found else {}
        put(whole[owner], name[len(owner) + 1 :], _read_value(text if equals else next(words, "")))
    return kept + [f"--{owner}={json.dumps(value)}" for owner, value in whole.items()]


def value_at(values: Any, dotted: str) -> Any:
    """The value under a dotted key of nested mappings; None where there is none."""
    for key in dotted.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _read_value(text: str) -> Any:
    """A value as the parser reads it, which takes 1e-3 for a number."""
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=Any)
    return parser.parse_args([f"--value={text}"]).value
