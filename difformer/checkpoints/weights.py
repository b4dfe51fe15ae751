"""Reading weight files without trusting them, and loading them strictly."""

import hashlib
import pickle
import reprlib
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
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
_FOLDER = 0x10  # of an entry's attributes, in archives of MS-DOS and all others
# Where state dicts are looked for in a checkpoint that holds more than one.
_ENTRY_DEPTH = 3
_log = getLogger(__name__)


class CheckpointError(ValueError):
    """A weight file cannot be used; the message names the file and says what is wrong with it."""


class UnderspecifiedError(CheckpointError):
    """The weights are whole, but cannot show everything that must be known; the message says what to give."""


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


def read_weights(
    path: Path, *, entry: str | None = None, usual: Sequence[str] = (), verify: bool = True, mapped: bool = False
) -> Weights:
    """Reads a safetensors file or a PyTorch `.pt` file; the content shows the format.

    Pickles are read by torch's restricted loader, which executes nothing from the file.

    Args:
        path: the file.
        entry: which state dict of a `.pt` file that holds several, with dots between the keys of nested ones.
        usual: where no entry is given, the first of these that a `.pt` file has is taken.
        verify: check the checksums inside a `.pt` archive.
        mapped: leave the values in the file, which is fast when only names and shapes are wanted. Reading the values
            of such tensors after the file was changed in place can end the process.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is empty, truncated, corrupt, not a weight file, or holds anything but named tensors; or
            there is no such entry, or it has to be chosen (the message lists them).
    """
    start = read_start(path)
    # Safetensors first: the eight bytes of length before its brace may begin like a pickle.
    if start[8:9] == b"{":
        if entry is not None:
            raise CheckpointError(f"{path} is a safetensors file, which has no entries; leave out entry {entry!r}")
        with _open_safetensors(path) as file:
            # The library maps the file; copies do not change or vanish with it.
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if not mapped:
                state = {name: tensor.clone() for name, tensor in state.items()}
            return Weights(str(path), state, dict(file.metadata() or {}))
    if start.startswith((b"PK\x03\x04", b"\x80")):
        content = read_pickle(path, verify=verify, mapped=mapped)
        if entry is None and isinstance(content, dict):
            entry = next((name for name in usual if isinstance(content.get(name), dict)), None)
        state = _named_tensors(content, entry, str(path))
        check_held(state, path)
        return Weights(str(path), state, {})
    raise CheckpointError(f"{path} is not a weight file: it starts with {start[:16]!r}; was it downloaded whole?")


def read_start(path: Path) -> bytes:
    """The first bytes of a weight file, which show its format.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is empty, a folder, or a pipe or device, which may never end.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or device"
        raise CheckpointError(f"{path} is {kind}; give a weight file")
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes)")
    return start


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
    """What a PyTorch `.pt` file holds, in any structure, read by torch's restricted loader.

    Args:
        path, verify, mapped: as for `read_weights`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, a TorchScript archive, or holds anything but tensors in plain containers.
    """
    zipped = read_start(path).startswith(b"PK")
    try:
        if zipped:
            check_archive(path, verify=verify)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # if something is wrong, the error says more
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
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
    if not zipped:
        _log.warning(
            "%s is of PyTorch's old format, which has no checksum: damage to its numbers cannot be noticed. Compare "
            "its SHA-256 with that of its source; `difformer convert` writes a file that is checked",
            path,
        )
    return content


def check_archive(path: Path, *, verify: bool) -> None:
    """Makes sure that a zip archive is one that `torch.save` could have written.

    Args:
        path: the archive.
        verify: read it all, and check its checksums.

    Raises:
        CheckpointError: it is a TorchScript archive, damaged, or holds more than its size.
        zipfile.BadZipFile and others: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.endswith(_TORCHSCRIPT_ENTRY) for entry in entries):
            raise CheckpointError(
                f"{path} is a TorchScript archive, which holds a program; save the network's state_dict() instead"
            )
        declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
        if declared > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError(
                f"{path} was refused: its {size:,} bytes expand to {declared:,}, since entries are compressed or "
                "overlap, which torch.save does not do; load it where you trust it, and save it again"
            )
        # torch reads nothing, and leaves memory as it is, where the entry of a tensor is marked as a folder.
        if any(entry.external_attr & _FOLDER and not entry.is_dir() for entry in entries):
            raise CheckpointError(f"{path} is corrupt: entries with data are marked as folders")
        damaged = archive.testzip() if verify else None
    if damaged is not None:
        raise CheckpointError(f"{path} is corrupt: the checksum of its entry {damaged} is wrong")


