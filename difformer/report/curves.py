"""Training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difformer._optional import require
from difformer.files import write_atomically

_PANELS = {"loss": "Cross-entropy", "top1": "Top-1 accuracy", "lr": "Learning rate"}


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss, accuracy and learning rate over epochs as a PNG.

    Args:
        history: records with `epoch`, `lr`, `train_loss`, `train_top1` and, where there was an evaluation,
            `validation_loss` and `validation_top1`.
        path: the file; replaced when it is there.

    Raises:
        OSError: it cannot be written.
    """
    figure_type = require("matplotlib.figure", "drawing curves", install="matplotlib").Figure
    figure = figure_type(figsize=(12, 3.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for source in ("lr",) if name == "lr" else (f"train_{name}", f"validation_{name}"):
            points = [(record["epoch"], record[source]) for record in history if source in record]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=source.partition("_")[0])
        axes.set(title=title, xlabel="Epoch")
        axes.grid(alpha=0.3)
        if name != "lr":
            axes.legend()
    with write_atomically(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
