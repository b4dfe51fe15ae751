"""A classifier: an extractor of diffusion features and a head, and the file it is kept in."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from difformer._optional import require
from difformer._version import __version__
from difformer.backbones import Backbone, create_backbone
from difformer.checkpoints import (
    CheckpointError,
    contiguous_state,
    load_strictly,
    locate,
    read_weights,
    weights_digest,
)
from difformer.config import from_mapping
from difformer.data import Preprocessing, as_rgb, content_id, read_image
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.files import write_atomically
from difformer.heads import AttentionHead, CNNHead, DifFormerHead, LinearHead, MLPHead
from difformer.taps import FeatureKey

FORMAT = "difformer.classifier"
FORMAT_VERSION = 1
EXTRACTORS = {cls.__name__: cls for cls in (FeatureExtractor, FeedbackExtractor)}
HEADS = {cls.__name__: cls for cls in (LinearHead, MLPHead, CNNHead, AttentionHead, DifFormerHead)}

ImageLike = Any  # a path, a PIL image or a tensor (3, H, W) in [-1, 1]


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        label: name of the likeliest class.
        probability: of that class.
        probabilities: by class name, in the order of the classes.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


class DiffusionClassifier(nn.Module):
    """Images to logits: an extractor's features through a head.

    Only the head, and the extractor's feedback layers, learn; the backbone is frozen.

    Args:
        extractor: a `FeatureExtractor` or `FeedbackExtractor`.
        head: built for (some of) the extractor's `specs`.
        class_names: in the order of the logits; the numbers when left out.
        preprocessing: how image files are read; to the backbone's own image size when left out.

    Raises:
        ValueError: the head reads features the extractor does not give, or the class names do not fit.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | FeedbackExtractor,
        head: nn.Module,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        missing = [key for key in getattr(head, "specs", ()) if key not in extractor.specs]
        if missing:
            raise ValueError(f"the head reads {missing}, but the extractor gives {list(extractor.specs)}")
        self.extractor = extractor
        self.head = head
        classes = int(head.num_classes)  # type: ignore[arg-type]
        names = tuple(map(str, range(classes))) if class_names is None else tuple(class_names)
        if len(names) != classes or len(set(names)) != classes:
            raise ValueError(f"class_names must be {classes} different names, got {len(names)}: {names[:5]} …")
        self.class_names = names
        config = getattr(extractor.backbone, "config", None)
        size = getattr(config, "image_size", None)
        self.preprocessing = preprocessing or (Preprocessing(size) if size else None)

    @property
    def backbone(self) -> Backbone:
        """The frozen model the features come from."""
        return self.extractor.backbone

    def forward(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        *,
        noise: Mapping[int, Tensor] | None = None,
        **conditioning: Tensor,
    ) -> Tensor:
        """Classifies.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            ids, noise, conditioning: as for `FeatureExtractor.forward`.

        Returns:
            Logits (B, num_classes).

        Raises:
            ValueError: as the extractor and the head.
        """
        return self.head(self.extractor(images, ids, noise=noise, **conditioning))

    def trained_state(self) -> dict[str, Tensor]:
        """What a file must hold to bring the classifier back: head and feedback layers, without the backbone."""
        state = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        if isinstance(self.extractor, FeedbackExtractor):
            feedback = self.extractor.feedback.state_dict()
            state |= {f"feedback.{name}": tensor for name, tensor in feedback.items()}
        return state

    @torch.no_grad()
    def predict(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32) -> list[Prediction]:
        """Names and probabilities for images, in evaluation mode.

        An image's noise depends on its content, so that its prediction does not depend on the others.

        Args:
            images: one or several of: path, PIL image, tensor (3, H, W) in [-1, 1]; or one tensor (B, 3, H, W).
            batch_size: how many to classify at once. Images of different sizes go one at a time.

        Returns:
            One prediction an image, in their order.

        Raises:
            ImageError: a file cannot be read.
            ValueError: no preprocessing is known for the backbone.
        """
        alone = isinstance(images, str | Path) or not isinstance(images, Iterable)
        alone = alone or (isinstance(images, Tensor) and images.ndim == 3)
        tensors = [self.preprocess(image) for image in ([images] if alone else images)]
        same_size = len({tensor.shape for tensor in tensors}) <= 1
        size = max(1, batch_size) if same_size else 1
        training = self.training
        self.eval()
        try:
            batches = [torch.stack(tensors[i : i + size]) for i in range(0, len(tensors), size)]
            return [prediction for batch in batches for prediction in self._predict_batch(batch)]
        finally:
            self.train(training)

    def _predict_batch(self, batch: Tensor) -> list[Prediction]:
        device = next(self.head.parameters()).device
        logits = self(batch.to(device), ids=[content_id(image) for image in batch])
        predictions = []
        for row in logits.float().softmax(dim=1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            by_name = dict(zip(self.class_names, row, strict=True))
            predictions.append(Prediction(self.class_names[best], row[best], by_name))
        return predictions

    def preprocess(self, image: ImageLike) -> Tensor:
        """The backbone's input for one image.

        Args:
            image: a path, a PIL image, or a tensor (3, H, W) in [-1, 1], which is taken as it is.

        Returns:
            (3, H, W) float32 in [-1, 1], on the CPU unless it was a tensor elsewhere.

        Raises:
            ImageError: the file cannot be read.
            ValueError: no preprocessing is known for the backbone.
        """
        if isinstance(image, Tensor):
            return image
        if self.preprocessing is None:
            raise ValueError("this backbone does not say its image size; give the classifier a preprocessing")
        return self.preprocessing(read_image(image) if isinstance(image, str | Path) else as_rgb(image))

    def save_pretrained(self, folder: str | Path, **metadata: Any) -> Path:
        """Writes `model.safetensors`, a readable `config.json` and a model card into a folder, as hub repositories
        have them.

        Args:
            folder: created when it does not exist.
            metadata: as for `save_classifier`.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_classifier(folder / "model.safetensors", self, **metadata)
        with write_atomically(folder / "config.json", overwrite=True) as temporary:
            temporary.write_text(json.dumps(_describe(self, metadata), indent=2) + "\n")
        with write_atomically(folder / "README.md", overwrite=True) as temporary:
            temporary.write_text(_model_card(self), encoding="utf-8")
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload classifier",
        **metadata: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes to a Hugging Face repository, which is created when needed.

        Returns:
            The address of the commit.
        """
        api = require("huggingface_hub", "pushing to the hub").HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **metadata)
            return str(api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message=commit_message))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "DiffusionClassifier":
        """Loads a classifier from a folder that `save_pretrained` wrote, or from a hub repository `owner/name`.

        Args:
            name_or_path: folder, or repository (downloaded, or taken from the hub's cache).
            options: as for `load_classifier`.
        """
        folder = Path(name_or_path)
        if folder.is_dir():
            return load_classifier(folder / "model.safetensors", **options)
        return load_classifier(f"hf://{name_or_path}", **({"download": True} | options))


