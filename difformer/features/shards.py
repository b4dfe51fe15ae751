"""The files of a feature cache: a folder with a manifest and sharded safetensors files.

    FOLDER/imagenet-train-augmented-3f0c9b62d1a7/
        manifest.json                         what the features depend on; the digest in the name is computed from it
        view-00-shard-00000.safetensors       the first images, as they look in training epoch 0
        view-01-shard-00000.safetensors       the same images in epoch 1

A shard holds one tensor (n, C, h, w) for each feature, `ids` (n,) and `labels` (n,). It is written completely or not at
all, so any file with a shard's name is a shard, and a stopped extraction resumes with the missing ones.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from difformer.features.dtypes import as_dtype, dtype_name
from difformer.files import write_atomically
from difformer.taps import FeatureKey

FORMAT = "difformer.features"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
# Writing a shard takes about twice its size in memory.
MAX_SHARD_BYTES = 1 << 30
_DIGITS = 12
_STALE_SECONDS = 3600
_HEADER_BYTES = 1024
# Beside the features, each image's id and label are kept as int64.
_NUMBER_BYTES = 16
# The types in a shard by their names in safetensors.
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}
_CHUNK = 1 << 20

Shape = tuple[int, int, int]


class FeatureCacheError(ValueError):
    """A feature cache cannot be used; the message names the file, says what is wrong with it and what to do."""


@dataclass(frozen=True)
class CacheManifest:
    """What a feature cache holds.

    Attributes:
        identity: everything the features depend on, except for rounding, as JSON types; part of the digest.
        images: how many there are in the split.
        shard_size: images a shard; the last may have fewer.
        shapes: (C, h, w) of each feature as it is stored.
        dtype: of the stored features: float32, bfloat16 or float16.
        class_names: in the order of the labels.
    """

    identity: Mapping[str, Any]
    images: int
    shard_size: int
    shapes: Mapping[FeatureKey, Shape]
    dtype: torch.dtype
    class_names: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole manifest."""
        return _record_digest(self._record())

    @property
    def image_bytes(self) -> int:
        """Bytes that one image takes in one view."""
        return _NUMBER_BYTES + self.dtype.itemsize * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_shards(self) -> int:
        """How many shards one view has."""
        return -(-self.images // self.shard_size)

    def rows(self, shard: int) -> range:
        """The positions in the split of the images in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.images))

    def shard_bytes(self, shard: int) -> int:
        """About the size of a shard's file."""
        return len(self.rows(shard)) * self.image_bytes + _HEADER_BYTES

    def folder_name(self, prefix: str) -> str:
        """The name of the cache's folder, unique to its content."""
        return f"{prefix}-{self.digest[:_DIGITS]}"

    def covers(self, wanted: "CacheManifest") -> bool:
        """Whether it holds all that another one requires, of the same images and to the bit; it may hold more."""
        same = [(m.identity, m.images, m.dtype, m.class_names) for m in (self, wanted)]
        return same[0] == same[1] and all(self.shapes.get(key) == shape for key, shape in wanted.shapes.items())

    def write(self, folder: Path) -> None:
        """Writes `manifest.json`, unless the same one is there.

        Raises:
            OSError: it cannot be written.
        """
        content = json.dumps(self._record() | {"digest": self.digest}, indent=2, ensure_ascii=False) + "\n"
        path = folder / MANIFEST
        if not path.is_file() or path.read_bytes() != content.encode():
            with write_atomically(path, overwrite=True) as temporary:
                temporary.write_text(content, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "CacheManifest":
        """Reads what `write` wrote.

        Raises:
            FileNotFoundError: there is no cache in the folder.
            FeatureCacheError: the manifest is damaged, or of another version of the format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not a feature cache: it has no {MANIFEST}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if (record["format"], record["format_version"]) != (FORMAT, FORMAT_VERSION):
                raise FeatureCacheError(
                    f"{path} has format {record['format']} {record['format_version']}; this version of difformer "
                    f"reads {FORMAT} {FORMAT_VERSION}; extract again"
                )
            if record.pop("digest") != _record_digest(record):
                raise FeatureCacheError(f"{path} is damaged: its digest does not match; extract again to repair it")
            shapes = {}
            for entry in record["features"]:
                key = FeatureKey(entry["tap"], entry["t"], entry["round"])
                channels, height, width = entry["shape"]
                shapes[key] = int(channels), int(height), int(width)
            dtype = as_dtype(record["dtype"])
            return cls(
                record["identity"], record["images"], record["shard_size"], shapes, dtype, tuple(record["class_names"])
            )
        except FeatureCacheError:
            raise
        # Deeply nested brackets give a RecursionError.
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise FeatureCacheError(f"{path} is damaged ({error!r}); extract again to repair it") from error

    def _record(self) -> dict[str, Any]:
        features = [
            {"tap": key.tap, "t": key.t, "round": key.round, "shape": list(shape)}
            for key, shape in sorted(self.shapes.items(), key=lambda item: tensor_name(item[0]))
        ]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "identity": self.identity,
            "images": self.images,
            "shard_size": self.shard_size,
            "dtype": dtype_name(self.dtype),
            "features": features,
            "class_names": list(self.class_names),
        }


def _record_digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def tensor_name(key: FeatureKey) -> str:
    """The name of a feature in a shard."""
    return f"{key.tap}.t{key.t}.round{key.round}"


def shard_path(folder: Path, view: int, shard: int) -> Path:
    """The path of a shard."""
    return folder / f"view-{view:02}-shard-{shard:05}.safetensors"


def write_shard(
    folder: Path,
    manifest: CacheManifest,
    view: int,
    shard: int,
    features: Mapping[FeatureKey, Tensor],
    labels: Tensor,
    ids: Tensor,
) -> None:
    """Writes a shard completely or not at all; an existing one is replaced.

    The same content gives the same bytes.

    Args:
        folder: of the cache.
        manifest: of the cache.
        view, shard: which one.
        features: (n, C, h, w) by key, on the CPU, of the manifest's dtype.
        labels, ids: (n,) int64.

    Raises:
        OSError: it cannot be written, a full disk included.
    """
    tensors = {tensor_name(key): features[key].contiguous() for key in manifest.shapes}
    tensors |= {"labels": labels, "ids": ids}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_tensor_header(name, tensor.dtype, tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    path = shard_path(folder, view, shard)
    # One entry: safetensors does not guarantee an order of several.
    description = {"cache": manifest.digest, "view": view, "shard": shard, "sha256": digest.hexdigest()}
    with write_atomically(path, overwrite=True) as temporary:
        try:
            save_file(tensors, temporary, {FORMAT: json.dumps(description)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


class _Place(NamedTuple):
    """Where in a shard a tensor is, from `start` to `stop`, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Shard:
    """A shard. Only its header is read at first, and rows when they are requested.

    Files are read and not mapped, since truncating a mapped file ends the process.

    Args:
        folder: of the cache.
        manifest: of the cache.
        view, number: which one.

    Attributes:
        path: the file.
        rows: images in it; those that could not be read when it was written are left out.

    Raises:
        FeatureCacheError: it is missing, truncated, damaged, or belongs to another cache.
    """

    def __init__(self, folder: Path, manifest: CacheManifest, view: int, number: int) -> None:
        self.path = shard_path(folder, view, number)
        self._names = {key: tensor_name(key) for key in manifest.shapes}
        with self._open() as file:
            try:
                metadata, self._places = _read_header(file)
                description = json.loads(metadata[FORMAT])
                self._sha256 = str(description["sha256"])
                place = description["cache"], description["view"], description["shard"]
                found = [self._places[name].shape for name in ("ids", "labels", *self._names.values())]
                self.rows = found[0][0]
            # A damaged header can hold anything.
            except Exception as error:
                raise self._unusable(f"truncated or damaged ({error})") from error
        if place != (manifest.digest, view, number):
            raise self._unusable(f"a shard of another cache or place, {place}")
        expected = [(self.rows, *shape) for shape in ((), (), *manifest.shapes.values())]
        if self.rows > len(manifest.rows(number)) or found != expected:
            raise self._unusable(f"of other shapes than expected, {found}")

    def row(self, row: int, keys: Iterable[FeatureKey] | None = None) -> dict[FeatureKey, Tensor]:
        """The features of an image, (C, h, w) each: all of them, or those of some keys.

        Raises:
            FeatureCacheError: the file is now missing or truncated.
        """
        names = self._names if keys is None else {key: self._names[key] for key in keys}
        with self._open() as file:
            return {key: self._read(file, self._places[name], row, 1)[0] for key, name in names.items()}

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Labels and ids, (n,) int64 each.

        Raises:
            FeatureCacheError: the file is now missing or truncated.
        """
        with self._open() as file:
            labels, ids = (self._read(file, self._places[name], 0, self.rows) for name in ("labels", "ids"))
        return labels, ids

    def verify(self) -> None:
        """Reads everything in it.

        Raises:
            FeatureCacheError: its content has changed since it was written.
        """
        digest = hashlib.sha256()
        with self._open() as file:
            for name in sorted(self._places):
                place = self._places[name]
                digest.update(_tensor_header(name, place.dtype, place.shape))
                file.seek(place.start)
                left = place.stop - place.start
                while left and (chunk := file.read(min(left, _CHUNK))):
                    digest.update(chunk)
                    left -= len(chunk)
        if digest.hexdigest() != self._sha256:
            raise self._unusable("damaged: its content does not have the digest it was written with")

    def _open(self) -> BinaryIO:
        # Opened for each row: a cache may have more files than a process may hold open.
        try:
            return self.path.open("rb", buffering=0)
        except (FileNotFoundError, IsADirectoryError) as error:
            message = f"{self.path} is missing; extract again, which writes what is missing"
            raise FeatureCacheError(message) from error

    def _read(self, file: BinaryIO, place: _Place, first: int, count: int) -> Tensor:
        """Some rows of a tensor."""
        shape = place.shape[1:]
        tensor = torch.empty(count, *shape, dtype=place.dtype, device="cpu")
        file.seek(place.start + first * math.prod(shape) * place.dtype.itemsize)
        if file.readinto(tensor.reshape(-1).view(torch.uint8).numpy()) != tensor.nbytes:  # type: ignore[attr-defined]
            raise self._unusable("truncated or damaged: it was truncated while in use")
        return tensor

    def _unusable(self, what: str) -> FeatureCacheError:
        return FeatureCacheError(f"{self.path} is {what}; remove it and extract again, which writes what is missing")


def _read_header(file: BinaryIO) -> tuple[dict[str, str], dict[str, _Place]]:
    """Metadata of a safetensors file, and where its tensors are; raises errors of many kinds where it is damaged."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= size - 8:
        raise ValueError(f"its header should have {length} bytes, of {size}")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__")
    places = {}
    for name, entry in header.items():
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        places[name] = _Place(_DTYPES[entry["dtype"]], tuple(entry["shape"]), start, stop)
        if stop - start != math.prod(entry["shape"]) * places[name].dtype.itemsize:
            raise ValueError(f"{name} has {stop - start} bytes for the shape {entry['shape']}")
    if size != 8 + length + sum(place.stop - place.start for place in places.values()):
        raise ValueError(f"it has {size} bytes, which is not what its header says")
    return metadata, places


def is_whole(folder: Path, manifest: CacheManifest, view: int, shard: int) -> bool:
    """Whether a shard is there, as far as its header and size show."""
    try:
        Shard(folder, manifest, view, shard)
    except FeatureCacheError:
        return False
    return True


def remove_stale(folder: Path) -> None:
    """Removes partial files of a killed extraction. Recent ones may belong to another that is running, and stay."""
    # Temporary files have hidden names, also those of safetensors.
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def _tensor_header(name: str, dtype: torch.dtype, shape: Iterable[int]) -> bytes:
    return f"{name} {dtype} {tuple(shape)}\n".encode()
