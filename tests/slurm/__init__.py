"""A real Slurm on loopback."""
