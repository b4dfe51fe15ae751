"""Many data sets, heads and seeds in one suite."""
