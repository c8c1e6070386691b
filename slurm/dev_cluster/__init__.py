"""Run a real SLURM cluster on this one machine, for trying and testing."""
