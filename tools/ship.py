"""Puts the weights of a finished run into `checkpoints/`, with their model card and their entry in the manifest.

    python tools/ship.py backbone RUN NAME --recipe train/pretraining/X.yaml --data TEXT --licence TEXT
    python tools/ship.py classifier RUN BACKBONE/NAME --recipe train/configs/X.yaml --data TEXT --licence TEXT

For maintainers. What the card says is read from the run's folder; data, licence and further measurements are given.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from difformer import CheckpointError, load_classifier
from difformer._optional import require
from difformer.checkpoints import (
    ShippedFile,
    StoredBackbone,
    read_backbone,
    read_weights,
    weights_digest,
    write_backbone,
)
from difformer.checkpoints.shipped import MANIFEST, SUFFIX, Kind, Training, read_manifest
from difformer.checkpoints.weights import read_metadata
from difformer.classifier import read_classifier, write_classifier
from difformer.config.provenance import carried, changed_keys, without_places
from difformer.config.reading import build, read_yaml
from difformer.engine.config.recipe import Recipe
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import sha256, write_atomically
from difformer.tasks.classification.tables import readable
from difformer.verbs.pretrain.recipe import PretrainRecipe

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"backbone": 25_000_000, "classifier": 10_000_000}
# Room for names and metadata.
_HEADER = 100_000
_PICTURE = "samples.png"
# A path of somebody's machine, at the start of a text or in it; addresses and relative paths are none.
_MACHINE_PATH = re.compile(r"^~?/\w\S*|(?<![\w.:/])~?/[\w.-]+/[\w./-]+|\b[A-Za-z]:\\\S*")


@dataclass(frozen=True)
class Told:
    """What the run does not know.

    Attributes:
        recipe: its recipe, as a path in the repository.
        data: the images, in words.
        licence: of the weights, and of the images they were trained on.
        measured: YAML or JSON file with further measurements: names and values, for the card.
        uncommitted: ship although the source tree of the run had uncommitted changes; the card then says so.
    """

    recipe: str
    data: str
    licence: str
    measured: Path | None = None
    uncommitted: bool = False

    def __post_init__(self) -> None:
        if not self.recipe.startswith("train/") or not (ROOT / self.recipe).is_file():
            raise ValueError(f"--recipe must be a file in train/, as a path in the repository; got {self.recipe}")


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its folder."""

    folder: RunFolder
    recipe: Any
    results: Mapping[str, Any]
    environment: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    images: Mapping[str, Any]


def backbone(
    run: Path,
    name: str,
    *,
    recipe: str,
    data: str,
    licence: str,
    measured: Path | None = None,
    uncommitted: bool = False,
    folder: Path = ROOT / "checkpoints",
) -> None:
    """Ships the backbone of a run of `difformer pretrain`.

    Args:
        run: the run's folder.
        name: what users are to call it.
        recipe, data, licence, measured, uncommitted: see `Told`.
        folder: where to.
    """
    told = Told(recipe, data, licence, measured, uncommitted)
    finished = _read_run(run, PretrainRecipe, told)
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"a backbone's name is one word, got {name!r}")
    picture = (finished.folder.path / _PICTURE).read_bytes()
    state, stored = read_backbone(finished.folder.backbone)
    shrunk = _shrink(state, LIMITS["backbone"])
    provenance = dict(stored.provenance)
    # Runs of earlier versions kept the folders.
    provenance["recipe"] = json.dumps(without_places(json.loads(provenance["recipe"])))
    stored = replace(stored, name=name, digest=weights_digest(shrunk), provenance=provenance)
    samples = finished.recipe.samples
    with _staged(folder / f"{name}{SUFFIX}", "backbone") as file:
        write_backbone(file, shrunk, stored)
        read_backbone(file)
        parts = [
            _describe_backbone(name, stored, sum(x.numel() for x in state.values())),
            _facts(name, finished, told, file),
            f"![Samples]({name}.png)",
            f"{samples.count} samples with DDIM of {samples.steps} steps, eta {samples.eta:g}, not selected.",
        ]
        card = _card(name, finished, told, parts)
    (folder / f"{name}.png").write_bytes(picture)
    _finish(folder, name, "backbone", told, card)


