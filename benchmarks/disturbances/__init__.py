"""Jobs on a real SLURM, disturbed at random; each must end as if nothing had happened."""
