"""How fast features, training and cached training are, beside the way people do it without this package."""
