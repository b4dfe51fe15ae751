"""Features written to the disk beforehand."""
