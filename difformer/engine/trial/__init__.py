"""Trying recipes out: stand-in data, costs, dry runs."""
