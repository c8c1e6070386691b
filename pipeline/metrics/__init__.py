"""Judging predictions: how often right, for which classes, how sure, and what is mistaken."""
