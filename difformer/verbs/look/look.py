"""A page about what blocks see; the body of `difformer look`."""

import torch
from torch import Tensor
from tqdm import tqdm

from difformer.analysis.retrieval import precision_at_k
from difformer.config.reading import dump
from difformer.data import Batch, ImageDataset
from difformer.data.subset import evenly_spaced
from difformer.engine.config.build import build_backbone, build_dataset
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.runtime.batches import create_loader
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.features import FeatureExtractor
from difformer.features.conditioning import check_conditioning, warn_of_labels
from difformer.features.pooling import DiffusionBlocks
from difformer.report import write_page
from difformer.taps import FeatureKey
from difformer.verbs.look.projection import check_projection
from difformer.verbs.look.recipe import LookRecipe
from difformer.verbs.look.sections import components_section, map_section, neighbours_section, precision_section

PAGE = "look.html"
_FILES = (PAGE, "precision.json", "recipe.yaml", "precision.png", "components.png", "map.png", "image-*.png")


def look(recipe: LookRecipe, *, overwrite: bool = False) -> dict[FeatureKey, dict[int, float]]:
    """Measures retrieval for every block and timestep, and writes a page with components, neighbours and a map.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        Precision at each k, by feature.

    Raises:
        ValueError: a value in the recipe or in the data, or several processes.
        OSError: something cannot be read or written.
        ImportError: the library of the requested projection is missing.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    check_projection(recipe)
    accelerator = create_accelerator(recipe.precision)
    if accelerator.num_processes > 1:
        raise ValueError("features are looked at in one process; run `difformer look` without accelerate launch")
    images = build_dataset(recipe.data, recipe.split)
    places = _places(recipe, len(images))
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    taps = recipe.taps or tuple(backbone.taps)[::3]
    conditioning, size = recipe.extractor.conditioning, recipe.data.size
    check_conditioning(conditioning, backbone, len(images.class_names))
    warn_of_labels(conditioning)
    blocks = DiffusionBlocks(backbone, taps, recipe.timesteps, recipe.seed, recipe.pool, size, conditioning)
    read, vectors = _read(recipe, images, places, blocks, accelerator.device)
    precision = {key: precision_at_k(vectors[key], read.labels, recipe.ks) for key in blocks.keys}
    best = max(precision, key=lambda key: precision[key][max(recipe.ks)])
    with folder.write() as temporary:
        extractor = FeatureExtractor(
            backbone, taps=taps, timesteps=recipe.timesteps, seed=recipe.seed, conditioning=conditioning
        )
        sections = [
            precision_section(precision, recipe, best, temporary),
            components_section(extractor, read, temporary, accelerator.device),
            neighbours_section(vectors, read, images.class_names, recipe, temporary),
        ]
        if recipe.projection != "none":
            sections.append(map_section(vectors[best], read, best, images.class_names, recipe, temporary))
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
    """Positions of the images to look at; raises ValueError when there are too few for the requested neighbours."""
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
    for batch in tqdm(loader, total=len(batches), unit="batch"):
        if batch is not None:
            with torch.no_grad():
                found = blocks.read(batch.images.to(device), batch.ids, batch.labels)
            parts.append({name: vector.cpu() for name, vector in found.items()})
            read.append(batch)
    if not read:
        raise ValueError("none of the images can be read")
    whole = Batch(*(torch.cat([getattr(b, name) for b in read]) for name in ("images", "labels", "ids")))
    named = zip(blocks.keys, blocks.names, strict=True)
    return whole, {key: torch.cat([part[name] for part in parts]) for key, name in named}
