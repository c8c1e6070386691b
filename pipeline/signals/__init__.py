"""Signals between a stage's processes and their parent: requests to stop, and signs of life."""
