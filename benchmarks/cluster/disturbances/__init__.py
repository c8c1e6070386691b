"""Disturb jobs on a real SLURM at random; each must end as if nothing had happened."""
