"""The weights of the published heads under our names, and back (soumik-kanad/diffssl).

| published | here |
|---|---|
| `fcs.{i}.*` | `fcs.{i}.*` |
| `pre_layer.{block}.1.*` | `tokenizers.{tap}.norm.*` |
| `pre_layer.{block}.2.*` | `tokenizers.{tap}.project.*` |
| `intra_inter_block_attention.cls_token` | `summary.cls_token` |
| `intra_inter_block_attention.layers.{i + 1}.*` | `summary.blocks.{i}.*` |
| `head.*` | `fc.*` |

The attention probe's names here start with `difformer.`.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from difformer.heads.difformer import AttentionHead, DifFormerHead
from difformer.heads.probes import LinearHead, MLPHead

_ATTENTION = "intra_inter_block_attention"
_TOKENIZER_PARTS = {"norm": "1", "project": "2"}


def published_names(head: nn.Module) -> dict[str, str]:
    """The published name of every entry of a head's state dict, by its name here.

    Raises:
        ValueError: the head has no published counterpart.
    """
    if isinstance(head, LinearHead | MLPHead) and not any(name.startswith("norm.") for name in head.state_dict()):
        return {name: name for name in head.state_dict()}
    prefix = "difformer." if isinstance(head, AttentionHead) else ""
    fusion = head.difformer if isinstance(head, AttentionHead) else head
    if not isinstance(fusion, DifFormerHead) or fusion.variant != "published":
        raise ValueError(f"{type(head).__name__} with these options was never published; it has no published names")
    blocks = {key.tap: spec.block for key, spec in fusion.specs.items()}
    names = {}
    for name in fusion.state_dict():
        if match := re.fullmatch(r"tokenizers\.(\w+)\.(norm|project)\.(\w+)", name):
            tap, part, rest = match.groups()
            published = f"pre_layer.{blocks[tap]}.{_TOKENIZER_PARTS[part]}.{rest}"
        elif match := re.fullmatch(r"summary\.blocks\.(\d+)\.(.+)", name):
            # Index 0 of the published list inserts the CLS token.
            published = f"{_ATTENTION}.layers.{int(match[1]) + 1}.{match[2]}"
        elif name == "summary.cls_token":
            published = f"{_ATTENTION}.cls_token"
        else:
            published = name.replace("fc.", "head.", 1)
        names[prefix + name] = published
    return names


def from_published(head: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published head's state dict under our names. Entries without a counterpart keep theirs, so that strict
    loading reports them.

    Raises:
        ValueError: the head has no published counterpart.
    """
    ours = {published: name for name, published in published_names(head).items()}
    return {ours.get(name, name): tensor for name, tensor in state.items()}
