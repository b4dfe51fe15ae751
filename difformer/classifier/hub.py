"""Classifiers as hub repositories, and as folders laid out like them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from difformer.backbones import StoringBackbone, identity
from difformer.checkpoints import locate_on_hub, push_folder, shipped
from difformer.checkpoints.weights import read_metadata
from difformer.classifier.files import Parts, describe, save_classifier
from difformer.config import sides
from difformer.data.images import enlarged
from difformer.files import write_atomically

CLASSIFIER_FILE, BACKBONE_FILE = "model.safetensors", "backbone.safetensors"
# What `save_pretrained` writes.
FILES = (CLASSIFIER_FILE, BACKBONE_FILE, "config.json", "README.md")
# Classes that a model card names.
_NAMED = 20


def save_pretrained(
    classifier: Parts,
    folder: Path,
    metadata: dict[str, Any],
    repo_id: str | None = None,
    *,
    with_backbone: bool = False,
) -> Path:
    """What `DiffusionClassifier.save_pretrained` does.

    Args:
        folder: created when it does not exist.
        metadata: as for `save_classifier`.
        repo_id: the repository that the folder will become, for the model card; None if it is not known.
        with_backbone: write the backbone, too.

    Raises:
        ValueError: as `save_classifier`, or a backbone that cannot write its weights.
    """
    backbone = classifier.extractor.backbone
    if with_backbone and not isinstance(backbone, StoringBackbone):
        raise ValueError(
            f"{type(backbone).__name__} has no `save`, so {backbone.name} cannot lie beside its classifier"
        )
    # Refuses what cannot be written before the backbone, which may be large.
    describe(classifier, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    if with_backbone:
        (folder / BACKBONE_FILE).unlink(missing_ok=True)
        backbone.save(folder / BACKBONE_FILE)
        if backbone_beside(folder / CLASSIFIER_FILE, identity(backbone)) is None:
            (folder / BACKBONE_FILE).unlink()
            raise ValueError(
                f"the weights of {backbone.name} in memory are not those of its file, as in half precision; "
                "open it with dtype=torch.float32 to write it beside its classifier"
            )
    save_classifier(folder / CLASSIFIER_FILE, classifier, **metadata)
    with write_atomically(folder / "config.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(describe(classifier, metadata), indent=2) + "\n")
    with write_atomically(folder / "README.md", overwrite=True) as temporary:
        temporary.write_text(_model_card(classifier, metadata, repo_id, with_backbone), encoding="utf-8")
    return folder


def backbone_beside(file: Path, backbone: Mapping[str, Any]) -> Path | None:
    """The backbone that `save_pretrained` wrote beside a classifier; None where there is none, or that of another one.

    Args:
        file: of the classifier.
        backbone: what its description says of the backbone. Files of another family do not show which weights are in
            them, so opening them must.
    """
    beside = file.parent / BACKBONE_FILE
    if not beside.is_file():
        return None
    known = "family" not in backbone
    return beside if not known or read_metadata(beside).get("weights_sha256") == backbone["digest"] else None


def push_to_hub(classifier: Parts, repo_id: str, metadata: dict[str, Any], **where: Any) -> str:
    """What `DiffusionClassifier.push_to_hub` does; `where` as for `push_folder`."""
    return push_folder(lambda folder, name: save_pretrained(classifier, folder, metadata, name), repo_id, **where)


def locate_pretrained(
    name_or_path: str | Path,
    *,
    token: str | bool | None,
    revision: str | None,
    cache_dir: str | Path | None,
    download: bool,
) -> str | Path:
    """The file, or the name of a classifier that ships, that `DiffusionClassifier.from_pretrained` loads."""
    folder = Path(name_or_path)
    ships = str(name_or_path) in shipped() and not (folder / CLASSIFIER_FILE).is_file()
    if ships or folder.is_dir():
        if revision is not None:
            kind = "a classifier that ships" if ships else "a folder here"
            raise ValueError(f"{name_or_path} is {kind}, which has no revision {revision!r}; leave that out")
        return name_or_path if ships else folder / CLASSIFIER_FILE
    # Naming a repository is a request for its file; its backbone, which may be large, needs `download`.
    return locate_on_hub(f"hf://{name_or_path}", download=download, revision=revision, token=token, cache_dir=cache_dir)


def _model_card(classifier: Parts, metadata: Mapping[str, Any], repo_id: str | None, with_backbone: bool) -> str:
    description = describe(classifier, {})
    backbone, extractor, head = (description[part] for part in ("backbone", "extractor", "head"))
    task = description.get("task")
    types = [head["type"], task["type"] if task else "", backbone.get("family", "")]
    packages = list(dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in types if ":" in name))
    trust = f", trust={json.dumps(packages if len(packages) > 1 else packages[0])}" if packages else ""
    gives = f"the task {task['type']}" if task else f"{len(classifier.class_names)} classes"
    place = "path/of/this/folder" if repo_id is None else repo_id
    kind = "image-feature-extraction" if task else "image-classification"
    where = f"It is in `{BACKBONE_FILE}`, beside the classifier" if with_backbone else "It is not in this repository"
    card: dict[str, Any] = {"library_name": "difformer", "pipeline_tag": kind}
    # The hub shows metrics beside a model: https://huggingface.co/docs/hub/model-cards.
    numbers = _numbers(metadata)
    metrics = [
        {"type": {"top1": "accuracy", "macro_f1": "f1"}.get(metric, metric), "name": metric, "value": value}
        for metric, value in numbers.items()
    ]
    if metrics:
        data = str(metadata.get("dataset", "unknown"))
        result = {"task": {"type": kind}, "dataset": {"type": data, "name": data}, "metrics": metrics}
        card["model-index"] = [{"name": place, "results": [result]}]
    return f"""---
{yaml.safe_dump(card, sort_keys=False, allow_unicode=True).rstrip()}
---
A {head["type"]} on diffusion features ({extractor["type"]}) for {gives}.

