"""Projections of features to the plane."""

from logging import getLogger
from typing import Any

from difformer._optional import require
from difformer.verbs.look.recipe import LookRecipe

TITLES = {"auto": "t-SNE", "tsne": "t-SNE", "umap": "UMAP"}

_log = getLogger(__name__)


def check_projection(recipe: LookRecipe) -> None:
    """Checks before long work that the library of a projection is installed; for `auto`, a missing one gives a warning.

    Raises:
        ImportError: the library of the requested projection is missing.
    """
    if recipe.projection == "none":
        return
    try:
        create_projector(recipe, recipe.images)
    except ImportError as error:
        if recipe.projection != "auto":
            raise
        _log.warning("the page will have no map of the images: %s", error)


def create_projector(recipe: LookRecipe, count: int) -> Any:
    """Something with `fit_transform` from (N, D) to (N, 2).

    Args:
        recipe: with any projection but none.
        count: N, which the perplexity depends on.

    Raises:
        ImportError: its library is missing.
    """
    if recipe.projection == "umap":
        return require("umap", "projection: umap", install="umap-learn").UMAP(random_state=recipe.seed)
    tsne = require("sklearn.manifold", "a map by t-SNE", install="scikit-learn").TSNE
    return tsne(random_state=recipe.seed, init="pca", perplexity=min(30.0, max(1.0, count / 10)))
