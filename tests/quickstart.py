"""A quickstart that takes seconds: a small network with random weights, one epoch, tiny heads."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import small_unet
from training import write_images

from difformer import NoiseSchedule
from difformer.backbones import UNetBackbone
from difformer.config.reading import read_yaml
from difformer.verbs.quickstart import pictures, plan

NAME = "adm32_cifar10"
SMALL = {"width": 8, "heads": 2, "layers": 1, "pool": 2}


def write_quickstart(folder: Path, patch: pytest.MonkeyPatch, **images: Any) -> Path:
    """Puts weights where names are looked for, shortens the recipe for folders of images, and writes such a folder."""
    weights = folder / "weights"
    weights.mkdir()
    UNetBackbone(small_unet(), NoiseSchedule.linear(1000), name=NAME).save(weights / f"{NAME}.safetensors")
    patch.setenv("DIFFORMER_CHECKPOINTS", str(weights))
    values = read_yaml(plan.RECIPES / "folder.yaml")
    values["base"] |= {"cache": {"views": 2}, "schedule": {"name": "constant"}}
    values["base"]["training"] |= {"epochs": 2, "batch_size": 8}
    for section in (*values["heads"].values(), values["knn"]):
        section.pop("least_steps", None)
        feedback = "feedback_taps" in section["extractor"]
        section["extractor"] = {"taps": ["mid"], "timesteps": [50]}
        section["extractor"] |= {"feedback_taps": ["out00"], "gate": True} if feedback else {}
    values["heads"]["linear"]["head"]["arguments"] = {"pool": 2}
    values["heads"]["attention"]["head"]["arguments"] = SMALL
    values["heads"]["difformer"]["head"]["arguments"] = SMALL | {"variant": "joint"}
    values["heads"]["difformer"]["extractor"] = {"taps": ["in03", "mid"], "timesteps": [50, 100]}
    values["heads"]["diffeed"] |= {"head": {"name": "attention", "arguments": SMALL}, "training": {"epochs": 1}}
    # Two epochs are fewer steps.
    values["heads"]["attention"]["least_steps"] = 7
    values["pictured"] = {"taps": ["in03", "mid"], "timesteps": [50]}
    (weights / "folder.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    shutil.copy(plan.RECIPES / "elpv.yaml", weights)
    patch.setattr(plan, "RECIPES", weights)
    patch.setattr(pictures, "STEPS", 2)
    return write_images(folder / "pets", **({"counts": {"train": 8, "test": 4}} | images))
