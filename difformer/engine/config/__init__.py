"""What runs are made of: recipes from YAML and options, and the parts they name."""