def classifier(
    run: Path,
    name: str,
    *,
    recipe: str,
    data: str,
    licence: str,
    measured: Path | None = None,
    uncommitted: bool = False,
    folder: Path = ROOT / "checkpoints",
) -> None:
    """Ships the classifier of a run of `difformer train`, on a backbone that ships already.

    Args:
        run: the run's folder.
        name: what users are to call it: BACKBONE/NAME.
        recipe, data, licence, measured, uncommitted: see `Told`.
        folder: where to.
    """
    told = Told(recipe, data, licence, measured, uncommitted)
    finished = _read_run(run, Recipe, told)
    if not re.fullmatch(r"\w+/\w+", name):
        raise ValueError(f"a classifier's name is BACKBONE/NAME, got {name!r}")
    state, description = read_classifier(finished.folder.classifier)
    kinds = {x.dtype for x in state.values() if x.is_floating_point()}
    if not kinds <= {torch.float32, torch.float16}:
        raise CheckpointError(
            f"{finished.folder.classifier} has weights of {kinds}; those that ship are float32 or float16"
        )
    shipped_backbone = _backbone_of(description["backbone"], name.partition("/")[0], folder)
    description["metadata"]["recipe"] = without_places(description["metadata"]["recipe"])
    with _staged(folder / f"{name}{SUFFIX}", "classifier") as file:
        write_classifier(file, state, description)
        load_classifier(file, backbone=shipped_backbone)
        parts = [_describe_classifier(name, description), _facts(name, finished, told, file)]
        card = _card(name, finished, told, [*parts, *_test_results(finished.results)])
    _finish(folder, name, "classifier", told, card)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; returns the exit status."""
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    try:
        jsonargparse.auto_cli([backbone, classifier], args=argv, prog="ship.py")
    except (ValueError, OSError) as error:
        print(f"ship.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def _read_run(path: Path, configuration: type, told: Told) -> FinishedRun:
    """What a run has left, if it is finished and of committed code.

    Raises:
        FileNotFoundError: it is no run, or not finished.
        ValueError: its source tree had uncommitted changes, or its records do not fit its results.
    """
    folder = RunFolder(path)
    for file in (folder.recipe, folder.results):
        if not file.exists():
            raise FileNotFoundError(f"{path} has no {file.name}; only finished runs ship")
    results, environment, splits = (
        json.loads((folder.path / name).read_text(encoding="utf-8"))
        for name in (folder.results.name, "environment.json", "splits.json")
    )
    history = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    if not history or history[-1] != results["last"]:
        raise ValueError(
            f"the last record of {folder.metrics} is not that of {folder.results.name}; the run was resumed since"
        )
    if str(environment["commit"]).endswith("+") and not told.uncommitted:
        raise ValueError(
            f"{path} was run with uncommitted changes to the source; run it again, or --uncommitted=true says so in "
            "the card"
        )
    recipe: Any = build(configuration, read_yaml(folder.recipe))
    return FinishedRun(folder, recipe, results, environment, history, splits["train"])


def _backbone_of(expected: Mapping[str, Any], name: str, folder: Path) -> Path:
    """The file of a classifier's backbone among those that ship.

    Raises:
        CheckpointError: none ships under that name, or it is not the one the classifier was trained on.
    """
    entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    if name not in entries or entries[name].kind != "backbone":
        raise CheckpointError(f"no backbone {name} ships yet; `ship.py backbone` comes first")
    file = folder / entries[name].file
    digest = read_metadata(file)["weights_sha256"]
    if (expected["name"], expected["digest"]) != (name, digest):
        raise CheckpointError(
            f"the classifier was trained on {expected['name']}, digest {expected['digest']}; {name} as it ships has "
            f"{digest}. Train it on that one: --backbone.name {name}"
        )
    return file


def _shrink(state: Mapping[str, torch.Tensor], limit: int) -> dict[str, torch.Tensor]:
    """The weights as they are where they fit, else in half precision."""
    if sum(x.numel() * x.itemsize for x in state.values()) + _HEADER <= limit:
        return dict(state)
    return {name: x.half() if x.dtype == torch.float32 else x for name, x in state.items()}


@contextmanager
def _staged(target: Path, kind: str) -> Iterator[Path]:
    """Gives a path to write a weight file to, and puts the file in its place when it is fit to be published.

    Raises:
        CheckpointError: it is over the limit, holds numbers that are not finite, or says paths of this machine.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        file = Path(folder) / target.name
        yield file
        size = file.stat().st_size
        if size > LIMITS[kind]:
            raise CheckpointError(f"{target.name} would have {size:,} bytes; at most {LIMITS[kind]:,} ship")
        weights = read_weights(file)
        if not all(x.isfinite().all() for x in weights.state.values()):
            raise CheckpointError(f"{target.name} would hold numbers that are not finite")
        check_no_paths(weights.metadata, target.name)
        os.replace(file, target)


