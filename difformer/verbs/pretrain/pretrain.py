"""Training a denoiser, from a recipe to a backbone file; the body of `difformer pretrain`."""

import json
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from difformer.backbones import UNetBackbone
from difformer.config.provenance import carried
from difformer.data import collate
from difformer.data.fake import FakeImages
from difformer.diffusion import NoiseSchedule, sample_ddim
from difformer.engine.config.build import build_dataset
from difformer.engine.loop.course import carry_out
from difformer.engine.loop.state import Progress
from difformer.engine.loop.trainer import Trainer
from difformer.engine.runtime.processes import on_main
from difformer.engine.runtime.run_folder import RunFolder
from difformer.models import UNet
from difformer.models.shapes import only_shapes
from difformer.report.grids import draw_grid
from difformer.verbs.pretrain.denoising import Denoising
from difformer.verbs.pretrain.recipe import PretrainRecipe

# Keys whose values may differ when a run is resumed: none of them changes the weights.
MAY_CHANGE = (
    "output", "trackers", "training.workers", "training.save_minutes", "data.root", "data.download",
    "data.check_images", "samples.every", "samples.count", "samples.steps", "samples.eta", "samples.seed",
)  # fmt: skip
# Number of stand-in images for data sets of unknown size.
_FAKE = 1000


def pretrain(recipe: PretrainRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains a denoiser, or resumes an interrupted run, which then ends exactly as one without interruption.

    Args:
        recipe: everything about the run.
        overwrite: start a new run even if there is one in the folder.

    Returns:
        The results, as in `results.json`.

    Raises:
        As `difformer.verbs.train.train.train`.
    """
    return carry_out(
        recipe, lambda recipe, accelerator, _: PretrainRun(recipe, accelerator), MAY_CHANGE, overwrite=overwrite
    )


def closing_lines(recipe: PretrainRecipe, results: Mapping[str, Any]) -> list[str]:
    """The lines that are printed at the end: the loss, the folder, and commands to run next."""
    folder, last = RunFolder(recipe.output), results["last"]
    backbone = shlex.quote(str(folder.backbone))
    return [
        f"{'train':<15}loss {last['train_loss']:.4f} in epoch {last['epoch']}",
        f"{'results in':<15}{folder.path}",
        f"{'next':<15}difformer sample {backbone} grid.png",
        f"{'':<15}difformer info {backbone}",
    ]


class PretrainRun:
    """The parts of one run.

    Args:
        recipe: everything about it.
        accelerator: from `create_accelerator`.
        fake: use random images instead of the recipe's.

    Raises:
        ValueError: the network has too few classes for the images; and as the parts.
    """

    def __init__(self, recipe: PretrainRecipe, accelerator: Any, *, fake: bool = False) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.folder = RunFolder(recipe.output)
        images: Any = (
            FakeImages(recipe.data, "train", _FAKE) if fake else build_dataset(recipe.data, "train", augment=True)
        )
        classes, known = len(images.class_names), recipe.model.num_classes
        needed = classes + bool(recipe.objective.label_dropout)
        if known is not None and known < needed:
            null = ", and one for the null label" if needed > classes else ""
            raise ValueError(
                f"model.num_classes must be at least {needed}, for the {classes} classes{null}; got {known}"
            )
        self.images = {"train": images}
        self.noise = NoiseSchedule.from_name(recipe.noise, recipe.num_timesteps)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.training.seed)
            unet = UNet(recipe.model)
        self.unet = unet.to(accelerator.device)
        if recipe.compile:
            # All batches except an epoch's last have the same size.
            self.unet.compile(dynamic=False)
        objective = Denoising(self.unet, self.noise, recipe.objective, seed=recipe.training.seed, processes=accelerator)
        self.trainer = Trainer(
            objective,
            recipe.training,
            recipe.optimizer,
            recipe.schedule,
            accelerator,
            images,
            collate,
            shuffle_buffer=recipe.data.shuffle_buffer,
        )

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the training data."""
        return {"training images": self.images["train"].digest}

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The weight files that results belong to."""
        return (self.folder.backbone,)

    def describe(self, progress: Progress) -> str:
        """The progress bar's text."""
        return f"loss {progress.loss_sum / max(1, progress.counted):.4f}"

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Writes the backbone and a picture in epochs that get one; never stops early."""
        every = self.recipe.samples.every
        if every and record["epoch"] % every == 0:
            on_main(self.accelerator, partial(self._keep, f"samples-{record['epoch']:05}.png"))
        return False

    def resume(self) -> None:
        """Does nothing: the saved state is complete."""

    def finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Writes the backbone and a picture."""
        on_main(self.accelerator, partial(self._keep, "samples.png"))
        return {
            "trained_parameters": sum(p.numel() for p in self.unet.parameters()),
            "backbone": self.folder.backbone.name,
        }

    def _keep(self, picture: str) -> None:
        """Writes the averaged weights as a backbone, and a picture of its samples."""
        images = self.images["train"]
        provenance = {
            "trained_on": f"{self.recipe.data.name} train, {len(images)} images, digest {images.digest}",
            "images_seen": str(self.trainer.progress.images),
            "recipe": json.dumps(carried(self.recipe)),
        }
        # The backbone freezes its network, so it gets a second network, which shares the weights.
        with only_shapes():
            unet = UNet(self.recipe.model)
        unet.load_state_dict(self.trainer.averaged or self.unet.state_dict(), assign=True)
        backbone = UNetBackbone(unet, self.noise, name=self.recipe.name, provenance=provenance)
        backbone.save(self.folder.backbone, overwrite=True)
        samples, model, device = self.recipe.samples, self.recipe.model, self.accelerator.device
        shape = (samples.count, model.in_channels, model.image_size, model.image_size)
        labels = None if model.num_classes is None else torch.arange(samples.count, device=device) % model.num_classes
        with self.accelerator.autocast():
            grid = sample_ddim(
                lambda x_t, t: unet(x_t, t, labels), self.noise, shape,
                steps=samples.steps, eta=samples.eta, seed=samples.seed, device=device,
            )  # fmt: skip
            draw_grid(grid, self.folder.path / picture)
