"""Time and memory that a run needs, known before it starts."""
