"""How well images are generated: distances to real ones in a named feature space."""
