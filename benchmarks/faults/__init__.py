"""Faults of disks and processes, and how a run bears them; see `__main__`."""
