"""Training of denoisers."""
