"""Pictures and pages of results."""

from difformer.report.confusion import draw_confusion
from difformer.report.curves import draw_curves

__all__ = ["draw_confusion", "draw_curves"]
