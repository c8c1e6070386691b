"""Run commands on a SLURM cluster so that no work is lost; usable without the other packages."""
