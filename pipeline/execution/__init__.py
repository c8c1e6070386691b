"""Making a plan happen: stages on this machine or as SLURM jobs, and the processes of each."""
