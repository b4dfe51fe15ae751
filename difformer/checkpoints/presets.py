"""The checkpoints OpenAI published for "Diffusion Models Beat GANs on Image Synthesis", by name.

Architectures, schedules and addresses are those of the flags in OpenAI's README (openai/guided-diffusion). Their
weights are under the MIT licence.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from difformer.checkpoints.shipped import shipped_folder
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule
from difformer.files import cache_folder, expand_user
from difformer.models import UNet
from difformer.models.shapes import only_shapes

_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"


@dataclass(frozen=True)
class Preset:
    """A published checkpoint.

    Attributes:
        name: what users call it.
        config: its architecture.
        schedule_name: its noise schedule, of 1000 steps.
        file: OpenAI's name for the file.
        sha256: digest of the file where it is publicly known, else None.
    """

    name: str
    config: UNetConfig
    schedule_name: str
    file: str
    sha256: str | None = None

    @property
    def url(self) -> str:
        """Where OpenAI serves it."""
        return _URL + self.file

    @property
    def schedule(self) -> NoiseSchedule:
        """Its noise schedule."""
        return NoiseSchedule.from_name(self.schedule_name)

    @property
    def expected_keys(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights; allocates none of them."""
        return weight_shapes(self.config)

    def find(self, folder: Path | None = None) -> Path | None:
        """The file on this machine, OpenAI's or converted, or None."""
        for place in search_folders(folder):
            for name in (f"{self.name}.safetensors", self.file):
                if (place / name).is_file():
                    return place / name
        return None


def weight_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of an architecture, without allocating them.

    Raises:
        ValueError: a tensor that no memory could hold.
    """
    try:
        with only_shapes():
            return {name: tuple(tensor.shape) for name, tensor in UNet(config).state_dict().items()}
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"weights of this architecture are too large to be counted: {error}") from error


def search_folders(folder: Path | None = None) -> tuple[Path, ...]:
    """Where weights are looked for by name, the first place first.

    That is only the folder given; without one, `$DIFFORMER_CHECKPOINTS`, `checkpoints/` in the working folder, the
    weights that ship, and the cache. The user's choice comes before what ships, and what ships before downloads.
    """
    if folder is not None:
        return (expand_user(folder),)
    named = os.environ.get("DIFFORMER_CHECKPOINTS")
    here, ships = Path("checkpoints"), shipped_folder()
    # In the repository itself both are the same folder.
    own = [ships] if ships is not None and ships.resolve() != here.resolve() else []
    return (*([expand_user(named)] if named else []), here, *own, cache_folder())


_ADM256 = UNetConfig(
    image_size=256,
    model_channels=256,
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_res_blocks=2,
    attention_resolutions=(32, 16, 8),
    num_head_channels=64,
)
_ADM64 = UNetConfig(
    image_size=64,
    model_channels=192,
    channel_mult=(1, 2, 3, 4),
    num_res_blocks=3,
    attention_resolutions=(32, 16, 8),
    num_head_channels=64,
    use_new_attention_order=True,
    num_classes=1000,
    dropout=0.1,
)
_ADM128 = replace(
    _ADM256,
    image_size=128,
    channel_mult=(1, 1, 2, 3, 4),
    num_heads=4,
    num_head_channels=None,
    num_classes=1000,
)
_ADM512 = replace(_ADM256, image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), num_classes=1000)
_LSUN = replace(_ADM256, dropout=0.1)
# As recorded independently by several public projects that use the file.
_ADM256_UNCOND_SHA256 = "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1"

_ALL = (
    Preset("adm64_cond", _ADM64, "cosine", "64x64_diffusion.pt"),
    Preset("adm128_cond", _ADM128, "linear", "128x128_diffusion.pt"),
    Preset("adm256_cond", replace(_ADM256, num_classes=1000), "linear", "256x256_diffusion.pt"),
    Preset("adm256_uncond", _ADM256, "linear", "256x256_diffusion_uncond.pt", _ADM256_UNCOND_SHA256),
    Preset("adm512_cond", _ADM512, "linear", "512x512_diffusion.pt"),
    Preset("lsun_bedroom", _LSUN, "linear", "lsun_bedroom.pt"),
    Preset("lsun_cat", _LSUN, "linear", "lsun_cat.pt"),
    Preset("lsun_horse", _LSUN, "linear", "lsun_horse.pt"),
    Preset("lsun_horse_nodropout", _ADM256, "linear", "lsun_horse_nodropout.pt"),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
