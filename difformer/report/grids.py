"""Images side by side in one picture."""

from pathlib import Path

from PIL import Image
from torch import Tensor

from difformer._optional import require
from difformer.files import write_atomically


def draw_grid(images: Tensor, path: Path, *, columns: int | None = None, scale: int | None = None) -> None:
    """Draws images as a PNG, row after row.

    Args:
        images: (N, 1 or 3, H, W) in [-1, 1]; what is outside is clipped.
        path: the file; replaced when it is there.
        columns: images a row; as many as make the picture about square when None.
        scale: how many times each pixel is repeated; so that an image is at least 64 pixels wide when None.

    Raises:
        OSError: it cannot be written.
    """
    make_grid = require("torchvision.utils", "drawing images", install="torchvision").make_grid
    pixels = ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round()
    repeat = scale or max(1, -(-64 // images.shape[-1]))
    pixels = pixels.repeat_interleave(repeat, dim=2).repeat_interleave(repeat, dim=3)
    grid = make_grid(pixels, nrow=columns or max(1, round(len(images) ** 0.5)), padding=2 * repeat, pad_value=255)
    array = grid.permute(1, 2, 0).byte().numpy()
    with write_atomically(path, overwrite=True) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")
