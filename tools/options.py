"""Writes difformer/cli/verbs.json: what `difformer --help` and the reference pages say of each verb.

    python tools/options.py

For maintainers, after a change of a verb, a recipe or their docstrings. `difformer --help`, wrong options and shell
completion are answered from this file alone, since the code that it describes takes seconds to load.
"""

import dataclasses
import inspect
import json
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from difformer.analysis import METRICS
from difformer.checkpoints import PRESETS, shipped
from difformer.cli.runs import RecipeVerb
from difformer.cli.verbs import VERBS
from difformer.config.reading import mapping_names
from difformer.data.dataset import READERS
from difformer.heads import HEADS
from difformer.registry import Registry
from difformer.tasks import TASKS

FILE = Path(__file__).parents[1] / "difformer" / "cli" / "verbs.json"
_WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "{true,false}"}


def describe() -> dict[str, Any]:
    """All verbs and the configurations that they read, in JSON types."""
    verbs = {
        name: _of_recipe(verb) if isinstance(verb, RecipeVerb) else _of_function(verb) for name, verb in VERBS.items()
    }
    read = dict.fromkeys(verb.configuration for verb in VERBS.values() if isinstance(verb, RecipeVerb))
    configurations = {kind.__name__: list(_keys(kind, "")) for kind in read}
    return {"verbs": verbs, "configurations": configurations, "names": _names()}


def _names() -> dict[str, list[str]]:
    """The names of this package that options may hold, by option, for the shell to complete."""
    backbones = [*PRESETS, *(name for name, entry in shipped().items() if entry.kind == "backbone")]
    metrics = _ours(METRICS)
    return {
        "backbone": backbones,
        "backbone.name": backbones,
        "preset": list(PRESETS),
        "data.name": sorted(_ours(READERS)),
        "head.name": _ours(HEADS),
        "task.name": _ours(TASKS),
        "criterion": metrics,
        "evaluation.criterion": metrics,
        "metrics": metrics,
    }


def _ours(registry: Registry[Any]) -> list[str]:
    """The names of a registry without those that others have registered."""
    found = {name: registry.find(name) for name in registry}
    return [name for name, thing in found.items() if getattr(thing, "func", thing).__module__.startswith("difformer.")]


def _of_recipe(verb: RecipeVerb) -> dict[str, Any]:
    what = (
        ("RUN", "folder of a run, classifier file or hf://owner/name") if verb.read_first else ("RECIPE", "YAML file")
    )
    config = _key("config", "FILE", "", "another YAML file, whose values go over those before")
    shows = _key("print_config", "", "", "print the recipe that results, as YAML, and stop")
    return {
        "description": verb.description,
        "words": [_key(what[0], "", None, what[1])],
        "options": [config, shows, *(_key(name, "", "", text) for name, text in verb.switches.items())],
        "configuration": verb.configuration.__name__,
        "shown": ["config", *verb.switches, *verb.shown],
        "mappings": list(mapping_names(verb.configuration)),
    }


def _of_function(verb: Callable[..., Any]) -> dict[str, Any]:
    found = parse(inspect.getdoc(verb) or "")
    meanings = {entry.arg_name: _line(entry.description) for entry in found.params}
    words, options, kinds = [], [], get_type_hints(verb)
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, default = kinds[name], parameter.default
        if default is inspect.Parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            words.append(_key(name.upper(), _kind(kind), None, meanings[name]))
        elif default is False:
            # A switch, which needs no value.
            options.append(_key(name, "", "", meanings[name]))
        else:
            options.append(_key(name, _kind(kind), _default(default), meanings[name]))
        for inner in filter(dataclasses.is_dataclass, get_args(kind)):
            options += _keys(inner, f"{name}.")
    text = " ".join(filter(None, map(_line, (found.short_description, found.long_description))))
    return {"description": text, "words": words, "options": options}


def _key(name: str, kind: str, default: str | None, meaning: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, "default": default, "meaning": meaning}


def _keys(configuration: Any, prefix: str) -> Iterator[dict[str, Any]]:
    """The keys of a configuration with their defaults and meanings; a section comes before its own."""
    meanings: dict[str, str] = {}
    for kind in reversed(inspect.getmro(configuration)[:-1]):
        for entry in parse(inspect.getdoc(kind) or "").params:
            # One entry may describe several keys: `mixup, cutmix: …`.
            meanings |= dict.fromkeys(map(str.strip, entry.arg_name.split(",")), _line(entry.description))
    types = get_type_hints(configuration)
    for field in dataclasses.fields(configuration):
        kind, section = types[field.name], dataclasses.is_dataclass(types[field.name])
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        about = ("", "") if section else (_kind(kind), _default(default))
        yield _key(f"{prefix}{field.name}", *about, meanings.get(field.name, ""))
        if section:
            yield from _keys(kind, f"{prefix}{field.name}.")


def _kind(kind: Any) -> str:
    """What stands for a value in the help."""
    origin, inner = get_origin(kind), [one for one in get_args(kind) if one is not type(None)]
    if origin in (Union, types.UnionType):
        if str in inner:
            return _kind(next((one for one in inner if get_origin(one) in (list, tuple)), str))
        return "|".join(dict.fromkeys(_kind(one) for one in inner))
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin in (list, tuple):
        return f"{_kind(inner[0])} …"
    return "KEY: VALUE" if origin is Mapping else _WORDS.get(kind, "VALUE")


def _default(value: Any) -> str | None:
    """A default as it is written; None where there is none and a value must be given."""
    if value is dataclasses.MISSING or value is inspect.Parameter.empty:
        return None
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def main() -> None:
    """Writes the file."""
    FILE.write_text(json.dumps(describe(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
