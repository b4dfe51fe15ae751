"""A family of backbones: a chain of convolutions whose weights lie in a safetensors file of its own."""

import hashlib

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from difformer.diffusion import NoiseSchedule
from difformer.taps import TapSpec

WIDTHS = (8, 12, 16)


class Chain(nn.Module):
    """Each link halves the map, and is a tap; the noise level is added to the first.

    Args:
        size: side of the images it was trained on.
        name, digest: of the weights.
        dtype: of the convolutions.
    """

    image_channels = 3
    multiple = 2 ** len(WIDTHS)
    conditioning = {}  # noqa: RUF012 - nothing is ever put into it

    def __init__(self, size, *, name, digest="random", dtype=None):
        super().__init__()
        self.name, self.digest, self.image_size, self.dtype = name, digest, size, dtype or torch.float32
        self.schedule = NoiseSchedule.cosine(500)
        self.time = nn.Linear(1, WIDTHS[0])
        inputs = (self.image_channels, *WIDTHS)
        self.links = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(inputs, WIDTHS, strict=False)
        )
        self.taps = {}
        flops = 0
        for number, link in enumerate(self.links):
            side = size // 2 ** (number + 1)
            flops += 2 * link.weight.numel() * side**2
            self.taps[f"link{number}"] = TapSpec(f"link{number}", number + 1, WIDTHS[number], side, flops)
        self.to(self.dtype).requires_grad_(False)

    @classmethod
    def open(cls, name_or_path, *, dtype, device, attention, folder, download, verify):
        state = load_file(name_or_path)
        size = int(state.pop("size"))
        values = b"".join(state[key].numpy().tobytes() for key in sorted(state))
        chain = cls(size, name=str(name_or_path), digest=hashlib.sha256(values).hexdigest(), dtype=dtype)
        chain.load_state_dict(state)
        return chain.to(device or "cpu")

    @classmethod
    def build(cls, name_or_path, *, dtype, attention, folder):
        # The default device may be "meta" here.
        with torch.device("cpu"):
            size = int(load_file(name_or_path)["size"])
        return cls(size, name=str(name_or_path), dtype=dtype)

    def save(self, path):
        save_file(self.state_dict() | {"size": torch.tensor(self.image_size)}, path)

    def describe(self):
        return {
            "family": "own_package.nets:Chain",
            "name": self.name,
            "digest": self.digest,
            "config": {"size": self.image_size, "widths": list(WIDTHS)},
            "schedule": self.schedule.to_dict(),
        }

    def encode(self, images):
        return images

    def forward_taps(self, x_t, t, taps, *, inject=None):
        noise = torch.as_tensor(t, device=x_t.device).expand(len(x_t))[:, None] / self.schedule.num_timesteps
        h, found = x_t.to(self.dtype), {}
        for number, link in enumerate(self.links):
            h = link(h)
            if number == 0:
                h = h + self.time(noise.to(self.dtype))[..., None, None]
            h = h.relu() + (inject or {}).get(f"link{number}", 0)
            found[f"link{number}"] = h
        return {tap: found[tap] for tap in taps}


class Wavering(Chain):
    """A chain whose features differ from pass to pass while it is in training mode, with weights that could learn."""

    def __init__(self, size, **options):
        super().__init__(size, **options)
        self.links[0] = nn.Sequential(self.links[0], nn.BatchNorm2d(WIDTHS[0]), nn.Dropout(0.5))
        self.register_buffer("unsaved", torch.zeros(1, WIDTHS[0], 1, 1), persistent=False)

    def describe(self):
        return super().describe() | {"family": "own_package.nets:Wavering"}

    def forward_taps(self, x_t, t, taps, *, inject=None):
        return super().forward_taps(x_t, t, taps, inject={"link0": self.unsaved} | (inject or {}))
