"""The guided-diffusion U-Net and its attention."""

from difformer.config import UNetConfig
from difformer.models.attention import AttentionName, AttentionUnavailable, attention
from difformer.models.unet import Prefix, UNet

__all__ = ["AttentionName", "AttentionUnavailable", "Prefix", "UNet", "UNetConfig", "attention"]
