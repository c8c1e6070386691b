"""Execute a plan: stages on this machine or as SLURM jobs, and the processes of a stage."""
