"""Metrics of predictions: accuracy, accuracy per class, calibration, and mistakes."""