Its backbone is `{backbone["name"]}`, digest `{backbone["digest"]}`. {where}.

```python
from difformer import DiffusionClassifier

classifier = DiffusionClassifier.from_pretrained("{place}"{trust})
print(classifier.predict("image.jpg"))
```

{_inputs_and_outputs(classifier)}{_measured(classifier, metadata)}"""


def _inputs_and_outputs(classifier: Parts) -> str:
    """The sections about what goes in and what comes out."""
    names = [f"`{' '.join(name.replace('`', chr(39)).split())}`" for name in classifier.class_names]
    more = f" and {len(names) - _NAMED} more, in `config.json`" if len(names) > _NAMED else ""
    if (how := classifier.preprocessing) is None:
        read = "Tensors (3, height, width) in [-1, 1]; how images become such tensors is not stored."
    else:
        height, width = sides(how.size)
        window = "×".join(map(str, sides(enlarged(how.size, how.resize))))
        read = (
            f"RGB images of {height}×{width} pixels (height × width), in [-1, 1]. Images are scaled, with "
            f"antialiasing, until they just cover {window} pixels, and cropped in the centre."
        )
    what = "class" if classifier.task.stand_in() is None else "output"
    plural = "" if len(names) == 1 else "es" if what == "class" else "s"
    return f"## Input\n\n{read}\n\n## Outputs\n\n{len(names)} {what}{plural}: {', '.join(names[:_NAMED])}{more}.\n"


def _measured(classifier: Parts, metadata: Mapping[str, Any]) -> str:
    """The section about what was measured; empty where nothing is known of it."""
    numbers = _numbers(metadata)
    if not numbers:
        return ""
    given, rows = metadata["metrics"], []
    for name, value in numbers.items():
        metric = classifier.task.metrics.get(name)
        title, text = (name, "{:.4g}".format) if metric is None else (metric.title or name, metric.text)
        try:
            interval = given[f"{name}_interval"]
            ends = f"{text(interval['low'])} … {text(interval['high'])} with {interval['level']:.0%} confidence"
        except (KeyError, TypeError, ValueError):
            ends = ""
        rows.append(f"| {title} | {text(value)} | {ends} |")
    count = given.get("num_images")
    images = f"{count:,} images" if isinstance(count, int) else "Images"
    return "\n".join(
        ["\n## Measured", "", f"{images} of {metadata.get('dataset', 'an unknown data set')}:", "",
         "| metric | value | interval |", "|---|---|---|", *rows, ""]
    )  # fmt: skip


def _numbers(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are plain numbers, by name."""
    given = metadata.get("metrics")
    return {
        str(name): value
        for name, value in (given.items() if isinstance(given, Mapping) else ())
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "num_images"
    }
