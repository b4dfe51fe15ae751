"""Features written to the disk before training."""
