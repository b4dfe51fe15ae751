"""Finished images on the disk, in parts, until all are there: a folder beside the file that they are for.

    samples.npz.parts/
        samples.json        what the images depend on
        part-00000.npz      the first of them

A part is written completely or not at all.
"""

import glob
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.config.provenance import changed_keys
from difformer.engine.runtime.result_folder import write_json
from difformer.files import MADE_ANEW, read_json, sealed, write_atomically

_RECORD = "samples.json"
# Few enough for a part to fit in memory at any size, and for little to be lost when a process is killed.
PART_IMAGES = 64
_DAMAGE = (OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a set of images.

    Attributes:
        target: the file that the images are for.
        shape: (N, H, W, 3) of all images.
        labels: (N,) int64 of their classes; None where they have none.
    """

    target: Path
    shape: tuple[int, int, int, int]
    labels: NDArray[np.int64] | None

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.target.with_name(f"{self.target.name}.parts")

    def __len__(self) -> int:
        return -(-self.shape[0] // PART_IMAGES)

    def rows(self, part: int) -> range:
        """The numbers of a part's images."""
        return range(part * PART_IMAGES, min((part + 1) * PART_IMAGES, self.shape[0]))

    def prepare(self, record: Mapping[str, Any], *, overwrite: bool = False) -> list[int]:
        """Makes the folder; returns the parts that are missing from it or damaged.

        Args:
            record: what the images depend on, as JSON types.
            overwrite: replace parts of images that depend on something else.

        Raises:
            FileExistsError: there is a file with its name, or something that is no parts.
            ValueError: it holds parts of other images, and `overwrite` is false; or its record is damaged.
            OSError: it cannot be made.
        """
        known = self.folder / _RECORD
        if self.folder.exists():
            if not known.is_file() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise FileExistsError(
                    f"{self.folder} is needed for unfinished images; remove it or choose another name"
                )
            before = read_json(known, MADE_ANEW) if known.is_file() else record
            if differences := changed_keys(before, record):
                if not overwrite:
                    listed = "; ".join(
                        f"{key} was {old!r} and is now {new!r}" for key, (old, new) in differences.items()
                    )
                    raise ValueError(
                        f"{self.folder} holds unfinished images that differ: {listed}. Give the same to resume them, "
                        "choose another file, or --overwrite"
                    )
                shutil.rmtree(self.folder)
            # What a kill left of the file while the parts were joined.
            for leftover in self.target.parent.glob(f".{glob.escape(self.target.name[:40])}.*.tmp"):
                leftover.unlink(missing_ok=True)
        self.folder.mkdir(exist_ok=True)
        with write_atomically(known, overwrite=True) as temporary:
            write_json(temporary, sealed(record))
        return [part for part in range(len(self)) if not self._whole(part)]

    def write(self, part: int, images: Images) -> None:
        """Writes a part's images, (n, H, W, 3).

        Raises:
            OSError: it cannot be written.
        """
        with write_atomically(self._path(part), overwrite=True) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=images)

    def read(self, part: int) -> Images:
        """A part's images, (n, H, W, 3).

        Raises:
            ValueError: it is missing or damaged.
        """
        path, shape = self._path(part), (len(self.rows(part)), *self.shape[1:])
        try:
            # zipfile compares the checksum.
            with np.load(path, allow_pickle=False) as file:
                images: Images = file["arr_0"]
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged ({error}); {MADE_ANEW}") from error
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"{path} is damaged: it holds {images.shape} of {images.dtype}; {MADE_ANEW}")
        return images

    def join(self) -> None:
        """Writes `arr_0`, (N, H, W, 3), and `arr_1`, (N,) of the classes, as one .npz file, a part at a time.

        Raises:
            ValueError: a part is missing or damaged.
            OSError: the file cannot be written.
        """
        with (
            write_atomically(self.target, overwrite=True) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            # With a ZipInfo, the file does not depend on the time.
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for images in self:
                    file.write(images.tobytes())
            if self.labels is not None:
                with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                    np.lib.format.write_array(file, self.labels, allow_pickle=False)

    def __iter__(self) -> Iterator[Images]:
        return (self.read(part) for part in range(len(self)))

    def remove(self) -> None:
        """Removes the folder, with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def any_written(self) -> bool:
        """Whether there is a part, whole or damaged."""
        return any(self._path(part).exists() for part in range(len(self)))

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05}.npz"

    def _whole(self, part: int) -> bool:
        try:
            self.read(part)
        except ValueError:
            return False
        return True
