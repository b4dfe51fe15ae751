"""Checkpoints of the published DifFormer and DifFeed code (soumik-kanad/diffssl, `latest.pth`) as classifiers."""

import math
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from difformer.backbones import Backbone
from difformer.checkpoints import CheckpointError, load_strictly, read_pickle
from difformer.checkpoints.outline import outlined
from difformer.checkpoints.weights import check_archive, check_held, check_plain, read_start, unwrapped
from difformer.classifier import DiffusionClassifier
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.heads import AttentionHead, DifFormerHead, LinearHead, MLPHead
from difformer.heads.published import from_published
from difformer.taps import FeatureKey, TapSpec

_HEAD, _FEEDBACK = "model_head", "model_feedback"
_ATTENTION = "intra_inter_block_attention"
_PUBLISHED_FEEDBACK = (21, 24, 27, 30, 33, 36)


@dataclass(frozen=True)
class PublishedOptions:
    """What a published checkpoint does not contain.

    Attributes:
        timesteps: the noise timesteps it was trained at, in their order.
        taps: blocks of the second pass with feedback, otherwise of the only pass; those with a tokenizer when left out.
        feedback_taps: blocks fed back, in the order of the feedback layers; only with such layers.
        first_pass_taps: blocks also read in the first pass; only with feedback layers.
        heads: attention heads.
        pool: greatest side of a pooled map; used with batch normalisation, which does not show it.
        class_names: in the order of the logits; the numbers when left out.
    """

    timesteps: tuple[int, ...] = ()
    taps: tuple[int, ...] = ()
    feedback_taps: tuple[int, ...] = ()
    first_pass_taps: tuple[int, ...] = ()
    heads: int = 8
    pool: int = 16
    class_names: tuple[str, ...] = ()


def is_published(path: Path) -> bool:
    """Whether a file is a checkpoint of the published code, from the names in it; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated or corrupt.
    """
    if not read_start(path).startswith(b"PK\x03\x04"):
        return False
    # Damaged archives and pickles make these raise errors of many kinds.
    try:
        check_archive(path, verify=False)
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return any(word == _HEAD for name in pickles for _, word, _ in pickletools.genops(archive.read(name)))
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def read_published(path: Path, backbone: Backbone, options: PublishedOptions) -> DiffusionClassifier:
    """Reads a checkpoint of the published code; nothing in it is executed.

    Args:
        path: `latest.pth`.
        backbone: the one it was trained on; the published ones on `adm256_uncond`.
        options: what the file does not contain.

    Returns:
        The classifier in evaluation mode, with float32 weights.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or of another kind, or options are missing or contradict it.
        ValueError: options that do not fit this backbone.
    """
    content = read_pickle(path)
    if not isinstance(content, dict) or _HEAD not in content:
        raise CheckpointError(f"{path} is no checkpoint of the published code: it has no entry {_HEAD}")
    source = str(path)
    head_state = _state(content, _HEAD, path)
    feedback_state = None if content.get(_FEEDBACK) is None else _state(content, _FEEDBACK, path)
    taps = options.taps or _tokenized_blocks(head_state)
    missing = [name for name, value in (("timesteps", options.timesteps), ("taps", taps)) if not value]
    if feedback_state is not None and not options.feedback_taps:
        missing.append(f"feedback_taps (the published ones are {_PUBLISHED_FEEDBACK})")
    if missing:
        raise CheckpointError(f"{source} cannot show everything; still to be given: {', '.join(missing)}")
    extractor: FeatureExtractor | FeedbackExtractor
    if feedback_state is None:
        if options.feedback_taps or options.first_pass_taps:
            raise CheckpointError(f"{source} has no feedback layers; leave out feedback_taps and first_pass_taps")
        extractor = FeatureExtractor(backbone, taps=taps, timesteps=options.timesteps)
    else:
        extractor = _load_feedback(backbone, taps, feedback_state, options, source)
    with outlined(len(head_state), len(extractor.specs), source):
        head = _build_head(head_state, extractor.specs, options, source)
    load_strictly(head, _float(from_published(head, head_state)), source)
    names = options.class_names
    if names and len(names) != (classes := int(head.num_classes)):  # type: ignore[arg-type]
        raise CheckpointError(f"{source} has {classes} classes, but {len(names)} class_names were given")
    return DiffusionClassifier(extractor, head, class_names=names or None).eval()


