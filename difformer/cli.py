"""The command line: `difformer VERB`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from difformer._optional import require
from difformer.checkpoints import PRESETS, describe, locate, read_backbone, write_backbone
from difformer.config import UNetConfig
from difformer.diffusion import NoiseSchedule
from difformer.models.plan import tap_specs

ScheduleName = Literal["linear", "cosine"]


def info(
    source: str,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool | None = None,
    schedule: ScheduleName | None = None,
    as_json: bool = False,
) -> None:
    """Prints a backbone's configuration and the features it offers, with their cost. Needs no weights for a preset.

    Args:
        source: a preset's name, a weight file or hf://owner/name.
        preset: for an unknown .pt: the published checkpoint it is.
        image_size: for an unknown .pt: the side in pixels of the images it was trained on.
        num_heads: for an unknown .pt: attention heads, when their number is fixed.
        num_head_channels: for an unknown .pt: channels an attention head, when that is fixed.
        use_new_attention_order: for an unknown .pt: whether q, k and v are split before the heads.
        schedule: for an unknown .pt: the noise schedule.
        as_json: print JSON instead of a table.
    """
    given = _given(image_size, num_heads, num_head_channels, use_new_attention_order)
    config, found = describe(source, preset=preset, config=given, schedule=schedule)
    if as_json:
        taps = [asdict(spec) for spec in tap_specs(config).values()]
        print(json.dumps({"config": asdict(config), "schedule": found.to_dict(), "taps": taps}, indent=2))
    else:
        print(_table(source, config, found))


def convert(
    source: str,
    out: Path,
    *,
    preset: str | None = None,
    image_size: int | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    use_new_attention_order: bool | None = None,
    schedule: ScheduleName | None = None,
    folder: Path | None = None,
    download: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a backbone as one self-describing safetensors file.

    Args:
        source: a preset's name, a weight file or hf://owner/name.
        out: the file to write.
        preset: for an unknown .pt: the published checkpoint it is.
        image_size: for an unknown .pt: the side in pixels of the images it was trained on.
        num_heads: for an unknown .pt: attention heads, when their number is fixed.
        num_head_channels: for an unknown .pt: channels an attention head, when that is fixed.
        use_new_attention_order: for an unknown .pt: whether q, k and v are split before the heads.
        schedule: for an unknown .pt: the noise schedule.
        folder: where presets lie.
        download: allow the download of a preset that is not on this machine.
        overwrite: replace the output if it exists.
    """
    path = locate(source, folder=folder, download=download)
    given = _given(image_size, num_heads, num_head_channels, use_new_attention_order)
    known = source if source in PRESETS else preset
    state, stored = read_backbone(path, preset=known, config=given, schedule=schedule)
    write_backbone(out, state, stored, overwrite=overwrite)
    print(f"wrote {out}: {stored.name}, {len(state)} tensors, weights' SHA-256 {stored.digest}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the console's entry point.

    Args:
        argv: arguments without the program's name; those of the process when left out.

    Returns:
        The exit status: 0, or 1 after an error that was printed. Wrong usage exits with 2.
    """
    jsonargparse = require("jsonargparse", "the command line", install="jsonargparse[signatures]")
    verbs: dict[str, Any] = {"info": info, "convert": convert}
    try:
        jsonargparse.auto_cli(verbs, args=argv, prog="difformer", description=__doc__)
    except (ValueError, OSError, ImportError) as error:
        print(f"difformer: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("difformer: interrupted", file=sys.stderr)
        return 130
    return 0


def _given(
    image_size: int | None, num_heads: int | None, num_head_channels: int | None, new_order: bool | None
) -> dict[str, Any] | None:
    values = {
        "image_size": image_size,
        "num_heads": num_heads,
        "num_head_channels": num_head_channels,
        "use_new_attention_order": new_order,
    }
    return {name: value for name, value in values.items() if value is not None} or None


def _table(source: str, config: UNetConfig, schedule: NoiseSchedule) -> str:
    specs = tap_specs(config)
    total = list(specs.values())[-1].flops
    lines = [source, *(f"  {name}: {value}" for name, value in asdict(config).items())]
    lines += [f"  schedule: {schedule.name}, {schedule.num_timesteps} timesteps", ""]
    lines.append(f"{'block':>5}  {'tap':<6} {'channels':>8} {'size':>9} {'GFLOP':>9} {'share':>7}")
    for spec in specs.values():
        size = f"{spec.size}×{spec.size}"
        cost, share = f"{spec.flops / 1e9:,.1f}", f"{spec.flops / total:.1%}"
        lines.append(f"{spec.block:>5}  {spec.name:<6} {spec.channels:>8} {size:>9} {cost:>9} {share:>7}")
    lines.append("GFLOP: one image from the input to the end of the block, a multiply-add counted as two")
    return "\n".join(lines)
