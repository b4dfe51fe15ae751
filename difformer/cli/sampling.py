"""The verb about generation: sample."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from difformer.backbones import Backbone, DenoisingBackbone, as_denoiser, create_backbone, device_of
from difformer.config import sides
from difformer.diffusion import NoiseSchedule, guided, sample_ddim, sample_ddpm
from difformer.diffusion.samplers import Denoiser
from difformer.files import check_target, write_atomically
from difformer.report.grids import draw_grid

# Of images, which is what backbones that work on pixels generate.
_CHANNELS = 3


def sample(
    backbone: str,
    out: Path,
    *,
    count: int = 36,
    method: Literal["ddpm", "ddim"] = "ddpm",
    steps: int = 50,
    eta: float | None = None,
    label: int | None = None,
    guidance: float = 0.0,
    seed: int = 0,
    batch_size: int = 36,
    device: str | None = None,
    folder: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
    family: str | None = None,
) -> None:
    """Generates images from a backbone's weights, as one picture, or as an .npz file that `difformer fid` reads.

    Args:
        backbone: a preset, a weight file or hf://owner/name.
        out: the file to write: a .png with all images in one picture, or an .npz with `arr_0`, (N, h, w, 3) uint8, as
            guided-diffusion writes its samples.
        count: images.
        method: ddpm (ancestral), or ddim, which adds no noise on the way and needs a network with small errors.
        steps: timesteps to visit, evenly spaced.
        eta: noise of ddim, from 0 (none, which is usual) to 1 (that of ancestral sampling).
        label: class of a class-conditional backbone; all of them in turn when left out.
        guidance: classifier-free guidance, for backbones whose last class is the null label; 0 for none.
        seed: of the noise. An image depends on it and on its place alone.
        batch_size: images to generate at once.
        device: where to run, such as cuda; the CPU by default.
        folder: where named weights lie, in place of the usual folders.
        download: allow the download of what is not on this machine.
        overwrite: replace the picture if it exists.
        family: of the backbone, where it is one of your own, as package.module:Name.
    """
    if out.suffix.lower() not in (".png", ".npz"):
        raise ValueError(
            f"{out} must end in .png, for one picture of all images, or in .npz, for the images one by one"
        )
    check_target(out, overwrite=overwrite)
    for name, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if eta is not None and method != "ddim":
        raise ValueError("eta is the noise of ddim; give --method ddim with it, or leave it out")
    opened = as_denoiser(create_backbone(backbone, folder=folder, download=download, device=device, family=family))
    if opened is None or opened.image_size is None or not isinstance(opened.schedule, NoiseSchedule):
        raise ValueError(f"{backbone} does not generate: it needs a forward, an image_size and a NoiseSchedule")
    labels = _labels(opened, count, label, guidance)
    where = device_of(opened)
    images = []
    with tqdm(total=-(-count // batch_size) * steps, unit="step") as bar:
        for start in range(0, count, batch_size):
            ids = list(range(start, min(start + batch_size, count)))
            shape = (len(ids), _CHANNELS, *sides(opened.image_size))
            denoiser = _denoiser(opened, None if labels is None else labels[ids].to(where), guidance)
            if method == "ddpm":
                batch = sample_ddpm(
                    denoiser, opened.schedule, shape, steps=steps, seed=seed, ids=ids, device=where, on_step=bar.update
                )
            else:
                batch = sample_ddim(
                    denoiser, opened.schedule, shape,
                    steps=steps, eta=eta or 0.0, seed=seed, ids=ids, device=where, on_step=bar.update,
                )  # fmt: skip
            images.append(batch.cpu())
    if out.suffix.lower() == ".png":
        draw_grid(torch.cat(images), out)
        kind = f"one picture of {count} images"
    else:
        # Truncated as ADM's image_sample.py does.
        pixels = ((torch.cat(images) + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        with write_atomically(out, overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=pixels.numpy())
        kind = f"{count} images"
    print(f"wrote {out}: {kind} of {opened.name}, {method}, {steps} steps, seed {seed}")


def _labels(backbone: Backbone, count: int, label: int | None, guidance: float) -> torch.Tensor | None:
    classes = backbone.conditioning.get("y")
    if classes is None:
        if label is not None or guidance:
            raise ValueError(f"{backbone.name} is not class-conditional; leave out --label and --guidance")
        return None
    known = classes - 1 if guidance else classes
    if label is not None and not 0 <= label < known:
        raise ValueError(f"label must lie in [0, {known}), got {label}")
    return torch.arange(count) % known if label is None else torch.full((count,), label)


def _denoiser(backbone: DenoisingBackbone, labels: torch.Tensor | None, guidance: float) -> Denoiser:
    if labels is None:
        return backbone.forward
    # The last class, which is asked for with guidance alone.
    null = torch.full_like(labels, backbone.conditioning["y"] - 1)

    def conditional(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return backbone.forward(x_t, t, y=labels)

    def unconditional(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return backbone.forward(x_t, t, y=null)

    return guided(conditional, unconditional, guidance, _CHANNELS) if guidance else conditional
