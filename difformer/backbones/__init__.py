"""Backbones: frozen diffusion models that give features by name, and the families they come from."""

from difformer.backbones.adm import UNetBackbone
from difformer.backbones.create import build_random, create_backbone, outline_backbone
from difformer.backbones.encoder import Encoder, FeatureInfo
from difformer.backbones.families import ADM, FAMILIES, BackboneFamily, find_family, identity
from difformer.backbones.pixels import PixelBackbone
from difformer.backbones.protocol import (
    Backbone,
    CheckpointingBackbone,
    DenoisingBackbone,
    ResumableBackbone,
    SizedBackbone,
    StoringBackbone,
    as_denoiser,
    check_backbone,
    compile_backbone,
    device_of,
    switch_checkpointing,
)

__all__ = [
    "ADM",
    "FAMILIES",
    "Backbone",
    "BackboneFamily",
    "CheckpointingBackbone",
    "DenoisingBackbone",
    "Encoder",
    "FeatureInfo",
    "PixelBackbone",
    "ResumableBackbone",
    "SizedBackbone",
    "StoringBackbone",
    "UNetBackbone",
    "as_denoiser",
    "build_random",
    "check_backbone",
    "compile_backbone",
    "create_backbone",
    "device_of",
    "find_family",
    "identity",
    "outline_backbone",
    "switch_checkpointing",
]
