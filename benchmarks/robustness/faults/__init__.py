"""Test how a run survives faults of disks and processes; see `__main__`."""
