"""Diffusion features as a scikit-learn transformer; needs scikit-learn (the extra `sklearn`)."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from difformer.backbones import create_backbone
from difformer.classifier.inputs import ImageLike, as_picture, batches_of
from difformer.config import as_positive_integer
from difformer.data import Preprocessing, content_id
from difformer.features import FeatureExtractor
from difformer.features.pooling import PooledFeatures


class DiffusionFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Images in, vectors out.

    Works in pipelines, grid searches and with joblib. Nothing is learned from the images; `fit` opens the backbone. The
    noise of an image depends on its content, so its features do not depend on the others.

    Args:
        backbone: a name or path, as `create_backbone` takes it.
        taps: where features are read, by name or block number.
        timesteps: noise timesteps.
        pool: side to which each map is averaged; a feature has channels · pool² numbers.
        size: side of the input in pixels; the backbone's own when None.
        draws: noise draws that features are averaged over.
        seed: of the noise.
        batch_size: images at once.
        device: where the backbone runs.

    Attributes:
        n_features_out_: length of a vector.
    """

    def __init__(
        self,
        backbone: str | Path = "adm32_cifar10",
        *,
        taps: Sequence[str | int] = ("out01",),
        timesteps: Sequence[int] = (50,),
        pool: int = 1,
        size: int | None = None,
        draws: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        # scikit-learn clones an estimator by these attributes, so they are kept as they are given.
        self.backbone = backbone
        self.taps = taps
        self.timesteps = timesteps
        self.pool = pool
        self.size = size
        self.draws = draws
        self.seed = seed
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Iterable[ImageLike] | None = None, y: Any = None) -> "DiffusionFeatures":
        """Opens the backbone and checks the arguments.

        Args:
            X, y: ignored.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: as `create_backbone` and `FeatureExtractor`.
        """
        self._open()
        self.n_features_out_ = sum(spec.channels for spec in self._reader.extractor.specs.values()) * self.pool**2
        return self

    def transform(self, X: Iterable[ImageLike] | ImageLike) -> NDArray[np.float32]:
        """Reads the features.

        Args:
            X: images: paths, the bytes of files, PIL images, or arrays (H, W, 3) or (H, W) of uint8; or one array
                (N, H, W, 3).

        Returns:
            (N, n_features_out_) float32, in the order of the images: tap by tap within a timestep, channels outermost.

        Raises:
            NotFittedError: `fit` was not called.
            ImageError: an image cannot be read.
            ValueError: something is no image, or there is none.
        """
        check_is_fitted(self, "n_features_out_")
        if not hasattr(self, "_reader"):
            self._open()
        size = as_positive_integer("batch_size", self.batch_size)
        if isinstance(X, str | os.PathLike | bytes):
            raise ValueError(f"images are given as a list; write [{X!r}] for one")
        found = []
        for batch in batches_of((self._preprocess(as_picture(image)) for image in X), size):
            ids = torch.tensor([content_id(image) for image in batch])
            with torch.no_grad():
                found.append(self._reader(batch.to(self.device), ids).cpu().numpy())
        if not found:
            raise ValueError("found 0 image(s); give at least one path or picture")
        return np.concatenate(found)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the numbers: tap, timestep, channel, and the cell where there are several."""
        check_is_fitted(self, "n_features_out_")
        if not hasattr(self, "_reader"):
            self._open()
        cells = [f"_{i}" for i in range(self.pool**2)] if self.pool > 1 else [""]
        specs = self._reader.extractor.specs.items()
        names = [
            f"{key.tap}_t{key.t}_c{c}{cell}" for key, spec in specs for c in range(spec.channels) for cell in cells
        ]
        return np.asarray(names, dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        """Without the backbone, which is opened again where the copy is used."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name not in ("_reader", "_preprocess")}

    def _open(self) -> None:
        backbone = create_backbone(self.backbone, device=self.device)
        extractor = FeatureExtractor(
            backbone, taps=self.taps, timesteps=self.timesteps, draws=self.draws, seed=self.seed
        )
        self._reader = PooledFeatures(extractor, as_positive_integer("pool", self.pool))
        self._preprocess = Preprocessing(backbone.config.image_size if self.size is None else self.size)
