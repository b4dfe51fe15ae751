"""Processes, folders of runs and results, data loading, running models on data."""
