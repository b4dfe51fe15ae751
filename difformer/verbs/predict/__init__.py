"""Predictions for a folder of images."""