def _model_card(classifier: DiffusionClassifier) -> str:
    description = _describe(classifier, {})
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


def save_classifier(path: str | Path, classifier: DiffusionClassifier, **metadata: Any) -> None:
    """Writes a classifier as one safetensors file: head and feedback weights, and how to rebuild the rest.

    The backbone is not in it; its name and digest are. A file that is there is replaced once the new one is whole.

    Args:
        path: the file; its folder must exist.
        classifier: made of this package's extractors and heads.
        metadata: anything else to keep, such as metrics, as JSON types.

    Raises:
        ValueError: a foreign head or extractor, or metadata that JSON cannot hold.
        OSError: it cannot be written; what was there is untouched.
    """
    path = Path(path)
    state = contiguous_state(classifier.trained_state())
    description = _describe(classifier, metadata)
    entries = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "description": json.dumps(description),
        "weights_sha256": weights_digest(state),
    }
    with write_atomically(path, overwrite=True) as temporary:
        try:
            save_file(state, temporary, entries)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def load_classifier(
    path: str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    folder: str | Path | None = None,
    download: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
) -> DiffusionClassifier:
    """Brings a saved classifier back, in evaluation mode.

    Args:
        path: the file, or `hf://owner/name`.
        backbone: the backbone it was trained on, or where to find it; by its name in the file when left out.
        folder: where backbones lie, in place of the usual folders.
        download: whether what is not on this machine may be fetched.
        device: where it is to run; by default where the backbone given is, or the CPU.
        dtype: precision of the backbone's convolutions, where it is opened here.
        verify: check the digests of the file and of the backbone.

    Raises:
        FileNotFoundError: the file or the backbone is not there.
        CheckpointError: the file is damaged or no classifier, or the backbone is not the one it was trained on.
    """
    file = locate(path, folder=Path(folder) if folder else None, download=download)
    weights = read_weights(file, verify=verify)
    description = _parse(weights.metadata, str(file))
    if verify and weights_digest(weights.state) != weights.metadata.get("weights_sha256"):
        raise CheckpointError(f"{file} is corrupt: its weights are not those its metadata was written for")
    if backbone is None or isinstance(backbone, str | Path):
        name = description["backbone"]["name"] if backbone is None else backbone
        backbone = create_backbone(name, folder=folder, download=download, device=device, dtype=dtype, verify=verify)
    if verify:
        _check_backbone(backbone, description["backbone"], str(file))
    classifier = _build(description, backbone, str(file))
    load_strictly(_Trained(classifier), weights.state, str(file))
    if device is None and isinstance(backbone, nn.Module):
        device = next(backbone.parameters()).device
    return classifier.to(device or "cpu").eval()


