"""Images to several named vectors: of a diffusion model's blocks and timesteps, or of a timm model's blocks."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer._optional import require
from difformer.checkpoints.hub import HUB, locate_on_hub
from difformer.checkpoints.timm_weights import load_timm_weights
from difformer.features.pooling import flat
from difformer.files import expand_user
from difformer.verbs.cka.recipe import TimmConfig


class Representations(Protocol):
    """What is compared."""

    @property
    def names(self) -> list[str]:
        """Their names, in the order of the rows or columns."""
        ...

    def places(self, t: int) -> dict[str, int]:
        """The positions among the names of the blocks at a timestep, by block."""
        ...

    def read(self, images: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Args: images (B, 3, H, W) in [-1, 1], ids and labels (B,). Returns (B, D) by name."""
        ...


class TimmBlocks:
    """The blocks of a timm model, by its own interface for intermediate features.

    Images are resized and normalised as the model expects.

    Args:
        config: which model.
        pool: side to which maps are averaged; no averaging when None.
        device: where it runs.

    Raises:
        ImportError: timm is missing.
        ValueError: timm has no such model, or it has no such interface.
        FileNotFoundError: the checkpoint is missing, or published weights are missing and may not be fetched.
        CheckpointError: the checkpoint is damaged, holds anything but tensors, or the weights of another model.
    """

    def __init__(self, config: TimmConfig, pool: int | None, device: torch.device) -> None:
        timm: Any = require("timm", "comparing with a timm model")
        if config.name is None or not timm.is_model(config.name):
            raise ValueError(f"timm has no model {config.name!r}; `timm.list_models()` lists them")
        weights: dict[str, Any] = {}
        if config.pretrained and config.checkpoint is None:
            weights = {"pretrained": True}
            if not config.download:
                repository = timm.get_pretrained_cfg(config.name).hf_hub_id
                try:
                    file = locate_on_hub(f"{HUB}{repository}", download=False)
                except (FileNotFoundError, ValueError) as error:
                    raise FileNotFoundError(
                        f"the weights of timm's {config.name} are not on this machine; allow the download with "
                        "--timm.download true, give a file with --timm.checkpoint, or take random weights with "
                        "--timm.pretrained false"
                    ) from error
                weights["pretrained_cfg_overlay"] = {"file": str(file)}
        model = timm.create_model(config.name, **weights)
        if config.checkpoint:
            load_timm_weights(model, expand_user(config.checkpoint), config.name)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"timm's {config.name} gives no intermediate features (forward_intermediates)")
        self._model: nn.Module = model.to(device).eval()
        self._pool = pool
        expected = timm.data.resolve_model_data_config(model)
        self._size = expected["input_size"][1:]
        mean, deviation = (torch.tensor(expected[name], device=device).view(1, 3, 1, 1) for name in ("mean", "std"))
        self._mean, self._deviation = mean, deviation
        with torch.no_grad():
            count = len(self._maps(torch.zeros(1, 3, *self._size, device=device)))
        # As timm calls its stages and blocks, `layer1` or `blocks.0`, where it says so.
        known = [stage["module"] for stage in getattr(model, "feature_info", None) or ()]
        self._blocks = known if len(set(known)) == count else [str(number) for number in range(count)]
        self.names = [f"{config.name}, {block}" for block in self._blocks]

    def places(self, t: int) -> dict[str, int]:
        """See `Representations`; all of them at every timestep, since no noise is added to the images."""
        return {block: number for number, block in enumerate(self._blocks)}

    @torch.no_grad()
    def read(self, images: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Representations`."""
        images = F.interpolate(images, size=self._size, mode="bicubic", antialias=True, align_corners=False)
        maps = self._maps(((images + 1) / 2 - self._mean) / self._deviation)
        return {name: flat(feature, self._pool) for name, feature in zip(self.names, maps, strict=True)}

    def _maps(self, images: Tensor) -> list[Tensor]:
        """(B, C, h, w) of each block."""
        model: Any = self._model
        found: list[Tensor] = model.forward_intermediates(images, intermediates_only=True)
        return found
