"""Features of images at chosen taps and timesteps, in one pass through a frozen backbone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from difformer.backbones import Backbone, check_backbone
from difformer.config import Size, as_call, as_integer, as_json_size, as_positive_integer, as_size
from difformer.features.conditioning import Conditioning
from difformer.features.dtypes import as_dtype, dtype_name
from difformer.features.images import ImageCheck, check_sides
from difformer.features.noising import Noising, repeat_conditioning
from difformer.features.sizes import taps_at
from difformer.taps import FeatureKey, Features, TapSpec, resolve_taps


class FeatureExtractor(nn.Module):
    """Reads features at every requested tap and timestep.

    All timesteps go through the backbone as one batch, in chunks if the memory requires it. No gradient is kept.

    Args:
        backbone: a frozen backbone.
        taps: tap names or block numbers, in the order the features are wanted.
        timesteps: noise timesteps.
        seed: of the per-image noise; set the attribute to another value for fresh noise in each epoch.
        draws: noise draws a timestep, over which features are averaged.
        clean: add no noise; the network still receives the timestep.
        chunk_size: most noisy images to pass at once; all of them when None, fewer after the GPU ran out of memory.
        dtype: of the features; a floating-point type or its name, such as "bfloat16".
        image_size: of the images that `specs` are for, a side or (h, w); the backbone's own when None. Images of other
            sizes can still be read.
        conditioning: what the backbone is conditioned on, by keyword: a class number for all images, such as
            `{"y": 3}`, or "label" for each image's own, which the call must then give. When left out, each call must
            give everything that the backbone is conditioned on.

    Attributes:
        specs: of the features, by key in the order of the output: timesteps outermost.

    Raises:
        ValueError: unknown or repeated taps or timesteps, invalid numbers or types, or an image size that the backbone
            does not take.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        taps: Iterable[str | int],
        timesteps: Iterable[int],
        seed: int = 0,
        draws: int = 1,
        clean: bool = False,
        chunk_size: int | None = None,
        dtype: torch.dtype | str = torch.float32,
        image_size: Size | None = None,
        conditioning: Mapping[str, int | str] | None = None,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        self.train()
        self.taps = resolve_taps(taps, backbone.taps)
        self.noising = Noising(timesteps, draws, clean)  # type: ignore[arg-type]
        self.noising.check_schedule(backbone.schedule)
        self.seed = as_integer("seed", seed)
        self.chunk_size = None if chunk_size is None else as_positive_integer("chunk_size", chunk_size)
        self.dtype = as_dtype(dtype)
        self.image_size = None if image_size is None else as_size("image_size", image_size)
        self.conditioning = Conditioning(conditioning)  # type: ignore[arg-type]
        self.conditioning.check(backbone)
        self._check_images = ImageCheck()
        offered = taps_at(backbone, self.image_size)
        self.specs: dict[FeatureKey, TapSpec] = {
            FeatureKey(tap, t): offered[tap] for t in self.noising.timesteps for tap in self.taps
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments to build it again, except the backbone; JSON types only."""
        size = {} if self.image_size is None else {"image_size": as_json_size(self.image_size)}
        return {
            "taps": list(self.taps),
            "timesteps": list(self.noising.timesteps),
            "seed": as_integer("seed", self.seed),
            "draws": self.noising.draws,
            "clean": self.noising.clean,
            "dtype": dtype_name(self.dtype),
            **size,
            **self.conditioning.arguments,
        }

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        *,
        noise: Mapping[int, Tensor] | None = None,
        **conditioning: Tensor,
    ) -> Features:
        """Reads the features.

        Args:
            images: (B, 3, H, W) in [-1, 1], on the backbone's device. Values far outside are refused; doubtful ones,
                such as all in [0, 1], give one warning.
            ids: (B,) the images' stable numbers, which their noise depends on; their positions in the batch when left
                out, so that their features then depend on the batch.
            noise: eps of the shape of x_0 by timestep, instead of the per-image noise there.
            conditioning: what the backbone is conditioned on, one row an image, such as `y` for class labels; instead
                of what the extractor was built with.

        Returns:
            (B, C, h, w) by key, in `dtype`, in the order of `specs`.

        Raises:
            ValueError: images, ids, noise or conditioning that do not fit.
        """
        self._check_images(images, training=self.training)
        check_sides(images, self.backbone.multiple)
        given = self.conditioning.complete(conditioning, images)
        x_0 = self.backbone.encode(images)
        x_t, t = self.noising.apply(x_0, self.backbone.schedule, self.seed, ids, noise)
        maps = self._read(x_t, t, repeat_conditioning(given, len(images), self.noising.repeats))
        by_tap = {tap: self.noising.separate(feature) for tap, feature in maps.items()}
        return Features((key, by_tap[key.tap][key.t].to(self.dtype)) for key in self.specs)

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """The backbone stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.backbone, nn.Module):
            self.backbone.eval()
        return self

    def __repr__(self) -> str:
        return f"FeatureExtractor({as_call(self.arguments)}) on {self.backbone}"

    def _read(self, x_t: Tensor, t: Tensor, conditioning: Mapping[str, Tensor]) -> dict[str, Tensor]:
        size = max(1, min(self.chunk_size or len(x_t), len(x_t)))
        while True:
            try:
                parts = [
                    self.backbone.forward_taps(
                        x_t[i : i + size],
                        t[i : i + size],
                        self.taps,
                        **{name: value[i : i + size] for name, value in conditioning.items()},
                    )
                    for i in range(0, max(1, len(x_t)), size)
                ]
                return {tap: torch.cat([part[tap] for part in parts]) for tap in self.taps}
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                # Kept, so that the next batch does not run out of memory again.
                size = self.chunk_size = (size + 1) // 2
                torch.cuda.empty_cache()
