"""What runs are made of, and how they are read from YAML and options."""
