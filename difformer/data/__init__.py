"""Images: reading, preprocessing and their stable numbers."""

from difformer.data.images import IMAGE_SUFFIXES, ImageError, Preprocessing, content_id, read_image

__all__ = ["IMAGE_SUFFIXES", "ImageError", "Preprocessing", "content_id", "read_image"]
