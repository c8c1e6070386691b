"""What a stage is, and the table of the five; its processes, and how they are asked to stop."""
