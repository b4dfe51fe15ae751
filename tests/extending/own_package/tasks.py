"""A task: regression, which predicts the targets of a data set as numbers."""

import csv

import numpy as np
import torch

from difformer.analysis import Metric
from difformer.tasks import TASKS, Measurements
from difformer.tasks.task import task_metric

METRICS = {
    "mae": Metric(lambda outputs, targets: float(np.abs(outputs - targets).mean()), larger_is_better=False),
    "within": Metric(lambda outputs, targets: float((np.abs(outputs - targets) < 0.1).mean()), share=True),
}


@TASKS.register("own_regression")
class Regression:
    """The squared error of numbers, divided by `scale`; of images that are wrong by less than 0.1, the share."""

    counted = ("within",)
    tables = ("predictions.csv",)

    def __init__(self, *, names, scale=1.0):
        self.metrics = METRICS
        self.arguments = {"names": list(names), "scale": scale}
        self._names, self._scale = tuple(names), scale

    def output_names(self, images):
        return self._names

    def stand_in(self):
        return torch.zeros(len(self._names))

    def losses(self, outputs, labels):
        return ((outputs.float() - labels) / self._scale).square().mean(dim=1)

    def counts(self, outputs, labels):
        return [((outputs - labels).abs() < 0.1).all(dim=1).sum()]

    def rates(self, counts, images):
        return {"within": counts.get("within", 0) / max(1, images)}

    def measure(self, outputs, labels, names, *, extra=()):
        metrics = self.metrics | {name: task_metric(self, name, "metrics") for name in extra}
        return Measurements(len(outputs), {name: metric.compute(outputs, labels) for name, metric in metrics.items()})

    def lines(self, record):
        return [f"{name:<15}{record[name]:.3g}" for name in self.metrics]

    def write_tables(self, folder, measured, outputs, images):
        with (folder / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["id", *self._names], *zip(outputs.ids, *outputs.values.T, strict=True)])

    def predictions(self, outputs, names):
        return [dict(zip(names, row, strict=True)) for row in outputs.tolist()]

    def columns(self, names):
        return list(names)

    def row(self, prediction):
        return list(prediction.values())
