"""Time networks: the variants, the measurement, and what disturbed it."""
