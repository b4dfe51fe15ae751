"""Heads: features to logits."""

from difformer.heads.difformer import AttentionHead, DifFormerHead
from difformer.heads.probes import CNNHead, LinearHead, MLPHead

__all__ = ["AttentionHead", "CNNHead", "DifFormerHead", "LinearHead", "MLPHead"]
