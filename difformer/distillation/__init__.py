"""Distilling a teacher's features into a small network: losses, and which timesteps each image is distilled at."""

from difformer.distillation.adapter import Adapter
from difformer.distillation.losses import attention_transfer, hint, logit_kd, rkd_angle, rkd_distance
from difformer.distillation.policies import (
    ExactPolicy,
    FixedPolicy,
    ReinforcePolicy,
    UniformPolicy,
    decayed_entropy_weight,
    optimal_logits,
)
from difformer.distillation.policy_network import PolicyNetwork
from difformer.distillation.protocol import Choice, LearnedPolicy, Policy

__all__ = [
    "Adapter",
    "Choice",
    "ExactPolicy",
    "FixedPolicy",
    "LearnedPolicy",
    "Policy",
    "PolicyNetwork",
    "ReinforcePolicy",
    "UniformPolicy",
    "attention_transfer",
    "decayed_entropy_weight",
    "hint",
    "logit_kd",
    "optimal_logits",
    "rkd_angle",
    "rkd_distance",
]
