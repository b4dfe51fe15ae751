"""Choosing blocks and timesteps at a fraction of a sweep's cost."""
