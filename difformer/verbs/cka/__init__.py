"""How alike representations are: blocks, timesteps, other weights and other models."""
