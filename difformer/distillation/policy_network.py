"""The network that chooses timesteps: a LeNet on the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difformer.config import Size, as_positive_integer, as_size, sides

# Stages are added until the map is no larger than LeNet's own.
_LARGEST_MAP = 5
_SMALLEST_IMAGE = 6


class PolicyNetwork(nn.Module):
    """Logits of timesteps from the image that the student sees.

    RepFusion's networks (Yang & Wang 2023, arXiv 2308.10916): stages of a 5×5 convolution, ReLU and 2×2 maximum
    pooling, then three linear layers, after LeNet-5 (LeCun et al. 1998). Their code has two stages for 32 pixels
    (146,156 weights for 1000 timesteps) and three for 64; a larger image gets more stages, until its map has at most 5
    cells on its short side.

    Args:
        num_timesteps: T, the number of timesteps to choose from.
        image_size: of the images, a side or (h, w), of at least 6 pixels.

    Raises:
        ValueError: a bad number or size.
    """

    def __init__(self, num_timesteps: int, image_size: Size = 32) -> None:
        super().__init__()
        self.num_timesteps = as_positive_integer("num_timesteps", num_timesteps)
        self.image_size = as_size("image_size", image_size)
        height, width = sides(self.image_size)
        if min(height, width) < _SMALLEST_IMAGE:
            raise ValueError(f"image_size must be at least {_SMALLEST_IMAGE} pixels a side, got {height}×{width}")
        self.convs = nn.ModuleList()
        channels = 3
        while min(height, width) > _LARGEST_MAP:
            self.convs.append(nn.Conv2d(channels, 16 if self.convs else 6, 5))
            channels = 16 if len(self.convs) > 1 else 6
            height, width = (height - 4) // 2, (width - 4) // 2
        self.fcs = nn.ModuleList(
            [nn.Linear(channels * height * width, 120), nn.Linear(120, 84), nn.Linear(84, self.num_timesteps)]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits, whose softmax is the policy.

        Args:
            images: (B, 3, H, W) in [-1, 1], of the size that the network is built for.

        Returns:
            (B, T) float32, or float64 of a network in float64.

        Raises:
            ValueError: images of another shape.
        """
        height, width = sides(self.image_size)
        if images.ndim != 4 or images.shape[1:] != (3, height, width):
            raise ValueError(
                f"images must be (B, 3, {height}, {width}), got {tuple(images.shape)}; resize them, or build the "
                "network with another image_size"
            )
        first, second, last = self.fcs
        x = images.to(next(self.fcs.parameters()).dtype)
        for conv in self.convs:
            x = F.max_pool2d(F.relu(conv(x)), 2)
        logits: Tensor = last(F.relu(second(F.relu(first(x.flatten(1))))))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
