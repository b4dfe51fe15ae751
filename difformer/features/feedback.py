"""DifFeed: decoder features go through small layers back into the encoder for a second pass (arXiv 2311.17921)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from difformer.backbones import Backbone, ResumableBackbone, check_backbone
from difformer.config import Size, as_call, as_integer, as_json_size, as_size, as_switch
from difformer.features.conditioning import Conditioning
from difformer.features.dtypes import as_dtype, dtype_name
from difformer.features.images import ImageCheck, check_sides
from difformer.features.noising import Noising, repeat_conditioning
from difformer.features.sizes import taps_at
from difformer.taps import FeatureKey, Features, TapSpec, mirror, resolve_taps

FeedbackNorm = Literal["batch", "group", "none"]
_GROUPS = 32


class FeedbackLayer(nn.Sequential):
    """1×1 convolution without bias, normalisation, ReLU; the published layer with `norm="batch"` and no gate.

    Args:
        in_channels: of the decoder's feature.
        out_channels: of the encoder block it is added to.
        norm: "batch", "group" or "none".
        gate: scale each channel by a learned factor that starts at zero, so that training starts from the
            features without feedback.
    """

    gate: nn.Parameter | None

    def __init__(self, in_channels: int, out_channels: int, norm: FeedbackNorm, gate: bool) -> None:
        if norm == "batch":
            layer: nn.Module = nn.BatchNorm2d(out_channels)
        else:
            layer = nn.GroupNorm(_GROUPS, out_channels) if norm == "group" else nn.Identity()
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, bias=False), layer, nn.ReLU())
        self.register_parameter("gate", nn.Parameter(torch.zeros(out_channels, 1, 1)) if gate else None)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, in_channels, h, w) in the layer's dtype. Returns (B, out_channels, h, w)."""
        x = super().forward(x)
        return x if self.gate is None else self.gate * x


