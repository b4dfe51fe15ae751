"""Processes, folders of runs and results, reading data, passing it through models."""
