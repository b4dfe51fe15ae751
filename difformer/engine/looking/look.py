"""A page about what blocks see; the body of `difformer look`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difformer._optional import require
from difformer.analysis.retrieval import nearest_images, precision_at_k
from difformer.data import Batch, ImageDataset, few_shot
from difformer.data.subset import evenly_spaced
from difformer.engine.accelerator import create_accelerator
from difformer.engine.build import build_backbone, build_dataset
from difformer.engine.evaluation.result_folder import ResultFolder, write_json
from difformer.engine.extraction.plan import collate_readable
from difformer.engine.loop.batches import create_loader
from difformer.engine.recipes.computing import training_like
from difformer.engine.recipes.looking import LookRecipe
from difformer.engine.recipes.reading import dump
from difformer.engine.similarity.representations import DiffusionBlocks
from difformer.features import FeatureExtractor
from difformer.report import Block, Gallery, GalleryItem, Paragraph, Picture, Section, Table, write_page
from difformer.report.feature_maps import draw_feature_maps
from difformer.report.grids import draw_grid
from difformer.report.scatter import draw_scatter
from difformer.taps import FeatureKey

PAGE = "look.html"
_FILES = (PAGE, "precision.json", "recipe.yaml", "components.png", "map.png", "image-*.png")
_NEIGHBOURS = 5
_SHOWN = 4


def look(recipe: LookRecipe, *, overwrite: bool = False) -> dict[FeatureKey, dict[int, float]]:
    """Measures retrieval for every block and timestep, and writes a page with components, neighbours and a map.

    Args:
        recipe: everything about it.
        overwrite: replace what is there.

    Returns:
        Precision at each k, by feature.

    Raises:
        ValueError: a value in the recipe or in the data, or several processes.
        OSError: something cannot be read or written.
        ImportError: the library of the projection is missing.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    if recipe.projection != "none":
        _projector(recipe, recipe.images)
    accelerator = create_accelerator(training_like(recipe), trackers=False)
    if accelerator.num_processes > 1:
        raise ValueError("features are looked at in one process; run `difformer look` without accelerate launch")
    images = build_dataset(recipe.data, recipe.split)
    places = _places(recipe, len(images))
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    taps = recipe.taps or tuple(backbone.taps)[::3]
    blocks = DiffusionBlocks(backbone, taps, recipe.timesteps, recipe.seed, recipe.pool)
    read, vectors = _read(recipe, images, places, blocks, accelerator.device)
    precision = {key: precision_at_k(vectors[key], read.labels, recipe.ks) for key in blocks.keys}
    best = max(precision, key=lambda key: precision[key][recipe.ks[-1]])
    with folder.write() as temporary:
        extractor = FeatureExtractor(backbone, taps=taps, timesteps=recipe.timesteps, seed=recipe.seed)
        sections = [
            _precision_section(precision, recipe, best),
            _components_section(extractor, read, temporary, accelerator.device),
            _neighbours_section(vectors[best], read, best, images.class_names, recipe, temporary),
        ]
        if recipe.projection != "none":
            sections.append(_map_section(vectors[best], read, best, images.class_names, recipe, temporary))
        lead = (
            f"{len(read.ids):,} of the {len(images):,} images of {recipe.data.name}, {recipe.split}, evenly spaced, as "
            f"{backbone.name} sees them."
        )
        write_page(temporary / PAGE, "What the features see", sections, lead=lead)
        write_json(temporary / "precision.json", {str(key): values for key, values in precision.items()})
        (temporary / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    print(folder.path / PAGE, flush=True)
    return precision


def _places(recipe: LookRecipe, length: int) -> list[int]:
    """Of the images to look at; raises ValueError when there are too few to find as many neighbours as asked for."""
    places = evenly_spaced(length, recipe.images)
    if len(places) <= max(recipe.ks):
        raise ValueError(
            f"ks: {max(recipe.ks)} neighbours of an image need more than {max(recipe.ks)} images, but there are "
            f"{len(places)} of {recipe.split}"
        )
    return places


def _read(
    recipe: LookRecipe, images: ImageDataset, places: list[int], blocks: DiffusionBlocks, device: torch.device
) -> tuple[Batch, dict[FeatureKey, Tensor]]:
    """The images that could be read, as one batch, and their vectors by feature."""
    batches = [places[i : i + recipe.batch_size] for i in range(0, len(places), recipe.batch_size)]
    loader = create_loader(images, batches, collate_readable, recipe.workers, pin=device.type == "cuda")
    batch: Batch | None
    parts, read = [], []
    for batch in require("tqdm", "the progress bar").tqdm(loader, total=len(batches), unit="batch"):
        if batch is not None:
            with torch.no_grad():
                found = blocks.read(batch.images.to(device), batch.ids)
            parts.append({name: vector.cpu() for name, vector in found.items()})
            read.append(batch)
    if not read:
        raise ValueError("not one of the images can be read")
    whole = Batch(*(torch.cat([getattr(b, name) for b in read]) for name in ("images", "labels", "ids")))
    named = zip(blocks.keys, blocks.names, strict=True)
    return whole, {key: torch.cat([part[name] for part in parts]) for key, name in named}


def _precision_section(
    precision: Mapping[FeatureKey, Mapping[int, float]], recipe: LookRecipe, best: FeatureKey
) -> Section:
    rows = [[key.tap, str(key.t), *(f"{100 * precision[key][k]:.1f}" for k in recipe.ks)] for key in precision]
    note = (
        f"Share of the k nearest other images, by the cosine of features averaged to {recipe.pool} × {recipe.pool}, "
        f"that are of the same class, in %. The best at {recipe.ks[-1]} is highlighted, and looked at below; as these "
        f"images of {recipe.split} chose it, others may choose otherwise."
    )
    header = ("Block", "Timestep", *(f"Precision at {k}" for k in recipe.ks))
    return Section("Retrieval", [Table(header, rows, note=note, highlight=list(precision).index(best))])


def _components_section(extractor: FeatureExtractor, read: Batch, folder: Path, device: torch.device) -> Section:
    """Principal components for images of several classes."""
    labels = read.labels.numpy()
    rows = few_shot(labels, -(-_SHOWN // len(np.unique(labels))), seed=0)[:_SHOWN]
    with torch.no_grad():
        features = extractor(read.images[rows].to(device), read.ids[rows])
    path = folder / "components.png"
    draw_feature_maps(read.images[rows], {key: maps.float().cpu() for key, maps in features.items()}, path)
    caption = "The first three principal components of each block's maps as red, green and blue."
    return Section("Principal components", [Picture(path, "Principal components by block and timestep", caption)])


def _neighbours_section(
    vectors: Tensor, read: Batch, best: FeatureKey, names: Sequence[str], recipe: LookRecipe, folder: Path
) -> Section:
    """For some images, evenly spaced, those that are most like them."""
    neighbours = nearest_images(vectors, min(_NEIGHBOURS, len(vectors) - 1))
    blocks: list[Block] = [Paragraph(f"By {best.tap} at t = {best.t}: an image, then the images most like it.")]
    number = 0
    for query in evenly_spaced(len(vectors), recipe.queries):
        items = []
        for row in (query, *neighbours[query].tolist()):
            path = folder / f"image-{number:03}.png"
            draw_grid(read.images[row][None], path, columns=1)
            same = bool(read.labels[row] == read.labels[query])
            mark = None if row == query else ("right" if same else "wrong")
            items.append(GalleryItem(path, f"image {int(read.ids[row])}", names[int(read.labels[row])], mark))  # type: ignore[arg-type]
            number += 1
        blocks.append(Gallery(items))
    return Section("Nearest neighbours", blocks)


def _map_section(
    vectors: Tensor, read: Batch, best: FeatureKey, names: Sequence[str], recipe: LookRecipe, folder: Path
) -> Section:
    points = np.asarray(_projector(recipe, len(vectors)).fit_transform(vectors.double().numpy()))
    path = folder / "map.png"
    draw_scatter(points, read.labels.numpy(), names, path)
    title = {"tsne": "t-SNE", "umap": "UMAP"}[recipe.projection]
    caption = f"{title} of {best.tap} at t = {best.t}; distances far apart mean little."
    return Section("A map", [Picture(path, f"{title} of all images, coloured by class", caption)])


def _projector(recipe: LookRecipe, count: int) -> Any:
    """Something with `fit_transform` for so many images; raises ImportError when its library is missing."""
    if recipe.projection == "umap":
        return require("umap", "projection: umap", install="umap-learn").UMAP(random_state=recipe.seed)
    tsne = require("sklearn.manifold", "projection: tsne", install="scikit-learn").TSNE
    return tsne(random_state=recipe.seed, init="pca", perplexity=min(30.0, max(1.0, count / 10)))
