"""Recipes from YAML files and command lines, strictly."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from difformer._optional import require
from difformer.files import expand_user

C = TypeVar("C")
Reader = Callable[[str], Mapping[str, Any]]


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
    """A YAML file's mapping. Only `true` and `false` are truth values: `precision: no` means the word.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not YAML, or no mapping.
    """
    file = expand_user(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes yes, no, on and off for truth values too; 1.2 does not."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base has it
        first: [(tag, form) for tag, form in forms if first in "tTfF" or not tag.endswith(":bool")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse(
    parser: Any,
    configuration: type[C],
    switches: Iterable[str],
    arguments: Sequence[str],
    *,
    read: Reader = read_yaml,
    read_first: Reader | None = None,
) -> tuple[C, dict[str, bool]]:
    """Reads a configuration from a YAML file and options.

    Args:
        parser: from `create_parser`.
        configuration: the dataclass.
        switches: the parser's options without a value.
        arguments: a YAML file, then options such as `--optimizer.lr 0.1`; any of them may be left out.
        read: gives the values of a file.
        read_first: gives those of the first argument, where that is no file as others.

    Returns:
        The configuration, and which switches were given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key (the message names the nearest known one), a missing one, or a bad value.
    """
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    given = list(_with_values(configuration, arguments, read, read_first or read))
    _check_options(given, {*option_names(configuration), *switches})
    try:
        values = parser.parse_args(given).as_dict()
    except jsonargparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    values.pop("config", None)
    given_switches = {name: bool(values.pop(name)) for name in switches}
    return build(configuration, values), given_switches


def check_keys(configuration: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError when a key, at any depth, is not one of the dataclass's; the message names the nearest."""
    kinds = get_type_hints(configuration)
    for key, value in values.items():
        if key not in kinds:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in kinds])
        if is_dataclass(kinds[key]) and isinstance(value, Mapping):
            check_keys(kinds[key], value, f"{prefix}{key}.")


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
    return yaml.safe_dump(plain(asdict(configuration)), sort_keys=False, allow_unicode=True)


def plain(value: Any) -> Any:
    """The same in lists and dictionaries, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def option_names(configuration: type, prefix: str = "") -> Iterable[str]:
    """The dotted keys of a dataclass and those inside it, groups included."""
    kinds = get_type_hints(configuration)
    for field in fields(configuration):
        yield f"{prefix}{field.name}"
        if is_dataclass(kinds[field.name]):
            yield from option_names(kinds[field.name], f"{prefix}{field.name}.")


def unknown_key(name: str, known: Sequence[str]) -> ValueError:
    """The error that names the nearest of the known keys."""
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
    return ValueError(f"unknown key {name!r}; {hint}")


def _with_values(configuration: type, arguments: Sequence[str], read: Reader, read_first: Reader) -> Iterator[str]:
    """The arguments with what files hold in place of their names, so that it is checked, and adapted, beforehand."""
    words = iter(arguments)
    for place, word in enumerate(words):
        option, _, file = word.partition("=")
        if place == 0 and not word.startswith("-"):
            values = read_first(word)
        elif option == "--config" and (file or (file := next(words, ""))):
            values = read(file)
        else:
            yield word
            continue
        check_keys(configuration, values)
        yield from ("--config", yaml.safe_dump(plain(values)))


def _check_options(arguments: Sequence[str], names: set[str]) -> None:
    known = {"config", "print_config", "help", *names}
    open_ended = [name for name in known if name.endswith(".arguments") or name == "data.splits"]
    for word in arguments:
        name = word[2:].partition("=")[0]
        if not word.startswith("--") or name in known or any(name.startswith(f"{o}.") for o in open_ended):
            continue
        raise unknown_key(name, sorted(known))
