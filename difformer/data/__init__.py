"""Images: reading, preprocessing and their stable numbers."""

from difformer.data.images import ImageError, Preprocessing, as_rgb, content_id, read_image

__all__ = ["ImageError", "Preprocessing", "as_rgb", "content_id", "read_image"]
