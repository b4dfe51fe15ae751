"""How similar representations are: blocks, timesteps, other weights and other models."""
