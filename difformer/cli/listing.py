"""What `difformer info` prints besides a backbone's table: all weights by name, and what a classifier consists of."""

import json
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from difformer.checkpoints import PRESETS, read_weights, shipped
from difformer.checkpoints.shipped import missing_hint, shipped_folder
from difformer.classifier import read_description

_SHOWN_CLASSES = 20


def list_weights() -> None:
    """Prints the presets and the weights that ship, one a line: name, kind, size and what it is."""
    print(f"{'name':<28}{'kind':<12}{'size':>12}  what it is")
    for preset in PRESETS.values():
        file = preset.find()
        size = "not here" if file is None else _megabytes(file.stat().st_size)
        classes = f", {preset.config.num_classes} classes" if preset.config.num_classes else ""
        about = f"OpenAI's; {preset.config.image_size} pixels{classes}, {preset.schedule_name} schedule"
        print(f"{preset.name:<28}{'backbone':<12}{size:>12}  {about}")
    for name, entry in shipped().items():
        on = f"on {entry.backbone}; " if entry.backbone else ""
        print(f"{name:<28}{entry.kind:<12}{_megabytes(entry.bytes):>12}  ships; {on}{entry.source.data}")
    print("Presets that are not here are fetched with --download; `difformer info NAME` says more of each.")
    if shipped_folder() is None:
        print(missing_hint("").strip())


def classifier_table(source: str, path: Path, *, as_json: bool) -> str:
    """What a classifier's file says of it.

    Args:
        source: what the user wrote.
        path: the file.
        as_json: everything, as JSON, in place of the lines for people.

    Raises:
        CheckpointError: the file is damaged.
    """
    description = read_description(path)
    if as_json:
        return json.dumps(description, indent=2, ensure_ascii=False)
    weights = read_weights(path, verify=False, mapped=True).state
    backbone, head, names = description["backbone"], description["head"], description["class_names"]
    task = description.get("task")
    shown = ", ".join(names[:_SHOWN_CLASSES]) + (", …" if len(names) > _SHOWN_CLASSES else "")
    lines = [
        f"{source}, a classifier",
        f"  file: {path}",
        f"  backbone: {backbone['name']}, digest {backbone['digest']}",
        f"  extractor: {_with_arguments(description['extractor'])}",
        f"  head: {_with_arguments(head)}",
        f"  {'outputs' if task else 'classes'}: {len(names)} ({shown})",
        f"  weights: {sum(x.numel() for x in weights.values()):,} values in {len(weights)} tensors",
    ]
    if task:
        lines.append(f"  task: {_with_arguments(task)}")
    if description["preprocessing"]:
        lines.append(f"  preprocessing: {_listed(description['preprocessing'])}")
    lines += [f"  {name}: {value}" for name, value in _noted(description["metadata"])]
    return "\n".join(lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _with_arguments(part: Mapping[str, Any]) -> str:
    return f"{part['type']}, {_listed(part['arguments'])}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _noted(metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The numbers and words kept with a classifier; its recipe is for --as_json."""
    for name, value in metadata.items():
        if isinstance(value, Real | str):
            yield name, value
        elif name == "metrics" and isinstance(value, Mapping):
            numbers = {key: number for key, number in value.items() if isinstance(number, Real)}
            texts = {key: f"{one:.4g}" if isinstance(one, float) else str(one) for key, one in numbers.items()}
            yield name, ", ".join(f"{key} {text}" for key, text in texts.items())
