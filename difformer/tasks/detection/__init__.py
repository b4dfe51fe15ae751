"""Detection of objects: its task, what is kept of an image, tables and pictures."""
