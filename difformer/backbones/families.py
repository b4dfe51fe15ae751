"""Families of backbones by name: those of this package, and any other as `package.module:Name`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from difformer.backbones.protocol import Backbone, check_backbone
from difformer.registry import Registry, path_of

# The family of guided-diffusion's U-Nets, which is the default.
ADM = "adm"

# What `describe` must give, as a classifier's file requires it.
_DESCRIPTION: Mapping[str, tuple[type, ...]] = {
    "family": (str,), "name": (str,), "digest": (str,), "config": (dict, type(None)), "schedule": (dict, type(None)),
}  # fmt: skip


class BackboneFamily(Protocol):
    """Opens backbones of one kind: a class with two class methods, for example the class of the backbones.

    Your own family is used in a recipe as `backbone.family: package.module:Name`; a classifier's file stores this name.
    """

    def open(
        self,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        attention: Any,
        folder: str | Path | None,
        download: bool,
        verify: bool,
    ) -> Backbone:
        """A frozen backbone with its weights.

        Args:
            name_or_path: `backbone.name` of a recipe, or the name of the backbone in a classifier's file.
            dtype: precision of most of the computation; float32 when None.
            device: where it runs; the CPU when None.
            attention: implementation of the attention; ignored by a network that has none.
            folder: of named weights, instead of the usual folders.
            download: whether weights that are not on this machine may be fetched.
            verify: check digests of files.

        Raises:
            OSError, ValueError: the weights are missing or cannot be used. Any other exception becomes a
                `CheckpointError`.
        """
        ...

    def build(
        self,
        name_or_path: str | Path,
        *,
        dtype: torch.dtype | None,
        attention: Any,
        folder: str | Path | None,
    ) -> Backbone:
        """The same backbone with random weights on torch's default device, without reading the stored ones.

        On the meta device this takes neither time nor memory; sizes, costs and memory are counted there. With values,
        it replaces missing weights in a dry run. Its `describe` is called in both cases; the digest may be any
        non-empty text.

        Args and Raises:
            As `open`.
        """
        ...


FAMILIES: Registry[BackboneFamily] = Registry("backbone family")


def find_family(name: str) -> BackboneFamily:
    """The family of a name; `package.module:Name` is imported.

    Raises:
        ValueError: there is no such family, or it is something else.
        ImportError: the module cannot be imported.
    """
    found: Any = FAMILIES.find(name)
    lacking = [method for method in ("open", "build") if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(
            f"the backbone family {name} must have open and build, as difformer.backbones.BackboneFamily says, but "
            f"lacks {' and '.join(lacking)}"
        )
    # Files store the module and the name of a class; an instance has no name.
    if not isinstance(found, type):
        raise ValueError(f"the backbone family {name} must be a class, got an instance of {type(found).__name__}")
    return cast(BackboneFamily, found)


def checked(backbone: Backbone, family: str) -> Backbone:
    """A backbone from a custom family, frozen and in evaluation mode.

    Raises:
        ValueError: it is no backbone, or a file that names it could not restore it.
    """
    check_backbone(backbone)
    named = identity(backbone).get("family", ADM)
    if find_family(named) is not find_family(family):
        raise ValueError(f"a backbone of the family {family} must say so in describe(), as 'family', got {named!r}")
    if isinstance(backbone, nn.Module):
        backbone.requires_grad_(False).eval()
    return backbone


def identity(backbone: Backbone) -> dict[str, Any]:
    """What files and caches store of a backbone: its `describe()`, with its family under a name that every process
    finds. Guided-diffusion's U-Nets are stored without a family, as in all earlier files.

    Raises:
        ValueError: its family could not be found again, `describe()` lacks an entry, or gives another digest than its
            `digest`.
    """
    kind = type(backbone).__name__
    # Through JSON, so that it equals what was stored.
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(backbone.describe())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"what {kind}.describe() gives cannot be stored as JSON: {error}") from error
    if lacking := [name for name in _DESCRIPTION if name not in found]:
        raise ValueError(f"{kind}.describe() must give {', '.join(lacking)}, as difformer.backbones.Backbone says")
    for name, types in _DESCRIPTION.items():
        if not isinstance(found[name], types):
            wanted = " or ".join("null" if one is type(None) else one.__name__ for one in types)
            raise ValueError(f"{kind}.describe() must give {name} as {wanted}, got {found[name]!r}")
    family = found.pop("family")
    if family == ADM:
        return found
    if not found["digest"] or found["digest"] != backbone.digest:
        raise ValueError(
            f"{kind}.describe() must give the digest of its weights, the same as its digest, got {found['digest']!r} "
            f"and {backbone.digest!r}; caches and classifiers identify their backbone by it"
        )
    return {"family": path_of(find_family(family), FAMILIES.kind)} | found
