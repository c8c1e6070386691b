"""Compute metrics of predictions: accuracy, accuracy per class, calibration, and mistakes."""
