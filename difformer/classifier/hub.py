"""Classifiers as hub repositories, and as folders laid out like them."""

import json
import tempfile
from pathlib import Path
from typing import Any

from difformer._optional import require
from difformer.checkpoints import locate_on_hub, shipped
from difformer.classifier.files import Parts, describe, save_classifier
from difformer.files import write_atomically

_FILE = "model.safetensors"


def save_pretrained(classifier: Parts, folder: Path, metadata: dict[str, Any], repo_id: str | None = None) -> Path:
    """What `DiffusionClassifier.save_pretrained` does.

    Args:
        folder: created when it does not exist.
        metadata: as for `save_classifier`.
        repo_id: the repository that the folder is to become, for the model card; None where that is not known.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_classifier(folder / _FILE, classifier, **metadata)
    with write_atomically(folder / "config.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(describe(classifier, metadata), indent=2) + "\n")
    with write_atomically(folder / "README.md", overwrite=True) as temporary:
        temporary.write_text(_model_card(classifier, repo_id), encoding="utf-8")
    return folder


def push_to_hub(
    classifier: Parts,
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    create_pr: bool,
    commit_message: str,
    metadata: dict[str, Any],
) -> str:
    """What `DiffusionClassifier.push_to_hub` does."""
    api = require("huggingface_hub", "pushing to the hub").HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # Whoever proposes a change need not be allowed to make branches.
    if branch is not None and not create_pr:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(classifier, Path(folder), metadata, repo_id)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=branch,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    return str(commit)


def locate_pretrained(
    name_or_path: str | Path,
    *,
    token: str | bool | None,
    revision: str | None,
    cache_dir: str | Path | None,
    download: bool,
) -> str | Path:
    """The file, or the name of a classifier that ships, that `DiffusionClassifier.from_pretrained` is to load."""
    folder = Path(name_or_path)
    ships = str(name_or_path) in shipped() and not (folder / _FILE).is_file()
    if ships or folder.is_dir():
        if revision is not None:
            kind = "a classifier that ships" if ships else "a folder here"
            raise ValueError(f"{name_or_path} is {kind}, which has no revision {revision!r}; leave that out")
        return name_or_path if ships else folder / _FILE
    # Naming a repository asks for what is in it; its backbone, which may be large, has to be asked for.
    return locate_on_hub(f"hf://{name_or_path}", download=download, revision=revision, token=token, cache_dir=cache_dir)


def _model_card(classifier: Parts, repo_id: str | None) -> str:
    description = describe(classifier, {})
    backbone, extractor, head = (description[part] for part in ("backbone", "extractor", "head"))
    task = description.get("task")
    types = [head["type"], task["type"] if task else "", backbone.get("family", "")]
    packages = list(dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in types if ":" in name))
    trust = f", trust={json.dumps(packages if len(packages) > 1 else packages[0])}" if packages else ""
    gives = f"the task {task['type']}" if task else f"{len(classifier.class_names)} classes"
    place = "path/of/this/folder" if repo_id is None else repo_id
    return f"""---
library_name: difformer
pipeline_tag: {"image-feature-extraction" if task else "image-classification"}
---
A {head["type"]} on diffusion features ({extractor["type"]}) for {gives}.

The backbone is not in it: `{backbone["name"]}`, digest `{backbone["digest"]}`.

```python
from difformer import DiffusionClassifier

classifier = DiffusionClassifier.from_pretrained("{place}"{trust})
print(classifier.predict("image.jpg"))
```
"""
