"""Hold the sections of the GPU campaign (`benchmarks/gpu.py`), and their common modules."""
