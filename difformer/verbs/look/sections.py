"""The sections of a page about features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difformer.analysis.retrieval import nearest_images
from difformer.data import Batch, few_shot
from difformer.data.subset import evenly_spaced
from difformer.features import FeatureExtractor
from difformer.report import Paragraph, Picture, Row, Section, Table
from difformer.report.feature_maps import draw_feature_maps
from difformer.report.heat_maps import draw_heat_maps
from difformer.report.neighbours import draw_neighbours
from difformer.report.page import percent
from difformer.report.scatter import draw_scatter
from difformer.taps import FeatureKey
from difformer.verbs.look.projection import TITLES, create_projector
from difformer.verbs.look.recipe import LookRecipe

_NEIGHBOURS = 5
_SHOWN = 4


def precision_section(
    precision: Mapping[FeatureKey, Mapping[int, float]], recipe: LookRecipe, best: FeatureKey, folder: Path
) -> Section:
    """Retrieval by block and timestep: at the largest k as a picture, at each k as a table.

    Args:
        precision: in [0, 1] by feature and k.
        recipe: with the ks.
        best: the feature that is emphasised.
        folder: for the picture.
    """
    path, title = folder / "precision.png", f"Precision at {max(recipe.ks)}"
    shares = {(key.tap, key.t): found[max(recipe.ks)] for key, found in precision.items()}
    draw_heat_maps({title: shares}, path, label="Precision, %", chosen=(title, best.tap, best.t))
    rows = [[key.tap, str(key.t), *(percent(precision[key][k]) for k in recipe.ks)] for key in precision]
    note = (
        f"Share of the k nearest other images, by the cosine of features averaged to {recipe.pool} × {recipe.pool}, "
        f"that are of the same class, in %. The best at {max(recipe.ks)} is highlighted. It was chosen on these images "
        f"of {recipe.split}; other images may give another choice."
    )
    header = ("Block", "Timestep", *(f"Precision at {k}" for k in recipe.ks))
    table = Table(header, rows, note=note, highlight=list(precision).index(best))
    return Section("Retrieval", [Picture(path, f"{title} by block and timestep"), table])


def components_section(extractor: FeatureExtractor, read: Batch, folder: Path, device: torch.device) -> Section:
    """Principal components for images of several classes.

    Args:
        extractor: on the device.
        read: the images.
        folder: for the picture.
        device: of the network.
    """
    labels = read.labels.numpy()
    rows = few_shot(labels, -(-_SHOWN // len(np.unique(labels))), seed=0)[:_SHOWN]
    with torch.no_grad():
        given = extractor.conditioning.by_label(read.labels[rows])
        features = extractor(read.images[rows].to(device), read.ids[rows], **given)
    path = folder / "components.png"
    draw_feature_maps(read.images[rows], {key: maps.float().cpu() for key, maps in features.items()}, path)
    caption = "The first three principal components of each block's maps as red, green and blue."
    return Section("Principal components", [Picture(path, "Principal components by block and timestep", caption)])


def neighbours_section(
    vectors: Mapping[FeatureKey, Tensor], read: Batch, names: Sequence[str], recipe: LookRecipe, folder: Path
) -> Section:
    """For some images, evenly spaced, the images most similar to them, by every block and timestep.

    Args:
        vectors: (N, D) by feature.
        read: the N images.
        names: of the classes.
        recipe: with the number of images whose neighbours are shown.
        folder: for the pictures.
    """
    count = len(read.ids)
    nearest = {key: nearest_images(own, min(_NEIGHBOURS, count - 1)) for key, own in vectors.items()}
    pictures = []
    for number, query in enumerate(evenly_spaced(count, recipe.queries)):
        path = folder / f"image-{number:03}.png"
        draw_neighbours(read.images, read.labels, query, {k: own[query].tolist() for k, own in nearest.items()}, path)
        title = f"image {int(read.ids[query])}"
        pictures.append(Picture(path, f"Nearest neighbours of {title}", f"{title}, {names[int(read.labels[query])]}"))
    words = (
        "An image, then the images most similar to it, by every block and timestep: of the same class in a green "
        "frame, of another in a red one."
    )
    return Section("Nearest neighbours", [Paragraph(words), Row(pictures)])


def map_section(
    vectors: Tensor, read: Batch, best: FeatureKey, names: Sequence[str], recipe: LookRecipe, folder: Path
) -> Section:
    """All images as points in the plane, or what must be installed for it.

    Args:
        vectors: (N, D) of the best feature.
        read: the N images.
        best: the feature.
        names: of the classes.
        recipe: with any projection but none.
        folder: for the picture.
    """
    try:
        projector = create_projector(recipe, len(vectors))
    except ImportError as error:
        return Section("A map", [Paragraph(f"There is no map of the images: {error}.")])
    points = np.asarray(projector.fit_transform(vectors.double().numpy()))
    path, title = folder / "map.png", TITLES[recipe.projection]
    draw_scatter(points, read.labels.numpy(), names, path)
    caption = f"{title} of {best.tap} at t = {best.t}; distances far apart mean little."
    return Section("A map", [Picture(path, f"{title} of all images, coloured by class", caption)])
