"""Looking at features: principal components, neighbours, maps of all images."""
