"""A classifier: an extractor of diffusion features and a head."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from difformer.backbones import FAMILIES, Backbone, create_backbone, device_of
from difformer.checkpoints import load_strictly, locate
from difformer.classifier import hub
from difformer.classifier.files import (
    build_parts,
    check_same_backbone,
    read_classifier,
    rebuilding,
    stored_preprocessing,
    stored_task,
)
from difformer.classifier.inputs import ImageLike, as_picture, batches_of
from difformer.config import Size, as_positive_integer, sides, size_of
from difformer.data import Origin, Preprocessing, content_id
from difformer.data.joint import Whole, no_points
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.features.conditioning import Conditioning
from difformer.features.images import check_batch, check_range
from difformer.models.modes import evaluation_mode
from difformer.models.precision import finite
from difformer.taps import FeatureKey, Features
from difformer.tasks import Classification, DenseTask, RowTask, Task
from difformer.tasks.registry import check_head, is_dense

C = TypeVar("C", bound="DiffusionClassifier")


class DiffusionClassifier(nn.Module):
    """Images to logits, or to the outputs of another task: an extractor's features through a head.

    Only the head and the extractor's feedback layers learn; the backbone is frozen.

    Args:
        extractor: a `FeatureExtractor` or `FeedbackExtractor`.
        head: built for (some of) the extractor's `specs`.
        class_names: in the order of the logits; the numbers when left out. For another task, names of the outputs.
        preprocessing: how image files are read; see the property when left out.
        task: what the outputs mean; classification when left out. To predict or to be saved, the classifier needs one
            that reads what the head gives.

    Raises:
        ValueError: the parts are no extractor and head, the head reads features the extractor does not give, feedback
            does not reach what it reads, or the class names do not fit.
    """

    def __init__(
        self,
        extractor: FeatureExtractor | FeedbackExtractor,
        head: nn.Module,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | Whole | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        if not (hasattr(extractor, "specs") and hasattr(extractor, "backbone") and hasattr(head, "num_classes")):
            raise ValueError(
                "a classifier is made of an extractor and a head that says its num_classes, got "
                f"{type(extractor).__name__} and {type(head).__name__}"
            )
        missing = [key for key in getattr(head, "specs", ()) if key not in extractor.specs]
        if missing:
            raise ValueError(f"the head reads {missing}, but the extractor gives {list(extractor.specs)}")
        if isinstance(extractor, FeedbackExtractor):
            _check_feedback_is_read(extractor, getattr(head, "specs", extractor.specs))
        self.extractor = extractor
        self.head = head
        classes = int(head.num_classes)  # type: ignore[arg-type]
        given: Any = tuple(map(str, range(classes))) if class_names is None else class_names
        names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
        if len(names) != classes or len(set(names)) != classes or not all(isinstance(name, str) for name in names):
            raise ValueError(f"class_names must be {classes} different names, got {len(names)}: {names[:5]} …")
        # As plain text, where they are numpy's.
        self.class_names = tuple(map(str, names))
        self._preprocessing = preprocessing
        self.task: Task = Classification() if task is None else task

    def __repr__(self) -> str:
        shown = ", ".join(self.class_names[:5]) + ", …" * (len(self.class_names) > 5)
        return f"DiffusionClassifier({len(self.class_names)} classes: {shown})\n  {self.extractor}\n  {self.head}"

    @property
    def preprocessing(self) -> Preprocessing | Whole | None:
        """How image files are read: as was given; otherwise, to the size of the images that the head learned from in
        this process; if it did not, to the extractor's `image_size` or the backbone's. None if no size is known.

        Raises:
            ValueError: the head learned from images of several sizes, or from maps that do not show their size.
        """
        if self._preprocessing is not None:
            return self._preprocessing
        own = getattr(self.extractor, "image_size", None) or self.backbone.image_size
        size = own if own is None else _learned_size(self.head, own) or own
        if size is None:
            return None
        return Whole(size) if is_dense(self.task) else Preprocessing(size)

    @preprocessing.setter
    def preprocessing(self, value: Preprocessing | Whole | None) -> None:
        self._preprocessing = value

    @property
    def backbone(self) -> Backbone:
        """The frozen model the features come from."""
        return self.extractor.backbone

    @property
    def conditioning(self) -> Conditioning:
        """What the backbone is conditioned on; empty for an extractor without conditioning."""
        return getattr(self.extractor, "conditioning", Conditioning())

    def forward(
        self,
        images: Tensor | Features,
        ids: Tensor | Sequence[int] | None = None,
        *,
        noise: Mapping[int, Tensor] | None = None,
        targets: Any = None,
        seeds: Tensor | Sequence[int] | None = None,
        **conditioning: Tensor,
    ) -> Any:
        """Classifies.

        Args:
            images: (B, 3, H, W) in [-1, 1]; or features read beforehand, for which ids, noise and conditioning are
                ignored.
            ids, noise, conditioning: as for `FeatureExtractor.forward`.
            targets, seeds: for heads with `losses` of their own, what these take.

        Returns:
            Logits (B, num_classes), or what else the head gives. With targets, its losses, (B,) by name.

        Raises:
            ValueError: as the extractor and the head.
        """
        # Anything else is checked as images are.
        features = images if isinstance(images, Mapping) else self.features(images, ids, noise=noise, **conditioning)
        read = self.in_precision_of_head(features)
        return self.head(read) if targets is None else self.head(read, targets, seeds=seeds)

    def in_precision_of_head(self, features: Mapping[FeatureKey, Tensor]) -> dict[FeatureKey, Tensor]:
        """Features in the precision of the head's weights: those from the disk, or of a backbone in half precision, may
        be bfloat16.
        """
        dtype = next((p.dtype for p in self.head.parameters()), torch.float32)
        return {key: x.to(dtype) if isinstance(x, Tensor) else x for key, x in features.items()}

    def features(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        *,
        noise: Mapping[int, Tensor] | None = None,
        **conditioning: Tensor,
    ) -> Features:
        """The features of images for the head; Args and Raises as `forward`.

        Mixed precision applies to the head only: the backbone computes in its own precision, and norms, embeddings and
        feedback layers in float32.
        """
        kind = images.device.type if isinstance(images, Tensor) else "cpu"
        mixed = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if mixed else nullcontext():
            return self.extractor(images, ids, noise=noise, **conditioning)

    @property
    def trained_parts(self) -> nn.ModuleDict:
        """The parts that learn, which a file must hold: `head`, and the `feedback` layers if there are any."""
        parts: dict[str, nn.Module] = {"head": self.head}
        if isinstance(self.extractor, FeedbackExtractor):
            parts["feedback"] = self.extractor.feedback
        return nn.ModuleDict(parts)

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict of the `trained_parts`."""
        return self.trained_parts.state_dict()

    @torch.no_grad()
    def predict(self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 32) -> list[Any]:
        """Names and probabilities for images, or what else the task predicts, in evaluation mode.

        An image's noise depends on its content, so that its prediction does not depend on the others. Images are read
        as they are needed, no more than a batch at a time.

        Args:
            images: one or several of: path, a file's bytes, PIL image, array (H, W, 3) or (H, W) uint8, tensor
                (3, H, W) in [-1, 1]; or one tensor (B, 3, H, W).
            batch_size: most images to classify at once, at least 1; a batch holds consecutive images of one size. Maps,
                boxes and points are predicted one image at a time.

        Returns:
            One `Prediction` an image, in their order; for another task, its predictions: a `Segmented`, … at the
            image's own size.

        Raises:
            ImageError: a file cannot be read.
            ValueError: as `preprocess`, a bad batch_size, a task that does not read what the head gives, features that
                are conditioned on each image's label, or logits that are not finite.
        """
        check_head(self.task, self.head)
        self.conditioning.check_unlabelled()
        alone = isinstance(images, str | os.PathLike | bytes) or not isinstance(images, Iterable)
        alone = alone or (isinstance(images, Tensor | np.ndarray) and images.ndim <= 3)
        given: Iterable[ImageLike] = [images] if alone else images
        if is_dense(self.task):
            with evaluation_mode(self):
                return [self._infer(self.task, image) for image in given]
        tensors = map(self.preprocess, given)
        predictions: list[Any] = []
        with evaluation_mode(self):
            for batch in batches_of(tensors, as_positive_integer("batch_size", batch_size)):
                device = next(self.head.parameters()).device
                outputs = self(batch.to(device), ids=[content_id(image) for image in batch]).float().cpu()
                finite("the classifier's logits", outputs)
                predictions += cast(RowTask, self.task).predictions(outputs, self.class_names)
        return predictions

    def _infer(self, task: DenseTask, image: ImageLike) -> Any:
        """The prediction for one image."""
        pixels, origin = self._read(image)
        device = next(self.head.parameters()).device
        ids = torch.tensor([content_id(pixels)], device=device)
        return task.infer(self, pixels[None].to(device), ids, [origin])[0]

    def _read(self, image: ImageLike) -> tuple[Tensor, Origin]:
        """The backbone's input for an image whose maps, boxes or points are wanted, and the way back to the image."""
        if not isinstance(image, Tensor):
            reading = self.preprocessing
            if not isinstance(reading, Whole):
                raise ValueError(
                    "it is not known how images become input: set classifier.preprocessing = Whole(size), from "
                    "difformer.data.joint"
                )
            return reading.read(as_picture(image))
        pixels = self.preprocess(image)
        size = pixels.shape[1], pixels.shape[2]
        return pixels, Origin(no_points(size), size, size)

    def preprocess(self, image: ImageLike) -> Tensor:
        """The backbone's input for one image.

        Args:
            image: a path, a file's bytes, a PIL image, an array (H, W, 3) or (H, W) uint8, or a tensor (3, H, W) in
                [-1, 1], which is returned unchanged.

        Returns:
            (3, H, W) float32 in [-1, 1], on the CPU unless it was a tensor elsewhere.

        Raises:
            ImageError: the file cannot be read.
            ValueError: it is no image; a tensor of another size than that of the preprocessing given, or than the one
                size that the head learned from; or for other images, no preprocessing is known.
        """
        if not isinstance(image, Tensor):
            reading = self.preprocessing
            if reading is None:
                raise ValueError("this backbone does not say its image size; give the classifier a preprocessing")
            return reading.read(as_picture(image))[0] if isinstance(reading, Whole) else reading(as_picture(image))
        if image.ndim != 3:
            raise ValueError(f"the tensor of an image must be of shape (3, H, W), got {tuple(image.shape)}")
        check_batch(image[None])
        check_range(image)
        known, why = self._preprocessing, "this classifier reads"
        if known is None and getattr(self.head, "learned_from", None):
            # A head that learned from several sizes reads any.
            with suppress(ValueError):
                known, why = self.preprocessing, "the head learned from"
        if known is not None and getattr(known, "fit", "") != "keep" and image.shape[1:] != sides(known.size):
            height, width = sides(known.size)
            raise ValueError(
                f"{why} images of {height}×{width}, got {image.shape[1]}×{image.shape[2]}: resize it; "
                "files and PIL images are read at the right size, and classifier(images) takes what the network does"
            )
        return image

    def save_pretrained(self, folder: str | Path, *, with_backbone: bool = False, **metadata: Any) -> Path:
        """Writes `model.safetensors`, a readable `config.json` and a model card into a folder, which has the layout of
        a hub repository.

        Args:
            folder: created when it does not exist.
            with_backbone: write `backbone.safetensors` beside it, which is then found when the classifier is loaded.
            metadata: as for `save_classifier`.

        Returns:
            The folder.

        Raises:
            ValueError: as `save_classifier`, or a backbone that cannot write its weights.
        """
        return hub.save_pretrained(self, Path(folder), metadata, with_backbone=with_backbone)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload classifier",
        **metadata: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes to a Hugging Face repository, which is created when needed.

        Args:
            repo_id: `owner/name`, or `name` for a repository of your own.
            private: whether a new repository is private; the account's default when left out.
            token: of an account that may write there; the token of the last login when left out.
            branch: where the commit goes, created when needed; the main branch when left out.
            create_pr: propose the commit as a pull request.
            commit_message: first line of the commit.
            metadata: as for `save_classifier`. `metrics={"top1": 0.84}` and `dataset="ELPV"` are shown by the hub. The
                model card also shows what else is in `metrics`: `num_images`, and intervals such as
                `top1_interval={"low": 0.81, "high": 0.87, "level": 0.95}`.

        Returns:
            The address of the commit.

        Raises:
            ValueError: as `save_classifier`.
        """
        where = {"private": private, "token": token, "branch": branch, "create_pr": create_pr}
        return hub.push_to_hub(self, repo_id, metadata, commit_message=commit_message, **where)

    @classmethod
    def from_pretrained(
        cls: type[C],
        name_or_path: str | Path,
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> C:
        """Loads a classifier from a folder that `save_pretrained` wrote, by its name if it ships with difformer, or
        from a hub repository `owner/name`.

        Called on a subclass that is built with the same arguments, it returns an instance of that class.

        Args:
            name_or_path: folder, name such as `adm_elpv/difformer`, or repository (downloaded, or taken from the hub's
                cache).
            token: of an account that may read the repository; the token of the last login when left out.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads from the hub are kept, instead of its own cache.
            options: as for `load_classifier`. With `download` left out, the repository's file is fetched if it is not
                on this machine, but the backbone is not.

        Raises:
            ValueError: a revision of a folder, or of a classifier that ships.
            FileNotFoundError, CheckpointError: as `load_classifier`.
        """
        file = hub.locate_pretrained(
            name_or_path,
            token=token,
            revision=revision,
            cache_dir=cache_dir,
            download=options.get("download", True),
        )
        return cast(C, load_classifier(file, **{"cls": cls, **options}))


def load_classifier(
    path: str | Path,
    *,
    backbone: Backbone | str | Path | None = None,
    folder: str | Path | None = None,
    download: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    verify: bool = True,
    trust: str | Iterable[str] = (),
    cls: type[DiffusionClassifier] = DiffusionClassifier,
) -> DiffusionClassifier:
    """Loads a saved classifier, in evaluation mode.

    Args:
        path: the file, `hf://owner/name`, or the name of a classifier that ships, such as `adm_elpv/difformer`.
        backbone: the backbone it was trained on, or where to find it. When left out, `backbone.safetensors` beside the
            file if that is the right one, else what the file names.
        folder: of named weights, instead of the usual folders.
        download: whether what is not on this machine may be fetched.
        device: where it runs; by default the device of the given backbone, or the CPU.
        dtype: precision of the backbone's convolutions, if it is opened here.
        verify: check the digests of the file and of the backbone.
        trust: packages or modules that may be imported, and so run code, for a head, a task or a family of backbones
            that is not of this package. Not needed for what is registered with `difformer.heads.HEADS`,
            `difformer.tasks.TASKS` or `difformer.backbones.FAMILIES`, nor for a backbone that is given.
        cls: what to build: `DiffusionClassifier`, or a subclass that is built with the same arguments.

    Raises:
        FileNotFoundError: the file or the backbone is missing.
        CheckpointError: the file is damaged or no classifier, or the backbone is not the one it was trained on.
        UntrustedError: its head or task, or the family of its backbone, is code that is neither registered nor trusted.
        ImportError: that package is not installed.
    """
    file = locate(path, folder=Path(folder) if folder else None, download=download)
    state, description = read_classifier(file, verify=verify)
    if backbone is None or isinstance(backbone, str | Path):
        family = description["backbone"].get("family")
        if family is not None:
            with rebuilding(str(file)):
                FAMILIES.find_trusted(family, trust)
        if backbone is None:
            backbone = hub.backbone_beside(file, description["backbone"]) or description["backbone"]["name"]
        backbone = create_backbone(
            backbone,
            folder=folder,
            download=download,
            device=device,
            dtype=dtype,
            verify=verify,
            family=family,
        )
    if verify:
        check_same_backbone(backbone, description["backbone"], str(file))
    if device is None:
        device = device_of(backbone)
    with rebuilding(str(file)):
        task = stored_task(description, trust)
        extractor, head = build_parts(description, backbone, len(state), str(file), trust)
        check_head(task, head)
        names = tuple(description["class_names"])
        preprocessing = stored_preprocessing(description)
        classifier = cls(extractor, head, class_names=names, preprocessing=preprocessing)
    classifier.task = task
    load_strictly(classifier.trained_parts, state, str(file))
    return classifier.to(device).eval()


def _learned_size(head: Any, own: Size) -> Size | None:
    """The size of the images that a head learned from, by the maps it saw; None if it has not learned.

    Args:
        head: any.
        own: the image size for which the sizes in the head's specs hold.

    Raises:
        ValueError: they had several sizes, or the maps were averaged beforehand and do not show it.
    """
    learned = getattr(head, "learned_from", None)
    if not learned:
        return None
    found = []
    for axis, side in enumerate(sides(own)):
        seen = {tuple(pair[axis] for pair in maps) for maps in learned}
        known = [sides(spec.size)[axis] for spec in head.specs.values()]
        lengths = {Fraction(cells * side, one) for maps in seen for cells, one in zip(maps, known, strict=True)}
        averaged = tuple(-1 if size is None else sides(size)[axis] for size in head.map_sizes.values())
        length = lengths.pop()
        if lengths or length.denominator > 1 or (length < side and averaged in seen):
            raise ValueError(
                f"the head learned from maps of {', '.join(map(str, sorted(learned)))}, which do not show one size of "
                "images; set it: classifier.preprocessing = Preprocessing(size), from difformer.data"
            )
        found.append(int(length))
    return size_of(*found)


def _check_feedback_is_read(extractor: FeedbackExtractor, read: Iterable[FeatureKey]) -> None:
    """Raises ValueError when a feedback layer could never learn: no gradient would reach it, and training on several
    processes would wait for it for ever."""
    blocks = {tap: spec.block for tap, spec in extractor.backbone.taps.items()}
    second = [key.tap for key in read if key.round == 1]
    if not second:
        raise ValueError(
            "the head reads no feature of the second pass (round 1), so that feedback would never be used; let it "
            "read one, or take a FeatureExtractor"
        )
    deepest = max(second, key=blocks.__getitem__)
    late = [f"{tap} into {into}" for tap, into in extractor.mirrors.items() if blocks[into] > blocks[deepest]]
    if late:
        raise ValueError(
            f"what is fed back from {', '.join(late)} comes after {deepest}, the deepest tap that the head reads of "
            "the second pass; leave it out, or let the head read a deeper tap"
        )
