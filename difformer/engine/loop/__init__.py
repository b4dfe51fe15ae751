"""The training loop and the course of a run, whatever is trained."""
