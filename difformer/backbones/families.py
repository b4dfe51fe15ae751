"""Families of backbones by name: those of this package, and any other as `package.module:Name`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from difformer.backbones.protocol import Backbone, check_backbone
from difformer.registry import Registry, path_of

# The family of guided-diffusion's U-Nets, which a backbone is of where nothing else is said.
ADM = "adm"

# What `describe` must say, as a classifier's file requires it.
_DESCRIPTION: Mapping[str, tuple[type, ...]] = {
    "family": (str,), "name": (str,), "digest": (str,), "config": (dict, type(None)), "schedule": (dict, type(None)),
}  # fmt: skip


class BackboneFamily(Protocol):
    """What opens backbones of one kind: a class with two class methods, such as that of the backbones themselves.

    A family of one's own is used in a recipe as `backbone.family: package.module:Name`, and a classifier's file names
    it so.
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
            name_or_path: what a recipe says as `backbone.name`, or a classifier's file as the name of its backbone.
            dtype: precision of what computes most; float32 when None.
            device: where it is to run; the CPU when None.
            attention: implementation of the attention; without meaning for a network that has none.
            folder: where named weights lie, in place of the usual folders.
            download: whether weights that are not on this machine may be fetched.
            verify: check digests of files.

        Raises:
            OSError, ValueError: the weights are not there, or cannot be used. What else is raised becomes a
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
        """The same backbone with random weights on torch's default device, without reading those that are stored.

        On the meta device it costs neither time nor memory; sizes, costs and memory are counted on that. With values,
        it stands in for weights that are not there in a dry run. Its `describe` is asked for in both cases; as its
        digest, any word will do.

        Args and Raises:
            As `open`.
        """
        ...


FAMILIES: Registry[BackboneFamily] = Registry("backbone family")


def find_family(name: str) -> BackboneFamily:
    """The family of a name, which is imported where it is one of `package.module:Name`.

    Raises:
        ValueError: there is none, or it is something else.
        ImportError: the module cannot be imported.
    """
    found: Any = FAMILIES.find(name)
    lacking = [method for method in ("open", "build") if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(
            f"the backbone family {name} must have open and build, as difformer.backbones.BackboneFamily says, but "
            f"lacks {' and '.join(lacking)}"
        )
    # Files name it by its module and its own name, which other things do not have.
    if not isinstance(found, type):
        raise ValueError(f"the backbone family {name} must be a class, got an instance of {type(found).__name__}")
    return cast(BackboneFamily, found)


def checked(backbone: Backbone, family: str) -> Backbone:
    """A backbone that a family of one's own gave, frozen and in evaluation mode.

    Raises:
        ValueError: a file that names it could not bring it back.
    """
    check_backbone(backbone)
    named = identity(backbone).get("family", ADM)
    if find_family(named) is not find_family(family):
        raise ValueError(f"a backbone of the family {family} must say so in describe(), as 'family', got {named!r}")
    if isinstance(backbone, nn.Module):
        backbone.requires_grad_(False).eval()
    return backbone


def identity(backbone: Backbone) -> dict[str, Any]:
    """What files and caches keep of a backbone: what it says in `describe()`, and its family by a name under which
    every process finds it. Guided-diffusion's U-Nets, of which files have always been, are those without a family.

    Raises:
        ValueError: it is of a family that could not be found again, does not say all of this, or says something else
            of its digest than its `digest`.
    """
    kind = type(backbone).__name__
    # Through JSON, so that what is given compares with what was stored.
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(backbone.describe())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"what {kind}.describe() gives cannot be written down: {error}") from error
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
            f"and {backbone.digest!r}; caches and classifiers know their backbone by it"
        )
    return {"family": path_of(find_family(family), FAMILIES.kind)} | found
