"""Between a stage's processes and their parent: stop requests and heartbeats."""
