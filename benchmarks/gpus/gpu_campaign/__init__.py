"""Hold the sections of the GPU campaign (`benchmarks.gpu`), and their common modules."""
