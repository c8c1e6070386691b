"""Run commands on a SLURM cluster so that nothing is lost; stands on its own."""
