"""Probes of every block, timestep and pooling, from one pass for each timestep."""