class FeedbackExtractor(nn.Module):
    """Reads features of a second pass, whose encoder receives decoder features of the first pass.

    The first pass keeps no gradient and stops at the deepest tap needed. The second starts from the first block that
    gets feedback; gradients flow through its frozen weights to the feedback layers only. To trade time for memory
    there, open the backbone with `gradient_checkpointing=True`.

    Args:
        backbone: a frozen backbone.
        feedback_taps: decoder taps that are fed back, each into its mirror in the encoder. Published: blocks 21, 24,
            27, 30, 33 and 36 of ADM-256.
        taps: taps to read in the second pass. Published: block 24.
        timesteps: noise timesteps.
        first_pass_taps: taps to read in the first pass as well.
        seed, draws, clean, dtype, image_size, conditioning: as for `FeatureExtractor`.
        norm: normalisation of the feedback layers: "batch" (published), "group" or "none".
        gate: start from the features without feedback.

    Attributes:
        specs: of the features, by key in the order of the output: timesteps outermost, then the first pass (round 0),
            then the second (round 1).
        feedback: the layers, in the order of `feedback_taps`.

    Raises:
        ValueError: unknown or repeated taps or timesteps, a feedback tap outside the decoder, or one whose mirror
            lies after every tap of the second pass; an image size that the backbone does not take.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        feedback_taps: Iterable[str | int],
        taps: Iterable[str | int],
        timesteps: Iterable[int],
        first_pass_taps: Iterable[str | int] = (),
        seed: int = 0,
        draws: int = 1,
        clean: bool = False,
        norm: FeedbackNorm = "batch",
        gate: bool = False,
        dtype: torch.dtype | str = torch.float32,
        image_size: Size | None = None,
        conditioning: Mapping[str, int | str] | None = None,
    ) -> None:
        super().__init__()
        if norm not in get_args(FeedbackNorm):
            raise ValueError(f"unknown norm {norm!r}; expected one of {', '.join(get_args(FeedbackNorm))}")
        check_backbone(backbone)
        self.backbone = backbone
        self.train()
        self.feedback_taps = resolve_taps(feedback_taps, backbone.taps)
        self.taps = resolve_taps(taps, backbone.taps)
        if isinstance(first_pass_taps, Iterable) and not isinstance(first_pass_taps, str):
            first_pass_taps = tuple(first_pass_taps)
        self.first_pass_taps = () if first_pass_taps == () else resolve_taps(first_pass_taps, backbone.taps)
        self.mirrors = {tap: mirror(tap, backbone.taps) for tap in self.feedback_taps}
        self._check_mirrors()
        self.noising = Noising(timesteps, draws, clean)  # type: ignore[arg-type]
        self.noising.check_schedule(backbone.schedule)
        self.seed = as_integer("seed", seed)
        self.norm = norm
        self.gate = as_switch("gate", gate)
        self.dtype = as_dtype(dtype)
        self.image_size = None if image_size is None else as_size("image_size", image_size)
        self.conditioning = Conditioning(conditioning)  # type: ignore[arg-type]
        self.conditioning.check(backbone)
        self._check_images = ImageCheck()
        self.feedback = nn.ModuleList(
            FeedbackLayer(backbone.taps[tap].channels, backbone.taps[into].channels, norm, self.gate)
            for tap, into in self.mirrors.items()
        )
        rounds = (self.first_pass_taps, self.taps)
        offered = taps_at(backbone, self.image_size)
        self.specs: dict[FeatureKey, TapSpec] = {
            FeatureKey(tap, t, number): offered[tap]
            for t in self.noising.timesteps
            for number, names in enumerate(rounds)
            for tap in names
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments to build it again, except the backbone; JSON types only."""
        size = {} if self.image_size is None else {"image_size": as_json_size(self.image_size)}
        return {
            "feedback_taps": list(self.feedback_taps),
            "taps": list(self.taps),
            "timesteps": list(self.noising.timesteps),
            "first_pass_taps": list(self.first_pass_taps),
            "seed": as_integer("seed", self.seed),
            "draws": self.noising.draws,
            "clean": self.noising.clean,
            "norm": self.norm,
            "gate": self.gate,
            "dtype": dtype_name(self.dtype),
            **size,
            **self.conditioning.arguments,
        }

    def forward(
        self,
        images: Tensor,
        ids: Tensor | Sequence[int] | None = None,
        *,
        noise: Mapping[int, Tensor] | None = None,
        **conditioning: Tensor,
    ) -> Features:
        """Reads the features of both passes, which see the same noise.

        Args, Returns and Raises: as for `FeatureExtractor.forward`. Features of the second pass carry gradients.
        """
        self._check_images(images, training=self.training)
        backbone = self.backbone
        check_sides(images, backbone.multiple)
        given = self.conditioning.complete(conditioning, images)
        with torch.no_grad():
            x_0 = backbone.encode(images)
            x_t, t = self.noising.apply(x_0, backbone.schedule, self.seed, ids, noise)
        given = repeat_conditioning(given, len(images), self.noising.repeats)
        wanted = tuple(dict.fromkeys((*self.feedback_taps, *self.first_pass_taps)))
        if isinstance(backbone, ResumableBackbone):
            start = min(self.mirrors.values(), key=lambda tap: backbone.taps[tap].block)
            with torch.no_grad():
                prefix = backbone.forward_prefix(x_t, t, start, **given)
                first = backbone.forward_from(prefix, wanted)
            second = backbone.forward_from(prefix, self.taps, inject=self._feed(first))
        else:
            with torch.no_grad():
                first = backbone.forward_taps(x_t, t, wanted, **given)
            second = backbone.forward_taps(x_t, t, self.taps, inject=self._feed(first), **given)
        maps = {(tap, 0): self.noising.separate(first[tap]) for tap in self.first_pass_taps}
        maps |= {(tap, 1): self.noising.separate(second[tap]) for tap in self.taps}
        return Features((key, maps[key.tap, key.round][key.t].to(self.dtype)) for key in self.specs)

    def train(self, mode: bool = True) -> "FeedbackExtractor":
        """The backbone stays in evaluation mode."""
        super().train(mode)
        if isinstance(self.backbone, nn.Module):
            self.backbone.eval()
        return self

    def __repr__(self) -> str:
        return f"FeedbackExtractor({as_call(self.arguments)}) on {self.backbone}"

    def _feed(self, first: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.feedback.parameters()).dtype
        fed = {}
        for layer, (tap, into) in zip(self.feedback, self.mirrors.items(), strict=True):
            # Each timestep alone, as published: batch statistics of different noise levels do not mix.
            by_timestep = first[tap].to(dtype).chunk(len(self.noising.timesteps))
            fed[into] = torch.cat([layer(feature) for feature in by_timestep])
        return fed

    def _check_mirrors(self) -> None:
        blocks = {tap: spec.block for tap, spec in self.backbone.taps.items()}
        deepest = max(self.taps, key=blocks.__getitem__)
        for tap, into in self.mirrors.items():
            if blocks[into] >= blocks[tap]:
                decoder = [name for name in blocks if blocks[mirror(name, blocks)] < blocks[name]]
                raise ValueError(f"{tap} cannot be fed back; choose decoder taps, of {', '.join(decoder)}")
            if blocks[into] > blocks[deepest]:
                raise ValueError(
                    f"{tap} feeds {into}, which comes after {deepest}, the deepest tap read in the second pass"
                )
