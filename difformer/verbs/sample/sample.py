"""Images from a backbone to one file, shared by processes and resumable; the body of `difformer sample`."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difformer.backbones import DenoisingBackbone
from difformer.config import as_positive_integer, sides
from difformer.config.reading import plain
from difformer.engine.runtime.processes import Processes, on_all, on_main
from difformer.engine.runtime.progress import progress_bar
from difformer.files import check_target, expand_user
from difformer.report.grids import draw_grid
from difformer.verbs.sample.generate import CHANNELS, Sampling, generate
from difformer.verbs.sample.parts import Images, Parts

_log = logging.getLogger(__name__)


def check_output(out: Path, *, overwrite: bool = False) -> None:
    """Checks before long work that the images can be written.

    Raises:
        ValueError: the name ends neither in .png nor in .npz.
        OSError: as `check_target`.
    """
    if out.suffix.lower() not in (".png", ".npz"):
        raise ValueError(
            f"{out} must end in .png, for one picture of all images, or in .npz, for the images one by one"
        )
    check_target(out, overwrite=overwrite)


def sample_images(
    backbone: DenoisingBackbone,
    out: Path,
    sampling: Sampling,
    *,
    count: int,
    batch_size: int,
    processes: Processes,
    overwrite: bool = False,
) -> None:
    """Generates images into a file, in parts that lie beside it until all are there.

    Image n is the same for any number of images, processes and images at once, up to rounding. A call that was stopped
    leaves whole parts; the same call resumes with the others, and makes damaged ones again. Memory does not grow with
    the number of images, except for a picture of all of them.

    Args:
        backbone: on this process's device.
        out: the file: .png, a picture of all images; or .npz with `arr_0`, (N, H, W, 3) uint8, and for backbones with
            classes `arr_1`, (N,) int64.
        sampling: how they are generated.
        count: N.
        batch_size: images at once on each process.
        processes: Accelerate's.
        overwrite: replace the file if it exists, and unfinished parts of other images.

    Raises:
        ValueError: values out of range, a backbone that cannot generate such images, or unfinished other images.
        OSError: the file exists, it cannot be written, or the disk has too little space.
    """
    count, batch_size = as_positive_integer("count", count), as_positive_integer("batch_size", batch_size)
    out = expand_user(out)
    on_main(processes, partial(check_output, out, overwrite=overwrite))
    sampling.check(backbone)
    assert backbone.image_size is not None
    labels = sampling.labels(backbone, range(count))
    parts = Parts(out, (count, *sides(backbone.image_size), CHANNELS), None if labels is None else labels.numpy())
    # A file may be renamed.
    weights = {key: value for key, value in backbone.describe().items() if key != "name"}
    record = {"backbone": weights, "dtype": str(backbone.dtype), "count": count, **asdict(sampling)}
    missing: list[int] = on_main(processes, partial(_prepare, parts, plain(record), overwrite))
    try:
        with _Bar(parts, missing, processes) as bar:
            share = _Share(backbone, sampling, parts, missing[processes.process_index :: processes.num_processes], bar)
            # The first process has the largest share. They go batch by batch, so that none waits long for the others,
            # which a connection does not bear, and an error of one ends all.
            most = sum(len(parts.rows(part)) for part in missing[:: processes.num_processes])
            for start in range(0, most, batch_size):
                on_all(processes, partial(share.generate, start, start + batch_size))
        on_main(processes, partial(_finish, parts))
    except BaseException:
        if processes.is_main_process and parts.any_written():
            _log.warning("finished images stay in %s; the same command resumes with the others", parts.folder)
        elif processes.is_main_process:
            parts.remove()
        raise


def _prepare(parts: Parts, record: dict[str, Any], overwrite: bool) -> list[int]:
    missing = parts.prepare(record, overwrite=overwrite)
    if there := len(parts) - len(missing):
        print(f"resuming: {there} of {len(parts)} parts are in {parts.folder}", flush=True)
    # The missing parts, and all of them once more in the file that they are joined to.
    image_bytes = int(np.prod(parts.shape[1:]))
    needed = image_bytes * (sum(len(parts.rows(part)) for part in missing) + parts.shape[0])
    free = shutil.disk_usage(parts.folder).free
    if free < needed:
        if not parts.any_written():
            parts.remove()
        raise OSError(
            f"the images need {needed / 1e9:.1f} GB for a while, but the disk of {parts.folder} has {free / 1e9:.1f} "
            "GB free; free some space, or choose another place"
        )
    return missing


class _Share:
    """One process's share of the missing parts.

    Args:
        backbone, sampling: see `generate`.
        parts: of all images.
        mine: the parts of this process.
        bar: of the images.
    """

    def __init__(
        self, backbone: DenoisingBackbone, sampling: Sampling, parts: Parts, mine: Sequence[int], bar: "_Bar"
    ) -> None:
        self._backbone = backbone
        self._sampling = sampling
        self._parts = parts
        self._left = list(mine)
        self._numbers = [number for part in mine for number in parts.rows(part)]
        # Images whose part is not whole yet.
        self._waiting: Images = np.empty((0, *parts.shape[1:]), dtype=np.uint8)
        self._bar = bar

    def generate(self, start: int, stop: int) -> None:
        """Generates a batch, by places in the share, and writes the parts that are whole then."""
        numbers = self._numbers[start:stop]
        if not numbers:
            return
        step = partial(self._bar.advance, len(numbers) / self._sampling.steps)
        images = generate(self._backbone, self._sampling, numbers, step)
        self._waiting = np.concatenate([self._waiting, images.numpy()])
        while self._left and len(self._waiting) >= (full := len(self._parts.rows(self._left[0]))):
            self._parts.write(self._left.pop(0), self._waiting[:full])
            self._waiting = self._waiting[full:]


class _Bar:
    """The progress over all images, as if every process were as far as the main one, which shows it."""

    def __init__(self, parts: Parts, missing: Sequence[int], processes: Processes) -> None:
        self._wanted = sum(len(parts.rows(part)) for part in missing)
        total = parts.shape[0]
        self._bar = progress_bar(total, "sampling", initial=total - self._wanted, disable=not processes.is_main_process)
        self._processes = processes.num_processes
        self._done = 0.0
        self._shown = 0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._bar.update(self._wanted - self._shown)
        self._bar.close()

    def advance(self, images: float) -> None:
        """Moves by the part of this process's images that a step is."""
        self._done += images * self._processes
        whole = min(int(self._done + 1e-6), self._wanted)
        self._bar.update(whole - self._shown)
        self._shown = whole


def _finish(parts: Parts) -> None:
    """Writes the file of all images, and removes the parts."""
    if parts.target.suffix.lower() == ".npz":
        parts.join()
    else:
        pixels = torch.from_numpy(np.concatenate(list(parts))).permute(0, 3, 1, 2)
        draw_grid(pixels.float() / 127.5 - 1, parts.target)
    parts.remove()
