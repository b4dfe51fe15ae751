"""The verb about generation: sample."""

from functools import partial
from pathlib import Path
from typing import Literal

from difformer.backbones import as_denoiser, create_backbone
from difformer.engine.runtime.processes import create_accelerator, on_all
from difformer.verbs.sample.generate import Sampling
from difformer.verbs.sample.sample import check_output, sample_images


def sample(
    backbone: str,
    out: Path,
    *,
    count: int = 36,
    method: Literal["ddpm", "ddim", "dpm++"] = "ddpm",
    steps: int = 50,
    spacing: Literal["even", "adm", "ddim", "log_snr"] | None = None,
    eta: float | None = None,
    variance: Literal["small", "large"] | None = None,
    classes: list[int] | None = None,
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

    With `accelerate launch`, processes share the images. Finished images lie in OUT.parts until all are there; after a
    stop, the same command resumes.

    Args:
        backbone: a preset, a weight file or hf://owner/name.
        out: the file to write: a .png with all images in one picture, or an .npz with `arr_0`, (N, h, w, 3) uint8, as
            guided-diffusion writes its samples, and `arr_1`, the classes of a class-conditional backbone's.
        count: images.
        method: ddpm (ancestral); ddim, which adds no noise on the way and needs a network with small errors; or dpm++
            (DPM-Solver++), images of ddim in about 20 steps.
        steps: timesteps to visit.
        spacing: which timesteps. even has the first and the last; adm is guided-diffusion's rounding of the same; ddim
            is 0 and on in whole strides, its ddimN; log_snr is even in the logarithm of the signal-to-noise ratio.
            By default log_snr for dpm++ and even for the others.
        eta: noise of ddim, from 0 (none, which is usual) to 1 (that of ancestral sampling).
        variance: of ddpm's noise where the network does not learn it: small, which is the default, or large, which is
            guided-diffusion's.
        classes: of a class-conditional backbone, whose images are generated in turn; all when left out.
        guidance: w of classifier-free guidance, eps + w (eps - eps of the null label), for backbones whose last class
            is the null label; 0 for none.
        seed: of the noise. An image depends on it and on its number alone.
        batch_size: images to generate at once, on each process.
        device: where to run, such as cuda; the CPU by default. Several processes have a device each.
        folder: where named weights lie, in place of the usual folders.
        download: allow the download of what is not on this machine.
        overwrite: replace the file if it exists, and unfinished images with other settings.
        family: of the backbone, where it is one of your own, as package.module:Name.
    """
    sampling = Sampling(
        method=method, steps=steps, spacing=spacing, eta=eta, variance=variance,
        classes=None if classes is None else tuple(classes), guidance=guidance, seed=seed,
    )  # fmt: skip
    check_output(out, overwrite=overwrite)
    processes = create_accelerator("no")
    if processes.num_processes > 1:
        if device is not None:
            raise ValueError("several processes have a device each; leave out --device")
        device = str(processes.device)
    load = partial(create_backbone, backbone, folder=folder, download=download, device=device, family=family)
    opened = as_denoiser(on_all(processes, load))
    if opened is None:
        raise ValueError(f"{backbone} does not generate: it has no forward")
    sample_images(opened, out, sampling, count=count, batch_size=batch_size, processes=processes, overwrite=overwrite)
    if processes.is_main_process:
        kind = f"one picture of {count} images" if out.suffix.lower() == ".png" else f"{count} images"
        print(f"wrote {out}: {kind} of {opened.name}, {method}, {steps} steps, seed {seed}")
