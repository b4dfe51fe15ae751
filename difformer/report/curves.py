"""Training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difformer.report._figure import new_figure, save_figure

_PANELS = {"loss": "Loss", "top1": "Top-1 accuracy", "lr": "Learning rate"}


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss, accuracy and learning rate over epochs as a PNG.

    Args:
        history: records with `epoch`, `lr`, `train_loss` and, where they were measured, `train_top1`,
            `validation_loss` and `validation_top1`. There is no panel for what no record has.
        path: the file; replaced when it is there.

    Raises:
        OSError: it cannot be written.
    """
    recorded = {key for record in history for key in record}
    sources = {
        name: [key for key in (f"train_{name}", f"validation_{name}", name) if key in recorded] for name in _PANELS
    }
    panels = [name for name, keys in sources.items() if keys]
    figure = new_figure(4 * len(panels), 3.5)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for source in sources[name]:
            points = [(record["epoch"], record[source]) for record in history if source in record]
            axes.plot(*zip(*points, strict=True), marker=".", label=source.partition("_")[0])
        axes.set(title=_PANELS[name], xlabel="Epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name != "lr":
            axes.legend()
    save_figure(figure, path)