def check_no_paths(metadata: Mapping[str, str], source: str) -> None:
    """Raises CheckpointError when a file's metadata says paths of a machine, however deep."""
    found = sorted({match[0] for text in _texts(dict(metadata)) for match in _MACHINE_PATH.finditer(text)})
    if found:
        raise CheckpointError(f"{source} would tell paths of this machine: {', '.join(found[:5])}")


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested values, those written as JSON within texts too."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str) and value[:1] in ("{", "["):
        yield from _texts(json.loads(value))
    elif isinstance(value, str):
        yield value


def _finish(folder: Path, name: str, kind: Kind, told: Told, card: str) -> None:
    """Writes card and manifest."""
    file = folder / f"{name}{SUFFIX}"
    entries = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    entries[name] = ShippedFile(
        file=f"{name}{SUFFIX}",
        sha256=sha256(file),
        bytes=file.stat().st_size,
        kind=kind,
        licence=told.licence,
        source=Training(told.recipe, told.data),
        card=f"{name}.md",
        backbone=name.partition("/")[0] if kind == "classifier" else None,
    )
    values = [{key: x for key, x in asdict(entries[key]).items() if x is not None} for key in sorted(entries)]
    for path, text in (
        (folder / f"{name}.md", card),
        (folder / MANIFEST, json.dumps(values, indent=2, ensure_ascii=False) + "\n"),
    ):
        with write_atomically(path, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"wrote {file} ({file.stat().st_size:,} bytes), its card and its entry in {MANIFEST}")


def _card(name: str, run: FinishedRun, told: Told, parts: Sequence[str]) -> str:
    """The model card.

    Args:
        name: of the weights.
        run, told: what is known of them.
        parts: what they are, and what the run showed.

    Raises:
        CheckpointError: it says paths of this machine.
    """
    besides = " apart from the run" * isinstance(run.recipe, Recipe)
    measured = "Nothing." if told.measured is None else _table("what", "value", read_yaml(told.measured))
    parts = [f"# {name}", *parts, f"## Measured{besides}", measured, "## Differences from the recipe"]
    card = "\n\n".join([*parts, _changes(run.recipe, told.recipe)]) + "\n"
    check_no_paths({"card": card}, f"the card of {name}")
    return card


def _time(run: FinishedRun) -> str:
    """Of the epochs; features on the disk were written before them."""
    minutes = sum(record["seconds"] for record in run.history) / 60
    time = f"{minutes / 60:.2f} hours" if minutes >= 60 else f"{minutes:.1f} minutes"
    return time + (", beside extracting the features" if getattr(run.recipe, "features", "live") == "cached" else "")


def _facts(name: str, run: FinishedRun, told: Told, file: Path) -> str:
    """The table that every card has; the file is the one that will ship."""
    state = read_weights(file, verify=False, mapped=True).state
    environment, results, packages = run.environment, run.results, run.environment["packages"]
    commit = environment["commit"] or "unknown"
    changed = ", with uncommitted changes" if commit.endswith("+") else ""
    average = run.recipe.training.ema
    kinds = {str(x.dtype).removeprefix("torch.") for x in state.values() if x.is_floating_point()}
    up = "../" * (1 + name.count("/"))
    rows = {
        "data": f"{told.data}; {run.images['images']:,} images, digest `{run.images['digest']}`",
        "licence": told.licence,
        "recipe": f"[{told.recipe}]({up}{told.recipe})",
        "images seen": f"{results['images']:,}: {results['epochs']} epochs, {run.recipe.training.batch_size} a step",
        "time": _time(run),
        "hardware": f"{environment['device']}, {environment['cpus']} CPU cores, processes: {environment['processes']}",
        "software": f"difformer {environment['difformer']} (commit {commit.rstrip('+')[:12]}{changed}), "
        f"torch {packages['torch']}",
        "seed": results["seed"],
        "weights": f"{' and '.join(sorted(kinds))}, {file.stat().st_size / 1e6:.1f} MB"
        + (f"; the moving average of {average}" if average else ""),
        "training loss of the last epoch": f"{results['last']['train_loss']:.4g}",
    }
    return _table("", "", rows)


def _describe_backbone(name: str, stored: StoredBackbone, parameters: int) -> str:
    return (
        f"A guided-diffusion (ADM) denoiser for images of {stored.config.image_size} pixels, of {parameters:,} "
        f"parameters, with the {stored.schedule.name} noise schedule of {stored.schedule.num_timesteps} steps. "
        f'`create_backbone("{name}")` opens it, and `difformer info {name}` lists its blocks.'
    )


def _describe_classifier(name: str, description: Mapping[str, Any]) -> str:
    extractor, head, names = (description[part] for part in ("extractor", "head", "class_names"))
    backbone, arguments = name.partition("/")[0], extractor["arguments"]
    taps, timesteps = (", ".join(map(str, arguments[key])) for key in ("taps", "timesteps"))
    fed_back = ", ".join(map(str, arguments.get("feedback_taps", ())))
    metadata, init = description["metadata"], ""
    if "init_sha256" in metadata:
        init = (
            f" It started from a trained classifier, `{metadata['recipe']['init']}` (weights "
            f"`{metadata['init_sha256'][:12]}`), whose training comes before what is counted here."
        )
    return (
        f"A classifier, {head['type']}, of {len(names)} classes ({', '.join(names)}) on features of "
        f"[{backbone}](../{backbone}.md) at {taps} and timesteps {timesteps}"
        f"{f', feeding back {fed_back}' if fed_back else ''}. "
        f'`load_classifier("{name}")` opens it; `difformer predict {name} FOLDER --csv out.csv` classifies '
        f"images. The weights kept are those of epoch {metadata['epoch']}.{init}"
    )


def _test_results(results: Mapping[str, Any]) -> list[str]:
    """What the run measured on its test split."""
    test = results.get("test")
    if test is None:
        return ["## Test", "The run measured no test split."]
    lines = [f"{'images':<15}{test['num_images']:,}", *readable(test)]
    parts = ["## Test", "```\n" + "\n".join(lines) + "\n```"]
    if len(test["per_class"]) <= 20:
        rows = [
            f"| {row['name']} | {row['count']} | {_number(row['recall'])} | {_number(row['precision'])} |"
            for row in test["per_class"]
        ]
        parts.append("\n".join(["| class | images | recall | precision |", "|---|---|---|---|", *rows]))
    return parts


def _changes(recipe: Any, file: str) -> str:
    """In what the run differs from the recipe that is in the repository."""
    written = build(type(recipe), read_yaml(ROOT / file))
    changed = changed_keys(carried(written), carried(recipe))
    if not changed:
        return "Nothing differs."
    rows = {f"`{key}`": f"{now!r} (the recipe: {before!r})" for key, (before, now) in changed.items()}
    return _table("key", "value", rows)


def _table(first: str, second: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {_number(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines])


def _number(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
