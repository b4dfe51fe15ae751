"""A dry run of the training of a denoiser."""

from dataclasses import replace

from difformer.engine.cost.costs import human_bytes, human_flops
from difformer.engine.cost.trial import peak_memory, trial_batch, two_steps
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.run_folder import RunFolder
from difformer.models.plan import tap_specs
from difformer.verbs.pretrain.pretrain import PretrainRun
from difformer.verbs.pretrain.recipe import PretrainRecipe

# A backward pass costs about twice the forward one.
_PASSES = 3


def try_out_pretraining(recipe: PretrainRecipe, *, fake_data: bool = False) -> list[float]:
    """Builds a run, prints its sizes and costs, and takes two steps; writes nothing.

    Args:
        recipe: the run.
        fake_data: use random images instead of the recipe's.

    Returns:
        The losses of the steps.

    Raises:
        ValueError, OSError, ImportError, TrainingError: as `pretrain`.
    """
    RunFolder(recipe.output).check()
    accelerator = create_accelerator(recipe.training.precision)
    batch = trial_batch(recipe.training.batch_size, accelerator)
    run = PretrainRun(replace(recipe, training=replace(recipe.training, batch_size=batch)), accelerator, fake=fake_data)
    images, parameters = len(run.images["train"]), list(run.unet.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    copies = 3 + (recipe.training.ema is not None)
    step = _PASSES * list(tap_specs(recipe.model).values())[-1].flops
    accelerator.print(
        f"output        {run.folder.path}\n"
        f"images        {images:,} train{' (random stand-ins)' if fake_data else ''}\n"
        f"network       {sum(p.numel() for p in parameters):,} parameters, {human_bytes(size)}\n"
        f"training      {human_flops(step)} an image; {recipe.training.epochs} epochs "
        f"{human_flops(step * images * recipe.training.epochs)}\n"
        f"disk          backbone {human_bytes(size)}, training state (and the one before) up to "
        f"{human_bytes(copies * size)} each",
        flush=True,
    )
    losses, seconds = two_steps(run.trainer, accelerator)
    accelerator.print(
        f"peak memory   {human_bytes(peak_memory(accelerator.device))}, with batches of {batch}\n"
        f"time          {seconds * images / 60:.1f} minutes an epoch, at the last step's speed"
    )
    return losses
