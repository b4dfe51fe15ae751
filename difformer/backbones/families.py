"""Families of backbones by name: those of this package, and any other as `package.module:Name`."""

import json
from pathlib import Path
from typing import Any, Protocol

import torch

from difformer.backbones.protocol import Backbone, check_backbone
from difformer.registry import Registry, path_of

# The family of guided-diffusion's U-Nets, which a backbone is of where nothing else is said.
ADM = "adm"


class BackboneFamily(Protocol):
    """What opens backbones of one kind: mostly their class itself, with two class methods.

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
            OSError, ValueError: the weights are not there, or cannot be used.
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
        it stands in for weights that are not there in a dry run.

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
    found = FAMILIES.find(name)
    lacking = [method for method in ("open", "build") if not callable(getattr(found, method, None))]
    if lacking:
        raise ValueError(
            f"the backbone family {name} must have open and build, as difformer.backbones.BackboneFamily says, but "
            f"lacks {' and '.join(lacking)}"
        )
    return found


def checked(backbone: Backbone, family: str) -> Backbone:
    """A backbone that a family gave; raises ValueError where a file that names it could not bring it back."""
    check_backbone(backbone)
    named = backbone.describe().get("family")
    if not isinstance(named, str) or find_family(named) is not find_family(family):
        raise ValueError(f"a backbone of the family {family} must say so in describe(), as 'family', got {named!r}")
    return backbone


def identity(backbone: Backbone) -> dict[str, Any]:
    """What files and caches keep of a backbone: what it says in `describe()`, and its family by a name under which
    every process finds it. Guided-diffusion's U-Nets, of which files have always been, are those without a family.

    Raises:
        ValueError: it is of a family that could not be found again, or does not say all of this.
    """
    # Through JSON, so that what is given compares with what was stored.
    try:
        found: dict[str, Any] = json.loads(json.dumps(backbone.describe()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"what {type(backbone).__name__}.describe() gives cannot be written down: {error}") from error
    if lacking := [name for name in ("family", "name", "digest", "config", "schedule") if name not in found]:
        raise ValueError(
            f"{type(backbone).__name__}.describe() must give {', '.join(lacking)}, as difformer.backbones.Backbone says"
        )
    family = found.pop("family")
    return found if family == ADM else {"family": path_of(find_family(family), FAMILIES.kind)} | found
