"""Recipes from YAML files and options, and the parts that they name."""
