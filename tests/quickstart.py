"""A quickstart that takes seconds: a small network with random weights, one epoch, tiny heads."""

import shutil
from pathlib import Path

import pytest
import yaml
from support import tiny_unet
from training import write_images

from difformer import NoiseSchedule
from difformer.backbones import UNetBackbone
from difformer.config.reading import read_yaml
from difformer.verbs.quickstart import pictures, plan

NAME = "adm32_cifar10"
METHODS = ["svm", "knn", "linear", "attention", "difformer", "diffeed"]
SMALL = {"width": 8, "heads": 2, "layers": 1, "pool": 2}


def write_quickstart(folder: Path) -> None:
    """Writes weights, shorter recipes, and a folder of images."""
    weights = folder / "weights"
    weights.mkdir()
    UNetBackbone(tiny_unet(), NoiseSchedule.linear(1000), name=NAME).save(weights / f"{NAME}.safetensors")
    values = read_yaml(plan.RECIPES / "folder.yaml")
    values["base"] |= {"cache": {"views": 2}, "schedule": {"name": "constant"}}
    values["base"]["training"] |= {"epochs": 2, "batch_size": 8}
    for section in (*values["heads"].values(), values["knn"]):
        section.pop("training", None)
        feedback = "feedback_taps" in section["extractor"]
        section["extractor"] = {"taps": ["mid"], "timesteps": [50]}
        section["extractor"] |= {"feedback_taps": ["out00"], "gate": True} if feedback else {}
    values["heads"]["linear"]["head"]["arguments"] = {"pool": 2}
    values["heads"]["attention"]["head"]["arguments"] = SMALL
    values["heads"]["difformer"]["head"]["arguments"] = SMALL | {"variant": "joint"}
    values["heads"]["difformer"]["extractor"] = {"taps": ["in03", "mid"], "timesteps": [50, 100]}
    values["heads"]["diffeed"] |= {"head": {"name": "attention", "arguments": SMALL}, "training": {"epochs": 1}}
    # Two epochs are fewer steps.
    values["heads"]["attention"]["training"] = {"least_steps": 7}
    values["pictured"] = {"taps": ["in03", "mid"], "timesteps": [50]}
    (weights / "folder.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    shutil.copy(plan.RECIPES / "elpv.yaml", weights)
    write_images(folder / "pets", {"train": 8, "test": 4})


def use_quickstart(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Has weights and recipes found in a folder that has them, and little generated; returns the folder of images."""
    patch.setenv("DIFFORMER_CHECKPOINTS", str(folder / "weights"))
    patch.setattr(plan, "RECIPES", folder / "weights")
    patch.setattr(pictures, "STEPS", 2)
    return folder / "pets"


def write_recipe(path, **changes):
    """A recipe like that for folders, with other values under dotted keys, and without those of None."""
    values = read_yaml(plan.RECIPES / "folder.yaml")
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
        if value is None:
            del place[key]
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
