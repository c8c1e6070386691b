"""The sections of the GPU campaign (`benchmarks/gpu.py`), and what they share."""
