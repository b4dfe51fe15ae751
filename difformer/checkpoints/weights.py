"""Reading weight files without trusting them, and loading them strictly."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from difformer.files import write_atomically

_LISTED = 8
# The entry by which torch itself tells a TorchScript archive from a pickled one.
_TORCHSCRIPT_ENTRY = "/constants.pkl"


class CheckpointError(ValueError):
    """A weight file cannot be used; the message names the file and says what is wrong with it."""


@dataclass(frozen=True)
class Weights:
    """What a weight file holds.

    Attributes:
        source: where it came from, for messages.
        state: tensors by name, on the CPU.
        metadata: the text entries of a safetensors header; empty for other files.
    """

    source: str
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_weights(path: Path, *, verify: bool = True, mapped: bool = False) -> Weights:
    """Reads a safetensors file or a PyTorch `.pt` file; the format is told from the content.

    Pickles are read by torch's restricted loader, which executes nothing from the file.

    Args:
        path: the file.
        verify: check the checksums inside a `.pt` archive.
        mapped: leave the values in the file, which is fast when only names and shapes are wanted. Reading the values
            of such tensors after the file was changed in place can end the process.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is empty, truncated, corrupt, not a weight file, or holds anything but named tensors.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a weight file")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    # Safetensors first: the eight bytes of length before its brace may begin like a pickle.
    if start[8:9] == b"{":
        return _read_safetensors(path, mapped=mapped)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        content = read_pickle(path, verify=verify, mapped=mapped)
        return Weights(str(path), _named_tensors(content, str(path)), {})
    raise CheckpointError(f"{path} is not a weight file: it starts with {start[:16]!r}; was it downloaded whole?")


def write_weights(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Writes a safetensors file whole or not at all.

    Args:
        path: the file; its folder must exist. A leading `~` is the home folder.
        state: tensors by name.
        metadata: text entries for its header.
        overwrite: whether a file that is there may be replaced.

    Raises:
        FileExistsError: the file is there and may not be replaced.
        OSError: it cannot be written, a full disk included; what was there is untouched.
    """
    tensors = contiguous_state(state)
    with write_atomically(path, overwrite=overwrite) as temporary:
        try:
            save_file(tensors, temporary, dict(metadata))
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def read_pickle(path: Path, *, verify: bool = True, mapped: bool = False) -> Any:
    """What a PyTorch `.pt` file holds, of whatever structure, read by torch's restricted loader.

    Args:
        path, verify, mapped: as for `read_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, a TorchScript archive, or holds anything but tensors in plain containers.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        if zipped:
            _check_archive(path, verify)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever is wrong, the error says more
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds Python objects other than tensors, which could run code. "
            f"Nothing in it was executed. ({_cause(error)})"
        ) from error
    # A damaged file can make the loaders raise almost anything: UnicodeDecodeError, zlib.error, IndexError, ….
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {_cause(error)}") from error


def read_metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file, without reading its tensors; empty for other files.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the header is damaged.
    """
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def check_fits(
    state: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    *,
    integers: Collection[str] = (),
) -> None:
    """Makes sure that weights are those of an architecture, before anything is done with them.

    Args:
        state: the weights.
        expected: shapes by name.
        source: where the weights came from, for the message.
        integers: names that hold whole numbers; all others hold floating-point ones.

    Raises:
        CheckpointError: names or shapes differ, with what is missing and what is left over on either side; or
            tensors are of another kind: sparse, without values, complex, or integers in place of weights.
    """
    check_plain(state, source)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if dict(expected) != found:
        raise CheckpointError(f"{source} does not fit the architecture:\n{_difference(expected, found)}")
    for kind, place, names in (
        ("integers", "weights", [n for n, x in state.items() if n not in integers and not x.is_floating_point()]),
        ("weights", "integers", [n for n, x in state.items() if n in integers and x.is_floating_point()]),
    ):
        if names:
            raise CheckpointError(f"{source} holds {kind} where {place} belong: {_some(names)}")


def check_plain(state: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError unless all tensors are dense, real and have values."""
    odd = [name for name, x in state.items() if x.is_meta or x.is_complex() or x.is_nested or x.layout != torch.strided]
    if odd:
        raise CheckpointError(f"{source} holds sparse or complex tensors, or ones without values: {_some(odd)}")


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Puts a state dict into a module, whose tensors become those of the state dict.

    Raises:
        CheckpointError: as `check_fits`.
    """
    own = module.state_dict()
    # A head's batch normalisation counts its batches, so integers are right where the module has them.
    integers = {name for name, tensor in own.items() if not tensor.is_floating_point()}
    check_fits(state, {name: tuple(tensor.shape) for name, tensor in own.items()}, source, integers=integers)
    module.load_state_dict(dict(state), strict=True, assign=True)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, shapes and values: the identity of weights in whatever file.

    Shorter floating-point types count as the float32 they stand for, so that the precision of a file does not matter
    where the values are the same.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        if tensor.is_floating_point() and tensor.itemsize < torch.float32.itemsize:
            tensor = tensor.float()
        tensor = tensor.contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def contiguous_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as safetensors stores it: on the CPU, contiguous, and no tensor sharing memory with another.

    Tensors that are so already are not copied.
    """
    result: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _check_archive(path: Path, verify: bool) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith(_TORCHSCRIPT_ENTRY) for name in archive.namelist()):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which holds a program; save the network's state_dict() instead"
            )
        damaged = archive.testzip() if verify else None
    if damaged is not None:
        raise CheckpointError(f"{path} is corrupt: the checksum of its entry {damaged} is wrong")


def _named_tensors(content: Any, source: str) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        kind = f"the entries {_some(list(map(str, content)))}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{source} must hold a flat state dict of named tensors, but holds {kind}")
    nameless = [repr(name) for name in content if not isinstance(name, str)]
    if nameless:
        raise CheckpointError(f"{source} must hold tensors by name, but holds some under {_some(nameless)}")
    check_plain(content, source)
    return dict(content)


def _read_safetensors(path: Path, *, mapped: bool) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            # The library maps the file; copies do not change or vanish with it.
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if not mapped:
                state = {name: tensor.clone() for name, tensor in state.items()}
            return Weights(str(path), state, dict(file.metadata() or {}))
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def _difference(expected: Mapping[str, object], found: Mapping[str, object]) -> str:
    lines = []
    for title, names in (
        ("missing from the file", expected.keys() - found.keys()),
        ("in the file but not in the architecture", found.keys() - expected.keys()),
    ):
        if names:
            shapes = {**expected, **found}
            lines.append(f"  {title} ({len(names)}): {_some([f'{name} {shapes[name]}' for name in sorted(names)])}")
    differing = [name for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]
    if differing:
        shapes_of = [f"{name} {expected[name]} expected, {found[name]} in the file" for name in differing]
        lines.append(f"  other shapes ({len(differing)}): {_some(shapes_of)}")
    return "\n".join(lines)


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def _cause(error: Exception) -> str:
    """What torch's loader found. Its own message goes on to advise loading the file without care."""
    lines = str(error.__context__ or error).strip().splitlines()
    careless = not lines or "weights_only" in lines[0] or lines[0].startswith("Weights only load failed")
    return type(error).__name__ if careless else lines[0][:300]
