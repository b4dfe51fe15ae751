"""What the outputs of a head mean: their loss, what is measured, and what a prediction looks like."""

from difformer.tasks.classification.task import Classification, Prediction
from difformer.tasks.task import TASKS, Measurements, Outputs, Task, find_task

__all__ = ["TASKS", "Classification", "Measurements", "Outputs", "Prediction", "Task", "find_task"]
