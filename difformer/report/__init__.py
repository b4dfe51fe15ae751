"""Pictures and pages of results."""

from difformer.report.attention import draw_attention
from difformer.report.confusion import draw_confusion
from difformer.report.curves import draw_curves
from difformer.report.feature_maps import draw_feature_maps
from difformer.report.grids import draw_grid
from difformer.report.learning import draw_learning
from difformer.report.page import (
    Block,
    Code,
    Gallery,
    GalleryItem,
    Paragraph,
    Picture,
    Row,
    Section,
    Table,
    write_page,
)

__all__ = [
    "Block",
    "Code",
    "Gallery",
    "GalleryItem",
    "Paragraph",
    "Picture",
    "Row",
    "Section",
    "Table",
    "draw_attention",
    "draw_confusion",
    "draw_curves",
    "draw_feature_maps",
    "draw_grid",
    "draw_learning",
    "write_page",
]
