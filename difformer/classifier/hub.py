"""Classifiers as hub repositories, and as folders laid out like them."""

import json
import tempfile
from pathlib import Path
from typing import Any

from difformer._optional import require
from difformer.classifier.files import describe, load_classifier, save_classifier
from difformer.classifier.model import DiffusionClassifier
from difformer.files import write_atomically


def save_pretrained(classifier: DiffusionClassifier, folder: Path, **metadata: Any) -> Path:
    """What `DiffusionClassifier.save_pretrained` does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_classifier(folder / "model.safetensors", classifier, **metadata)
    with write_atomically(folder / "config.json", overwrite=True) as temporary:
        temporary.write_text(json.dumps(describe(classifier, metadata), indent=2) + "\n")
    with write_atomically(folder / "README.md", overwrite=True) as temporary:
        temporary.write_text(_model_card(classifier), encoding="utf-8")
    return folder


def push_to_hub(
    classifier: DiffusionClassifier,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str,
    **metadata: Any,
) -> str:
    """What `DiffusionClassifier.push_to_hub` does."""
    api = require("huggingface_hub", "pushing to the hub").HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(classifier, Path(folder), **metadata)
        return str(api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message=commit_message))


def from_pretrained(name_or_path: str | Path, **options: Any) -> DiffusionClassifier:
    """What `DiffusionClassifier.from_pretrained` does."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return load_classifier(folder / "model.safetensors", **options)
    return load_classifier(f"hf://{name_or_path}", **({"download": True} | options))


def _model_card(classifier: DiffusionClassifier) -> str:
    description = describe(classifier, {})
    backbone, extractor, head = (description[part] for part in ("backbone", "extractor", "head"))
    return f"""---
library_name: difformer
pipeline_tag: image-classification
---
A {head["type"]} on diffusion features ({extractor["type"]}) for {len(classifier.class_names)} classes.

The backbone is not in this repository: `{backbone["name"]}`, digest `{backbone["digest"]}`.

```python
from difformer import DiffusionClassifier

classifier = DiffusionClassifier.from_pretrained("OWNER/NAME")
print(classifier.predict("image.jpg"))
```
"""
