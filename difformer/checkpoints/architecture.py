"""The architecture that weights show: what can be read off the names and shapes of a state dict, and what cannot."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from difformer.checkpoints.presets import PRESETS, Preset, weight_shapes
from difformer.checkpoints.weights import CheckpointError
from difformer.config import NORM_GROUPS, UNetConfig, from_mapping

_UNSEEN = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order", "dropout")
_USUAL_HEAD_CHANNELS = (32, 64, 128)
_USUAL_HEADS = (1, 4, 8)


@dataclass(frozen=True)
class SeenArchitecture:
    """What the weights of a guided-diffusion U-Net show.

    Attributes:
        source: the file, for messages.
        arguments: the arguments of `UNetConfig` that are certain.
        attention_levels: levels with attention (0 is the finest); their sizes in pixels follow from the image size.
    """

    source: str
    arguments: Mapping[str, Any]
    attention_levels: tuple[int, ...]

    def complete(self, given: Mapping[str, Any]) -> UNetConfig:
        """The whole configuration, with what the weights cannot show given by the user.

        Args:
            given: `image_size`, one of `num_heads` and `num_head_channels`, `use_new_attention_order`; optionally
                anything else of `UNetConfig`, which must agree with the weights.

        Raises:
            ValueError: something is missing (the message lists candidates), unknown, or contradicts the weights.
        """
        known = {field.name for field in fields(UNetConfig)}
        if given.keys() - known:
            from_mapping(UNetConfig, given)  # raises, and names the nearest known key
        missing = [name for name in ("image_size", "use_new_attention_order") if given.get(name) is None]
        if given.get("num_heads") is None and given.get("num_head_channels") is None:
            missing.append("num_heads or num_head_channels")
        if missing:
            raise CheckpointError(self._question(missing))
        arguments = dict(self.arguments)
        arguments["attention_resolutions"] = tuple(given["image_size"] >> level for level in self.attention_levels)
        for name, value in given.items():
            if value is None:
                continue
            seen = arguments.get(name, value) if name not in _UNSEEN else value
            value = tuple(value) if isinstance(value, list) else value
            if name == "attention_resolutions":
                value, seen = sorted(value), sorted(seen)
            if value != seen:
                raise CheckpointError(f"{self.source}: the weights show {name} {seen!r}, not {value!r}")
            arguments.setdefault(name, value)
        return from_mapping(UNetConfig, arguments)

    def matching_presets(self) -> list[Preset]:
        """The published checkpoints with exactly these weights' names and shapes."""
        return [preset for preset in PRESETS.values() if self._matches(preset.config)]

    def _matches(self, config: UNetConfig) -> bool:
        seen = all(getattr(config, name) == value for name, value in self.arguments.items())
        levels = tuple(level for level in range(len(config.channel_mult)) if config.attends(level))
        return seen and levels == self.attention_levels

    def _question(self, missing: list[str]) -> str:
        width = int(max(self.arguments["channel_mult"]) * self.arguments["model_channels"])
        divisor = 2 ** (len(self.arguments["channel_mult"]) - 1)
        heads = [f"num_head_channels={n}" for n in _USUAL_HEAD_CHANNELS if width % n == 0]
        heads += [f"num_heads={n}" for n in _USUAL_HEADS]
        sizes = [size for size in (32, 64, 128, 256, 512) if size % divisor == 0]
        shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        presets = [preset.name for preset in self.matching_presets()]
        return "\n".join(
            [
                f"{self.source}: weights cannot show everything; still to be given: {', '.join(missing)}",
                f"  they show: {shown}, attention at levels {self.attention_levels}",
                f"  image_size: a multiple of {divisor}, usually one of {sizes}",
                f"  heads: one of {', '.join(heads)}",
                "  use_new_attention_order: False in OpenAI's networks but the 64-pixel one",
                "  give them as config={'image_size': …, 'num_head_channels': …, 'use_new_attention_order': …}",
                f"  published checkpoints of exactly this shape: {', '.join(presets) or 'none'}"
                + (f"; if it is one of them: config={presets[0]!r}" if presets else ""),
            ]
        )


def see_architecture(state: Mapping[str, Tensor], source: str) -> SeenArchitecture:
    """Reads the architecture off a state dict with OpenAI's names.

    Raises:
        CheckpointError: these are not the weights of a guided-diffusion U-Net.
    """
    try:
        arguments, levels = _read(state)
        seen = SeenArchitecture(source, arguments, levels)
        # Whatever the heads are, the shapes do not depend on them.
        size = 2 ** (len(arguments["channel_mult"]) + 7)
        config = seen.complete({"image_size": size, "num_heads": 1, "use_new_attention_order": False})
    except (KeyError, IndexError, ZeroDivisionError, CheckpointError, ValueError) as error:
        raise CheckpointError(
            f"{source} does not hold a guided-diffusion U-Net: {error!r} while reading its {len(state)} tensors, "
            f"the first of them {', '.join(list(state)[:4]) or 'none'}"
        ) from error
    expected = weight_shapes(config)
    unexpected = sorted(state.keys() ^ expected.keys())
    if unexpected:
        raise CheckpointError(
            f"{source} does not hold a guided-diffusion U-Net: its blocks look like {dict(arguments)}, but then "
            f"{len(unexpected)} names do not fit, such as {', '.join(unexpected[:4])}"
        )
    return seen


def _read(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[int, ...]]:
    width = state["time_embed.0.weight"].shape[1]
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    encoder = [_layers(state, f"input_blocks.{i}.") for i in range(blocks)]
    decoder = [_layers(state, f"output_blocks.{i}.") for i in range(blocks)]

    plain_down = [i for i, layers in enumerate(encoder) if not layers or "op.weight" in layers[0]]
    residual_up = [i for i, layers in enumerate(decoder) if any("in_layers.0.weight" in x for x in layers[1:])]
    levels = 1 + len(plain_down or residual_up)
    per_level = blocks // levels
    starts = range(1, blocks, per_level)

    mults = [state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] / width for i in starts]
    first = encoder[1][0]
    doubled = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    arguments: dict[str, Any] = {
        "model_channels": width,
        "channel_mult": tuple(int(mult) if mult.is_integer() else mult for mult in mults),
        "num_res_blocks": per_level - 1,
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "use_scale_shift_norm": doubled == 2 * first["in_layers.2.weight"].shape[0],
        "resblock_updown": bool(residual_up) or not plain_down,
        "conv_resample": not plain_down or bool(encoder[plain_down[0]]),
        "num_classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
    }
    if any(mult * width % NORM_GROUPS for mult in mults):
        raise ValueError(f"widths {[mult * width for mult in mults]}")
    return arguments, tuple(level for level, i in enumerate(starts) if len(encoder[i]) > 1)


def _layers(state: Mapping[str, Tensor], prefix: str) -> list[dict[str, Tensor]]:
    """The layers of a block that have weights, each with its tensors by name."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            index, _, rest = name[len(prefix) :].partition(".")
            layers.setdefault(index, {})[rest] = tensor
    return [layers[index] for index in sorted(layers)]
