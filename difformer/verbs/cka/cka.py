"""CKA between blocks, timesteps and models; the body of `difformer cka`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.analysis import MinibatchCKA
from difformer.backbones import Backbone
from difformer.config.reading import dump
from difformer.data import ImageDataset
from difformer.data.subset import evenly_spaced
from difformer.engine.config.build import build_backbone, build_dataset
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.runtime.batches import create_loader
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.engine.runtime.run_folder import environment
from difformer.features.conditioning import check_conditioning, warn_of_labels
from difformer.features.pooling import DiffusionBlocks
from difformer.report.similarity import draw_similarities
from difformer.streams import Stream, generator
from difformer.tables import write_table
from difformer.verbs.cka.recipe import SimilarityRecipe
from difformer.verbs.cka.representations import Representations, TimmBlocks

_PICTURES = ("blocks", "timesteps", "models")
_FILES = (
    *("cka.csv", "cka.npy", "recipe.yaml", "environment.json"),
    *(f"{name}.{ending}" for name in _PICTURES for ending in ("png", "pdf")),
)
# The unbiased estimator needs as many.
_FEWEST = 4


def measure_cka(recipe: SimilarityRecipe, *, overwrite: bool = False) -> NDArray[np.float64]:
    """Compares all representations with each other, batch by batch, and draws the matrices.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        (rows, columns): blocks outermost, then timesteps; columns are those of the other model, where there is one.

    Raises:
        ValueError: a value in the recipe or in the data, or several processes.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and the recipe does not skip such images.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    accelerator = create_accelerator(recipe.precision)
    if accelerator.num_processes > 1:
        raise ValueError("similarities are computed in one process; run `difformer cka` without accelerate launch")
    images = build_dataset(recipe.data, recipe.split)
    batches = _batches(recipe, len(images))
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    classes = len(images.class_names)
    rows = _blocks(recipe, backbone, classes)
    columns = _columns(recipe, backbone, classes, accelerator.device)
    warn_of_labels(recipe.extractor.conditioning)
    matrix, used = _accumulate(recipe, images, batches, rows, columns, accelerator.device)
    with folder.write() as temporary:
        _write(temporary, recipe, matrix, rows, columns, accelerator.device, used)
    print(f"{folder.path}: CKA of {len(rows.names)} × {matrix.shape[1]} representations", flush=True)
    return matrix


def _blocks(recipe: SimilarityRecipe, backbone: Backbone, classes: int) -> DiffusionBlocks:
    """The blocks of a diffusion model; if there are two models, one may have classes and the other none."""
    alone = recipe.other is None or bool(backbone.conditioning)
    conditioning = recipe.extractor.conditioning if alone else {}
    check_conditioning(conditioning, backbone, classes)
    return DiffusionBlocks(
        backbone, recipe.taps, recipe.timesteps, recipe.seed, recipe.pool, recipe.data.size, conditioning
    )


def _columns(
    recipe: SimilarityRecipe, backbone: Backbone, classes: int, device: torch.device
) -> Representations | None:
    """What the blocks of the backbone are compared with; None for themselves."""
    if recipe.timm.name is not None:
        return TimmBlocks(recipe.timm, recipe.pool, device)
    if recipe.other is None:
        return None
    other = build_backbone(replace(recipe.backbone, name=recipe.other), precision=recipe.precision, device=device)
    if recipe.extractor.conditioning and not backbone.conditioning and not other.conditioning:
        raise ValueError(f"neither {backbone.name} nor {other.name} has classes; leave extractor.conditioning out")
    return _blocks(recipe, other, classes)


def _batches(recipe: SimilarityRecipe, length: int) -> list[list[int]]:
    """Places of evenly spaced images in a random order; raises ValueError when there are too few.

    Data sets are often sorted by class, and batches of few classes have another CKA than all images.
    """
    chosen = evenly_spaced(length, length if recipe.images is None else recipe.images)
    if len(chosen) < _FEWEST:
        raise ValueError(f"CKA needs at least {_FEWEST} images, but there are {len(chosen)} of {recipe.split}")
    # As for the noise, a negative seed is the same as its unsigned equivalent.
    places = generator(Stream.BATCHES, recipe.seed % 2**64).permutation(chosen).tolist()
    batches = [places[i : i + recipe.batch_size] for i in range(0, len(places), recipe.batch_size)]
    # A small last batch would have far more variance than a whole one.
    return [batch for batch in batches if len(batch) >= max(_FEWEST, recipe.batch_size // 2)] or batches[:1]


def _accumulate(
    recipe: SimilarityRecipe,
    images: ImageDataset,
    batches: list[list[int]],
    rows: Representations,
    columns: Representations | None,
    device: torch.device,
) -> tuple[NDArray[np.float64], int]:
    """The similarities, and how many images they are of."""
    used = 0
    found = MinibatchCKA(kernel=recipe.kernel, bandwidth=recipe.bandwidth)
    loader = create_loader(images, batches, collate_readable, recipe.workers, pin=device.type == "cuda")
    for batch in tqdm(loader, total=len(batches), unit="batch"):
        if batch is None or len(batch.ids) < _FEWEST:
            continue
        inputs = batch.images.to(device, non_blocking=True), batch.ids, batch.labels
        with torch.no_grad():
            found.update(rows.read(*inputs), None if columns is None else columns.read(*inputs))
        used += len(batch.ids)
    return found.compute().numpy(), used


def _write(
    folder: Path,
    recipe: SimilarityRecipe,
    matrix: NDArray[np.float64],
    rows: DiffusionBlocks,
    columns: Representations | None,
    device: torch.device,
    images: int,
) -> None:
    caption = (
        f"CKA, {recipe.kernel} kernel; n = {images:,} images of {recipe.split}, in batches of {recipe.batch_size}."
    )
    names = rows.names if columns is None else columns.names
    write_table(folder / "cka.csv", ["", *names], [(name, *row) for name, row in zip(rows.names, matrix, strict=True)])
    np.save(folder / "cka.npy", matrix)
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    write_json(folder / "environment.json", environment(1, device))
    if columns is not None:
        _draw_by_timestep(recipe, matrix, rows, columns, folder / "models.png", caption)
        return
    _draw_by_timestep(recipe, matrix, rows, rows, folder / "blocks.png", caption)
    if len(recipe.timesteps) > 1:
        # Timesteps by timesteps, one panel a block.
        steps = [str(t) for t in recipe.timesteps]
        by_timestep = [rows.places(t) for t in recipe.timesteps]
        places = {block: [found[block] for found in by_timestep] for block in by_timestep[0]}
        panels = {block: matrix[np.ix_(own, own)] for block, own in places.items()}
        draw_similarities(panels, steps, steps, folder / "timesteps.png", caption=caption)


def _draw_by_timestep(
    recipe: SimilarityRecipe,
    matrix: NDArray[np.float64],
    rows: Representations,
    columns: Representations,
    path: Path,
    caption: str,
) -> None:
    """Blocks by blocks, one panel a timestep, which both models share; a timm model is the same in all panels."""
    panels = {
        f"t = {t}": matrix[np.ix_([*rows.places(t).values()], [*columns.places(t).values()])] for t in recipe.timesteps
    }
    first = recipe.timesteps[0]
    titles = ("", "")
    if rows is not columns:
        model = f"timm: {recipe.timm.name}" if recipe.other is None else f"other: {Path(recipe.other).name}"
        titles = f"backbone: {Path(recipe.backbone.name).name}", model
    draw_similarities(
        panels, list(rows.places(first)), list(columns.places(first)), path, titles=titles, caption=caption
    )
