"""The verb that compares generated images with real ones: fid."""

from pathlib import Path

import torch

from difformer.engine.runtime.result_folder import write_json
from difformer.engine.runtime.run_folder import environment
from difformer.files import check_target, write_atomically
from difformer.verbs.fid.fid import compare_images
from difformer.verbs.fid.spaces import BackboneSpace, FeatureSpace, InceptionSpace, TimmSpace
from difformer.verbs.fid.table import text_table


def fid(
    samples: Path,
    reference: Path,
    *,
    inception: Path | None = None,
    timm: str | None = None,
    checkpoint: Path | None = None,
    backbone: str | None = None,
    tap: str | None = None,
    t: int | None = None,
    k: int = 3,
    frechet: bool = True,
    resamples: int | None = None,
    keep: int = 50_000,
    split_size: int = 5000,
    size: int | None = None,
    convert: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
    weights_folder: Path | None = None,
    download: bool = False,
    statistics: Path | None = None,
    json: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Compares generated images with real ones: kernel and Fréchet distance, precision, recall, density and coverage.

    Give the features to compare in: --inception, --timm with --checkpoint, or --backbone with --tap and --t. Only with
    Inception's published weights are the numbers called FID, sFID, KID and Inception score.

    Args:
        samples: the generated images: a folder, .tar shards with labels, or an .npz file with arr_0, (N, H, W, 3)
            uint8.
        reference: the real ones, in the same forms; or an .npz file with statistics, of OpenAI or by --statistics.
        inception: the file weights-inception-2015-12-05-6726825d.pth; needs torch-fidelity (the extra generation).
        timm: a network of timm's.
        checkpoint: its weight file, .safetensors or .pth.
        backbone: a diffusion model of ours: a preset, weights that ship, a weight file or hf://owner/name.
        tap: of the backbone, such as mid, or a block number.
        t: noise timestep of the backbone.
        k: of the neighbours for precision, recall, density and coverage; 5 is usual for the last two.
        frechet: with the Fréchet distance, which needs more images than there are features, better ten times as many.
        resamples: of the images, for the interval of the Fréchet distance, each of which takes as long as the distance;
            0 for none. It needs features of all samples. By default 100 of up to 512 features, and none of more.
        keep: most images of a set whose features are kept, for all but Fréchet distance and Inception score.
        split_size: images a split of the Inception score.
        size: scale and crop all images to this side, which must be that of a file of statistics.
        convert: take grey, 16-bit and other images that are not 8-bit RGB, and make them so.
        batch_size: images at once.
        seed: of the bootstrap, the blocks of the kernel distance and the backbone's noise.
        device: where to run, such as cuda; the CPU by default.
        weights_folder: where named backbones lie, in place of the usual folders.
        download: allow the download of a backbone that is not on this machine.
        statistics: an .npz file to write, the reference's statistics; it can be given as a reference again.
        json: a file to write the numbers and these options to, too.
        overwrite: replace files that exist.
    """
    for path, ending in ((json, ".json"), (statistics, ".npz")):
        if path is not None:
            check_target(path, overwrite=overwrite, ending=ending)
    where = torch.device(device or "cpu")
    space = _space(inception, timm, checkpoint, backbone, tap, t, where, seed, weights_folder, download)
    found = compare_images(
        samples, reference, space,
        k=k, frechet=frechet, resamples=resamples, keep=keep, split_size=split_size, batch_size=batch_size, seed=seed,
        size=size, convert=convert, statistics=statistics, overwrite=overwrite,
    )  # fmt: skip
    print(text_table(found))
    if json is not None:
        with write_atomically(json, overwrite=overwrite) as temporary:
            write_json(temporary, found.to_dict() | {"environment": environment(1, space.device)})


def _space(
    inception: Path | None,
    timm: str | None,
    checkpoint: Path | None,
    backbone: str | None,
    tap: str | None,
    t: int | None,
    device: torch.device,
    seed: int,
    folder: Path | None,
    download: bool,
) -> FeatureSpace:
    """The one that was given; raises ValueError where that is none or several, or where options do not go together."""
    given = [name for name, value in (("inception", inception), ("timm", timm), ("backbone", backbone)) if value]
    if len(given) != 1:
        raise ValueError(
            "give what to compare in, one of --inception FILE, --timm NAME --checkpoint FILE and --backbone NAME --tap "
            f"mid --t 50; got {' and '.join(given) or 'none'}"
        )
    if (timm is None) != (checkpoint is None):
        raise ValueError("--timm NAME and --checkpoint FILE go together: a network and its weights")
    if (backbone is None, backbone is None) != (tap is None, t is None):
        raise ValueError("--backbone, --tap and --t go together: a backbone, one of its blocks and a timestep")
    if inception is not None:
        return InceptionSpace(inception, device)
    if timm is not None and checkpoint is not None:
        return TimmSpace(timm, checkpoint, device)
    assert backbone is not None
    assert tap is not None
    assert t is not None
    block = int(tap) if tap.isdigit() else tap
    return BackboneSpace(backbone, block, t, device, seed=seed, folder=folder, download=download)
