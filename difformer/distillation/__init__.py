"""Distilling a teacher's features into a small network: losses, and an adapter between features of different form."""

from difformer.distillation.adapter import Adapter
from difformer.distillation.losses import attention_transfer, hint, logit_kd, rkd_angle, rkd_distance

__all__ = ["Adapter", "attention_transfer", "hint", "logit_kd", "rkd_angle", "rkd_distance"]
