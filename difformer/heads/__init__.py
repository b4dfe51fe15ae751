"""Heads: features to logits."""

from difformer.heads.difformer import AttentionHead, DifFormerHead
from difformer.heads.probes import CNNHead, LinearHead, MLPHead
from difformer.heads.registry import HEADS, Head

__all__ = ["HEADS", "AttentionHead", "CNNHead", "DifFormerHead", "Head", "LinearHead", "MLPHead"]
