"""The architecture that weights show: what can be read off the names and shapes of a state dict, and what cannot."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from difformer.checkpoints.presets import PRESETS, Preset, weight_shapes
from difformer.checkpoints.weights import CheckpointError, UnderspecifiedError
from difformer.config import NORM_GROUPS, UNetConfig, as_integer, from_mapping

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
        given = {name: value for name, value in given.items() if value is not None}
        known = [field.name for field in fields(UNetConfig)]
        if given.keys() - set(known):
            from_mapping(UNetConfig, given)  # raises, and names the nearest known key
        missing = [name for name in ("image_size", "use_new_attention_order") if name not in given]
        if "num_heads" not in given and "num_head_channels" not in given:
            missing.append("num_heads or num_head_channels")
        if missing:
            raise UnderspecifiedError(self._question(missing))
        size = as_integer("image_size", given["image_size"])
        # A size too small for its levels is refused below; it should not fail for its attention first.
        sizes = tuple(max(1, size >> level) for level in self.attention_levels)
        seen = from_mapping(UNetConfig, {**given, **self.arguments, "attention_resolutions": sizes})
        said = from_mapping(UNetConfig, {**asdict(seen), **given})
        for name in differences(seen, said):
            raise CheckpointError(
                f"{self.source}: the weights show {name} {getattr(seen, name)!r}, not {getattr(said, name)!r}"
            )
        return seen

    def matching_presets(self) -> list[Preset]:
        """The published checkpoints with exactly these weights' names and shapes."""
        matching = []
        for preset in PRESETS.values():
            same = all(getattr(preset.config, name) == value for name, value in self.arguments.items())
            if same and preset.config.attention_levels == self.attention_levels:
                matching.append(preset)
        return matching

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
                "  in Python: config={'image_size': …, 'num_head_channels': …, 'use_new_attention_order': …}",
                "  on the command line: --arch.image_size … --arch.num_head_channels … "
                "--arch.use_new_attention_order …; `difformer convert` writes them down once, for all other commands",
                f"  published checkpoints of exactly this shape: {', '.join(presets) or 'none'}"
                + (f"; if it is one of them: config={presets[0]!r} or --preset {presets[0]}" if presets else ""),
            ]
        )


def differences(one: UNetConfig, other: UNetConfig) -> list[str]:
    """Names of the values in which two configurations describe different networks.

    Dropout acts in training only, and no attention happens at sizes that do not occur.
    """
    names = [field.name for field in fields(UNetConfig) if field.name not in ("dropout", "attention_resolutions")]
    found = [name for name in names if getattr(one, name) != getattr(other, name)]
    if one.attention_levels != other.attention_levels:
        found.append("attention_resolutions")
    return found


def check_decoder(state: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError when a state dict is that of one of guided-diffusion's classifiers."""
    encoder = any(name.startswith("input_blocks.") for name in state) and "time_embed.0.weight" in state
    if encoder and not any(name.startswith("output_blocks.") for name in state):
        raise CheckpointError(
            f"{source} does not hold a guided-diffusion U-Net: it has an encoder but no decoder, as the classifiers "
            "that guide sampling have. Give the diffusion model: 256x256_diffusion.pt, not 256x256_classifier.pt"
        )


def see_architecture(state: Mapping[str, Tensor], source: str) -> SeenArchitecture:
    """Reads the architecture off a state dict with OpenAI's names.

    Raises:
        CheckpointError: these are not the weights of a guided-diffusion U-Net.
    """
    try:
        arguments, levels = _read(state)
        seen = SeenArchitecture(source, arguments, levels)
        # The shapes do not depend on the heads.
        size = 2 ** (len(arguments["channel_mult"]) + 7)
        config = seen.complete({"image_size": size, "num_heads": 1, "use_new_attention_order": False})
        expected = weight_shapes(config)
    # OverflowError comes from sizes that are too large to be counted.
    except (KeyError, IndexError, ZeroDivisionError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{source} does not hold a guided-diffusion U-Net: {error!r} while reading its {len(state)} tensors, "
            f"the first of them {', '.join(list(state)[:4]) or 'none'}"
        ) from error
    unexpected = sorted(state.keys() ^ expected.keys())
    if unexpected:
        raise CheckpointError(
            f"{source} does not hold a guided-diffusion U-Net: its blocks look like {dict(arguments)}, but then "
            f"{len(unexpected)} names do not fit, such as {', '.join(unexpected[:4])}"
        )
    return seen


def _read(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[int, ...]]:
    width = state["time_embed.0.weight"].shape[1]
    found = _blocks(state, "output_blocks")
    blocks = len(found)
    # Every block of the decoder has weights, so a gap means that names are invented or lost.
    if sorted(found) != list(range(blocks)):
        raise ValueError(f"output_blocks are numbered {sorted(found)[:4]} … {max(found)}, with gaps")
    decoder = [found[i] for i in range(blocks)]
    found = _blocks(state, "input_blocks")
    encoder = [found.get(i, []) for i in range(blocks)]

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


def _blocks(state: Mapping[str, Tensor], part: str) -> dict[int, list[dict[str, Tensor]]]:
    """The blocks of a part that have weights, by number: their layers with weights, each with its tensors by name."""
    blocks: dict[int, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in state.items():
        if name.startswith(f"{part}."):
            _, block, layer, *rest = name.split(".", 3)
            blocks.setdefault(int(block), {}).setdefault(layer, {})[".".join(rest)] = tensor
    return {block: [layers[layer] for layer in sorted(layers)] for block, layers in blocks.items()}
