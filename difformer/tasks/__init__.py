"""What the outputs of a head mean: their loss, what is measured, and what a prediction looks like."""

from difformer.tasks.classification.task import Classification, Prediction
from difformer.tasks.dense import DenseTask
from difformer.tasks.detection.task import Detection
from difformer.tasks.keypoints.scores import Landmarks
from difformer.tasks.keypoints.task import Keypoints
from difformer.tasks.registry import TASKS, find_task
from difformer.tasks.segmentation.inference import Segmented
from difformer.tasks.segmentation.task import Segmentation
from difformer.tasks.task import Measurements, Outputs, RowTask, Task

__all__ = [
    "TASKS",
    "Classification",
    "DenseTask",
    "Detection",
    "Keypoints",
    "Landmarks",
    "Measurements",
    "Outputs",
    "Prediction",
    "RowTask",
    "Segmentation",
    "Segmented",
    "Task",
    "find_task",
]
