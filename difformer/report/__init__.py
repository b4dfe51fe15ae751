"""Pictures and pages of results."""

from difformer.report.curves import draw_curves

__all__ = ["draw_curves"]
