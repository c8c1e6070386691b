"""Loaders: the same images in the same order, read by DALI, by torch or from memory."""
