"""The training loop and what it stands on: processes, optimizer, growth, checkpoints, history."""
