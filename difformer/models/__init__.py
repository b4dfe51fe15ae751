"""The guided-diffusion U-Net and its attention."""

from difformer.config import UNetConfig
from difformer.models.attention import AttentionName, AttentionUnavailable, attention
from difformer.models.unet import UNet

__all__ = ["AttentionName", "AttentionUnavailable", "UNet", "UNetConfig", "attention"]
