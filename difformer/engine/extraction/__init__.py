"""Features on the disk: what is wanted, and its extraction."""