def read_metadata(path: Path) -> Mapping[str, str]:
    """The metadata of a safetensors file, without reading its tensors; empty for other files.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the header is damaged, or the file empty or no file.
    """
    if read_start(path)[8:9] != b"{":
        return {}
    with _open_safetensors(path) as file:
        return dict(file.metadata() or {})


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """An open safetensors file; raises CheckpointError when reading it fails."""
    try:
        # With torch 2.4, the file's tensors would lie on the default device.
        with torch.device("cpu"), safe_open(path, framework="pt") as file:
            yield file
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
        CheckpointError: names or shapes differ (the message lists both sides), or tensors are of another kind: sparse,
            without values, complex, or integers in place of weights.
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


def check_held(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError when tensors would take more memory than the file they were read from has bytes: they then
    share values, and a small file could fill any memory as soon as they are used."""
    wanted, size = sum(x.numel() * x.element_size() for x in state.values()), path.stat().st_size
    if wanted > size:
        raise CheckpointError(
            f"{path} was refused: its {size:,} bytes expand to tensors of {wanted:,}, since values are shared; save it "
            "again with every tensor cloned"
        )


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


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes that wrappers put before names: `module.` of data-parallel training and
    `_orig_mod.` of torch.compile, which can also stand within them. Left as it is where names would become equal."""
    names = {name: f".{name}".replace("._orig_mod.", ".")[1:] for name in state}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {name: short.removeprefix("module.") for name, short in names.items()}
    if len(set(names.values())) < len(names):
        return dict(state)
    return {names[name]: tensor for name, tensor in state.items()}


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, shapes and values: the identity of weights in any file.

    Shorter floating-point types are converted to float32 first, so that the precision of a file does not matter where
    the values are the same.
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

    Tensors that already are like this are not copied.
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


def _named_tensors(content: Any, entry: str | None, source: str) -> dict[str, Tensor]:
    """The state dict that a pickle holds, or the one of several that is asked for."""
    choices = dict(_state_dicts(content, "", set()))
    if entry is not None and entry not in choices:
        raise CheckpointError(f"{source} has no state dict {entry!r}; {_offer(choices) or 'it has none by name'}")
    chosen = content if entry is None else choices[entry]
    if not isinstance(chosen, dict) or not all(isinstance(value, Tensor) for value in chosen.values()):
        # Keys may be of any kind, and nested deeper than can be printed whole.
        keys = (
            [key if isinstance(key, str) else reprlib.repr(key) for key in chosen] if isinstance(chosen, dict) else []
        )
        kind = f"the entries {_some(keys)}" if keys else type(chosen).__name__
        raise CheckpointError(
            f"{source} must hold a flat state dict of named tensors, but holds {kind}"
            + (f"; {_offer(choices)}" if choices else "")
        )
    nameless = [reprlib.repr(name) for name in chosen if not isinstance(name, str)]
    if nameless:
        raise CheckpointError(f"{source} must hold tensors by name, but holds some under {_some(nameless)}")
    check_plain(chosen, source)
    return dict(chosen)


def _state_dicts(content: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts inside a checkpoint, by their keys with dots between them."""
    if not isinstance(content, dict) or id(content) in seen or prefix.count(".") >= _ENTRY_DEPTH:
        return
    seen.add(id(content))  # a pickle may hold itself
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, dict):
            continue
        if value and all(isinstance(tensor, Tensor) for tensor in value.values()):
            yield f"{prefix}{key}", value
        else:
            yield from _state_dicts(value, f"{prefix}{key}.", seen)


def _offer(choices: Mapping[str, Mapping[str, Tensor]]) -> str:
    if not choices:
        return ""
    listed = _some([f"{name} ({len(state)} tensors)" for name, state in choices.items()])
    first = next(iter(choices))
    return f"it has {listed}: choose one of them with entry={first!r} (--entry {first})"


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
    """What torch's loader found. Its own message also advises loading the file without protection."""
    lines = str(error.__context__ or error).strip().splitlines()
    careless = not lines or "weights_only" in lines[0] or lines[0].startswith("Weights only load failed")
    return type(error).__name__ if careless else lines[0][:300]
