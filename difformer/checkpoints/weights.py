"""Reading weight files without trusting them, and loading them strictly."""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_LISTED = 8


class CheckpointError(ValueError):
    """A weight file cannot be used; the message names the file and says what is wrong with it."""


@dataclass(frozen=True)
class Weights:
    """What a weight file holds.

    Attributes:
        source: where it came from, for messages.
        state: tensors by name, on the CPU, possibly mapped from the file.
        metadata: the text entries of a safetensors header; empty for other files.
    """

    source: str
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def read_weights(path: Path, *, verify: bool = True) -> Weights:
    """Reads a safetensors file or a PyTorch `.pt` file; the format is told from the content.

    Pickles are read by torch's restricted loader, which executes nothing from the file.

    Args:
        path: the file.
        verify: check the checksums inside a `.pt` archive.

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
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return Weights(str(path), _read_torch(path, zipped=start.startswith(b"PK"), verify=verify), {})
    raise CheckpointError(f"{path} is not a weight file: it starts with {start[:16]!r}; was it downloaded whole?")


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
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Puts a state dict into a module, whose tensors become those of the state dict.

    Raises:
        CheckpointError: names or shapes differ, with what is missing and what is left over on either side.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        raise CheckpointError(f"{source} does not fit the architecture:\n{_difference(expected, found)}")
    kinds = module.state_dict()
    integers = [n for n, tensor in state.items() if kinds[n].is_floating_point() and not tensor.is_floating_point()]
    if integers:
        raise CheckpointError(f"{source} holds integers where weights belong: {_some(integers)}")
    module.load_state_dict(dict(state), strict=True, assign=True)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, dtypes, shapes and bytes: the identity of weights in whatever file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_torch(path: Path, *, zipped: bool, verify: bool) -> dict[str, Tensor]:
    try:
        if zipped and verify:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path} is corrupt: the checksum of its entry {damaged} is wrong")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # the error says more
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is damaged, or holds Python objects other than tensors, which could run code. "
            f"Nothing in it was executed. ({_cause(error)})"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {_cause(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        kind = f"the entries {_some(list(map(str, content)))}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} must hold a flat state dict of named tensors, but holds {kind}")
    return content


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return Weights(str(path), state, dict(file.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def _difference(expected: Mapping[str, object], found: Mapping[str, object]) -> str:
    lines = []
    for title, names in (
        ("missing from the file", expected.keys() - found.keys()),
        ("in the file but not in the architecture", found.keys() - expected.keys()),
    ):
        if names:
            shapes = expected | found  # type: ignore[operator]
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
    return lines[0][:300] if lines else type(error).__name__
