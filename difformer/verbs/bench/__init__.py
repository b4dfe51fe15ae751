"""How fast features, training and cached training are, compared with the usual way without this package."""