def read_description(path: str | Path) -> dict[str, Any]:
    """Everything a classifier file says of itself, without its backbone: extractor, head, classes, metrics, ….

    Raises:
        FileNotFoundError, CheckpointError: as `load_classifier`.
    """
    return _parse(read_weights(Path(path)).metadata, str(path))


class _Trained(nn.Module):
    """The parts of a classifier that its file holds, under the names they have there."""

    def __init__(self, classifier: DiffusionClassifier) -> None:
        super().__init__()
        self.head = classifier.head
        if isinstance(classifier.extractor, FeedbackExtractor):
            self.feedback = classifier.extractor.feedback


def _describe(classifier: DiffusionClassifier, metadata: Mapping[str, Any]) -> dict[str, Any]:
    extractor, head, backbone = classifier.extractor, classifier.head, classifier.backbone
    for part, known in ((extractor, EXTRACTORS), (head, HEADS)):
        if type(part) not in known.values():
            raise ValueError(f"{type(part).__name__} cannot be saved; only {', '.join(known)} can be rebuilt")
    keys = [asdict(key) for key in head.specs]  # type: ignore[union-attr]
    description = {
        "difformer_version": __version__,
        "backbone": _identity(backbone),
        "extractor": {"type": type(extractor).__name__, "arguments": extractor.arguments},
        "head": {"type": type(head).__name__, "keys": keys, "arguments": head.arguments},
        "class_names": list(classifier.class_names),
        "preprocessing": asdict(classifier.preprocessing) if classifier.preprocessing else None,
        "metadata": dict(metadata),
    }
    try:
        json.dumps(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON types: {error}") from error
    return description


def _parse(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        kind = metadata.get("format", "no classifier")
        raise CheckpointError(f"{source} is {kind}, not a classifier; backbones are opened with create_backbone")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{source} has classifier format {metadata.get('format_version')}; this version of difformer reads "
            f"{FORMAT_VERSION}; update difformer"
        )
    try:
        description: dict[str, Any] = json.loads(metadata["description"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: its metadata is malformed: {error!r}") from error
    if not isinstance(description, dict) or "name" not in (description.get("backbone") or {}):
        raise CheckpointError(f"{source}: its metadata is malformed: it does not name a backbone")
    return description


def _identity(backbone: Backbone) -> dict[str, Any]:
    """What tells a backbone from others; the same weights mean something else under another configuration."""
    config = getattr(backbone, "config", None)
    schedule = getattr(backbone.schedule, "to_dict", None)
    return {
        "name": getattr(backbone, "name", "unnamed"),
        "digest": getattr(backbone, "digest", None),
        # Through JSON, so that what is given compares with what was stored.
        "config": json.loads(json.dumps(asdict(config))) if config is not None else None,
        "schedule": schedule() if schedule is not None else None,
    }


def _check_backbone(backbone: Backbone, expected: Mapping[str, Any], source: str) -> None:
    found = _identity(backbone)
    for part in ("digest", "config", "schedule"):
        if expected.get(part) is not None and found[part] != expected[part]:
            raise CheckpointError(
                f"{source} was trained on the backbone {expected['name']} with {part} {expected[part]}, but the one "
                f"given, {found['name']}, has {found[part]}; give the right one, or verify=False to try"
            )


def _build(description: Mapping[str, Any], backbone: Backbone, source: str) -> DiffusionClassifier:
    """An untrained classifier as a file describes it."""
    try:
        extractor_type = EXTRACTORS[description["extractor"]["type"]]
        extractor = extractor_type(backbone, **description["extractor"]["arguments"])
        keys = [FeatureKey(**key) for key in description["head"]["keys"]]
        specs = {key: extractor.specs[key] for key in keys}
        names = description["class_names"]
        head = HEADS[description["head"]["type"]](specs, len(names), **description["head"]["arguments"])
        preprocessing = description["preprocessing"] and from_mapping(Preprocessing, description["preprocessing"])
        return DiffusionClassifier(extractor, head, class_names=names, preprocessing=preprocessing)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source} cannot be rebuilt on this backbone: {error}") from error
