"""Feature spaces: Inception with its published weights, which alone makes a FID; a network of timm's; a tap of our own
backbones.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer._optional import require
from difformer.backbones import create_backbone, device_of
from difformer.checkpoints.timm_weights import load_timm_weights
from difformer.config import sides
from difformer.data import content_id
from difformer.features.extractor import FeatureExtractor
from difformer.features.pooling import PooledFeatures
from difformer.files import expand_user, sha256

# Published as weights-inception-2015-12-05-6726825d.pth by torch-fidelity (95,628,359 bytes) and, the same bytes, as
# pt_inception-2015-12-05-6726825d.pth by pytorch-fid. The name carries the first eight digits.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION = "Inception"
# TensorFlow's `mixed_6/conv:0` in torch-fidelity's names, and how many of its channels ADM's evaluator takes.
_SPATIAL_LAYER = "Mixed_6d.branch1x1"
_SPATIAL_CHANNELS = 7


class Read(NamedTuple):
    """What a space gives of a batch.

    Attributes:
        vectors: (B, D) float32.
        spatial: (B, S) float32, maps of an early layer, of Inception alone.
        logits: (B, C) float32, of Inception alone.
    """

    vectors: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class FeatureSpace(Protocol):
    """What images are compared in.

    Attributes:
        name: that numbers are called after.
        digest: SHA-256 of the weights, and of what else the features depend on.
        width: D.
        spatial_width: S; None where there are no spatial features.
        caution: what is to be said beside numbers in this space; "" for nothing.
        device: where it runs.
    """

    name: str
    digest: str
    width: int
    spatial_width: int | None
    caution: str
    device: torch.device

    def read(self, images: Tensor) -> Read:
        """Args: images (B, 3, H, W) uint8 on any device."""
        ...


class InceptionSpace:
    """The Inception network of 2015, as torch-fidelity ported it from TensorFlow: the only space of a FID.

    Images go in as ADM's evaluator gives them to the original graph: uint8, resized to 299 pixels as TensorFlow 1 does
    (bilinear without half-pixel centres or antialiasing), (x - 128) / 128. `pool_3` gives 2048 numbers, the first seven
    channels of `mixed_6/conv` 17 · 17 · 7 (height, width and channels in this order, as in OpenAI's reference files),
    and the last layer without its bias 1008 logits.

    Args:
        file: weights-inception-2015-12-05-6726825d.pth, by its path.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
        ImportError: torch-fidelity is missing.
    """

    name = INCEPTION
    digest = INCEPTION_SHA256
    width = 2048
    spatial_width: int | None = 17 * 17 * _SPATIAL_CHANNELS
    caution = ""

    def __init__(self, file: str | Path, device: torch.device) -> None:
        path = expand_user(file)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; Inception's weights are published at {INCEPTION_URL}")
        found = sha256(path)
        if found != INCEPTION_SHA256:
            raise ValueError(
                f"{path} is not Inception's published weights: its SHA-256 is {found[:16]}…, and "
                f"{INCEPTION_SHA256[:16]}… was expected. They are at {INCEPTION_URL}; distances in features of other "
                "weights are no FID, give these as --timm NAME --checkpoint FILE"
            )
        module = "torch_fidelity.feature_extractor_inceptionv3"
        port: Any = require(module, "FID", install="torch-fidelity")
        # The pickle is the one whose digest is known.
        network: nn.Module = port.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        self.device = device
        self._network = network.to(device).eval()
        self._maps: list[Tensor] = []
        network.get_submodule(_SPATIAL_LAYER).register_forward_hook(self._keep)

    @torch.no_grad()
    def read(self, images: Tensor) -> Read:
        """See `FeatureSpace`."""
        # On a GPU, convolutions would else round their inputs to ten bits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            vectors, logits = self._network(images.to(self.device))
        maps = self._maps.pop()
        return Read(vectors, maps[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1), logits)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._maps[:] = [output]


class TimmSpace:
    """The vectors that a network of timm's gives to its classifier.

    Images are resized to the network's own size, whatever their proportions, and normalised as it expects.

    Args:
        name: such as vit_small_patch14_dinov2.lvd142m.
        checkpoint: its weights, a .safetensors or .pth file.
        device: where it runs.

    Raises:
        ImportError: timm is missing.
        FileNotFoundError: there is no such file.
        ValueError: timm has no such network, or the weights are of another.
    """

    spatial_width: int | None = None
    caution = ""

    def __init__(self, name: str, checkpoint: str | Path, device: torch.device) -> None:
        timm: Any = require("timm", "features of a timm network")
        if not timm.is_model(name):
            raise ValueError(f"timm has no network {name!r}; `timm.list_models()` lists them")
        path = expand_user(checkpoint)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; --checkpoint is the weight file of {name}")
        network = timm.create_model(name, num_classes=0)
        load_timm_weights(network, path, name)
        expected = timm.data.resolve_model_data_config(network)
        self.name = name
        self.digest = sha256(path)
        self.device = device
        self._network: nn.Module = network.to(device).eval()
        self._size = tuple(expected["input_size"][1:])
        self._resizing = (
            expected["interpolation"] if expected["interpolation"] in ("bilinear", "bicubic") else "bicubic"
        )
        self._mean, self._deviation = (
            torch.tensor(expected[kind], device=device).view(1, 3, 1, 1) for kind in ("mean", "std")
        )
        self.width = self.read(torch.zeros(1, 3, *self._size, dtype=torch.uint8)).vectors.shape[1]

    @torch.no_grad()
    def read(self, images: Tensor) -> Read:
        """See `FeatureSpace`."""
        pixels = _resized(images.to(self.device).float() / 255, self._size, self._resizing)
        vectors: Tensor = self._network((pixels.clamp(0, 1) - self._mean) / self._deviation)
        if vectors.ndim != 2:
            raise ValueError(f"timm's {self.name} gives no vector an image, but {tuple(vectors.shape[1:])}")
        return Read(vectors.float())


class BackboneSpace:
    """A block of a diffusion model at a timestep, averaged over the map.

    Images are resized to those the model was trained on. The noise of an image is a function of its pixels and the
    seed, so that features depend neither on the batch nor on the order.

    Args:
        name: a preset, weights that ship, a weight file or hf://owner/name.
        tap: a tap or a block number.
        t: noise timestep.
        device: where it runs.
        seed: of the noise.
        folder: where named weights lie, in place of the usual folders.
        download: allow the download of what is not on this machine.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `create_backbone` and `FeatureExtractor`; or a backbone of
            one class an image, or of images of any size.
    """

    spatial_width: int | None = None
    caution = (
        "features of a diffusion model: where it, or one trained on the same images, generated the samples, numbers "
        "are circular: a smoke test, no evidence"
    )

    def __init__(
        self,
        name: str,
        tap: str | int,
        t: int,
        device: torch.device,
        *,
        seed: int = 0,
        folder: Path | None = None,
        download: bool = False,
    ) -> None:
        backbone = create_backbone(name, folder=folder, download=download, device=device)
        if backbone.conditioning or backbone.image_size is None:
            raise ValueError(f"{name} must be a backbone without classes and of images of a known size")
        extractor = FeatureExtractor(backbone, taps=[tap], timesteps=[t], seed=seed)
        self.name = f"{Path(backbone.name).stem}/{extractor.taps[0]}@{t}"
        # The seed makes the noise, so that features of another one are others.
        self.digest = hashlib.sha256(f"{backbone.digest} seed {seed}".encode()).hexdigest()
        self.device = device_of(backbone)
        self._size = sides(backbone.image_size)
        self._pooled = PooledFeatures(extractor).eval()
        self.width = next(iter(extractor.specs.values())).channels

    @torch.no_grad()
    def read(self, images: Tensor) -> Read:
        """See `FeatureSpace`."""
        pixels = _resized(images.float() / 127.5 - 1, self._size, "bilinear").clamp(-1, 1)
        ids = torch.tensor([content_id(image) for image in images.float() / 127.5 - 1])
        return Read(self._pooled(pixels.to(self.device), ids.to(self.device)))


def _resized(images: Tensor, size: tuple[int, ...], kind: str) -> Tensor:
    """Images of a size as they are, others antialiased."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode=kind, antialias=True, align_corners=False)
