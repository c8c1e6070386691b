"""Define a stage, the table of the five stages, their processes, stop requests and heartbeats."""
