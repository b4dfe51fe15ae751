"""Training a denoiser, from a recipe to a backbone file; the body of `difformer pretrain`."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from difformer.backbones import UNetBackbone
from difformer.data import collate
from difformer.diffusion import NoiseSchedule, sample_ddim
from difformer.engine.build import build_dataset
from difformer.engine.denoising import Denoising
from difformer.engine.epochs import run_epochs
from difformer.engine.loop import Trainer
from difformer.engine.pretrain_recipe import PretrainRecipe
from difformer.engine.reading import dump, plain
from difformer.engine.run import create_accelerator
from difformer.engine.run_folder import RunFolder, environment, flat, saved_state
from difformer.engine.state import Progress, restore, snapshot
from difformer.models import UNet
from difformer.report.curves import draw_curves
from difformer.report.grids import draw_grid

BACKBONE = "backbone.safetensors"
# What a run may go on with another value of: none of it changes the weights.
MAY_CHANGE = (
    "output", "trackers", "training.workers", "training.save_minutes", "data.root", "data.download",
    "data.check_images", "samples.every", "samples.count", "samples.steps", "samples.seed",
)  # fmt: skip


class PretrainRun:
    """The parts of one run.

    Args:
        recipe: everything about it.
        accelerator: from `create_accelerator`.
    """

    def __init__(self, recipe: PretrainRecipe, accelerator: Any) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.folder = RunFolder(recipe.output)
        self.images = build_dataset(recipe.data, "train", augment=True)
        self.noise = NoiseSchedule.from_name(recipe.noise, recipe.num_timesteps)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.training.seed)
            unet = UNet(recipe.model)
        self.unet = unet.to(accelerator.device)
        task = Denoising(self.unet, self.noise, recipe.objective, seed=recipe.training.seed, processes=accelerator)
        self.trainer = Trainer(
            task,
            recipe.training,
            recipe.optimizer,
            recipe.schedule,
            accelerator,
            self.images,
            collate,
            shuffle_buffer=recipe.data.shuffle_buffer,
        )
        self.history: list[dict[str, Any]] = []

    def save_state(self) -> None:
        """Writes the training state, on the main process."""
        if self.accelerator.is_main_process:
            state = self.trainer.state(plain(asdict(self.recipe)), self.images.digest, self.history)
            state.save(self.folder.state)

    def save_backbone(self, picture: str | None) -> None:
        """Writes the averaged weights as a backbone, and a picture of what it makes, on the main process."""
        if not self.accelerator.is_main_process:
            return
        progress, own = self.trainer.progress, snapshot(self.unet)
        if self.trainer.averaged is not None:
            restore(self.unet, self.trainer.averaged, "the moving average")
        provenance = {
            "trained_on": f"{self.recipe.data.name} train, {len(self.images)} images, digest {self.images.digest}",
            "images_seen": str(progress.images),
            "recipe": json.dumps(plain(asdict(self.recipe))),
        }
        was_training = self.unet.training
        self.unet.eval()
        try:
            # The backbone freezes its network, so it gets one of its own.
            frozen = UNet(self.recipe.model)
            frozen.load_state_dict(self.unet.state_dict())
            UNetBackbone(frozen, self.noise, name=self.recipe.name, provenance=provenance).save(
                self.folder.path / BACKBONE, overwrite=True
            )
            if picture is not None:
                self._draw(picture)
        finally:
            restore(self.unet, own, "the weights in training")
            self.unet.train(was_training)

    def _draw(self, picture: str) -> None:
        samples, size = self.recipe.samples, self.recipe.model.image_size
        shape = (samples.count, self.recipe.model.in_channels, size, size)
        classes = self.recipe.model.num_classes
        labels = None if classes is None else torch.arange(samples.count, device=self.accelerator.device) % classes
        images = sample_ddim(
            lambda x_t, t: self.unet(x_t, t, labels), self.noise, shape,
            steps=samples.steps, seed=samples.seed, device=self.accelerator.device,
        )  # fmt: skip
        draw_grid(images, self.folder.path / picture)


def pretrain(recipe: PretrainRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Trains a denoiser, or goes on with a run that was interrupted; that ends as one that was not.

    Args:
        recipe: everything about the run.
        overwrite: start anew although there is a run in the folder.

    Returns:
        The last record of `metrics.jsonl`.

    Raises:
        As `difformer.engine.train.train`.
    """
    accelerator = create_accelerator(recipe)
    folder = RunFolder(recipe.output)
    folder.check()
    state = None if overwrite else saved_state(folder, recipe, MAY_CHANGE)
    if state is not None and state.progress.finished and (folder.path / BACKBONE).exists():
        accelerator.print(f"this run is finished; its backbone is {folder.path / BACKBONE}")
        return state.history[-1]
    run = PretrainRun(recipe, accelerator)
    if state is not None:
        if state.data_digest != run.images.digest:
            raise ValueError(f"the images are not those that the run in {folder.path} was begun with")
        run.trainer.restore(state, str(folder.state))
        run.history = state.history
        accelerator.print(f"going on with epoch {state.progress.epoch + 1}, step {state.progress.step + 1}")
    if accelerator.is_main_process:
        _prepare(run)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("difformer", config=flat(plain(asdict(recipe))))
    try:
        run_epochs(
            run.trainer, accelerator, save=run.save_state, end_epoch=partial(_end_epoch, run), describe=_describe
        )
        if accelerator.is_main_process:
            draw_curves(run.history, folder.curves)
        run.save_backbone("samples.png")
        accelerator.wait_for_everyone()
        return run.history[-1]
    finally:
        accelerator.end_training()


def _prepare(run: PretrainRun) -> None:
    run.folder.create()
    run.folder.write_text(run.folder.recipe.name, dump(run.recipe))
    run.folder.write_json("environment.json", environment(run.accelerator.num_processes, run.accelerator.device))
    run.folder.write_splits({"train": run.images})
    run.folder.write_history(run.history)


def _describe(progress: Progress) -> str:
    return f"loss {progress.loss_sum / max(1, progress.counted):.4f}"


def _end_epoch(run: PretrainRun, seconds: float, images: int) -> None:
    progress, epochs = run.trainer.progress, run.recipe.training.epochs
    record = {
        "epoch": progress.epoch + 1,
        "images": progress.images,
        "lr": run.trainer.rate,
        "train_loss": progress.loss_sum / max(1, progress.counted),
        "seconds": round(seconds, 3),
        "images_per_second": round(images / max(seconds, 1e-9), 2),
    }
    run.history.append(record)
    if run.accelerator.is_main_process:
        run.folder.append(record)
    run.accelerator.log({name: value for name, value in record.items() if name != "epoch"}, step=progress.epoch + 1)
    every = run.recipe.samples.every
    if every and (progress.epoch + 1) % every == 0:
        run.save_backbone(f"samples-{progress.epoch + 1:05}.png")
    if progress.epoch + 1 == epochs:
        progress.finished = True
    else:
        progress.next_epoch()
