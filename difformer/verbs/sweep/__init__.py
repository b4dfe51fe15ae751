"""Which block, timestep and pooling: probes of all of them, from one pass a timestep."""