def _load_feedback(
    backbone: Backbone, taps: tuple[int, ...], state: Mapping[str, Tensor], options: PublishedOptions, source: str
) -> FeedbackExtractor:
    extractor = FeedbackExtractor(
        backbone,
        feedback_taps=options.feedback_taps,
        taps=[tap for tap in taps if tap not in options.first_pass_taps or tap in options.taps],
        timesteps=options.timesteps,
        first_pass_taps=options.first_pass_taps,
    )
    # They may have been trained, and stored, in half precision.
    load_strictly(extractor.feedback, _float(state), f"{source} ({_FEEDBACK})")
    return extractor


def _build_head(
    state: Mapping[str, Tensor], specs: Mapping[FeatureKey, TapSpec], options: PublishedOptions, source: str
) -> nn.Module:
    if "fcs.0.weight" in state:
        return _build_probe(state, specs, source)
    if f"{_ATTENTION}.cls_token" not in state:
        raise CheckpointError(f"{source}: {_HEAD} has neither the linear nor the attention head's weights")
    width = _shape(state, f"{_ATTENTION}.cls_token", 3, source)[-1]
    classes, joined = _shape(state, "head.weight", 2, source)
    if joined != width * len(options.timesteps):
        raise CheckpointError(
            f"{source} was trained at {joined // width} timesteps, but {len(options.timesteps)} were given"
        )
    norms = [_shape(state, f"pre_layer.{block}.1.weight", None, source) for block in _tokenized_blocks(state)]
    if not norms:
        raise CheckpointError(f"{source}: {_HEAD} has an attention head without tokenizers; pre_layer.* was expected")
    layered = all(len(shape) == 3 for shape in norms)
    arguments: dict[str, Any] = {
        "width": width,
        "heads": options.heads,
        "layers": sum(name.endswith(".attn.qkv.weight") for name in state),
        "mlp_ratio": _shape(state, f"{_ATTENTION}.layers.1.mlp.fc1.weight", 2, source)[0] / width,
        "pool": max(shape[-1] for shape in norms) if layered else options.pool,
        "norm": "layer" if layered else "batch",
    }
    return (AttentionHead if len(specs) == 1 else DifFormerHead)(specs, classes, **arguments)


def _build_probe(state: Mapping[str, Tensor], specs: Mapping[FeatureKey, TapSpec], source: str) -> nn.Module:
    layers = sum(re.fullmatch(r"fcs\.\d+\.weight", name) is not None for name in state)
    widths = [_shape(state, f"fcs.{i}.weight", 2, source) for i in range(layers)]
    channels = next(iter(specs.values())).channels
    pool = math.isqrt(widths[0][1] // channels)
    if channels * pool**2 != widths[0][1]:
        raise CheckpointError(
            f"{source} does not fit: no square map of a block with {channels} channels has {widths[0][1]} values"
        )
    if len(widths) == 1:
        return LinearHead(specs, widths[0][0], pool=pool)
    return MLPHead(specs, widths[-1][0], pool=pool, hidden=[rows for rows, _ in widths[:-1]])


def _tokenized_blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """The blocks with a tokenizer. Their order is not stored, and does not matter: tokens have no positions."""
    matches = [re.match(r"pre_layer\.(\d{1,4})\.", name) for name in state]
    return tuple(sorted({int(match[1]) for match in matches if match}))


def _state(content: Mapping[str, Any], part: str, path: Path) -> Mapping[str, Tensor]:
    """One of the state dicts in a checkpoint, without the prefixes of wrappers; raises CheckpointError when it is
    something else."""
    state = content[part]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{path}: {part} must be a state dict, tensors by name, got {type(state).__name__}")
    check_plain(state, str(path))
    check_held(state, path)
    return unwrapped(state)


def _shape(state: Mapping[str, Tensor], name: str, dimensions: int | None, source: str) -> tuple[int, ...]:
    """The shape of an entry of the head; raises CheckpointError when it is missing or has another form."""
    if name not in state:
        raise CheckpointError(f"{source} does not fit: {_HEAD} lacks {name}")
    shape = tuple(state[name].shape)
    if 0 in shape or dimensions not in (None, len(shape)):
        expected = "" if dimensions is None else f" {dimensions} dimensions and"
        raise CheckpointError(
            f"{source} does not fit: {_HEAD} has {name} of shape {shape};{expected} no 0 was expected"
        )
    return shape


def _float(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
